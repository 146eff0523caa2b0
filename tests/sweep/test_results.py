"""Committed results match the sweeps of the library: arms, metrics, comparisons and verdicts."""

import csv
from dataclasses import fields, replace
from pathlib import Path

import pytest

from lit_illada.commands.sweep import expanded
from lit_illada.errors import UserError
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.sweep.folder import PlannedRun, RunState, SweepFolder
from lit_illada.sweep.library import read_spec
from lit_illada.sweep.published import Published, published
from lit_illada.sweep.report.collect import Provenance, RunRecord, Sweep
from lit_illada.sweep.report.findings import find

RESULTS = sweeps_dir() / "results"
NOT_FIGURES = {"run", "stage", "arms", "seed", "state", "parent", "config", "commit", "data_sha256", "checkpoint"}
SWEEPS = [each.path.name for each in published(RESULTS)]
MEASURED = sorted(file.parent for file in RESULTS.glob("*/answers.csv"))
LOOPS = ["loop_causes", "loop_mitigation", "loop_reproduce"]


def rows(file):
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def spec_of(name):
    """The committed spec; older results have none, are of the small scales, and came before contrasts were planned."""
    if (RESULTS / name / "sweep.yaml").is_file():
        return read_spec(str(RESULTS / name))
    scale = "+scale=loops" if name in LOOPS else "+scale=nano"
    return replace(read_spec(name, [scale]), primary_contrasts=[])


@pytest.mark.parametrize("each", published(RESULTS), ids=lambda each: each.path.name)
def test_results_state_their_commit(each):
    commits = {commit for row in rows(each.path / "runs.csv") for commit in row["commit"].split()}
    assert set(each.status.commits) == commits
    assert each.status.is_clean != any(commit.endswith("-dirty") for commit in commits)
    if each.status.superseded is None:
        assert len(commits) == 1
        assert each.status.is_clean
        assert each.sweep.read_spec().name == each.path.name


@pytest.mark.parametrize("name", SWEEPS)
def test_results_have_the_arms_and_metrics_of_the_sweep(name):
    spec, found = spec_of(name), rows(RESULTS / name / "arms.csv")
    assert {row["arm"] for row in found} == {arm.name for arm in spec.all_arms()}
    assert {row["metric"] for row in found} == {metric.name for metric in spec.metrics}
    assert {row["is_preliminary"] for row in found} == {"false"}
    assert name in (sweeps_dir() / "LOG.md").read_text(encoding="utf-8")


def sweep_of(name):
    """The sweep as recorded in its committed runs.csv, without curves."""
    spec = spec_of(name)
    records = []
    for row in rows(RESULTS / name / "runs.csv"):
        planned = {field.name: None for field in fields(PlannedRun)}
        planned |= {"id": row["run"], "stage": row["stage"], "arms": row["arms"].split("; ")}
        run = PlannedRun(**{**planned, "seed": int(row["seed"]) if row["seed"] else None})
        figures = {key: float(value) for key, value in row.items() if key not in NOT_FIGURES and value}
        origin = Provenance(Path(row["config"]), [], [], None, None)
        records.append(RunRecord(run, RunState(row["state"]), Path(name), figures, {}, origin))
    return Sweep(SweepFolder(Path(name)), spec, records)


@pytest.mark.parametrize("name", SWEEPS)
def test_committed_verdicts_follow_from_committed_runs(name):
    """Today's statistics on the committed metrics of each run give the committed verdicts."""
    sweep = sweep_of(name)
    committed = {(row["metric"], row["arm"]): row for row in rows(RESULTS / name / "arms.csv")}
    for metric in sweep.spec.metrics:
        for arm in find(sweep, metric).arms:
            row = committed.pop((metric.name, arm.arm))
            comparison = arm.comparison
            assert row["verdict"] == arm.verdict
            assert float(row["mean"]) == pytest.approx(arm.estimate.mean)
            assert row["finding"] == (comparison.finding if comparison else "baseline")
            if comparison and comparison.p_holm is not None:
                assert float(row["p_holm"]) == pytest.approx(comparison.p_holm)
    assert not committed


@pytest.mark.slow  # composes the configs of all their runs
@pytest.mark.parametrize(
    "each", [e for e in published(RESULTS) if e.status.superseded is None], ids=lambda e: e.path.name
)
def test_current_results_can_be_planned_again(each):
    """With today's keys and files; only a checkpoint to start from may be absent."""
    refusal = ""
    try:
        expanded(each.sweep.read_spec(), each.sweep)
    except UserError as error:
        refusal = str(error)
    assert not refusal or "no such checkpoint" in refusal


@pytest.mark.parametrize("name", LOOPS)
def test_loop_effects_have_the_comparisons_and_seeds_of_the_sweep(name):
    spec, found = read_spec(name), rows(RESULTS / name / "effects.csv")
    pairs = [row for row in found if row["compared"] == "the same problems"]
    assert [(row["first"], row["second"]) for row in pairs] == spec.comparisons()
    assert {len(row["each_seed"].split()) for row in found} == {len(spec.seeds)}


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/loop_effects.csv")), ids=lambda file: file.parent.name)
def test_loop_effects_on_a_real_model_have_the_comparisons_of_the_sweep(file):
    pairs = [(row["first"], row["second"]) for row in rows(file) if row["compared"] == "the same problems"]
    assert pairs == read_spec(str(file.parent)).comparisons()


@pytest.mark.parametrize("file", sorted(RESULTS.rglob("*.csv")), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_results_contain_no_absolute_path(file):
    assert not any(value.startswith(str(Path("/"))) for row in rows(file) for value in row.values() if value)


@pytest.mark.parametrize("folder", MEASURED, ids=lambda folder: folder.name)
def test_a_measurement_states_its_clean_commit_and_command(folder):
    status = Published(folder).status
    assert status.is_clean
    assert len(status.commits) == 1
    assert status.command.startswith("lit-illada bench answers ")
    assert status.command.endswith(f" --out {folder.name}")
    assert folder.name in (sweeps_dir() / "LOG.md").read_text(encoding="utf-8")


def test_every_folder_of_results_is_of_a_sweep_or_a_measurement():
    assert {path.name for path in RESULTS.iterdir()} == {*SWEEPS, *(folder.name for folder in MEASURED)}

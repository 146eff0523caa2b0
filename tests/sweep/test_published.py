"""Publishing results, and checking that the current code gives them."""

import csv
import json
import shutil

import pytest
import yaml
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.commands import sweep_check
from lit_illada.commands.sweep import SweepOutcome
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.sweep.folder import RunState, SweepFolder
from lit_illada.sweep.progress import RunStatus

COMMIT = "c0ffee" * 6 + "beef"


def sweep(*arguments):
    result = CliRunner().invoke(main, ["sweep", *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def finished(tiny_sweep, tmp_path):
    """A finished sweep of two arms whose runs name a clean commit."""
    folder = SweepFolder(tmp_path / "sweep")
    status, output = sweep("run", tiny_sweep(noise_floor={"replicates": 1}), "--folder", folder.path, "--workers", 1)
    assert status == 0, output
    for run in folder.read_plan():
        file = folder.run_folder(run).path / "provenance.jsonl"
        file.write_text(json.dumps({**json.loads(file.read_text()), "commit": COMMIT}) + "\n")
    return folder


def rewrite(file, change):
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(change(row) for row in rows)


@pytest.mark.slow
def test_check_finds_a_figure_that_the_code_does_not_give(finished, tmp_path):
    results = tmp_path / "results"
    status, output = sweep("publish", finished.path, "--results", results)
    assert status == 0, output
    published = results / "tiny"
    names = {path.name for path in published.iterdir()}
    assert {"arms.csv", "effects.csv", "runs.csv", "status.yaml", "sweep.yaml"} <= names
    assert not names & {"index.html", "curves.parquet"}

    status, output = sweep("check", results, "--workers", 1)
    assert status == 0, output
    assert "tiny commit c0ffeec0, clean; agrees: pretrain-slow-s0 val/nll_bound" in output

    rewrite(published / "runs.csv", lambda row: {**row, "val/nll_bound": float(row["val/nll_bound"]) + 0.1})
    status, output = sweep("check", results, "--workers", 1)
    assert status == 1
    assert "DIFFERS: pretrain-slow-s0" in output

    file = published / "status.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "superseded": "a test"}))
    status, output = sweep("check", results)
    assert status == 0
    assert "clean; superseded, not checked: a test" in output


def published_spec(folder, runs_of):
    """Publishes a sweep, and returns a function that rewrites its spec with other overrides and settings."""
    status, output = sweep("publish", runs_of(COMMIT).path, "--results", folder / "results")
    assert status == 0, output
    file = folder / "results" / "made_up" / "sweep.yaml"
    tree = yaml.safe_load(file.read_text())

    def change(overrides, **settings):
        tree["stages"][0]["overrides"] = overrides
        file.write_text(yaml.safe_dump({**tree, **settings}))

    return change


def test_results_whose_files_are_absent_here_are_named_and_not_repeated(tmp_path, runs_of):
    change = published_spec(tmp_path, runs_of)
    change(["init_from=nowhere"])
    status, output = sweep("check", tmp_path / "results")
    assert status == 0, output
    assert "made_up commit c0ffeec0, clean; not repeated here: arm 'a', stage 'pretrain': nowhere: no such" in output


def test_results_that_the_code_cannot_plan_any_more_fail_the_check(tmp_path, runs_of):
    change = published_spec(tmp_path, runs_of)
    change(["model.num_layers=3"])
    status, output = sweep("check", tmp_path / "results")
    assert status == 1, output
    assert "cannot be repeated: arm 'a', stage 'pretrain': unknown config key" in output
    change(["model.num_layers=3"], no_such_setting=1)
    status, output = sweep("check", tmp_path / "results")
    assert status == 1, output
    assert "cannot be repeated: unknown config key 'no_such_setting'" in output


def test_results_whose_training_data_are_absent_here_are_not_repeated(tmp_path, runs_of):
    change = published_spec(tmp_path, runs_of)
    for data in (["data=prepared"], ["data=text", f"data.source.paths=[{tmp_path}/nowhere.txt]"]):
        change(["model=pico", *data, f"data.dir={tmp_path}/data"])
        status, output = sweep("check", tmp_path / "results")
        assert status == 0, output
        assert "made_up commit c0ffeec0, clean; not repeated here" in output


def test_ctrl_c_ends_the_check(tmp_path, runs_of, monkeypatch):
    for name in ("made_up", "second"):
        folder = runs_of(COMMIT)
        folder.spec.write_text(folder.spec.read_text().replace("name: made_up", f"name: {name}"))
        assert sweep("publish", folder.path, "--results", tmp_path / "results")[0] == 0
    started = []

    def stopped(spec, folder, runs, workers):
        started.append(spec.name)
        return SweepOutcome(folder, [RunStatus(runs[-1], RunState.INTERRUPTED)], 1, was_stopped=True)

    monkeypatch.setattr(sweep_check, "run_all", stopped)
    monkeypatch.setattr(sweep_check, "data_configs", lambda runs: [])
    assert sweep("check", tmp_path / "results")[0] == 130
    assert started == ["made_up"]


def test_committed_results_that_are_superseded_are_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without converted checkpoints, whose sweeps take long
    # only those that are not trained again, which takes minutes for the others: `make check-results`
    results = tmp_path / "results"
    for name in ("loop_reproduce", "mask_draw", "real_loops"):
        shutil.copytree(sweeps_dir() / "results" / name, results / name, ignore=shutil.ignore_patterns("*.png"))
    status, output = sweep("check", results)
    assert status == 0, output
    assert "real_loops commit e6b7a8c1, clean; not repeated here" in output
    assert "mask_draw commit 456ae05c, clean; superseded, not checked" in output
    assert "loop_reproduce commit da8e4ba2, with uncommitted changes; superseded, not checked" in output


@pytest.fixture
def runs_of(tmp_path, planned):
    """A finished sweep without training; commits: of its runs."""

    def runs_of(*commits):
        from_conftest = planned("a", num_steps=1)
        folder = SweepFolder(tmp_path / "sweep")
        shutil.rmtree(folder.path, ignore_errors=True)
        tree = {"question": "?", "name": "made_up", "baseline": "a", "scale": None, "seeds": [0]}
        tree |= {"metrics": [{"name": "score", "stage": "pretrain"}], "arms": [{"name": "a"}]}
        tree["stages"] = [{"name": "pretrain", "command": "pretrain"}]
        folder.runs.mkdir(parents=True)
        folder.spec.write_text(yaml.safe_dump(tree))
        spec = folder.read_spec()
        folder.write(spec, [from_conftest])
        path = folder.run_folder(from_conftest).path
        path.mkdir()
        path.joinpath("provenance.jsonl").write_text("".join(json.dumps({"commit": c}) + "\n" for c in commits))
        path.joinpath("summary.json").write_text(json.dumps({"end": {"score": 1.0, "step": 1}}))
        path.joinpath("done.json").write_text(json.dumps({"elapsed_s": 1.0, "max_rss_bytes": 1.0}))
        return folder

    return runs_of


def test_results_of_one_clean_commit_are_published_once(runs_of, tmp_path):
    folder = runs_of(COMMIT, COMMIT)
    (folder.path / "loops").mkdir()
    (folder.path / "loops" / "effects.csv").write_text("first,second\na,b\n")
    for status, message in ((0, "results"), (1, "holds results already")):
        seen, output = sweep("publish", folder.path, "--results", tmp_path / "results")
        assert seen == status, output
        assert message in output
    assert (tmp_path / "results" / "made_up" / "loop_effects.csv").read_text() == "first,second\na,b\n"
    written = yaml.safe_load((tmp_path / "results" / "made_up" / "status.yaml").read_text())
    assert written == {"commits": [COMMIT], "is_clean": True, "superseded": None, "command": None}


@pytest.mark.parametrize("commits", [[f"{COMMIT}-dirty"], [COMMIT, "beef" * 10], []])
def test_results_of_other_commits_are_refused(runs_of, tmp_path, commits):
    status, output = sweep("publish", runs_of(*commits).path, "--results", tmp_path / "results")
    assert status == 1
    assert "one commit without uncommitted changes" in output


def test_unfinished_sweep_is_refused(runs_of, tmp_path):
    folder = runs_of(COMMIT)
    folder.run_folder(folder.read_plan()[0]).done.unlink()
    status, output = sweep("publish", folder.path, "--results", tmp_path / "results")
    assert status == 1
    assert "1 runs have not finished (a)" in output


def test_a_sweep_that_has_not_chosen_its_values_or_lacks_an_arm_is_refused(runs_of, tmp_path):
    """While it tunes, its plan holds the tuning runs only, all of which may have finished."""
    folder = runs_of(COMMIT)
    tree = yaml.safe_load(folder.spec.read_text())
    tune = {"key": "optim.optimizer.learning_rate", "values": [0.1, 0.2], "seeds": [100]}
    changes = {
        "optim.optimizer.learning_rate is not chosen yet": {"tune": tune},
        "the plan has no run of b": {"arms": [*tree["arms"], {"name": "b"}]},
    }
    for message, change in changes.items():
        folder.spec.write_text(yaml.safe_dump({**tree, **change}))
        status, output = sweep("publish", folder.path, "--results", tmp_path / "results")
        assert status == 1, output
        assert message in output
    assert not (tmp_path / "results").exists()

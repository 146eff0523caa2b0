"""Tuning runs and rounding replicates: their plan, the choice, and a sweep that has both."""

import csv
import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.commands import sweep as sweep_command
from lit_illada.commands.sweep import SweepOutcome, plan_sweep
from lit_illada.errors import UserError
from lit_illada.sweep.attempt import record_failure
from lit_illada.sweep.folder import RunState, SweepFolder
from lit_illada.sweep.library import read_spec
from lit_illada.sweep.plan import Costs, expand
from lit_illada.sweep.progress import RunStatus
from lit_illada.sweep.report.collect import collect
from lit_illada.sweep.report.tables import tuning_rows
from lit_illada.sweep.spec import Arm, Command, Goal, Metric, NoiseFloor, Stage, SweepSpec, Tuning
from lit_illada.sweep.spec_check import check
from lit_illada.sweep.variants import at_end, choose, read_choice, tuning_means, tuning_runs, write_choice

TUNE = Tuning("p", [1.0, 2.0, 4.0], seeds=[100, 101])
TRAINER = {"max_steps": 100, "batch_rows": 4, "micro_batch_rows": 4, "val_every_steps": 1}
COSTS = Costs(lambda tree: 1.0, lambda tree: (1.0, 1.0))


def resolve(command, overrides, parent, settle):
    """A small config system: numbers only."""
    tree = {"seed": 0, "p": 0, "q": 0, "model": {}, "data": {"row_length": 32}, "trainer": dict(TRAINER)}
    for key, value in [*(each.split("=") for each in overrides), *settle(tree).items()]:
        node = tree
        for name in key.split(".")[:-1]:
            node = node[name]
        node[key.split(".")[-1]] = float(value)
    return tree


def two_arms(**changes):
    values = {
        "question": "?",
        "baseline": "a",
        "metrics": [Metric("score", "pretrain")],
        "stages": [Stage("pretrain", Command.PRETRAIN)],
        "arms": [Arm("a"), Arm("b", overrides={"pretrain": ["q=1"]})],
        "seeds": [0],
    }
    return SweepSpec(**{**values, **changes})


def sweep(*arguments):
    result = CliRunner().invoke(main, ["sweep", *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, " ".join(result.output.split())


def ends(folder):
    """Final metrics of each run, all of which must have finished."""
    runs = folder.read_plan()
    assert [folder.state_of(run) for run in runs] == [RunState.FINISHED] * len(runs)
    return {run.id: json.loads(folder.run_folder(run).summary.read_text())["end"] for run in runs}


def test_every_arm_is_tuned_at_seeds_of_its_own():
    made = two_arms(tune=TUNE, seeds=[0, 1])
    runs = expand(made, resolve, COSTS)
    tuning = tuning_runs(made, runs)
    assert {(run.arms[0], run.seed, run.config["p"]) for run in tuning} == {
        (f"{name}, p={value:g}", seed, value) for name in "ab" for seed in (100, 101) for value in (1, 2, 4)
    }
    assert runs[: len(tuning)] == tuning
    assert [(run.id, run.config["p"]) for run in runs[len(tuning) :]] == [
        ("pretrain-a-s0", 2), ("pretrain-b-s0", 2), ("pretrain-a-s1", 2), ("pretrain-b-s1", 2)
    ]  # fmt: skip


def test_arms_run_with_the_chosen_value():
    made = two_arms(tune=TUNE)
    runs = expand(made, resolve, COSTS, chosen={"a": 4.0, "b": 1.0})
    assert [(run.id, run.config["p"]) for run in runs[-2:]] == [("pretrain-a-s0", 4), ("pretrain-b-s0", 1)]


def test_choice_is_the_best_finite_mean_and_ends_are_reported(tmp_path):
    made = two_arms(tune=TUNE)
    means = {"a": {1.0: 5.0, 2.0: 4.0, 4.0: float("nan")}, "b": {1.0: 3.0, 2.0: 3.5, 4.0: 3.2}}
    assert choose(made, means) == {"a": 2.0, "b": 1.0}
    assert at_end(made, choose(made, means)) == ["b"]
    folder = SweepFolder(tmp_path)
    assert read_choice(folder, made) is None
    assert write_choice(made, folder, means) == read_choice(folder, made)
    # a choice among other values, or for other arms, is not used
    assert read_choice(folder, replace(made, tune=replace(TUNE, values=[1.0, 2.0]))) is None
    assert read_choice(folder, replace(made, arms=[*made.arms, Arm("c")])) is None
    with pytest.raises(
        UserError, match=r"arm 'a': at no value of tune.values \(1, 2, 4\) have the runs of all tune.seeds"
    ):
        choose(made, {"a": {1.0: float("inf")}})


def finish(folder, run, end):
    """Write the files of a finished run."""
    path = folder.run_folder(run).path
    path.mkdir(parents=True, exist_ok=True)
    path.joinpath("summary.json").write_text(json.dumps({"end": end}))
    path.joinpath("done.json").write_text(json.dumps({"elapsed_s": 1.0, "max_rss_bytes": 1.0}))


def test_only_values_whose_seeds_have_all_finished_are_compared(tmp_path):
    """At p=2, the best seed has finished and the other has not; the report counts the seeds that have."""
    made, folder = two_arms(tune=TUNE), SweepFolder(tmp_path)
    runs = tuning_runs(made, expand(made, resolve, COSTS))
    folder.write(made, runs)
    for run in runs:
        if (run.config["p"], run.seed) not in {(2.0, 101), (4.0, 100), (4.0, 101)}:
            finish(folder, run, {"score": 1.0 if run.config["p"] == 2 else 3.0 + run.seed - 100})
    assert tuning_means(made, folder, runs) == {"a": {1.0: 3.5}, "b": {1.0: 3.5}}
    rows = tuning_rows(collect(folder.path))
    assert [(row["arm"], row["value"], row["mean"], row["num_seeds"]) for row in rows] == [
        ("a", 1.0, 3.5, 2), ("a", 2.0, 1.0, 1), ("b", 1.0, 3.5, 2), ("b", 2.0, 1.0, 1)
    ]  # fmt: skip


@pytest.fixture
def outcomes(monkeypatch):
    """Replace the execution of runs: those for which `fails` holds fail. Returns the ids of each execution."""
    executions = []

    def replace_execution(fails, metric):
        def run_all(spec, folder, runs, workers):
            folder.write(spec, runs)
            executions.append([run.id for run in runs])
            failed = [run for run in runs if fails(run)]
            for run in runs:
                if run not in failed:
                    finish(folder, run, {metric: 4.0 + run.config["optim"]["optimizer"]["learning_rate"]})
            states = [RunState.FAILED if run in failed else RunState.FINISHED for run in runs]
            return SweepOutcome(folder, [RunStatus(*each) for each in zip(runs, states, strict=True)], 1, False)

        monkeypatch.setattr(sweep_command, "run_all", run_all)
        monkeypatch.setattr(sweep_command, "data_configs", lambda runs: [])
        return executions

    return replace_execution


def test_a_value_with_a_failed_run_is_recorded_and_not_chosen(tuned_sweep, tmp_path, outcomes):
    """A learning rate that diverges for one arm does not stop the sweep, and is not tried again when it resumes."""
    executions = outcomes(lambda run: run.arms == ["b, learning_rate=0.001"], "val/nll_bound")
    folder = SweepFolder(tmp_path / "sweep")
    for resume in ([], ["--resume"]):
        status, output = sweep("run", tuned_sweep, "--folder", folder.path, *resume)
        assert status == 0, output
        if not resume:
            assert "b: learning_rate=0.001 failed and is not chosen" in output
    assert read_choice(folder, folder.read_spec()) == {"a": 0.001, "b": 0.003}
    assert json.loads(folder.tuned.read_text())["arms"]["b"] == {
        "chosen": 0.003, "means": {"0.003": 4.003}, "failed": [0.001]
    }  # fmt: skip
    tuning, arms, again = executions
    assert set(tuning) - set(arms) == {"pretrain-b-learning_rate=0.001-s100"}
    assert again == arms
    rows = tuning_rows(collect(folder.path))
    assert [(row["arm"], row["value"], row["num_seeds"], row["is_failed"]) for row in rows] == [
        ("a", 0.001, 1, False), ("a", 0.003, 1, False), ("b", 0.001, 0, True), ("b", 0.003, 1, False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "changes", "has_ended"),
    [
        (RunState.FAILED, {}, True),
        (RunState.PENDING, {"waits_for": "x"}, True),
        (RunState.PENDING, {}, False),
        (RunState.INTERRUPTED, {}, False),
        (RunState.RUNNING, {}, False),
    ],
)
def test_tuning_has_ended_once_no_run_is_left_to_execute(tmp_path, planned, state, changes, has_ended):
    statuses = [RunStatus(planned("x"), RunState.FINISHED), RunStatus(planned("y"), state, **changes)]
    outcome = SweepOutcome(SweepFolder(tmp_path), statuses, 1, was_stopped=False)
    assert outcome.has_ended is has_ended
    assert not replace(outcome, was_stopped=True).has_ended


def test_a_killed_run_says_nothing_about_its_value(tuned_sweep, tmp_path, outcomes):
    folder = SweepFolder(tmp_path / "sweep")

    def is_killed(run):
        if run.config["optim"]["optimizer"]["learning_rate"] != 0.001:
            return False
        folder.run_folder(run).path.mkdir(parents=True, exist_ok=True)
        record_failure(folder.run_folder(run), -9)
        return True

    executions = outcomes(is_killed, "val/nll_bound")
    result = CliRunner().invoke(main, ["sweep", "run", str(tuned_sweep), "--folder", str(folder.path)])
    assert result.exit_code == 1
    assert re.search(r"was killed.*learning_rate: resume with --resume", " ".join(result.output.split()))
    assert len(executions) == 1
    assert not folder.tuned.exists()


def test_a_choice_by_another_goal_is_not_used(tmp_path):
    made, folder = two_arms(tune=TUNE), SweepFolder(tmp_path)
    write_choice(made, folder, {"a": {1.0: 5.0, 2.0: 4.0}, "b": {1.0: 3.0, 2.0: 3.5}})
    assert read_choice(folder, made) == {"a": 2.0, "b": 1.0}
    (metric, *_) = made.metrics
    higher = replace(made, metrics=[replace(metric, goal=Goal.HIGHER)])
    assert read_choice(folder, higher) is None
    record = json.loads(folder.tuned.read_text())
    del record["goal"], record["metric_stage"]  # as earlier versions wrote it
    folder.tuned.write_text(json.dumps(record))
    assert read_choice(folder, made) == {"a": 2.0, "b": 1.0}


def test_an_arm_whose_values_all_fail_names_the_values(tuned_sweep, tmp_path, outcomes):
    outcomes(lambda run: run.arms[0].startswith("b, "), "val/nll_bound")
    status, output = sweep("run", tuned_sweep, "--folder", tmp_path / "sweep")
    assert status == 1
    assert "arm 'b': at no value of tune.values (0.001, 0.003) have the runs of all tune.seeds finished" in output


def test_replicates_differ_from_the_baseline_in_the_micro_batch_only():
    made = two_arms(noise_floor=NoiseFloor(3), seeds=[0, 1])
    runs = {run.id: run for run in expand(made, resolve, COSTS)}
    copies = {f"pretrain-a-rounding-{n}-s{seed}": rows for n, seed, rows in ((1, 0, 2), (2, 1, 2), (3, 0, 1))}
    assert list(runs)[-3:] == list(copies)
    for id, rows in copies.items():
        original = runs[f"pretrain-a-s{runs[id].seed}"].config
        assert runs[id].config == {**original, "trainer": {**original["trainer"], "micro_batch_rows": rows}}


def test_micro_batch_that_cannot_be_divided_is_rejected():
    made = two_arms(noise_floor=NoiseFloor(3))
    with pytest.raises(UserError, match=r"cannot divide by 8: name fewer replicates"):
        expand(made, resolve, COSTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": replace(TUNE, seeds=[0])}, "tune.seeds and seeds share 0"),
        ({"tune": replace(TUNE, stage="sft")}, r"tune.stage.*sft"),
    ],
)
def test_invalid_settings_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        check(two_arms(**changes))


@pytest.mark.parametrize("values", [[1.0], [2.0, 1.0], [1.0, 1.0]])
def test_values_must_be_ascending(values):
    with pytest.raises(UserError, match=r"tune.values is .*two or more ascending"):
        Tuning("p", values)


@pytest.fixture
def tuned_sweep(tiny_sweep):
    return tiny_sweep(
        arms=[{"name": "a"}, {"name": "b", "overrides": {"pretrain": ["objective/weighting=flat"]}}],
        baseline="a",
        tune={"key": "optim.optimizer.learning_rate", "values": [1e-3, 3e-3], "seeds": [100]},
        noise_floor={"replicates": 1},
        equivalence_margin=0.1,
        primary_contrasts=["b"],
    )


@pytest.mark.slow
def test_sweep_tunes_then_runs_and_resumes_in_between(tuned_sweep, tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    status, output = sweep("run", tuned_sweep, "--folder", folder.path, "--workers", 2)
    assert status == 0, output
    first, chosen = ends(folder), read_choice(folder, folder.read_spec())
    assert len(first) == 7
    for run in folder.read_plan()[4:]:
        rate = run.config["optim"]["optimizer"]["learning_rate"]
        assert rate == chosen["a" if run.arms[0].startswith("a") else "b"]

    # as if killed after the last tuning run
    spec = folder.read_spec()
    tuning = tuning_runs(spec, folder.read_plan())
    folder.write(spec, tuning)
    folder.tuned.unlink()
    assert plan_sweep(str(folder.path), [], None)[2][-1].id == "pretrain-a-rounding-1-s0"
    status, output = sweep("run", folder.path, "--resume")
    assert status == 0, output
    assert ends(folder) == first
    assert read_choice(folder, folder.read_spec()) == chosen
    assert all(len(folder.run_folder(run).read_attempts()) == 1 for run in folder.read_plan())

    status, output = sweep("report", folder.path)
    assert status == 0, output
    assert "noise floor" in output
    with (folder.report / "effects.csv").open(encoding="utf-8") as lines:
        (row,) = csv.DictReader(lines)
    end = {id: figures["val/nll_bound"] for id, figures in first.items()}
    assert float(row["noise_floor"]) == pytest.approx(abs(end["pretrain-a-rounding-1-s0"] - end["pretrain-a-s0"]))
    assert float(row["noise_floor"]) < 1e-3
    assert row["is_primary_contrast"] == "true"
    with (folder.report / "tuning.csv").open(encoding="utf-8") as lines:
        assert [row["arm"] for row in csv.DictReader(lines) if row["is_chosen"] == "true"] == ["a", "b"]
    assert json.loads(folder.tuned.read_text())["key"] == "optim.optimizer.learning_rate"


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["micro", "gpu"])
def test_scale_runs_with_a_tiny_model(scale, tiny_sweep, tmp_path):
    """Every setting of the scale but those that make it large."""
    small = {"budget": {"measure": "tokens", "amount": 2560.0}, "noise_floor": {"replicates": 1}, "tune": None}
    file = tiny_sweep(scale=scale, **small)
    tree = read_spec(str(file))
    assert any(override.startswith("optim=adamw") for override in tree.stages[0].overrides)
    status, output = sweep("run", file, "--folder", tmp_path / "sweep", "overrides.pretrain=[trainer.accelerator=cpu]")
    assert status == 0, output
    assert len(ends(SweepFolder(tmp_path / "sweep"))) == 3


def test_plan_shows_tuning_and_replicates(tuned_sweep, tmp_path):
    status, output = sweep("plan", tuned_sweep, "--folder", tmp_path / "sweep")
    assert status == 0, output
    assert "from 0.001 and 0.003 at seeds 100, which no other run uses; not chosen yet" in output
    assert "b against a: primary" in output
    assert "runs 7, 0 shared" in output
    assert "noise floor" in output


def test_gpu_scale_is_planned_with_its_tokens(tmp_path):
    status, output = sweep("plan", "loss_weighting", "+scale=gpu", "seeds=[0]", "--folder", tmp_path / "sweep")
    assert status == 0, output
    assert "2e+09 tokens in stage pretrain" in output
    assert "3 rounding replicates of elbo" in output

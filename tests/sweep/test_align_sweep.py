"""Sweeps whose runs align a model: equal forward passes, the fork server, and the library's own files."""

import json

import pytest
import yaml
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.config import load
from lit_illada.cost.alignment import completion_passes
from lit_illada.model.config import ModelConfig
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.schema import to_tree
from lit_illada.sweep.folder import RunState, SweepFolder

LIBRARY = ["rl_methods", "rl_estimator", "rl_form", "rl_loops"]
# the smallest runs of the library's sweeps: one seed, two arms, few passes
TINY = {
    "tune": [
        "trainer.max_steps=2",
        "optim.schedule.warmup_steps=1",
        "trainer.val_rows=2",
        "sft_data.source.num_train=64",
    ],
    "align": [
        "trainer.val_rows=4",
        "prompts_per_step=2",
        "problems.num_train=16",
        "trainer.batch_rows=12",
        "trainer.micro_batch_rows=12",
        "generation.max_new_tokens=32",
    ],
    "generate": ["reasoning.depths=[2]", "reasoning.num_problems=2", "generation.max_new_tokens=32"],
}


def run(*arguments):
    return CliRunner().invoke(main, ["sweep", "run", *map(str, arguments)], catch_exceptions=False)


def ends(folder):
    """Final metrics of each run."""
    runs = folder.read_plan()
    assert [folder.state_of(run) for run in runs] == [RunState.FINISHED] * len(runs)
    return {run.id: json.loads(folder.run_folder(run).summary.read_text())["end"] for run in runs}


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [
        # 4 blocks of 4 steps; one scoring by the update itself
        (["alignment=gdpo", "alignment.updates=1"], {"rollout": 16, "scoring": 0, "update": 3}),
        # d1 scores rollout policy and reference under the masks of every update
        (["alignment=d1", "alignment.updates=3"], {"rollout": 16, "scoring": 2 + 3, "update": 3}),
        (["alignment=cj_grpo", "alignment.updates=2"], {"rollout": 16, "scoring": 16, "update": 32}),
        (["alignment=left_to_right"], {"rollout": 16, "scoring": 0, "update": 32}),
        (["alignment=espo", "alignment.updates=2"], {"rollout": 16, "scoring": 4, "update": 8}),
        (["alignment=vrpo", "preferences=pairs.jsonl"], {"rollout": 0, "scoring": 8, "update": 8}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_passes_of_a_completion_that_fills_its_canvas(overrides, passes):
    canvas = ["generation.max_new_tokens=32", "generation.block_length=8", "generation.num_steps=4"]
    config = load("align", [*canvas, *overrides], {"model": to_tree(ModelConfig(vocab_size=64))}).resolve()
    most, fewest = completion_passes(config), completion_passes(config, is_short=True)
    assert most.by_phase() == passes
    assert fewest.total <= most.total
    if config.preferences is None:
        assert fewest.rollout == 4, "one block"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two estimators whose cost differs by a factor, at two seeds, by the fork server."""
    folder = tmp_path_factory.mktemp("sweep")
    stages = [
        {
            "name": "tune",
            "command": "sft",
            "overrides": ["experiment=sft/demo", "trainer.accelerator=cpu", *TINY["tune"]],
        },
        {
            "name": "align",
            "command": "align",
            "overrides": ["trainer.accelerator=cpu", "alignment=espo", *TINY["align"]],
        },
    ]
    stages[1]["overrides"] += ["alignment.updates=2", "alignment.group_size=6", "generation.block_length=16"]
    stages[1]["overrides"] += ["generation.num_steps=4", "task.range.max_depth=2", "trainer.checkpoint_every_steps=1"]
    tree = {
        "question": "Which?",
        "baseline": "cheap",
        "scale": None,
        "begin_from": "loop_base/diffusion",
        "seeds": [0, 1],
        "validations": 1,
        "budget": {"measure": "forwards", "amount": 700},
        "metrics": [{"name": "val/accuracy", "stage": "align", "goal": "higher"}],
        "stages": stages,
        "arms": [
            {"name": "cheap", "overrides": {"align": ["alignment/estimator=mean_field"]}},
            {"name": "dear", "overrides": {"align": ["alignment.estimator.num_pairs=4"]}},
        ],
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    result = run(file, "--folder", folder / "sweep", "--workers", 1)
    assert result.exit_code == 0, result.output
    return SweepFolder(folder / "sweep")


@pytest.mark.slow
def test_arms_spend_equal_forward_passes(swept):
    figures = ends(swept)
    assert len(figures) == 6
    aligned = {id: end for id, end in figures.items() if id.startswith("align")}
    for id, end in aligned.items():
        completions = 12 * end["step"] / 2
        per_rollout = end["perf/forwards"] / (end["step"] / 2)
        assert abs(end["perf/forwards"] - 700) <= per_rollout / 2 + 1, id
        assert (
            end["perf/passes_update"] * completions + end["perf/passes_rollout"] * completions
            < end["perf/forwards"] + 1
        )
        assert "val/accuracy_change" in end, "the last step is validated"
    assert aligned["align-cheap-s0"]["step"] > aligned["align-dear-s0"]["step"]


@pytest.mark.slow
def test_a_finished_run_that_lost_its_record_is_not_continued(swept):
    before = ends(swept)
    planned = next(run for run in swept.read_plan() if run.id == "align-cheap-s1")
    run_folder = swept.run_folder(planned)
    progress = json.loads(run_folder.progress.read_text())
    assert progress["max_steps"] == progress["step"] == before[planned.id]["step"]
    run_folder.done.unlink()
    summary = json.loads(run_folder.summary.read_text())
    del summary["end"]  # killed after the last checkpoint, before the figures of the end
    run_folder.summary.write_text(json.dumps(summary))
    assert run(swept.path, "--resume").exit_code == 0
    after = ends(swept)[planned.id]
    assert {name: value for name, value in after.items() if name.startswith("val/")} == {
        name: value for name, value in before[planned.id].items() if name.startswith("val/")
    }
    assert (after["step"], after["perf/forwards"]) == (before[planned.id]["step"], before[planned.id]["perf/forwards"])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LIBRARY)
def test_two_arms_of_a_sweep_of_the_library_run(name, tmp_path):
    tree = yaml.safe_load((sweeps_dir() / f"{name}.yaml").read_text(encoding="utf-8"))
    arms = tree["arms"][1:3] if name != "rl_loops" else tree["arms"][1:4:2]
    tree |= {"arms": arms, "baseline": arms[0]["name"], "also_compare": [], "overrides": {}}
    tree["overrides"] = {stage["name"]: TINY[stage["name"]] for stage in tree["stages"]}
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    result = run(file, "+scale=rl", "seeds=[0]", "budget.amount=400", "--folder", tmp_path / "sweep")
    assert result.exit_code == 0, result.output
    assert all(
        metric["name"] in end
        for metric in tree["metrics"]
        for id, end in ends(SweepFolder(tmp_path / "sweep")).items()
        if id.startswith(metric["stage"])
    )
    report = CliRunner().invoke(main, ["sweep", "report", str(tmp_path / "sweep")], catch_exceptions=False)
    assert report.exit_code == 0, report.output

"""The questions of sweeps/PLAN.md are those of the sweeps, and can be planned at their scales."""

import re

import pytest
from click.testing import CliRunner

from lit_illada.cli.root import main
from lit_illada.commands import sweep
from lit_illada.cost.alignment import step_forwards
from lit_illada.cost.run_cost import step_flops
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.sweep.library import read_spec
from lit_illada.sweep.plan import Costs, expand

PLAN = (sweeps_dir() / "PLAN.md").read_text(encoding="utf-8")
PRETRAINED = ["objective_contrasts", "mask_ratio", "loss_weighting"]


def cells(pattern):
    """Code spans of each cell of the table row that matches a pattern."""
    row = next(line for line in PLAN.splitlines() if re.match(pattern, line))
    return [re.findall("`([^`]*)`", cell) for cell in row.split("|")[1:-1]]


@pytest.mark.parametrize("name", [*PRETRAINED, "loop_rho", "loop_retries", "loop_retries_longer"])
def test_plan_names_the_arms_contrast_and_margin_of_the_sweep(name):
    _, (written,), contrast, (metric, *_), _ = cells(rf"\|[^|]*\| `{name}[` ]")
    spec = read_spec(*written.split()[:1], written.split()[1:])
    assert contrast == [*spec.primary_contrasts, spec.baseline]
    assert metric == spec.metrics[0].name
    _, arms = cells(rf"\| `{name}` \|")
    assert sorted(arms) == sorted(arm.name for arm in spec.all_arms())
    assert arms[0] == spec.baseline
    assert len(arms) == 4 if name == "objective_contrasts" else 5 <= len(arms) <= 6
    assert len(spec.seeds) >= 8
    assert not set(spec.seeds) & {100, 101, 200, 201, 202, 203}
    assert spec.noise_floor is not None  # which `sweep calibrate` needs, as it does contrast and margin
    if name.startswith("loop_"):
        assert spec.equivalence_margin == 0.1
        assert "10 points" in next(
            line for line in PLAN.splitlines() if line.startswith("|") and f"`{written}`" in line
        )
    if name in PRETRAINED:
        assert spec.equivalence_margin == 0.03
        assert "0.03 nats/token" in next(line for line in PLAN.splitlines() if f"`{written}`" in line)


def test_loop_retries_longer_differs_from_loop_retries_in_steps_seeds_and_stated_precision():
    short, long = read_spec("loop_retries"), read_spec("loop_retries_longer")
    for stage, other in zip(short.stages, long.stages, strict=True):
        stated = {"trainer.precision=32-true", "precision=32-true"}
        assert [each.replace("max_steps=1000", "max_steps=600") for each in other.overrides if each not in stated] == (
            stage.overrides
        )
    assert short.all_arms() == long.all_arms()
    assert not set(short.seeds) & set(long.seeds)


def test_arms_of_paper_choices_are_those_of_the_plan_and_differ_in_one_thing():
    spec = read_spec("paper_choices", ["+scale=micro", "seeds=[0]", "noise_floor=null", "tune=null"])
    _, arms = cells(r"\| `paper_choices` \|")
    assert arms == [arm.name for arm in spec.all_arms()]
    runs = {run.arms[0]: run.config for run in expand(spec, sweep.resolve, Costs(step_flops, step_forwards))}
    baseline = runs.pop("iLLaDA")
    assert baseline["optim"]["schedule"] | {"decay_shape": None} == {
        "name": "wsd", "warmup_steps": 20, "decay_fraction": 0.4, "decay_shape": None, "final_factor": 0.0,
    }  # fmt: skip
    for arm, config in runs.items():
        sections = {key for key in config if config[key] != baseline[key]} - {"trainer"}  # whose steps follow the FLOPs
        assert len(sections) == 1, arm
    cosine = runs["cosine from the start"]["optim"]
    assert cosine | {"schedule": None} == baseline["optim"] | {"schedule": None}
    assert cosine["schedule"] == {"name": "cosine", "warmup_steps": 20, "final_factor": 0.0}


def test_arms_of_objective_details_are_those_of_the_plan_and_change_one_setting_of_the_objective():
    spec = read_spec("objective_details", ["+scale=micro", "noise_floor=null", "tune=null"])
    _, arms = cells(r"\| `objective_details` \|")
    assert sorted(arms) == sorted(arm.name for arm in spec.all_arms())
    assert arms[0] == spec.baseline
    assert set(spec.primary_contrasts) == set(arms[1:])
    assert not set(spec.seeds) & set(read_spec("objective_contrasts", ["+scale=micro"]).seeds)
    runs = {run.arms[0]: run.config for run in expand(spec, sweep.resolve, Costs(step_flops, step_forwards))}
    baseline = runs.pop("LLaDA")
    for arm, config in runs.items():
        assert config | {"objective": None} == baseline | {"objective": None}, arm
        changed = [key for key, value in config["objective"].items() if value != baseline["objective"][key]]
        assert changed == (["mask_draw", "joint_draw"] if arm == "low-variance draw" else changed[:1]), arm


@pytest.mark.parametrize(("name", "scale"), [("mask_ratio", "gpu"), ("loss_weighting", "micro"), ("mask_draw", "gpu")])
def test_questions_can_be_planned_at_their_scales(name, scale):
    spec = read_spec(name, [f"+scale={scale}", "seeds=[0]", "noise_floor=null", "tune=null"])
    assert read_spec(name, [f"+scale={scale}"]).noise_floor
    runs = expand(spec, sweep.resolve, Costs(step_flops, step_forwards))
    assert len(runs) == len(spec.all_arms())
    assert {round(run.tokens / spec.budget.amount, 2) for run in runs} == {1.0}
    assert {run.config["data"]["source"]["name"] for run in runs} == {"stdlib" if scale == "micro" else "huggingface"}


def test_baselines_of_the_pretraining_sweeps_are_equal():
    configs = []
    for name in [*PRETRAINED, "objective_details"]:
        spec = read_spec(name, ["+scale=micro", "seeds=[0]", "noise_floor=null", "tune=null"])
        (run,) = (r for r in expand(spec, sweep.resolve, Costs(step_flops, step_forwards)) if spec.baseline in r.arms)
        configs.append(run.fingerprint)
    assert len(set(configs)) == 1


@pytest.mark.slow
def test_gpu_scale_costs_what_its_file_says():
    text = (sweeps_dir() / "scale" / "gpu.yaml").read_text(encoding="utf-8")
    comment = " ".join(line.strip("#\\ ") for line in text.split("seeds:")[0].splitlines())
    words = re.search("lit-illada (estimate .*2e9)", comment)[1].split()
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    for number in ("1.28e+18", "61.8 minutes"):
        assert number in output
    for number in ("100.7 M", "1.28e18", "62 minutes", "16 GB"):
        assert number in " ".join(comment.split())
    assert re.search(r"memory per device peak 16\.\d GB", output)
    assert "100,682,496" in output

"""The commands `lit-illada estimate` and `lit-illada doctor`."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.commands import doctor, training_run
from lit_illada.commands.doctor import Finding, Verdict
from lit_illada.commands.estimate import estimate
from lit_illada.cost.devices import GPUS

ROOT = Path(__file__).parents[2]
EIGHT_B = ["model=illada_8b"]


def lit_illada(*arguments):
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})


def test_table_shows_parts_time_disk_and_memory_problems():
    result = lit_illada("estimate", "pretrain", *EIGHT_B, "--gpu", "h100", "--gpus", "8", "--tokens", "1e12")
    assert result.exit_code == 0
    for word in ("embedding", "optimizer state", "activations", "tokens/s", "days", "checkpoints", "FLOPs per token"):
        assert word in result.output
    assert "7,6" in result.output
    assert "every device holds all of them" in result.output


def test_days_follow_from_tokens_speed_and_number_of_gpus():
    one = estimate("pretrain", EIGHT_B, "h100", gpus=1, tokens=1e12, mfu=0.5)
    eight = estimate("pretrain", EIGHT_B, "h100", gpus=8, tokens=2e12, mfu=0.25)
    assert eight.days == pytest.approx(one.days / 2)
    # 6 FLOPs per parameter and token, less where only masked tokens reach the LM head, more for attention
    assert one.flops_per_token == pytest.approx(6 * sum(one.parameters.values()), rel=0.15)
    assert one.tokens_per_s == pytest.approx(GPUS["h100"].bf16_flops_per_s * 0.5 / one.flops_per_token)


def test_memory_problem_depends_on_gpu_and_micro_batch():
    assert estimate("pretrain", EIGHT_B, "a100").problems
    half = estimate("pretrain", ["model=1b", "trainer.micro_batch_rows=16"], "h200")
    whole = estimate("pretrain", ["model=1b"], "h200")
    assert whole.memory.activations == 2 * half.memory.activations
    assert half.memory.holds_gradients
    assert not whole.problems


def test_batch_not_divisible_by_gpus_is_rounded_up_with_a_note():
    (problem,) = estimate("pretrain", [], "h100", gpus=3).problems
    assert "trainer.batch_rows=96: set the same for the run" in problem


def test_number_of_gpus_is_part_of_the_checked_config():
    sharding = ["trainer.parallel.strategy=fsdp", "trainer.parallel.tensor_parallel=2"]
    shared = estimate("pretrain", [*EIGHT_B, *sharding], "h100", gpus=8)
    whole = estimate("pretrain", EIGHT_B, "h100", gpus=8)
    assert shared.num_devices == 8
    assert shared.memory.weights < whole.memory.weights / 4
    explicit = ["trainer.devices=8", "trainer.num_nodes=1", "trainer.batch_rows=256"]
    assert estimate("pretrain", [*EIGHT_B, *explicit], "h100") == replace(whole, problems=whole.problems[1:])


@pytest.fixture(scope="module")
def trained(tiny_overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert lit_illada("pretrain", *tiny_overrides, f"run_dir={run}", "trainer.max_steps=3").exit_code == 0
    return run


def test_fine_tuning_takes_model_from_checkpoint_and_steps_from_epochs(trained, tiny_run, tmp_path):
    tiny = [word for word in tiny_run if word.startswith(("trainer.", "optim.schedule"))]
    few = ["sft_data.row_length=256", "sft_data.source.num_train=60", "epochs=1.5", "evaluation.num_examples=0"]
    found = estimate("sft", [*tiny, *few], "h100", base=trained)
    assert found.parameters == estimate("pretrain", [f"init_from={trained}", "data.row_length=32"], "h100").parameters
    run = tmp_path / "run"
    assert lit_illada("sft", str(trained), *tiny, *few, f"run_dir={run}").exit_code == 0
    steps = json.loads((run / "progress.json").read_text(encoding="utf-8"))["max_steps"]
    assert found.tokens == steps * 8 * 256
    (checkpoint,) = (run / "checkpoints").glob(f"step={steps:08d}.ckpt")
    result = lit_illada("estimate", "sft", str(checkpoint), *tiny, *few, "--gpu", "h100")
    assert result.exit_code == 0
    assert f"({steps} steps)" in result.output


def test_out_of_memory_error_names_a_working_estimate_command(trained, tiny_run, tmp_path, monkeypatch):
    def too_large(*_):
        raise MemoryError("out of memory")

    monkeypatch.setattr(training_run, "_fit", too_large)
    tiny = [word for word in tiny_run if word.startswith(("trainer.", "optim.schedule"))]
    overrides = [*tiny, "sft_data.row_length=256", "evaluation.num_examples=0"]
    result = lit_illada("sft", str(trained), *overrides, f"run_dir={tmp_path / 'run'}")
    assert result.exit_code == 1
    named = re.search(r"`lit-illada (.*)`", result.output)[1]
    assert lit_illada(*shlex.split(named), *overrides).exit_code == 0


def test_adapters_reduce_gradients_and_flops():
    eight_b = ["+model=illada_8b", "trainer.batch_rows=8", "trainer.micro_batch_rows=1"]
    whole, adapted = (estimate("sft", [*eight_b, f"adapter={name}"], "h200") for name in ("none", "lora"))
    assert whole.num_adapters is None
    assert adapted.parameters == whole.parameters
    assert adapted.memory.gradients == 4 * adapted.num_adapters < whole.memory.gradients / 100
    assert adapted.flops_per_token < 0.75 * whole.flops_per_token
    table = lit_illada("estimate", "sft", *eight_b, "adapter=lora", "--gpu", "h200").output
    assert re.search(rf"adapters \(the only trained ones\) +{adapted.num_adapters:,}", table)


def test_rows_padded_to_the_longest_of_a_step_make_the_estimate_an_upper_bound():
    tiny = ["+model=nano", "model.vocab_size=300", "--gpu", "h200"]
    noted = "rows are counted with sft_data.row_length=256 tokens, but padded to the longest example of a step"
    for rows, is_noted in (("llada", True), ("padded_uncounted", True), ("illada", False)):
        output = lit_illada("estimate", "sft", *tiny, f"sft_data/rows={rows}", "sft_data.row_length=256").output
        assert (noted in output) == is_noted
    whole = ["sft_data/rows=llada", "sft_data.rows.pad_to=row"]
    assert "counted" not in lit_illada("estimate", "sft", *tiny, *whole).output


def test_epochs_without_a_tokenizer_are_reported_as_ignored():
    result = lit_illada("estimate", "sft", *["+model=illada_8b", "epochs=2", "--gpu", "h200", "--gpus", "2"])
    assert "! epochs=2 is ignored" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sft"], "nothing to fine-tune: give a checkpoint, or choose a model with +model=illada_8b"),
        (["sft", "nowhere"], "nowhere: no such checkpoint"),
        (["pretrain", "runs/base"], "set init_from=runs/base"),
        (["pretrain", "init_from=nowhere"], "nowhere: no such checkpoint"),
    ],
)
def test_missing_model_is_a_one_line_error(arguments, message):
    result = lit_illada("estimate", *arguments, "--gpu", "h100")
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h10"], "did you mean 'h100'"),
        (["--gpu", "h100", "--mfu", "45"], "--mfu is 45"),
        (["--gpu", "h100", "--tokens", "0"], "--tokens is 0"),
        (["--gpu", "h100", "--gpus", "0"], "--gpus is 0"),
        (["--gpu", "h100", "--gpus", "8", "trainer.devices=4"], "leave out trainer.devices=4"),
        (
            ["--gpu", "h100", "--gpus", "3", "trainer.parallel.tensor_parallel=2"],
            "does not divide devices",
        ),
        (["--gpu", "h100", "--gpus", "4", "trainer.parallel.tensor_parallel=few"], "trainer.parallel.tensor_parallel"),
        (["--gpu", "h100", "data=prepared", "data.dir=nowhere"], "model.vocab_size"),
    ],
)
def test_invalid_estimate_is_a_one_line_error(arguments, message):
    result = lit_illada("estimate", "pretrain", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.count("\n") == 1


def test_doctor_prints_every_section_and_writes_them_as_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = lit_illada("doctor", "--json", "found.json")
    assert result.exit_code == 0
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    sections = {finding["section"] for finding in found}
    assert sections == {
        "machine", "packages", "devices", "precision", "attention", "distributed", "disk", "Slurm",
    }  # fmt: skip
    for finding in found:
        assert finding["name"] in result.output
        assert finding["fix"] is None or finding["fix"] in result.output


def test_doctor_exits_with_1_and_the_fixing_command(monkeypatch):
    broken = Finding("packages", "torch", "not installed", Verdict.broken, "pip install torch")
    monkeypatch.setattr(doctor, "examine", lambda: [broken])
    result = lit_illada("doctor")
    assert result.exit_code == 1
    assert "torch: pip install torch" in result.output


@pytest.mark.parametrize("package", ["torch", "lightning", "rich"])
def test_doctor_reports_missing_required_package_without_importing_it(package, tmp_path):
    """Runs in an environment that links every other package but this one."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for folder in [Path(path) for path in sys.path if path.endswith(("site-packages", "dist-packages"))]:
        for entry in folder.iterdir():
            if (
                entry.name != package
                and not entry.name.startswith(f"{package}-")
                and not (packages / entry.name).exists()
            ):
                (packages / entry.name).symlink_to(entry)
    command = [sys.executable, "-S", "-m", "lit_illada", "doctor", "--json", str(tmp_path / "found.json")]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert f"{package}: not installed" in done.stdout
    (found,) = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["fix"].startswith(f"pip install '{package}")
    assert found["fix"] in done.stdout


def without(monkeypatch, *absent):
    seen = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in absent else seen(name))


@pytest.mark.slow
def test_missing_package_names_its_extra(monkeypatch):
    without(monkeypatch, "submitit", "torchao")
    fixes = {finding.name: finding.fix for finding in doctor.examine()}
    assert fixes["submitit"] == "pip install 'lit-illada[slurm]'"
    assert fixes["torchao"] == "pip install 'lit-illada[torchao]'"


@pytest.mark.parametrize(("present", "other"), [("flash-attn", "flash-attn-4"), ("flash-attn-4", "flash-attn")])
def test_package_that_conflicts_with_an_installed_one_is_not_recommended(monkeypatch, present, other):
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0" if name == present else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = {finding.name: finding for finding in doctor._packages()}
    assert found[other].fix is None
    assert "exclude each other" in found[other].seen
    assert found["liger-kernel"].fix == "pip install 'lit-illada[liger]'"


@pytest.mark.slow
def test_full_disk_is_reported(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    assert {f.verdict for f in doctor.examine() if f.section == "disk"} == {Verdict.absent}


ALIGN = ["+model=illada_8b", "generation.max_new_tokens=256"]


def test_phases_of_an_alignment_add_up_and_follow_the_config():
    whole = estimate("align", [*ALIGN, "alignment=espo"], "h200")
    assert {phase: passes for phase, (passes, _) in whole.phases.items()} == {
        "rollout": 256,
        "scoring": 4,
        "update": 32,
    }
    flops = sum(of_phase for _, of_phase in whole.phases.values())
    assert whole.flops_per_token * whole.batch_tokens == pytest.approx(flops)
    # an update also runs backward: three times the FLOPs of a pass
    (rollout, rollout_flops), (update, update_flops) = whole.phases["rollout"], whole.phases["update"]
    assert update_flops / update == pytest.approx(3 * rollout_flops / rollout, rel=0.05)
    fewer = estimate("align", [*ALIGN, "alignment=espo", "alignment.updates=4"], "h200")
    assert fewer.phases["rollout"][1] == pytest.approx(2 * rollout_flops), "the rollout serves half as many steps"


def test_memory_of_an_alignment_has_a_reference_only_where_the_loss_needs_one():
    def memory(*overrides):
        return estimate("align", [*ALIGN, *overrides], "h200").memory

    whole, none, adapted = memory("alignment=espo"), memory("alignment=gdpo"), memory("alignment=espo", "adapter=lora")
    assert whole.reference == whole.weights
    assert none.reference == 0
    assert adapted.reference == adapted.gradients < whole.reference / 100
    one_view = memory("alignment=espo", "alignment.recompute_views=true")
    assert whole.activations == 4 * one_view.activations, "the views of two pairs of masks"


def test_too_large_a_rollout_is_named_with_its_setting():
    (problem,) = estimate(
        "align", [*ALIGN, "adapter=lora", "trainer.micro_batch_rows=2", "rollout_rows=8192"], "h200"
    ).problems
    assert "a rollout takes" in problem
    assert problem.endswith("lower rollout_rows")


def test_an_alignment_of_a_checkpoint_is_estimated_from_its_prompts():
    base = str(ROOT / "sweeps" / "loop_base" / "diffusion")
    result = lit_illada("estimate", "align", base, "experiment=align/demo")
    assert result.exit_code == 0, result.output
    assert "24 passes per completion and rollout" in result.output
    assert "nothing to align" in lit_illada("estimate", "align").output


def test_training_in_blocks_takes_a_doubled_row():
    rows = ["model=100m", "data.row_length=512", "trainer.batch_rows=8", "trainer.micro_batch_rows=8"]
    full, blocks = (estimate("pretrain", [*rows, *part], "h100") for part in ([], ["objective.block_length=16"]))
    assert 1.9 < blocks.memory.activations / full.memory.activations < 2.1
    assert 1.5 < blocks.flops_per_token / full.flops_per_token < 2
    # exact-k masks 1 to 16 tokens of a block, on average 17/32, bernoulli one half
    head = 3 * 2 * full.parameters["embedding"]
    assert blocks.flops_per_token - estimate(
        "pretrain", [*rows, "objective.block_length=16", "objective.mask_draw=bernoulli"], "h100"
    ).flops_per_token == pytest.approx(head * (17 / 32 - 0.5), rel=0.02)

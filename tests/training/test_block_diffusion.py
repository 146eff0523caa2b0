"""Runs in blocks from the command line: training, what the checkpoint records, tuning from other models, mistakes."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lit_illada.checkpoints.open import load_checkpoint, open_checkpoint
from lit_illada.cli import main
from lit_illada.config import load
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.text import complete_batch

BLOCKS = ["objective.block_length=4", "model.max_position_embeddings=256"]
SFT = [
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=2",
    "trainer.batch_rows=4",
    "trainer.micro_batch_rows=4",
    "trainer.val_every_steps=2",
    "trainer.checkpoint_every_steps=2",
    "trainer.log_every_steps=1",
    "trainer.val_rows=4",
    "trainer.val_draws=1",
    "optim.schedule.warmup_steps=1",
    "sft_data.row_length=192",
    "sft_data.source.num_train=32",
    "sft_data.source.num_validation=8",
    "sft_data.source.num_harder=8",
    "sft_data.source.easy.max_depth=2",
    "sft_data.source.harder.min_depth=3",
    "sft_data.source.harder.max_depth=3",
    "evaluation.num_examples=2",
    "evaluation.generation.max_new_tokens=16",
]


def lit_illada(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def end_of(run):
    return json.loads((Path(run) / "summary.json").read_text())["end"]


@pytest.fixture(scope="module")
def trained(tiny_overrides, tmp_path_factory):
    """A run in blocks of 4 tokens, with samples at its validations."""
    run = tmp_path_factory.mktemp("runs") / "blocks"
    result = lit_illada("pretrain", *tiny_overrides, *BLOCKS, "samples.prompts=['alpha ']", f"run_dir={run}")
    assert result.exit_code == 0, result.output
    return run


@pytest.fixture(scope="module")
def others(tiny_overrides, tmp_path_factory):
    """A full-diffusion run and an autoregressive one."""
    folder = tmp_path_factory.mktemp("runs")
    short = [*tiny_overrides, "trainer.max_steps=2", "trainer.val_every_steps=2", "model.max_position_embeddings=256"]
    kinds = {"full": [], "causal": ["objective=autoregressive", "model.is_causal=true"]}
    for name, kind in kinds.items():
        result = lit_illada("pretrain", *short, *kind, f"run_dir={folder / name}")
        assert result.exit_code == 0, result.output
    return {name: folder / name for name in kinds}


def test_a_run_in_blocks_learns_and_its_checkpoint_records_them(trained):
    start, end = (json.loads((trained / "summary.json").read_text())[part] for part in ("start", "end"))
    assert end["val/nll_bound"] < start["val/nll_bound"]
    assert open_checkpoint(trained).model.block_length == 4
    assert list(trained.rglob("*samples*"))


def test_generation_and_scoring_use_the_blocks_without_a_flag(trained, tmp_path):
    (tmp_path / "text.txt").write_text("alpha beta gamma")
    plain = lit_illada("generate", trained, "--prompt", "alpha", "generation.max_new_tokens=20")
    cached = lit_illada(
        "generate", trained, "--prompt", "alpha", "generation.max_new_tokens=20", "generation/cache=prefix"
    )
    assert plain.exit_code == 0, plain.output
    assert cached.stdout == plain.stdout
    model, tokenizer = load_checkpoint(trained)
    config = GenerationConfig(max_new_tokens=18, block_length=4, num_steps=4)
    written = complete_batch(model, tokenizer, [tokenizer.encode("alpha")], config)
    assert written.token_ids.equal(
        complete_batch(model, tokenizer, [tokenizer.encode("alpha")], GenerationConfig(max_new_tokens=18)).token_ids
    )
    result = lit_illada("score", trained, "--text", tmp_path / "text.txt", "score.num_draws=4")
    assert result.exit_code == 0, result.output


def test_a_converted_folder_keeps_the_blocks_and_published_layouts_refuse_them(trained, tmp_path):
    result = lit_illada("convert", trained, tmp_path / "hf")
    assert result.exit_code == 1
    assert "attention in blocks of 4 tokens" in " ".join(result.output.split())
    assert lit_illada("convert", trained, tmp_path / "lit", "--to", "lit").exit_code == 0
    assert open_checkpoint(tmp_path / "lit").model.block_length == 4


@pytest.mark.parametrize("source", ["full", "causal"])
def test_training_in_blocks_starts_from_full_diffusion_and_autoregressive_weights(
    others, source, tiny_overrides, tmp_path
):
    kind = {"full": [], "causal": ["model.is_causal=false", "model.predicts_next=true"]}[source]
    data = [override for override in tiny_overrides if not override.startswith("model.")]
    common = ["objective.block_length=8", *kind, "trainer.max_steps=2", "trainer.val_every_steps=2"]
    run = tmp_path / "pretrained"
    result = lit_illada("pretrain", f"init_from={others[source]}", *data, *common, f"run_dir={run}")
    assert result.exit_code == 0, result.output
    tuned = tmp_path / "tuned"
    result = lit_illada("sft", others[source], *SFT, *common, f"run_dir={tuned}")
    assert result.exit_code == 0, result.output
    for folder in (run, tuned):
        model = open_checkpoint(folder).model
        assert (model.block_length, model.is_causal, model.predicts_next) == (8, False, source == "causal")
    assert "val/exact_match_easy" in end_of(tuned)


def test_tuning_stays_in_the_blocks_of_the_checkpoint_unless_overrides_change_them(trained, tmp_path):
    for overrides, length in (([], 4), (["objective.block_length=2"], 2), (["objective.block_length=null"], None)):
        run = tmp_path / f"run{length}"
        short = ["trainer.max_steps=1", "trainer.val_every_steps=1", "optim.schedule.warmup_steps=0"]
        result = lit_illada("sft", trained, *SFT, *short, "evaluation.num_examples=0", *overrides, f"run_dir={run}")
        assert result.exit_code == 0, result.output
        assert open_checkpoint(run).model.block_length == length


def test_a_stopped_run_resumes_to_the_same_weights(trained, tiny_overrides, tmp_path):
    run = tmp_path / "run"
    short = ["trainer.max_time_s=0.01"]
    assert lit_illada("pretrain", *tiny_overrides, *BLOCKS, *short, f"run_dir={run}").exit_code == 0
    result = lit_illada("pretrain", "--resume", run, "trainer.max_time_s=null")
    assert result.exit_code == 0, result.output
    one, other = (open_checkpoint(folder).tensors for folder in (run, trained))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.block_length=0"], "objective.block_length is 0: it must be 1 or more, or null"),
        (["objective.block_length=64"], "objective.block_length is 64, longer than data.row_length=32"),
        (
            ["objective.block_length=6"],
            "which does not divide data.row_length=32.*set it to 4 or 8, or data.row_length to 30",
        ),
        (["objective.block_length=4", "model.is_causal=true"], "needs model.is_causal=false; got true"),
        (["model.block_length=4"], "model.block_length is 4, but objective.block_length is null: set objective.block"),
        (["objective.block_length=4", "model.attention=flex"], "flex, which needs a CUDA device"),
        (["objective.block_length=4", "model.attention=varlen"], "varlen, which"),
        (["objective=autoregressive", "model.is_causal=true", "objective.block_length=4"], "block_length"),
    ],
)
def test_a_mistake_ends_in_one_line(overrides, message, tiny_overrides, tmp_path):
    result = lit_illada("pretrain", *tiny_overrides, *overrides, f"run_dir={tmp_path / 'run'}")
    assert result.exit_code == 1, result.output
    assert re.search(message, " ".join(result.output.split())), result.output
    assert not (tmp_path / "run").exists()


def test_alignment_refuses_a_model_in_blocks(trained, tmp_path):
    result = lit_illada("align", trained, f"run_dir={tmp_path / 'run'}")
    assert result.exit_code == 1
    assert "trained in blocks (model.block_length=4)" in " ".join(result.output.split())


def test_fine_tuning_rejects_fields_of_the_model_that_its_weights_determine(trained, tmp_path):
    result = lit_illada("sft", trained, *SFT, "model.hidden_size=64", f"run_dir={tmp_path / 'run'}")
    assert result.exit_code == 1
    assert "model.hidden_size is that of the checkpoint" in " ".join(result.output.split())


def test_the_objective_sets_the_block_length_of_the_model():
    config = load("pretrain", ["objective.block_length=4"])
    assert config.model.block_length == 4
    assert load("pretrain").model.block_length is None

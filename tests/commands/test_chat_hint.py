"""A fine-tuned model that is prompted without its chat template."""

import pytest
from click.testing import CliRunner

from lit_illada.cli import main

TUNE = [
    "sft_data.source.num_train=16",
    "sft_data.source.num_validation=4",
    "sft_data.source.num_harder=4",
    "sft_data.source.easy.max_depth=1",
    "sft_data.row_length=128",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "optim.schedule.warmup_steps=1",
    "trainer.max_steps=2",
    "trainer.val_every_steps=2",
    "trainer.batch_rows=2",
    "trainer.micro_batch_rows=2",
    "trainer.val_rows=2",
    "evaluation.num_examples=0",
]
SHORT = ["generation.max_new_tokens=4", "generation.block_length=4", "generation.num_steps=1"]
TASK = ["score", "--task", "countdown", "score.limit=1", *SHORT]
PROMPT = ["generate", "--prompt", "alpha", *SHORT]


def lit_illada(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def runs(tiny_overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    short = ["trainer.max_steps=2", "trainer.val_every_steps=2", "model.max_position_embeddings=256"]
    assert lit_illada("pretrain", *tiny_overrides, *short, f"run_dir={folder / 'base'}").exit_code == 0
    result = lit_illada("sft", folder / "base", *TUNE, f"run_dir={folder / 'tuned'}")
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize(
    ("run", "command", "setting"),
    [
        ("tuned", TASK, "score/wording=chat"),
        ("tuned", [*TASK, "score/wording=chat"], None),
        ("base", TASK, None),
        ("tuned", PROMPT, "--chat"),
        ("tuned", [*PROMPT, "--chat"], None),
        ("base", PROMPT, None),
    ],
)
def test_a_hint_names_the_setting_that_adds_the_template(runs, caplog, run, command, setting):
    name, *arguments = command
    assert lit_illada(name, runs / run, *arguments).exit_code == 0
    hints = [message for message in caplog.messages if "chat template" in message]
    assert len(hints) == (setting is not None)
    assert all(f"add {setting} " in hint for hint in hints)


def test_a_damaged_config_of_the_run_does_not_hinder_generation(runs):
    config = runs / "tuned" / "config.yaml"
    text = config.read_text()
    config.write_text("{")
    try:
        assert lit_illada("generate", runs / "tuned", *PROMPT[1:]).exit_code == 0
    finally:
        config.write_text(text)

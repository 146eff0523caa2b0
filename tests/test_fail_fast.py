"""Commands that read or refuse a config answer without importing torch."""

import os
import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.commands import data

HEAVY = {"torch", "lightning", "torchmetrics", "scipy", "matplotlib", "tokenizers", "transformers", "webdataset"}
SCRIPT = f"""
import sys
from lit_illada.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    status = end.code
heavy = {HEAVY} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else status)
"""


def run(*words, env=None):
    return subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize(
    ("words", "status", "shown"),
    [
        (["config", "pretrain", "experiment=demo"], 0, "mask_ratio"),
        (["config", "sft"], 0, "sft_data"),
        (["config", "pretrain", "model.depth=8"], 1, "model.depth"),
        (["config", "generate", "generation.block_length=0"], 1, "block_length"),
        (["sweep", "list"], 0, "mask_ratio"),
        (["pretrain", "experiment=demo", "trainer.lr=1"], 1, "optim.optimizer.learning_rate"),
        (["sft", "runs/none", "sft_data.row_length=2"], 1, "sft_data.row_length is 2"),
        (["generate", "runs/none", "generation.block_length=0"], 1, "generation.block_length is 0"),
        (["score", "runs/none", "score.num_draws=1"], 1, "score.num_draws is 1"),
        (["pretrain", "--lr", "1"], 2, "KEY=VALUE: optim.optimizer.learning_rate="),
        (["pretrain", "experiment=demo", "name=../../evil"], 1, "name='../../evil' is not a folder name"),
        (["sft", "runs/none", "name=../evil"], 1, "name='../evil' is not a folder name"),
        (["sft", "runs/none"], 1, "runs/none: no such checkpoint"),
        (["generate", "runs/none", "--prompt", "a"], 1, "runs/none: no such checkpoint"),
        (["score", "runs/none", "--text", "a.txt"], 1, "runs/none: no such checkpoint"),
        (["pretrain", "--init-from", "runs/none"], 1, "runs/none: no such checkpoint"),
        (["pretrain", "--resume", "runs/none"], 1, "runs/none: no run there"),
        (["sft", "--resume", "runs/none"], 1, "runs/none: no run there"),
        (["pretrain", "data=prepared", "data.dir=runs/none"], 1, "no prepared data set at runs/none: make it with"),
        (["data", "examples", "runs/none"], 1, "no tokenizer at runs/none: runs/none/tokenizer.json does not exist"),
        (["data", "examples", "runs/none", "sft_data.row_length=0"], 1, "sft_data.row_length is 0"),
        (["sweep", "plan", "demo", "budget.unit=tokens"], 1, "did you mean 'budget.measure'?"),
        (["sweep", "run", "demo", "arms=3"], 1, "demo.yaml: "),
        (["sweep", "run", "mask_ratios"], 1, "mask_ratio"),
        (["sweep", "run", "mask_ratio", "--scale", "nano"], 2, "such as +scale=nano"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_no_heavy_module_is_imported(words, status, shown):
    done = run(*words)
    assert done.returncode == status, done.stderr
    assert shown in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["generate", "sweep_plan"])
def test_commands_that_do_not_train_import_no_training_library(command):
    heavy = {"lightning", "torchmetrics", "torch._dynamo", "torch.distributed.tensor", "sympy", "matplotlib"}
    script = f"import sys, lit_illada.commands.{command}\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def commands(group=main, words=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_unknown_option_of_any_command_is_one_line(words):
    result = CliRunner().invoke(main, [*words, "--no-such-option", "1"])
    assert result.exit_code == 2, result.output
    assert "No such option '--no-such-option'" in result.output
    assert isinstance(result.exception, SystemExit)


def test_run_folder_that_the_system_refuses_is_one_line(tiny_overrides):
    result = CliRunner().invoke(main, ["pretrain", *tiny_overrides, "run_dir=/proc/run"])
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: /proc/run: ")


def test_an_existing_run_is_refused_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "config.yaml").write_text("name: old\n", encoding="utf-8")
    done = run("pretrain", "experiment=demo", f"run_dir={tmp_path}")
    assert done.returncode == 1, done.stderr
    assert f"already holds a run: resume it with --resume {tmp_path}" in done.stderr


@pytest.mark.parametrize("words", [["sweep", "list"], ["config", "pretrain", "name='é═σ'"], ["config", "data", "σ=═"]])
def test_a_locale_without_unicode_prints_escapes_and_no_traceback(words):
    done = run(*words, env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert "Traceback" not in done.stderr
    assert done.returncode == ("σ=═" in words)


def test_ctrl_c_while_preparing_data_names_the_command_that_resumes(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "prepare", interrupted)
    words = ["data", "prepare", "data=stdlib", f"data.dir={tmp_path / 'a b'}"]
    monkeypatch.setattr(sys, "argv", ["lit-illada", *words])
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 130
    assert f"Resume with the same command: lit-illada {shlex.join(words)}" in result.output

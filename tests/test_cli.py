"""The command line: help, errors, completion, data, board and generate."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner

from lit_illada import __version__
from lit_illada.cli import main
from lit_illada.cli.completion import complete_override
from lit_illada.config import load
from lit_illada.errors import UserError
from lit_illada.run_folder import flatten
from lit_illada.runtime.paths import conf_dir
from lit_illada.schema import dump


def lit_illada(*arguments, **options):
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False, **options)


def commands(group=main, prefix=()):
    for name, command in group.commands.items():
        if command.hidden:
            continue
        yield (*prefix, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom lit_illada.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'hydra', 'omegaconf', 'tokenizers', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_help_of_every_command_has_a_description_and_an_example(path):
    result = lit_illada(*path, "--help")
    assert result.exit_code == 0
    if path not in (("data",), ("sweep",), ("loops",), ("launch",)):
        assert f"lit-illada {' '.join(path)}" in result.output.split("Example")[1]


def test_version_is_printed():
    assert __version__ in lit_illada("--version").output


def test_printed_config_can_be_loaded(tmp_path):
    result = lit_illada("config", "pretrain", "experiment=demo", "model.num_hidden_layers=8")
    assert result.exit_code == 0
    assert yaml.safe_load(result.output)["model"]["num_hidden_layers"] == 8


def test_user_error_is_one_line_and_debug_shows_the_traceback():
    result = lit_illada("config", "pretrain", "model.depth=8")
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert result.output.startswith("Error: unknown config key 'model.depth'")
    with pytest.raises(ValueError, match=r"model\.depth"):
        lit_illada("--debug", "config", "pretrain", "model.depth=8")


@pytest.mark.parametrize("words", [["doctor", "--json"], ["bench", "loops", "--json"]], ids=" ".join)
def test_unwritable_output_file_is_rejected_before_the_work(words, tmp_path):
    (tmp_path / "folder").mkdir()
    for name, message in (("folder", "this is a folder"), ("none/found.json", "the folder ")):
        result = lit_illada(*words, str(tmp_path / name))
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: {words[-1]} {tmp_path / name}: {message}")
        assert result.output.count("\n") == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell):
    assert "_LIT_ILLADA_COMPLETE" in lit_illada("completion", shell).output


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pretrain experiment=", "experiment=demo"),
        ("pretrain model=na", "model=nano"),
        ("pretrain objective/mask_ratio=cos", "objective/mask_ratio=cosine"),
        ("pretrain trainer.max_", "trainer.max_steps="),
        ("pretrain samples.gen", "samples.generation.max_new_tokens="),
        ("pretrain generation@", "generation@samples.generation="),
        ("pretrain generation/cache@samples.generation.cache=", "generation/cache@samples.generation.cache=dual"),
        ("config sft evaluation.generation.num", "evaluation.generation.num_steps="),
        ("estimate pretrain model=na", "model=nano"),
        ("data prepare data=text data.source.pa", "data.source.paths="),
        ("pre", "pretrain"),
    ],
)
def test_shell_completes_commands_groups_and_keys(typed, offered):
    words = f"lit-illada {typed}"
    env = {**os.environ, "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    env["_LIT_ILLADA_COMPLETE"] = "bash_complete"
    script = "from lit_illada.cli import main; main(prog_name='lit-illada')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
    assert f"plain,{offered}" in done.stdout.splitlines()


@pytest.mark.parametrize("command", ["pretrain", "sft", "generate", "score", "data", "examples", "loops"])
def test_completed_keys_and_groups_belong_to_the_command(command):
    context = SimpleNamespace(info_name="config", params={"command": command, "overrides": ()})
    offered = {item.value.removesuffix("=") for item in complete_override(context, None, "")}
    keys = {key for key in offered if not (conf_dir() / key.partition("@")[0]).is_dir()}
    known = {key for key in flatten(yaml.safe_load(dump(load(command)))) if not key.endswith(".name")}
    if command == "sft":  # whose model is that of the checkpoint
        known = {key for key in known if not key.startswith("model.")}
    assert keys == known
    for group in offered - keys - {"experiment"}:
        with pytest.raises(UserError, match=r"unknown config .* .missing.: allowed are"):  # the group is one
            load(command, [f"{group}=missing"])


def test_completion_needs_neither_hydra_nor_torch():
    script = "import sys; import lit_illada.cli; assert not {'torch', 'hydra', 'omegaconf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_data_prepare_inspect_and_verify(tiny_corpus, tmp_path):
    folder = tmp_path / "data"
    overrides = ["data=text", f"data.source.paths=[{tiny_corpus}]", f"data.dir={folder}"]
    overrides += ["data.tokenizer.vocab_size=300", "data.num_processes=1", "data.shard_tokens=1024"]
    result = lit_illada("data", "prepare", *overrides)
    assert result.exit_code == 0
    assert "documents" in result.output
    assert "bytes/token" in lit_illada("data", "inspect", str(folder)).output
    assert "all shards are intact" in lit_illada("data", "verify", str(folder)).output
    shard = next(iter(sorted(folder.glob("*.tar"))))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    result = lit_illada("data", "verify", str(folder))
    assert result.exit_code == 1
    assert shard.name in result.output
    result = lit_illada("pretrain", *overrides, "trainer.accelerator=cpu", f"run_dir={tmp_path / 'run'}")
    assert result.exit_code == 1
    assert shard.name in result.output
    assert "altered" in result.output
    result = lit_illada("data", "prepare", *overrides, "data.shard_tokens=2048")
    assert result.exit_code == 1
    assert "shard_tokens" in result.output
    assert lit_illada("data", "prepare", *overrides, "--overwrite").exit_code == 0
    assert "all shards are intact" in lit_illada("data", "verify", str(folder)).output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "corpus.txt"),
        (b"", "no text"),
        (b"text\0with a zero", "corpus.txt"),
        (b"broken \xff utf-8", "corpus.txt"),
    ],
)
def test_invalid_corpus_is_a_one_line_error(content, message, tmp_path):
    file = tmp_path / "corpus.txt"
    if content is not None:
        file.write_bytes(content)
    folder = tmp_path / "data"
    result = lit_illada("data", "prepare", "data=text", f"data.source.paths=[{file}]", f"data.dir={folder}")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: ")
    assert message in result.output
    assert not (folder / "manifest.json").exists()


def test_full_disk_is_reported_and_leaves_no_partial_data(tiny_corpus, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        folder = small / "data"
        result = lit_illada(
            "data", "prepare", "data=text", f"data.source.paths=[{tiny_corpus}]", f"data.dir={folder}",
            "data.tokenizer.vocab_size=300", "data.num_processes=1",
        )  # fmt: skip
        assert result.exit_code == 1
        assert result.output.splitlines()[-1].startswith("Error: ")
        assert "full" in result.output or "No space left" in result.output
        assert not (folder / "manifest.json").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_full_disk_during_training_leaves_the_last_checkpoint(tiny_overrides, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        run = small / "run"
        result = lit_illada("pretrain", *tiny_overrides, f"run_dir={run}", "trainer.keep_checkpoints=100")
        assert result.exit_code == 1
        assert "the checkpoint could not be written" in result.output
        checkpoints = sorted((run / "checkpoints").iterdir())
        assert checkpoints
        assert all(path.suffix == ".ckpt" for path in checkpoints)
        assert lit_illada("generate", str(run), "--prompt", "alpha", "generation.max_new_tokens=32").exit_code == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_board_rejects_a_port_that_does_not_exist(tmp_path):
    result = lit_illada("board", str(tmp_path), "--port", "70000")
    assert result.exit_code == 2
    assert "70000 is not in the range 0<=x<=65535" in result.output


def test_pretraining_starts_from_a_folder_with_an_apostrophe(tmp_path):
    (tmp_path / "it's").mkdir()
    result = lit_illada("pretrain", "--init-from", str(tmp_path / "it's"), "data=stdlib", f"run_dir={tmp_path}/run")
    assert result.exit_code == 1
    assert "it's: no run there" in result.output


def test_board_serves_the_curves(tmp_path, tiny_overrides):
    assert lit_illada("board", str(tmp_path)).exit_code == 1
    run = tmp_path / "runs" / "one"
    assert lit_illada("pretrain", *tiny_overrides, f"run_dir={run}", "trainer.max_steps=4").exit_code == 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lit_illada.cli", "board", str(run.parent), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        address = f"http://localhost:{port}/data/plugin/scalars/tags"
        for _ in range(600):
            try:
                answer = urllib.request.urlopen(address, timeout=5).read().decode()
            except OSError:
                answer = ""
            if "val/nll_bound" in answer:
                break
            time.sleep(0.1)
        assert "val/nll_bound" in answer
        taken = lit_illada("board", str(run.parent), "--port", str(port))
        assert taken.exit_code == 1
        assert "--port" in taken.output
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def trained(tiny_overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert lit_illada("pretrain", *tiny_overrides, f"run_dir={run}").exit_code == 0
    return run


SHORT = ["generation.max_new_tokens=16", "generation.block_length=8", "generation.num_steps=4"]


def test_generate_continues_a_prompt_from_argument_file_or_standard_input(trained, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("alpha beta", encoding="utf-8")
    by_argument = lit_illada("generate", str(trained), "--prompt", "alpha beta", *SHORT)
    by_file = lit_illada("generate", str(trained), "--prompt-file", str(file), *SHORT)
    by_input = lit_illada("generate", str(trained), *SHORT, input="alpha beta")
    checkpoint = max((trained / "checkpoints").iterdir())
    by_checkpoint = lit_illada("generate", str(checkpoint), "--prompt", "alpha beta", *SHORT)
    assert by_argument.exit_code == 0
    assert by_argument.stdout == by_file.stdout == by_input.stdout == by_checkpoint.stdout


def test_generate_is_deterministic_by_seed(trained):
    def hot(seed):
        sampled = ["generation.temperature=1.0", f"generation.seed={seed}"]
        return lit_illada("generate", str(trained), "--prompt", "alpha", *SHORT, *sampled).stdout

    assert hot(1) == hot(1)
    assert len({hot(seed) for seed in range(4)}) > 1


def test_live_view_shows_masks_becoming_text(trained):
    result = lit_illada("generate", str(trained), "--prompt", "alpha", "--live", *SHORT, env={"FORCE_COLOR": "1"})
    assert result.exit_code == 0
    assert "░" in result.stderr
    assert "░" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a", "generation.block_length=0"], "generation.block_length is 0"),
        (["--prompt", "alpha " * 2000], "positions of the model"),
        (["--prompt", "a", "--prompt-file", "b"], "not both"),
        (["--prompt-file", "missing.txt"], "missing.txt"),
        (["--prompt", "a", "generation.temperatur=1"], "did you mean 'generation.temperature'"),
    ],
)
def test_invalid_generate_command_is_a_one_line_error(arguments, message, trained):
    result = lit_illada("generate", str(trained), *arguments)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: ")
    assert message in result.output


def test_checkpoint_with_another_tokenizer_is_rejected(trained, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(trained), str(copy)], check=True)
    tokenizer = copy / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8").replace("Ġalpha", "Ġalphb"), encoding="utf-8")
    result = lit_illada("generate", str(copy), "--prompt", "a")
    assert result.exit_code == 1
    assert "tokenizer" in result.output


def test_missing_checkpoint_missing_run_and_foreign_file_are_errors(tmp_path):
    assert "no run there" in lit_illada("generate", str(tmp_path), "--prompt", "a").output
    assert "no such checkpoint" in lit_illada("generate", str(tmp_path / "x.ckpt"), "--prompt", "a").output
    foreign = tmp_path / "foreign.ckpt"
    Path(foreign).write_bytes(b"not a checkpoint")
    assert "not a readable checkpoint" in lit_illada("generate", str(foreign), "--prompt", "a").output

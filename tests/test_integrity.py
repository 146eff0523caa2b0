"""Damaged checkpoints, exports and converted folders are refused by every command that reads them, in one line."""

import json
import random
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from lit_illada.checkpoints.open import open_checkpoint
from lit_illada.cli import main
from lit_illada.errors import UserError
from lit_illada.runtime.new_folder import new_folder
from lit_illada.training.checkpointing.files import checkpoint_path, latest_checkpoint
from lit_illada.training.checkpointing.reading import HAS_CHECKSUM, read_checkpoint
from lit_illada.training.checkpointing.writer import CheckpointWriter

SHORT = ["generation.max_new_tokens=8", "generation.block_length=8", "generation.num_steps=2"]


def lit_illada(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)


def refused(*arguments):
    """The one line that the command ends in."""
    result = lit_illada(*arguments)
    assert result.exit_code == 1, result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: "), result.output
    return last


@pytest.fixture(scope="module")
def trained(tiny_overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert lit_illada("pretrain", *tiny_overrides, f"run_dir={run}").exit_code == 0
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def folders(trained, tmp_path_factory):
    """A converted folder and an export of the run."""
    parent = tmp_path_factory.mktemp("converted")
    assert lit_illada("convert", trained, parent / "lit", "--to", "lit").exit_code == 0
    assert lit_illada("convert", trained, parent / "hf", "--to", "llada").exit_code == 0
    return parent


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("alpha beta gamma " * 20)
    return file


def readers(source, tmp_path):
    """Every command that reads a checkpoint."""
    return [
        ["generate", source, "--prompt", "alpha", *SHORT],
        ["score", source, "--text", text(tmp_path), "score.num_draws=2", "--out", tmp_path / "scores"],
        ["convert", source, tmp_path / "out", "--to", "illada"],
    ]


@pytest.mark.parametrize("seed", range(24))
def test_one_flipped_bit_of_a_checkpoint_is_refused(seed, run):
    newest = latest_checkpoint(run / "checkpoints")
    flip(newest, random.Random(seed).randrange(8 * newest.stat().st_size))
    with pytest.raises(UserError, match=r"step=00000012.ckpt: ") as refusal:
        open_checkpoint(run)
    earlier = checkpoint_path(run / "checkpoints", 9)
    assert f"the newest intact checkpoint before it is {earlier}: remove {newest} and resume" in str(refusal.value)
    newest.unlink()
    assert open_checkpoint(run).path == earlier


def test_every_command_names_the_damaged_checkpoint_and_the_one_before_it(run, tmp_path):
    newest = latest_checkpoint(run / "checkpoints")
    flip(newest, 8 * (newest.stat().st_size // 2))
    resume = ["pretrain", "--resume", run, "trainer.max_steps=14"]
    for command in (resume, *readers(run, tmp_path)):
        line = refused(*command)
        assert "step=00000012.ckpt: damaged" in line
        assert "step=00000009.ckpt" in line
    flip(checkpoint_path(run / "checkpoints", 9), 8000)
    assert "there is no intact checkpoint before it" in refused(*resume)
    newest.unlink()
    assert "step=00000009.ckpt: damaged" in refused(*resume)


def test_a_checkpoint_that_lost_its_checksum_is_refused_and_an_old_one_without_is_read(run):
    newest = latest_checkpoint(run / "checkpoints")
    content = torch.load(newest, weights_only=True)
    torch.save(content, newest)
    with pytest.raises(UserError, match="its checksum is missing"):
        open_checkpoint(run)
    del content[HAS_CHECKSUM]
    torch.save(content, newest)
    assert open_checkpoint(run).path == newest


@pytest.mark.parametrize("kind", ["lit", "hf"])
def test_any_damaged_file_of_a_converted_folder_or_export_is_refused(kind, folders, tmp_path):
    whole = folders / kind
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    files = [file for file in files if file.name not in ("provenance.jsonl", ".gitignore")]
    assert len(files) >= 4
    for number, file in enumerate(files):
        damaged = shutil.copytree(whole, tmp_path / f"damaged-{number}")
        flip(damaged / file, random.Random(number).randrange(8 * (damaged / file).stat().st_size))
        line = refused("convert", damaged, tmp_path / "out", "--to", "lit" if kind == "hf" else "illada")
        assert f"{damaged / file}: " in line
    foreign = shutil.copytree(whole, tmp_path / "foreign")
    (foreign / "checksums.json").unlink()
    assert lit_illada("convert", foreign, tmp_path / "fine").exit_code == 0


def rewrite(run, change):
    """The newest checkpoint with its content changed, under a valid checksum."""
    newest = latest_checkpoint(run / "checkpoints")
    content = read_checkpoint(newest)
    content["state_dict"] = {name: tensor.clone() for name, tensor in content["state_dict"].items()}
    del content[HAS_CHECKSUM]
    change(content)
    writer = CheckpointWriter(is_async=False)
    writer.save_checkpoint(content, newest)
    assert writer.error is None
    writer.publish()


@pytest.mark.slow
def test_a_full_disk_during_convert_is_one_line_and_leaves_nothing(run, tmp_path):
    for number, to in enumerate(("lit", "llada")):
        for limit in (100, 1000, 30_000, 100_000):
            code = (
                f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
                "from lit_illada.cli import main; main()"
            )
            out = tmp_path / f"out-{number}-{limit}"
            command = [sys.executable, "-c", code, "convert", str(run), str(out), "--to", to]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 1, result.stderr
            last = result.stderr.strip().splitlines()[-1]
            assert last.startswith("Error: "), result.stderr
            assert "File too large" in last
            assert "free some space and run it again" in last
            assert not list(tmp_path.glob(f"*{out.name}*")) + list(tmp_path.glob(f".{out.name}*"))


def test_a_full_disk_during_a_checkpoint_is_one_line(tmp_path):
    code = (
        "import resource, sys, torch; from pathlib import Path; "
        "from lit_illada.training.checkpointing.writer import CheckpointWriter; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); writer = CheckpointWriter(is_async=False); "
        "writer.save_checkpoint({'state_dict': {'w': torch.ones(100000)}}, Path(sys.argv[1])); print(writer.error)"
    )
    target = tmp_path / "step=00000001.ckpt"
    result = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True, check=False)
    assert result.stdout == (
        f"{target}: the checkpoint could not be written (File too large); free some space and resume\n"
    )


@pytest.mark.slow
def test_loaders_under_a_low_limit_of_open_files_are_refused_in_one_line(tiny_overrides, tmp_path):
    code = (
        "import resource; from lit_illada.cli import main; import lit_illada.commands.pretrain; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24)); main()"
    )
    overrides = [*tiny_overrides, "data.num_workers=2", f"run_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-c", code, "pretrain", *overrides]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1
    assert "a process may open 24 files here (ulimit -n), and num_workers=2 needs about" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_second_convert_into_a_folder_is_refused_while_the_first_one_writes(run, tmp_path):
    out = tmp_path / "out"
    with new_folder(out) as partial:
        (partial / "file").write_text("first")
        assert f"{out} is being written by another process" in refused("convert", run, out, "--to", "lit")
        assert (partial / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]
    assert [path.name for path in out.iterdir()] == ["file"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_no_model_has_are_refused_by_name(value, run, folders, tiny_overrides, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(run, lambda content: content["state_dict"][f"model.{name}"].view(-1)[7].fill_(value))
    begin = ["pretrain", *tiny_overrides, "--init-from", run, f"run_dir={tmp_path / 'new'}"]
    resume = ["pretrain", "--resume", run, "trainer.max_steps=14"]
    fine_tune = ["sft", run, "experiment=sft/demo", f"run_dir={tmp_path / 'tuned'}"]
    for command in (*readers(run, tmp_path), begin, resume, fine_tune):
        line = refused(*command)
        assert f"{name} has 1 of 2,048 values that are not finite or above 65504" in line
    foreign = shutil.copytree(folders / "hf", tmp_path / "foreign")
    (foreign / "checksums.json").unlink()
    tensors = load_file(foreign / "model.safetensors")
    published = next(name for name in tensors if "ff_out" in name)
    tensors[published].view(-1)[7] = value
    save_file(tensors, foreign / "model.safetensors", {"format": "pt"})
    assert "mlp.down_proj.weight has 1 of" in refused("convert", foreign, tmp_path / "back").replace(
        published, "mlp.down_proj.weight"
    )


ONES = torch.ones(7)
CONTENTS = {
    "a text for a size": lambda content: model(content).update(hidden_size="many"),
    "no vocabulary": lambda content: model(content).update(vocab_size=None),
    "a negative vocabulary": lambda content: model(content).update(vocab_size=-3),
    "another vocabulary": lambda content: model(content).update(vocab_size=77),
    "a huge vocabulary": lambda content: model(content).update(vocab_size=2**62),
    "an integer beyond 64 bits": lambda content: model(content).update(vocab_size=10**30),
    "a billion layers": lambda content: model(content).update(num_hidden_layers=10**9),
    "one layer fewer": lambda content: model(content).update(num_hidden_layers=1),
    "a model that is a list": lambda content: content["hyper_parameters"]["config"].update(model=[1]),
    "a config that is a text": lambda content: content["hyper_parameters"].update(config="model"),
    "no hyper-parameters": lambda content: content.pop("hyper_parameters"),
    "hyper-parameters that are a list": lambda content: content.update(hyper_parameters=[]),
    "weights that are a list": lambda content: content.update(state_dict=[1, 2]),
    "a weight that is a number": lambda content: content["state_dict"].update({"model.model.norm.weight": 3}),
    "a weight of another shape": lambda content: content["state_dict"].update({"model.model.norm.weight": ONES}),
    "a weight that is gone": lambda content: content["state_dict"].pop("model.model.norm.weight"),
    "a weight too many": lambda content: content["state_dict"].update({"model.extra.weight": ONES}),
}  # fmt: skip


def model(content):
    return content["hyper_parameters"]["config"]["model"]


@pytest.mark.parametrize("case", CONTENTS)
def test_a_checkpoint_whose_content_does_not_fit_together_is_one_line(case, run):
    def change(content):
        content["hyper_parameters"] = json.loads(json.dumps(content["hyper_parameters"]))
        CONTENTS[case](content)

    rewrite_unchecked(run, change)
    with pytest.raises(UserError, match=r"step=00000012.ckpt: "):
        open_checkpoint(run)
    line = refused("pretrain", "--resume", run, "trainer.max_steps=14")
    assert "step=00000012.ckpt: " in line
    assert len(line) < 600


def rewrite_unchecked(run, change):
    newest = latest_checkpoint(run / "checkpoints")
    content = torch.load(newest, weights_only=True)
    del content[HAS_CHECKSUM]
    change(content)
    torch.save(content, newest)


def test_several_objects_that_are_no_checkpoint_are_one_line(run):
    newest = latest_checkpoint(run / "checkpoints")
    for content in ([1, 2], "text", torch.ones(3), {}):
        torch.save(content, newest)
        for command in (["generate", run, "--prompt", "alpha"], ["pretrain", "--resume", run, "trainer.max_steps=14"]):
            assert "step=00000012.ckpt: " in refused(*command)

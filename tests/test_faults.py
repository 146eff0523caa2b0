"""What a user sees when something is wrong: a table of bad inputs and faults, each one line and an exit status.

Faults that need a separate process are tested elsewhere: killed and silent ranks in
tests/training/distributed/test_rank_watch.py, kills in tests/training/test_pretrain.py, lost servers in
tests/data/test_fetching.py.
"""

import json
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.data.dataset.reading import open_dataset
from lit_illada.training.checkpointing.files import latest_checkpoint


def lit_illada(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@dataclass(frozen=True)
class World:
    """What a row of the table may spoil. run: a finished run, a copy. data: a prepared data set, a copy."""

    folder: Path
    tiny: list[str]
    run: Path
    data: Path

    @property
    def on_data(self):
        """The overrides that train on `data` as it is."""
        return [*self.tiny, "data=prepared", f"data.dir={self.data}", f"run_dir={self.folder / 'new'}"]

    @property
    def shard(self):
        return self.data / open_dataset(self.data).manifest.train.shards[0].file

    def corpus(self, content, suffix=".txt"):
        file = self.folder / f"corpus{suffix}"
        file.write_bytes(content)
        kind = {".txt": "text", ".jsonl": "jsonl"}[suffix]
        return ["data", "prepare", f"data={kind}", f"data.source.paths=[{file}]", f"data.dir={self.folder / 'made'}"]


@pytest.fixture(scope="module")
def trained(tiny_overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert lit_illada("pretrain", *tiny_overrides, f"run_dir={run}").exit_code == 0
    return run


@pytest.fixture
def world(trained, tiny_dataset, tiny_run, tmp_path):
    source = next(item.partition("=")[2] for item in tiny_dataset if item.startswith("data.dir="))
    data = shutil.copytree(source, tmp_path / "data")
    return World(tmp_path, tiny_run, Path(shutil.copytree(trained, tmp_path / "run")), Path(data))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path, size=1000):
    path.write_bytes(path.read_bytes()[:size])


def config(*overrides):
    return lambda world: ["config", "pretrain", *overrides]


def train(*overrides, spoil=lambda world: None):
    """Training on the prepared data set, after something was done to it."""

    def arguments(world):
        spoil(world)
        return ["pretrain", *world.on_data, *overrides]

    return arguments


def resume(*overrides, spoil=lambda world: None):
    def arguments(world):
        spoil(world)
        return ["pretrain", "--resume", world.run, *overrides]

    return arguments


def corpus(content, *overrides, suffix=".txt"):
    return lambda world: [*world.corpus(content, suffix), *overrides]


def sweep(text):
    def arguments(world):
        spec = world.folder / "spec.yaml"
        spec.write_text(text)
        return ["sweep", "plan", spec]

    return arguments


def another_tokenizer(world):
    tokenizer = world.data / "tokenizer" / "tokenizer.json"
    tree = json.loads(tokenizer.read_text())
    tree["model"]["merges"].pop()
    tokenizer.write_text(json.dumps(tree))


def of_another_tokenizer(world):
    texts = world.folder / "texts"
    texts.mkdir()
    for index in range(40):
        texts.joinpath(f"{index}.txt").write_text(f"one two three {index} " * 20)
    return [
        "pretrain", "--init-from", world.run, "data=text", f"data.source.paths=[{texts}]",
        f"data.dir={world.folder / 'other'}", "data.tokenizer.vocab_size=290", "data.num_processes=1",
        "data.validation_fraction=0.3",
        "data.row_length=32", "trainer.accelerator=cpu", f"run_dir={world.folder / 'new'}",
    ]  # fmt: skip


# name: (the command, the words of its one line)
FAULTS = {
    # what was typed
    "a key that does not exist": (config("model.num_layers=3"), ["did you mean 'model.num_hidden_layers'"]),
    "a group that does not exist": (config("modle=nano"), ["modle"]),
    "a file that a group lacks": (config("model=nanno"), ["'nanno'", "allowed are", "did you mean 'nano'"]),
    "a word where a number is due": (config("trainer.max_steps=many"), ["trainer.max_steps", "'many'"]),
    "an unknown precision": (config("trainer.precision=bf16"), ["'bf16'", "did you mean 'bf16-mixed'"]),
    "no override at all": (config("seed"), ["'seed'", "write KEY=VALUE"]),
    "an unknown answer to divergence": (config("trainer/on_divergence=rolback"), ["did you mean 'rollback'"]),
    "an unknown answer to bad shards": (config("data.on_bad_shard=skp"), ["did you mean 'skip'"]),
    # what does not go together
    "a batch that cannot be divided": (config("trainer.batch_rows=33"), ["batch_rows=33", "no multiple of"]),
    "a causal objective, a model that is not": (config("objective=autoregressive"), ["needs model.is_causal=true"]),
    "a warm-up longer than the run": (config("trainer.max_steps=50"), ["warmup_steps is 100", "max_steps=50"]),
    "a row longer than the model": (config("data.row_length=99999"), ["99999", "max_position_embeddings"]),
    "heads that cannot be shared": (config("model.num_key_value_heads=3"), ["must divide model.num_attention_heads"]),
    "a rollback without an earlier checkpoint": (
        config("trainer/on_divergence=rollback", "trainer.keep_checkpoints=1"),
        ["keep_checkpoints of 2 or more", "got 1"],
    ),
    "a time-out of nothing": (config("trainer.timeout_s=0"), ["trainer.timeout_s is 0.0: it must be above 0"]),
    "a time-out without end": (
        config("trainer.timeout_s=inf"),
        ["trainer.timeout_s is inf: it must be above 0 and finite"],
    ),
    # the machine
    "no GPU": (train("trainer.accelerator=gpu"), ["accelerator=gpu", "no CUDA device", "accelerator=cpu"]),
    "a kernel for GPUs": (train("model.attention=varlen"), ["needs a CUDA device"]),
    "memory that nobody has": (
        train(f"model.intermediate_size={2**40}"),
        ["out of memory on this machine", "trainer.micro_batch_rows (now 8", "lit-illada estimate pretrain"],
    ),
    "a file where a folder should be": (
        train("run_dir=setup/run", spoil=lambda world: Path("setup").touch()),
        ["setup/run", "a file exists where a folder is needed"],
    ),
    # text to prepare
    "a corpus that is not there": (
        lambda world: ["data", "prepare", "data=text", "data.source.paths=[nowhere.txt]", f"data.dir={world.folder}/d"],
        ["nowhere.txt"],
    ),
    "an empty corpus": (corpus(b""), ["no text"]),
    "a corpus in Latin-1": (corpus("déjà vu\n".encode("latin-1") * 99), ["corpus.txt", "UTF-8"]),
    "a line that is no JSON": (corpus(b'{"text": "a"}\n{"text": \n', suffix=".jsonl"), ["corpus.jsonl", "2"]),
    "a line without its text": (corpus(b'{"body": "a"}\n', suffix=".jsonl"), ["corpus.jsonl", "text"]),
    "a vocabulary without room for bytes": (
        corpus(b"a b c", "data.tokenizer.vocab_size=10"),
        ["data.tokenizer.vocab_size is 10", "at least"],
    ),
    # a prepared data set
    "no data set": (train("data.dir=nowhere"), ["no prepared data set at nowhere", "lit-illada data prepare"]),
    "a damaged manifest": (
        train(spoil=lambda world: cut(world.data / "manifest.json", 100)),
        ["manifest.json is not a manifest"],
    ),
    "a shard that is gone": (train(spoil=lambda world: world.shard.unlink()), ["train-000000", "is missing"]),
    "a shard cut short": (train(spoil=lambda world: cut(world.shard)), ["train-000000", "truncated: 1000 of"]),
    "a shard with one byte altered": (train(spoil=lambda world: flip(world.shard)), ["train-000000", "altered"]),
    "another tokenizer than the shards'": (train(spoil=another_tokenizer), ["tokenizer", "does not fit the shards"]),
    "a damaged tokenizer": (
        train(spoil=lambda world: cut(world.data / "tokenizer" / "tokenizer.json", 99)),
        ["tokenizer"],
    ),
    "too little text for a row": (
        train("data.row_length=90000", "model.max_position_embeddings=90000"),
        ["row_length=90000", "lower it"],
    ),
    "a server that is not there": (
        train("data.dir=http://127.0.0.1:9/set", "data.fetch_attempts=1"),
        ["http://127.0.0.1:9/set/manifest.json could not be read", "check the address and the network"],
    ),
    # runs
    "a run folder that is taken": (
        lambda world: ["pretrain", *world.on_data, f"run_dir={world.run}"],
        ["already holds a run", "--resume"],
    ),
    "a resume of nothing": (lambda world: ["pretrain", "--resume", world.folder], ["no run there"]),
    "a resume of what is finished": (resume(), ["is finished at step 12", "raise trainer.max_steps"]),
    "a resume as another run": (resume("trainer.batch_rows=16"), ["batch_rows was 8 in the run and would be 16"]),
    "a resume with another seed": (resume("seed=7", "trainer.max_steps=20"), ["seed=0", "not seed=7"]),
    "a resume from a damaged checkpoint": (
        resume("trainer.max_steps=20", spoil=lambda world: cut(latest_checkpoint(world.run / "checkpoints"))),
        ["step=00000012.ckpt", "not a readable checkpoint"],
    ),
    "a resume with a damaged config": (
        resume(spoil=lambda world: (world.run / "config.yaml").write_text("model: [")),
        ["config.yaml", "not YAML"],
    ),
    "weights and a model of another kind": (
        lambda world: ["pretrain", "--init-from", world.run, *world.on_data, "model=nano"],
        ["the checkpoint determines the model", "leave out model=nano"],
    ),
    "weights of another tokenizer": (of_another_tokenizer, ["prepared with another tokenizer", "data/tokenizer=load"]),
    "weights that are not there": (
        lambda world: ["pretrain", "--init-from", "nowhere.ckpt", *world.on_data],
        ["nowhere.ckpt: no such checkpoint"],
    ),
    "a fine-tuning of nothing": (lambda world: ["sft"], ["nothing to fine-tune"]),
    "numbers that overflow": (
        train("optim.optimizer.learning_rate=1e30", "trainer.max_nonfinite_steps=2", "trainer.max_steps=30"),
        ["2 steps in a row had a non-finite gradient", "resume with a lower optim.optimizer.learning_rate"],
    ),
    "a checkpoint that is none": (
        lambda world: ["generate", world.shard, "--prompt", "a"],
        ["not a readable checkpoint"],
    ),
    # sweeps
    "a sweep that is not there": (lambda world: ["sweep", "plan", "nowhere"], ["nowhere"]),
    "a sweep of nothing": (sweep("arms: {}\n"), ["arms"]),
    "a sweep with a word of its own": (sweep("basee: pretrain\n"), ["basee"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_that_says_what_is_wrong(name, world, monkeypatch):
    if name in ("no GPU", "a kernel for GPUs") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.chdir(world.folder)
    make, message = FAULTS[name]
    result = lit_illada(*make(world))
    last = result.output.rstrip().splitlines()[-1]
    assert result.exit_code == 1, result.output
    assert last.startswith("Error: "), result.output
    assert "Traceback" not in result.output
    for words in message:
        assert words in last


@pytest.mark.parametrize("arguments", [["pretrian"], ["pretrain", "--resmue", "x"], ["board", "--port", "many"]])
def test_an_unknown_command_or_option_is_refused_with_the_nearest(arguments):
    result = lit_illada(*arguments)
    assert result.exit_code == 2
    assert arguments[-1] in result.output or arguments[-2] in result.output


def test_a_port_in_use_is_reported(trained):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = lit_illada("board", trained, "--port", port)
    assert result.exit_code == 1
    assert f"port {port} on localhost cannot be used" in result.output
    assert "choose another with --port" in result.output


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system at `small`: (mount's options) -> its folder."""
    small = tmp_path / "small"
    small.mkdir()

    def mounted(options):
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(small)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("a small file system cannot be mounted here")
        return small

    yield mounted
    while subprocess.run(["umount", str(small)], capture_output=True, check=False).returncode == 0:
        pass


def test_a_read_only_folder_is_reported(small_disk, tiny_overrides):
    folder = small_disk("size=1m,ro")
    result = lit_illada("pretrain", *tiny_overrides, f"run_dir={folder / 'run'}")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == (
        f"Error: {folder / 'run'}: Read-only file system: choose a writable folder"
    )


@pytest.mark.parametrize("left_kb", [4, 24, 60])
def test_a_run_stopped_by_a_full_disk_resumes(left_kb, small_disk, tiny_overrides, trained):
    """With the curves, the progress, the config or a checkpoint: one line, the last checkpoint whole."""
    folder = small_disk("size=4m")
    run = folder / "run"
    assert lit_illada("pretrain", *tiny_overrides, f"run_dir={run}", "trainer.max_steps=6").exit_code == 0
    disk = os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(bytes(disk.f_bavail * disk.f_bsize - left_kb * 1024))
    result = lit_illada("pretrain", "--resume", run, "trainer.max_steps=12")
    assert result.exit_code == 1, result.output
    last = result.output.rstrip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert "No space left on device" in last or "the checkpoint could not be written" in last
    filler.unlink()
    assert lit_illada("pretrain", "--resume", run, "trainer.max_steps=12").exit_code == 0
    one, other = (
        torch.load(latest_checkpoint(each / "checkpoints"), weights_only=True)["state_dict"] for each in (run, trained)
    )
    assert one.keys() == other.keys()

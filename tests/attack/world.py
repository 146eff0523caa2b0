"""A tiny data set, run, export and converted folder, and the commands that read them."""

import hashlib
import json
import random
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from attack.sandbox import Job, run_job

_WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu".split()
TEXT = [
    "data=text", "data.source.paths=[corpus]", "data.dir=data", "data.tokenizer.vocab_size=300",
    "data.validation_fraction=0.2", "data.shard_tokens=2048", "data.num_processes=1",
]  # fmt: skip
TINY = [
    "model.hidden_size=32", "model.intermediate_size=64", "model.num_hidden_layers=2", "model.num_attention_heads=2",
    "model.num_key_value_heads=1", "data.row_length=32", "data.num_streams=4", "optim.schedule.warmup_steps=1",
    "optim.schedule.final_factor=1",  # so that a run of six steps is one of four and two more
    "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.batch_rows=8", "trainer.micro_batch_rows=8",
    "trainer.max_steps=4", "trainer.log_every_steps=2", "trainer.val_every_steps=4", "trainer.val_rows=8",
    "trainer.val_draws=2", "trainer.checkpoint_every_steps=2",
]  # fmt: skip
SHORT = ["generation.max_new_tokens=8", "generation.block_length=4", "generation.num_steps=2"]
PROGRAMS = ("touch", "cat", "sh", "curl", "id")  # on PATH as programs that leave a mark


def make_world(folder: Path) -> Path:
    """Build everything once; returns the box whose content each case copies."""
    box = prepare_case(folder / "world", None)
    corpus = box / "corpus"
    corpus.mkdir()
    rng = random.Random(0)
    for index in range(60):
        phrase = " ".join(rng.choices(_WORDS, k=5))
        corpus.joinpath(f"{index:03d}.txt").write_text(". ".join([phrase] * rng.randint(2, 20)), encoding="utf-8")
    (box / "text.txt").write_text("alpha beta gamma delta " * 4)
    rows = [{"messages": [{"role": "user", "content": f"add {n}"}, {"role": "assistant", "content": f"{n + 1}"}]}
            for n in range(40)]  # fmt: skip
    (box / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for arguments in (
        ["data", "prepare", *TEXT],
        ["pretrain", *TEXT, *TINY, "run_dir=run", "samples.prompts=[alpha]", *(f"samples.{item}" for item in SHORT)],
        ["convert", "run", "export"],
        ["convert", "export", "converted"],
    ):
        outcome = run_job(Job(box, arguments))
        assert outcome.exit_code == 0, outcome
        assert not outcome.outside, outcome
        assert not outcome.commands, outcome
    return box


def prepare_case(folder: Path, world: Path | None) -> Path:
    """A fresh folder with a copy of the world's box, a folder outside it, and programs that leave a mark."""
    box = folder / "box"
    for name in ("outside", "bin"):
        (folder / name).mkdir(parents=True)
    (folder / "outside" / "secret.txt").write_text("what must not change\n")
    for name in PROGRAMS if world is not None else ():
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\necho {name} >> {folder / "outside" / "CANARY"}\nexec /usr/bin/{name} "$@"\n')
        program.chmod(0o755)
    if world is None:
        box.mkdir()
    else:
        shutil.copytree(world, box)
    return box


@dataclass(frozen=True)
class Command:
    """A command that reads a part of the world. measure: what its result is, for a comparison bit for bit."""

    name: str
    arguments: Sequence[str]
    measure: Callable[[Path, str], Any]


def _said(box: Path, output: str) -> Any:
    """What it printed, without times."""
    return [line for line in output.splitlines() if " s" not in line[-4:]]


def _trained(folder: str, box: Path, output: str) -> Any:
    """Weights, moments and validation figures at the end."""
    import torch

    newest = max((box / folder / "checkpoints").glob("step=*.ckpt"))
    content = torch.load(newest, weights_only=True)
    digest = hashlib.sha256()
    _update(digest, {key: content[key] for key in ("state_dict", "optimizer_states", "global_step")})
    figures = json.loads((box / folder / "summary.json").read_text())["end"]
    return digest.hexdigest(), {key: repr(value) for key, value in figures.items() if key.startswith("val/")}


def _update(digest: Any, tree: Any) -> None:
    import torch

    if isinstance(tree, torch.Tensor):
        digest.update(tree.contiguous().view(-1).numpy().tobytes())
    elif isinstance(tree, dict):
        for key, value in tree.items():
            digest.update(repr(key).encode())
            _update(digest, value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            _update(digest, value)
    else:
        digest.update(repr(tree).encode())


def _files(folder: str, box: Path, output: str) -> Any:
    """The bytes of every file, without the record of when it was made."""
    files = sorted(path for path in (box / folder).rglob("*") if path.is_file() and path.name != "provenance.jsonl")
    return [(str(path.relative_to(box)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


def _scored(box: Path, output: str) -> Any:
    tree = json.loads((box / "scores" / "summary.json").read_text())
    return _without_times(tree["results"])


def _without_times(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {
            key: _without_times(value) for key, value in tree.items() if "elapsed" not in key and "_per_s" not in key
        }
    return [_without_times(value) for value in tree] if isinstance(tree, list) else tree


_OLDER = "run/checkpoints/step=00000002.ckpt"
_TRAIN = ["pretrain", "data=prepared", "data.dir=data", *TINY, "run_dir=new", "trainer.max_steps=2"]
COMMANDS = {
    command.name: command
    for command in (
        Command("data verify", ["data", "verify", "data"], _said),
        Command("data inspect", ["data", "inspect", "data"], _said),
        Command("pretrain", _TRAIN, partial(_trained, "new")),
        Command("resume", ["pretrain", "--resume", "run", "trainer.max_steps=6"], partial(_trained, "run")),
        Command("generate run", ["generate", "run", "--prompt", "alpha beta", "--no-live", *SHORT], _said),
        Command("score run", ["score", "run", "--text", "text.txt", "score.num_draws=2", "--out", "scores"], _scored),
        Command("convert run", ["convert", "run", "out"], partial(_files, "out")),
        Command("sft run", ["sft", "run", "sft_data=messages", "sft_data.source.paths=[chats.jsonl]", "run_dir=tuned",
                            "sft_data.row_length=64", "trainer.max_steps=2", "trainer.accelerator=cpu", "epochs=null",
                            "trainer.batch_rows=4", "trainer.micro_batch_rows=4", "optim.schedule.warmup_steps=0",
                            "trainer.val_rows=4", "evaluation.num_examples=0"], partial(_trained, "tuned")),
        Command("data examples",
                ["data", "examples", "run", "sft_data=messages", "sft_data.source.paths=[chats.jsonl]"], _said),
        Command("convert export", ["convert", "export", "out"], partial(_files, "out")),
        Command("generate converted", ["generate", "converted", "--prompt", "alpha beta", "--no-live", *SHORT], _said),
        Command("convert converted", ["convert", "converted", "out"], partial(_files, "out")),
    )
}  # fmt: skip
# the same with the checkpoint before the newest, which a missing newest one falls back to
FALLBACKS = {
    name: replace(COMMANDS[name], arguments=[_OLDER if word == "run" else word for word in COMMANDS[name].arguments])
    for name in ("generate run", "score run", "convert run", "sft run")
}
COMMANDS_OF = {
    "data": ("data verify", "data inspect", "pretrain"),
    "run": ("resume", "generate run", "score run", "convert run", "sft run", "data examples"),
    "export": ("convert export",),
    "converted": ("generate converted", "convert converted"),
}


def files_of(box: Path, part: str) -> list[Path]:
    """Relative to the box; of shards and checkpoints, the first of each kind and the newest."""
    files = sorted(path.relative_to(box) for path in (box / part).rglob("*") if stat.S_ISREG(path.lstat().st_mode))
    return [path for path in files if not path.name.startswith(".")]


class Baselines:
    """What the commands give on the undamaged world, each run when it is first asked for."""

    def __init__(self, world: Path, folder: Path) -> None:
        self._world = world
        self._folder = folder
        self._results: dict[str, Any] = {}

    def result(self, command: Command) -> Any:
        key = " ".join(command.arguments)
        if key not in self._results:
            box = prepare_case(self._folder / str(len(self._results)), self._world)
            outcome = run_job(Job(box, command.arguments, command.measure))
            assert outcome.exit_code == 0, (key, outcome)
            assert not outcome.outside, (key, outcome)
            assert not outcome.commands, (key, outcome)
            self._results[key] = outcome.result
        return self._results[key]

"""Hostile inputs made by hand: what a manifest, a shard, a checkpoint or a file name from elsewhere may try."""

import hashlib
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attack.signing import sign_checkpoint, sign_folder
from attack.world import SHORT, TEXT, TINY

_NAMES = {
    "above the data set": "../../outside/evil.tar",
    "absolute": "/tmp/lit-illada-attack-evil.tar",
    "a shell command": "x; touch CANARY",
    "a substitution": "$(touch CANARY)",
    "an option": "--help",
    "a line break": "x\ntouch CANARY",
    "terminal escapes": "\x1b[31mx.tar",
    "a URL": "http://127.0.0.1:9/x.tar",
    "a pipe": "pipe:touch CANARY",
    "a null byte": "x\0.tar",
    "its own manifest": "manifest.json",
}
_OWN = r"/bin/sh -c /bin/cat data/[\w.]+(/[\w.]+)?"  # what a plain name may add to it means nothing to a shell
_TRAIN = ["pretrain", "data=prepared", *TINY, "run_dir=new", "trainer.max_steps=2"]


@dataclass(frozen=True)
class Case:
    """make(box, url) writes the input and returns the command. named: words of which the error must hold one.

    url: a server's address of the box. may_succeed: what the command does is harmless. own_command: a pattern of the
    user's, which may run.
    """

    kind: str
    name: str
    make: Callable[[Path, str], list[str]]
    named: tuple[str, ...]
    may_succeed: bool = False
    own_command: str = ""


def cases() -> list[Case]:
    return [*_manifests(), *_shards(), *_weights(), *_names()]


def _manifests() -> Iterator[Case]:
    for label, name in _NAMES.items():
        for location in ("folder", "http", "pipe"):
            yield Case("hostile name in a manifest", f"shard, {label}, {location}",
                       partial(_with_shard_name, name, location), ("manifest",), own_command=_OWN)  # fmt: skip
            yield Case("hostile name in a manifest", f"tokenizer_folder, {label}, {location}",
                       partial(_with_tokenizer_folder, name, location), ("manifest",), own_command=_OWN)  # fmt: skip


def _edit_manifest(box: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = box / "data" / "manifest.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def _location(location: str, url: str) -> list[str]:
    where = {"folder": "data.dir=data", "http": f"data.dir={url}/data", "pipe": "data.dir='pipe:/bin/cat data'"}[
        location
    ]
    return [*_TRAIN, where, "data.cache_dir=cache", "data.fetch_attempts=1"]


def _with_shard_name(name: str, location: str, box: Path, url: str) -> list[str]:
    def change(tree: dict[str, Any]) -> None:
        tree["train"]["shards"][0]["file"] = name

    _edit_manifest(box, change)
    return _location(location, url)


def _with_tokenizer_folder(name: str, location: str, box: Path, url: str) -> list[str]:
    _edit_manifest(box, lambda tree: tree.update(tokenizer_folder=name))
    return _location(location, url)


def _shards() -> Iterator[Case]:
    contents: dict[str, Callable[[], bytes]] = {
        "ids above the vocabulary": lambda: _shard(np.full(60, 60_000, np.uint16), np.array([60])),
        "ids of the mask token": lambda: _shard(np.zeros(60, np.uint16), np.array([60])),
        "negative lengths": lambda: _shard(np.full(60, 3, np.uint16), np.array([70, -10])),
        "lengths that overflow": lambda: _shard(np.full(60, 3, np.uint16), np.array([2**62, 2**62, 2**62, 2**62 + 60])),
        "lengths that do not add up": lambda: _shard(np.full(60, 3, np.uint16), np.array([50])),
        "floats": lambda: _shard(np.full(60, 3.5), np.array([60])),
        "two dimensions": lambda: _shard(np.full((6, 10), 3, np.uint16), np.array([60])),
        "a pickled array": lambda: _tar(tokens=_pickled_array(), lengths=_npy(np.array([60]))),
        "an array of 2^40 numbers": lambda: _tar(tokens=_huge_npy(), lengths=_npy(np.array([60]))),
        "no members": lambda: _tar(),
        "a member above the data set": lambda: _tar(**{"../../../outside/evil": b"x"}),
        "zeros": lambda: bytes(10240),
    }
    for name, content in contents.items():
        for command in (["data", "verify", "data"], [*_TRAIN, "data.dir=data"]):
            yield Case("re-signed shard", f"{name}, {command[0]}", partial(_with_shard, content, command),
                       ("train-000000", "manifest"), may_succeed=name == "ids of the mask token")  # fmt: skip


def _with_shard(content: Callable[[], bytes], command: list[str], box: Path, url: str) -> list[str]:
    """The first training shard, with the manifest's record of it made anew."""
    made = content()

    def change(tree: dict[str, Any]) -> None:
        split = tree["train"]
        record = split["shards"][0]
        for name, number in (("documents", 1), ("tokens", 60)):
            split[name] += number - record[name]
            record[name] = number
        record |= {"file_bytes": len(made), "sha256": hashlib.sha256(made).hexdigest()}
        (box / "data" / record["file"]).write_bytes(made)

    _edit_manifest(box, change)
    return command


def _shard(tokens: np.ndarray, lengths: np.ndarray) -> bytes:
    return _tar(tokens=_npy(tokens), lengths=_npy(lengths))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _pickled_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Touch()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _huge_npy() -> bytes:
    content = _npy(np.zeros(60, np.uint16))
    return content.replace(b"(60,), }           ", b"(1099511627776,), }")


def _tar(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name if "/" in name else f"000000.{name}.npy")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class _Touch:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch CANARY",)


_GENERATE = ["generate", "run", "--prompt", "alpha", "--no-live", *SHORT]
_SCORE = ["score", "run", "--text", "text.txt", "score.num_draws=2", "--out", "scores"]
_OF_RUN = [_GENERATE, _SCORE, ["convert", "run", "out"], ["pretrain", "--resume", "run", "trainer.max_steps=6"]]


def _weights() -> Iterator[Case]:
    for value in (float("nan"), float("inf"), 1e30):
        for command in _OF_RUN:
            yield Case("non-finite or huge weights", f"{value} in a checkpoint, {command[0]}",
                       partial(_with_weight, value, command), ("model.", "layers.", "embed"))  # fmt: skip
        yield Case("non-finite or huge weights", f"{value} in an export, convert",
                   partial(_with_exported_weight, value, "export/model.safetensors", ["convert", "export", "out"]),
                   ("model.", "layers.", "safetensors"))  # fmt: skip
        for command in (["generate", "converted", *_GENERATE[2:]], ["convert", "converted", "out"]):
            yield Case("non-finite or huge weights", f"{value} in a converted folder, {command[0]}",
                       partial(_with_exported_weight, value, "converted/checkpoints/weights.safetensors", command),
                       ("model.", "layers.", "safetensors"))  # fmt: skip
    for command in (_GENERATE, _OF_RUN[3]):
        name = command[0]
        yield Case(
            "pickle", f"a command in a checkpoint, {name}", partial(_with_pickle, command), ("step=00000004.ckpt",)
        )
        yield Case(
            "bomb", f"a zip bomb as a checkpoint, {name}", partial(_with_zip_bomb, command), ("step=00000004.ckpt",)
        )
        yield Case(
            "wrong type", f"a list as a checkpoint, {name}", partial(_with_saved, [1], command), ("step=00000004.ckpt",)
        )
        yield Case(
            "wrong type", f"an empty checkpoint, {name}", partial(_with_saved, {}, command), ("step=00000004.ckpt",)
        )
        for key, change in _CHECKPOINT_CHANGES.items():
            yield Case("wrong type", f"a checkpoint whose {key}, {name}", partial(_with_changed, change, command),
                       ("step=00000004.ckpt",))  # fmt: skip
    for label, content in _HEADERS.items():
        for file, command in (
            ("export/model.safetensors", ["convert", "export", "out"]),
            ("converted/checkpoints/weights.safetensors", ["generate", "converted", *_GENERATE[2:]]),
        ):
            name = f"a safetensors file with {label}, {command[0]}"
            yield Case("bomb", name, partial(_with_header, content, file, command), (file.rpartition("/")[2],))


def _newest(box: Path) -> Path:
    return box / "run" / "checkpoints" / "step=00000004.ckpt"


def _saved(box: Path, content: Any) -> None:
    """Written as the program writes it, with whatever proves that it is whole."""
    torch.save(content, _newest(box))
    sign_checkpoint(_newest(box))


def _with_weight(value: float, command: list[str], box: Path, url: str) -> list[str]:
    def change(content: dict[str, Any]) -> None:
        tensors = [tensor for tensor in content["state_dict"].values() if tensor.is_floating_point()]
        tensors[len(tensors) // 2].view(-1)[0] = value

    return _with_changed(change, command, box, url)


def _with_exported_weight(value: float, file: str, command: list[str], box: Path, url: str) -> list[str]:
    content = bytearray((box / file).read_bytes())
    content[-4:] = struct.pack("<f", value)
    (box / file).write_bytes(content)
    sign_folder(box / file.partition("/")[0])
    return command


def _with_pickle(command: list[str], box: Path, url: str) -> list[str]:
    _newest(box).write_bytes(pickle.dumps(_Touch()))
    return command


def _with_zip_bomb(command: list[str], box: Path, url: str) -> list[str]:
    with zipfile.ZipFile(_newest(box), "w", zipfile.ZIP_DEFLATED) as file, file.open("archive/data.pkl", "w") as member:
        for _ in range(64):
            member.write(bytes(2**24))
    return command


def _with_saved(content: Any, command: list[str], box: Path, url: str) -> list[str]:
    _saved(box, content)
    return command


def _with_changed(change: Callable[[dict[str, Any]], None], command: list[str], box: Path, url: str) -> list[str]:
    content = torch.load(_newest(box), weights_only=True)
    change(content)
    _saved(box, content)
    return command


def _set(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """The last of the arguments is the value."""

    def change(content: dict[str, Any]) -> None:
        *path, last, value = keys
        for key in path:
            content = content[key]
        content[last] = value

    return change


_MODEL = ("hyper_parameters", "config", "model")
_CHECKPOINT_CHANGES = {
    "hyper_parameters are a list": _set("hyper_parameters", []),
    "config is a text": _set("hyper_parameters", "config", "x"),
    "vocab_size is 7": _set(*_MODEL, "vocab_size", 7),
    "vocab_size is a list": _set(*_MODEL, "vocab_size", [1]),
    "hidden_size is 10^12": _set(*_MODEL, "hidden_size", 10**12),
    "model is null": _set(*_MODEL, None),
    "state_dict is a text": _set("state_dict", "x"),
    "state_dict holds a number": _set("state_dict", "model.norm.weight", 3),
}
_HEADERS = {
    "a header of 2^62 bytes": struct.pack("<Q", 2**62) + b"{}",
    "a header of 2 GB": struct.pack("<Q", 2**31) + b"{" + b" " * 100,
    "no JSON in the header": struct.pack("<Q", 8) + b"not json" + bytes(100),
    "100 000 brackets": struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000,
    "a tensor beyond the end": None,
    "a shape of 2^40": None,
}
_ODD_TENSOR = {"a tensor beyond the end": ([2], [0, 2**40]), "a shape of 2^40": ([2**40], [0, 8])}
for _label, (_shape, _offsets) in _ODD_TENSOR.items():
    _header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": _shape, "data_offsets": _offsets}}).encode()
    _HEADERS[_label] = struct.pack("<Q", len(_header)) + _header + bytes(8)


def _with_header(content: bytes, file: str, command: list[str], box: Path, url: str) -> list[str]:
    (box / file).write_bytes(content)
    sign_folder(box / file.partition("/")[0])
    return command


def _names() -> Iterator[Case]:
    for label, name in {
        "above runs/": "../../evil", "absolute": "/tmp/evil", "a shell command": "x; touch CANARY",
        "terminal escapes": "\x1b[31mred", "300 characters": "x" * 300, "dots": "..", "empty": "",
    }.items():  # fmt: skip
        yield Case("hostile run name", label, partial(_with_run_name, name), ("name",),
                   may_succeed=label == "a shell command")  # fmt: skip
    yield Case("terminal escape in a file name", "data prepare", _prepare_escape, ("red",), may_succeed=True)
    yield Case("terminal escape in a file name", "loops analyze", _analyze_escape, ("red",), may_succeed=True)
    yield Case("slow pattern in a tokenizer", "data prepare", _slow_pattern, ("tokenizer",), may_succeed=True)


def _with_run_name(name: str, box: Path, url: str) -> list[str]:
    named = json.dumps(name, ensure_ascii=False)
    return ["pretrain", "data=prepared", "data.dir=data", *TINY, f"name={named}", "trainer.max_steps=2"]


def _prepare_escape(box: Path, url: str) -> list[str]:
    (box / "\x1b[31mred.jsonl").write_text("not json\n")
    return ["data", "prepare", "data=jsonl", "data.source.paths=['*red.jsonl']", "data.dir=made"]


def _analyze_escape(box: Path, url: str) -> list[str]:
    file = box / "\x1b[31mred.jsonl"
    file.write_text("".join(json.dumps({"text": "a b c", "level": "\x1b[32mgreen"}) + "\n" for _ in range(3)))
    return ["loops", "analyze", file.name, "--out", "loops"]


def _slow_pattern(box: Path, url: str) -> list[str]:
    file = box / "run" / "tokenizer" / "tokenizer.json"
    tree = json.loads(file.read_text())
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tree["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern, tree["pre_tokenizer"]]}
    file.write_text(json.dumps(tree))
    (box / "slow.txt").write_text("a" * 40 + "b")
    left_out = ("tokenizer", "paths", "dir")
    return [
        "data", "prepare", *[item for item in TEXT if not any(word in item for word in left_out)],
        "data.source.paths=[slow.txt]", "data/tokenizer=load", "data.tokenizer.path=run/tokenizer", "data.dir=made",
    ]  # fmt: skip

"""Ways to damage a file: each takes its content and returns another, or does something to its path.

Positions and values come from a generator seeded with the file's name, so a case is the same on every machine.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Damage:
    """One way to damage a file. kind: the row of the report it counts under. is_sampled: one of very many alike."""

    name: str
    kind: str
    apply: Callable[[Path], None]
    is_sampled: bool = False


def damages_of(path: Path, others: list[Path]) -> list[Damage]:
    """All damages of a file. others: files of the same world, to swap it with."""
    rng = random.Random(path.name)
    found = [*_of_bytes(path, rng), *_of_path(path, others)]
    if path.suffix in (".json", ".jsonl", ".yaml"):
        found += _of_text(path)
    if path.suffix == ".json":
        found += _of_json(path)
    if path.suffix == ".yaml":
        found += _of_yaml()
    return found


def _of_bytes(path: Path, rng: random.Random) -> Iterator[Damage]:
    size = path.stat().st_size
    yield _content("emptied", "truncated", lambda _: b"")
    if size == 0:
        yield _content("garbage in an empty file", "garbage", lambda _: rng.randbytes(64))
        return
    for length in sorted({1, size // 4, size // 2, size - 1}):
        yield _content(f"truncated to {length} bytes", "truncated", lambda content, n=length: content[:n])
    yield _content("zeroed", "zeroed", lambda content: bytes(len(content)))
    yield _content("zeroed in the middle", "zeroed", lambda content: _zero_middle(content))
    for position in sorted(rng.sample(range(size), min(4, size))):
        yield _content(f"bit flipped at byte {position}", "one bit flipped", partial(_flip, position, rng.randrange(7)))
    noise = rng.randbytes(size)
    yield _content("random bytes", "garbage", lambda _: noise)
    yield _content("garbage appended", "garbage", lambda content: content + noise[:100])


def _of_path(path: Path, others: list[Path]) -> Iterator[Damage]:
    yield Damage("missing", "missing", lambda target: target.unlink())
    yield Damage("a folder in its place", "not a file", _to_folder)
    yield Damage("a named pipe in its place", "not a file", _to_pipe)
    yield Damage("a link to an endless file", "symlink", lambda target: _to_link(target, Path("/dev/zero")))
    yield Damage("a link to nothing", "symlink", lambda target: _to_link(target, Path("nowhere")))
    yield Damage("a link to a file outside", "symlink", _to_link_outside)
    for other in others:
        yield Damage(f"swapped with {other.name}", "swapped", lambda target, source=other: _copy(source, target))


def _of_text(path: Path) -> Iterator[Damage]:
    yield _content(
        "not UTF-8",
        "not UTF-8",
        lambda content: content[: len(content) // 2] + b"\xff\xfe\x80" + content[len(content) // 2 :],
    )
    yield _content("UTF-16", "not UTF-8", lambda content: content.decode().encode("utf-16"))
    for value in ("[]", "{}", "3", '"text"', "null", "true", "[[1]]"):
        yield _content(f"holds {value}", "wrong type", lambda _, text=value: text.encode() + b"\n")
    yield _content("100 000 nested brackets", "bomb", lambda _: b"[" * 100_000 + b"]" * 100_000)
    yield _content("100 000 nested objects", "bomb", lambda _: b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
    yield _content("one line of 100 MB", "bomb", lambda _: b'"' + b"a" * 100_000_000 + b'"')


def _of_json(path: Path) -> Iterator[Damage]:
    tree = json.loads(path.read_text())
    yield _content("an integer of 5 000 digits", "absurd number", lambda content: _with_number(content, "9" * 5000))
    for key in _keys(tree):
        yield _content(
            f"without {'.'.join(map(str, key))}",
            "wrong type",
            lambda content, k=key: _without(content, k),
            is_sampled=True,
        )
        for value in _replacements(_at(tree, key)):
            yield _content(
                f"{'.'.join(map(str, key))} = {json.dumps(value)[:30]}",
                "absurd number" if isinstance(value, int | float) and not isinstance(value, bool) else "wrong type",
                lambda content, k=key, v=value: _with(content, k, v),
                is_sampled=True,
            )


def _of_yaml() -> Iterator[Damage]:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
    )
    yield _content("alias bomb", "bomb", lambda content: bomb.encode())
    yield _content("alias bomb appended", "bomb", lambda content: content + bomb.encode())
    yield _content("an alias of itself", "bomb", lambda content: content + b"loop: &loop [*loop]\n")
    yield _content(
        "a Python object",
        "commands",
        lambda content: content + b"x: !!python/object/apply:os.system ['touch CANARY']\n",
    )
    yield _content(
        "an interpolation", "wrong type", lambda content: content.replace(b"name: ", b"name: ${oc.env:HOME}", 1)
    )


def _keys(tree: Any) -> list[tuple]:
    """Top-level keys and, of each list or mapping, the first of its own."""
    keys: list[tuple] = []
    if isinstance(tree, dict):
        for key, value in tree.items():
            keys.append((key,))
            keys += [(key, *rest) for rest in (_keys(value)[:2] if key != "versions" else [])]
    elif isinstance(tree, list) and tree:
        keys += [(0, *rest) for rest in (_keys(tree[0]) if isinstance(tree[0], dict) else [()])]
    return [key for key in keys if key]


def _replacements(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [None, "yes"]
    if isinstance(value, int | float):
        return [None, "many", -1, 10**30, float("nan"), [1]]
    if isinstance(value, str):
        return [None, 7, {"a": 1}, "../../x"]
    return [None, "text", 7]


def _at(tree: Any, key: tuple) -> Any:
    for part in key:
        tree = tree[part]
    return tree


def _with(content: bytes, key: tuple, value: Any) -> bytes:
    tree = json.loads(content)
    _at(tree, key[:-1])[key[-1]] = value
    return json.dumps(tree, indent=1).encode()


def _without(content: bytes, key: tuple) -> bytes:
    tree = json.loads(content)
    del _at(tree, key[:-1])[key[-1]]
    return json.dumps(tree, indent=1).encode()


def _with_number(content: bytes, digits: str) -> bytes:
    tree = json.loads(content)
    key = next((k for k in _keys(tree) if isinstance(_at(tree, k), int)), None) or next(iter(_keys(tree)), None)
    if key is None:
        return digits.encode()
    _at(tree, key[:-1])[key[-1]] = "DIGITS"
    return json.dumps(tree).replace('"DIGITS"', digits).encode()


def _content(name: str, kind: str, change: Callable[[bytes], bytes], is_sampled: bool = False) -> Damage:
    def apply(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return Damage(name, kind, apply, is_sampled)


def _flip(at: int, bit: int, content: bytes) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def _zero_middle(content: bytes) -> bytes:
    size = len(content.rstrip(b"\0"))  # an archive is padded with zeros
    start, end = size // 3, 2 * size // 3
    return content[:start] + bytes(end - start) + content[end:]


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _to_link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def _to_link_outside(path: Path) -> None:
    """The same content, in a folder beside the box."""
    outside = next(parent for parent in path.parents if parent.name == "box").parent / "outside"
    shutil.copy(path, outside / path.name)
    _to_link(path, outside / path.name)


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())

"""JSON lines that are damaged or odd, given to the commands that read such files."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import zstandard
from attack.report import UNCHANGED, VALID, common_faults, endings_of
from attack.sandbox import Job, run_all
from attack.world import SHORT, prepare_case


@dataclass(frozen=True)
class Reader:
    """A command that reads JSON lines. good: record number n. fields: those it needs, with their types."""

    name: str
    arguments: list[str]
    good: Callable[[int], dict[str, Any]]
    fields: dict[str, type]


def _chat(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"add {number}"}, {"role": "assistant", "content": "5"}]}


def _pair(number: int) -> dict[str, Any]:
    return {"instruction": f"add {number}", "output": "5"}


def _item(number: int) -> dict[str, Any]:
    return {"question": f"alpha {number}", "choices": ["beta", "gamma"], "answer": number % 2}


def _problem(number: int) -> dict[str, Any]:
    return {"question": f"alpha {number}", "answer": f"so #### {number}"}


def _text(number: int) -> dict[str, Any]:
    return {"prompt": f"p{number}", "text": "alpha beta gamma " * 8, "is_right": True}


_EXAMPLES = ["data", "examples", "run", "sft_data.row_length=64", "sft_data.source.paths=[in.jsonl]",
             "sft_data.validation_fraction=0.4"]  # fmt: skip
READERS = [
    Reader("data examples messages", [*_EXAMPLES, "sft_data=messages"], _chat, {"messages": list}),
    Reader("data examples alpaca", [*_EXAMPLES, "sft_data=alpaca"], _pair, {"instruction": str, "output": str}),
    Reader("score choices", ["score", "run", "--task", "in.jsonl", "score.num_draws=2", "--out", "scores"], _item,
           {"question": str, "choices": list, "answer": int}),
    Reader("score numbers", ["score", "run", "--task", "in.jsonl", "--out", "scores", *SHORT], _problem,
           {"question": str, "answer": str}),
    Reader("loops analyze", ["loops", "analyze", "in.jsonl", "--out", "loops"], _text, {"text": str}),
    Reader("data prepare", ["data", "prepare", "data=jsonl", "data.source.paths=[in.jsonl]", "data.dir=made",
                            "data/tokenizer=load", "data.tokenizer.path=run/tokenizer", "data.num_processes=1",
                            "data.validation_fraction=0.4"],
           lambda number: {"text": f"alpha beta {number} " * 9}, {"text": str}),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """is_bad: whether the file must be refused, or what is left out reported with the file's name."""

    reader: Reader
    kind: str
    name: str
    content: Callable[[], bytes]
    is_bad: bool
    suffix: str = ""


def cases() -> list[Case]:
    found = []
    for reader in READERS:
        rng = random.Random(reader.name)
        found += _of_lines(reader, rng) + _of_fields(reader) + _of_files(reader)
    return found


def _lines(reader: Reader, bad: bytes | None, index: int = 3) -> bytes:
    lines = [json.dumps(reader.good(number)).encode() for number in range(24)]
    if bad is not None:
        lines.insert(index, bad)
    return b"\n".join(lines) + b"\n"


def _of_lines(reader: Reader, rng: random.Random) -> list[Case]:
    good = json.dumps(reader.good(3)).encode()
    bad = {
        "cut short": ("truncated", good[: len(good) // 2]),
        "no JSON": ("garbage", b"{]"),
        "not UTF-8": ("not UTF-8", good[:-2] + b'\xff"}'),
        "zeroed": ("zeroed", bytes(len(good))),
        "random bytes": ("garbage", rng.randbytes(200).replace(b"\n", b"")),
        "a number": ("wrong type", b"3"),
        "null": ("wrong type", b"null"),
        "a list": ("wrong type", b"[1, 2]"),
        "an empty object": ("wrong type", b"{}"),
        "100 000 brackets": ("bomb", b"[" * 100_000 + b"]" * 100_000),
        "100 000 objects": ("bomb", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "two objects": ("garbage", good + good),
        "trailing words": ("garbage", good + b" and more"),
    }
    return [Case(reader, kind, name, partial(_lines, reader, line), True) for name, (kind, line) in bad.items()]


_EXTRAS: list[dict[str, Any]] = [
    {"text\x1b[31m": 1}, {"level": "\x1b[31mred"}, {"answer ": "x" * 1000}, {"id": 10**200}, {"x": float("nan")},
    {"level": "../../evil"}, {"task": "<script>alert(1)</script>"}, {"arm": "$(touch CANARY)"},
]  # fmt: skip


def _of_fields(reader: Reader) -> list[Case]:
    found = []
    for name, kind in reader.fields.items():
        values: list[Any] = [
            None,
            {"a": 1},
            [],
            [[]],
            "",
            " ",
            True,
            10**400,
            float("nan"),
            "\ud800",
            [None],
            [{"role": 1}],
        ]
        for value in values:
            if isinstance(value, kind) and value not in ("", " ", [], [[]], [None], [{"role": 1}], "\ud800"):
                continue
            line = json.dumps({**reader.good(3), name: value}).encode()
            label = f"{name} = {json.dumps(value)[:20]}"
            found.append(Case(reader, "wrong type", label, partial(_lines, reader, line), _is_bad(reader, name, value)))
        record = reader.good(3)
        del record[name]
        line = json.dumps(record).encode()
        found.append(Case(reader, "missing", f"without {name}", partial(_lines, reader, line), True))
    for extra in _EXTRAS:
        line = json.dumps({**reader.good(3), **extra}).encode()
        found.append(
            Case(reader, "odd extra field", f"with {json.dumps(extra)[:40]}", partial(_lines, reader, line), False)
        )
    return found


def _is_bad(reader: Reader, name: str, value: Any) -> bool:
    if reader.name == "loops analyze":
        return value not in ("", " ", "\ud800")  # an empty generation is one; an unpaired surrogate becomes U+FFFD
    if reader.name == "data prepare":
        return value not in ("", " ")  # empty documents are counted and left out
    return True


def _of_files(reader: Reader) -> list[Case]:
    good = _lines(reader, None)
    long_line, many_digits = b'{"a": "' + b"a" * 100_000_000 + b'"}', b'{"text": ' + b"9" * 5000 + b"}"
    return [
        Case(reader, "truncated", "an empty file", lambda: b"", True),
        Case(reader, "truncated", "blank lines alone", lambda: b"\n\n  \n", True),
        Case(reader, "truncated", "a truncated gzip", lambda: gzip.compress(good * 100)[:-20], True, ".gz"),
        Case(reader, "not UTF-8", "UTF-16 without a mark", lambda: good.decode().encode("utf-16-le"), True),
        Case(reader, "garbage", "no gzip", lambda: b"no gzip", True, ".gz"),
        Case(reader, "bomb", "a line of 100 MB", lambda: _lines(reader, long_line), True),
        Case(reader, "bomb", "an integer of 5 000 digits", lambda: _lines(reader, many_digits), True),
        Case(reader, "bomb", "a gzip bomb", _gzip_bomb, True, ".gz"),
        Case(reader, "bomb", "a zstd bomb", _zstd_bomb, True, ".zst"),
        Case(reader, "valid", "undamaged", lambda: good, False),
        Case(reader, "valid", "CRLF and a mark", lambda: b"\xef\xbb\xbf" + good.replace(b"\n", b"\r\n"), False),
        Case(reader, "valid", "no newline at the end", lambda: good.rstrip(b"\n"), False),
    ]


def _gzip_bomb() -> bytes:
    """2 GB of one line in 2 MB."""
    member = gzip.compress(b"a" * 64_000_000, compresslevel=1)
    return member * 32


def _zstd_bomb() -> bytes:
    return zstandard.compress(b"a" * 64_000_000) * 32


def attack_jsonl(chosen, world, folder, report):
    jobs = []
    for number, case in enumerate(chosen):
        arguments = [word.replace("in.jsonl", f"in.jsonl{case.suffix}") for word in case.reader.arguments]
        jobs.append(Job(folder / str(number) / "box", arguments))

    def preparation(case):
        def prepare(job):
            prepare_case(job.box.parent, world)
            (job.box / f"in.jsonl{case.suffix}").write_bytes(case.content())

        return prepare

    def judge(number, job, outcome):
        case = chosen[number]
        name = f"in.jsonl{case.suffix}"
        if outcome.exit_code == 0 and not case.is_bad:
            endings = [*common_faults(outcome, job), VALID]
        elif outcome.exit_code == 0 and f"{name}:4" in outcome.output:
            # left out, counted, and shown with its place
            endings = [*common_faults(outcome, job), UNCHANGED]
        else:
            endings = endings_of(outcome, job, [name], False, False)
            if not case.is_bad:
                endings = [*endings, "valid input refused"]
        report.add(f"JSON lines of {case.reader.name}", case.kind, f"{case.reader.name}: {case.name}", endings, outcome)

    run_all(jobs, [preparation(case) for case in chosen], judge)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_damaged_line_is_rejected_or_reported(world, tmp_path, report):
    before = len(report.faults())
    attack_jsonl(cases(), world, tmp_path, report)
    assert not report.faults()[before:]

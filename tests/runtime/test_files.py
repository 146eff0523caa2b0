"""Reading and writing files: malformed ones are rejected in one line that names them, in bounded time."""

import errno
import json
import os
import time
from dataclasses import dataclass

import pytest
import yaml

from lit_illada.errors import UserError
from lit_illada.runtime import files
from lit_illada.runtime.files import (
    FileError,
    MissingFileError,
    append_line,
    open_to_append,
    parse_json,
    read_json,
    read_json_lines,
    read_text,
    write_atomically,
)
from lit_illada.runtime.records import from_record
from lit_illada.runtime.yaml_files import dump_yaml, parse_yaml, read_yaml

DAMAGED_JSON = {
    "empty": (b"", "not JSON"),
    "cut off": (b'{"a": [1, 2', "not JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8 text at byte 7"),
    "zero bytes": (b"\0" * 100, "not JSON"),
    "another kind": (b"[1, 2]", "must be an object, not a list"),
    "deep": (b"[" * 100_000 + b"]" * 100_000, "nested deeper than the limit of 100 levels"),
    "deep but parsed": (b'{"a":' + b"[" * 150 + b"]" * 150 + b"}", "nested deeper than the limit of 100 levels"),
    "long integer": (b'{"a": ' + b"9" * 5000 + b"}", "an integer of 5,000 digits, over the limit of 300"),
}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
DAMAGED_YAML = {
    "not UTF-8": (b"a: \xff", "not UTF-8 text at byte 3"),
    "broken": (b"a: [1", "not YAML"),
    "another kind": (b"- 1", "must be an object, not a list"),
    "aliases": (BOMB.encode(), "its aliases expand to more than the limit of 100,000 values"),
    "merges": (MERGE_BOMB.encode(), "its aliases expand to more than the limit of 100,000 values"),
    "inside itself": (b"a: &a [*a]", "its aliases expand"),
    "deep": (b"a: " + b"[" * 100_000 + b"]" * 100_000, "nested deeper than the limit of 100 levels"),
    "long integer": (b"a: " + b"9" * 5000, "a value that cannot be read"),
    "large": (b"a: 1\n" * 2**18, "larger than the limit of 1 MiB"),
    "key twice": (b"a: 1\na: 2", "key 'a' is given twice"),
    "python object": (b"a: !!python/object/apply:os.system ['true']", "not YAML"),
    "control character": (b"a: \x1b[31m", "not YAML"),
}


def one_line(caught, path):
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("case", DAMAGED_JSON)
def test_malformed_json_is_rejected_in_one_line(case, tmp_path):
    content, expected = DAMAGED_JSON[case]
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        read_json(path)
    assert expected in one_line(caught, path)


@pytest.mark.parametrize("case", DAMAGED_YAML)
def test_malformed_yaml_is_rejected_in_one_line_within_seconds(case, tmp_path):
    content, expected = DAMAGED_YAML[case]
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    start = time.monotonic()
    with pytest.raises(FileError) as caught:
        read_yaml(path)
    assert time.monotonic() - start < 5
    assert expected in one_line(caught, path)


def test_yaml_reads_numbers_as_written_and_times_as_text(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: 1e-3\nb: 3\nc: 2024-13-45\nd: [.5, 1.5e2, x]\ne: null\nf: &x {y: 1}\ng: *x\n")
    wanted = {"a": 0.001, "b": 3, "c": "2024-13-45", "d": [0.5, 150.0, "x"], "e": None, "f": {"y": 1}, "g": {"y": 1}}
    assert read_yaml(path) == wanted


def test_yaml_follows_the_core_schema_of_yaml_1_2(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: [on, off, yes, no]\nb: [true, FALSE]\nc: [010, 0o10, 0x1F, -5]\nd: [1:30, 1_000]\ne: .inf\n")
    wanted = {"a": ["on", "off", "yes", "no"], "b": [True, False], "c": [10, 8, 31, -5], "d": ["1:30", "1_000"]}
    assert read_yaml(path) == {**wanted, "e": float("inf")}


def test_written_yaml_reads_alike_in_both_versions_of_yaml():
    values = [
        "on",
        "1e-3",
        "0.10",
        "010",
        "0o10",
        "1:30",
        "1_000",
        "true",
        "null",
        "a",
        1e-5,
        float("inf"),
        3,
        True,
        None,
    ]
    text = dump_yaml(values)
    assert parse_yaml(text, "text", list) == values
    assert yaml.safe_load(text) == values


def test_missing_and_oversized_files_and_folders_are_rejected(tmp_path, monkeypatch):
    with pytest.raises(MissingFileError, match=r"absent\.json: no such file"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(FileError, match="Is a directory"):
        read_text(tmp_path)
    path = tmp_path / "large.json"
    path.write_text("{}" + " " * 100)
    with pytest.raises(FileError, match=r"large\.json: larger than the limit of"):
        read_json(path, max_bytes=50)
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 20)
    path.write_bytes(b'{"a": 1}\n' + b"x" * (3 << 20))
    with pytest.raises(FileError, match=r"large\.json, line 2: longer than the limit of 1 MiB"):
        read_json_lines(path)


def test_pipes_and_devices_are_rejected_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for name in ("pipe.json", "zero.json"):
        for read in (read_json, read_json_lines):
            with pytest.raises(FileError, match=rf"{name}: not a regular file$"):
                read(tmp_path / name)


def test_only_logs_may_end_in_an_incomplete_json_line(tmp_path):
    path = tmp_path / "attempts.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a"')
    assert read_json_lines(path, is_log=True) == [{"a": 1}, {"a": 2}]
    with pytest.raises(FileError, match=r"attempts\.jsonl, line 4: not JSON"):
        read_json_lines(path)


def test_a_full_disk_is_reported_in_one_line_and_preserves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_atomically(path, "old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"No space left on device.*free some space") as caught:
        write_atomically(path, "new")
    assert one_line(caught, path)
    assert caught.value.errno == errno.ENOSPC
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_nothing_is_appended_through_a_symbolic_link(tmp_path):
    outside, link = tmp_path / "outside", tmp_path / "provenance.jsonl"
    outside.write_text("mine\n")
    link.symlink_to(outside)
    with pytest.raises(FileError, match="symbolic link"):
        append_line(link, "{}")
    assert outside.read_text() == "mine\n"
    link.unlink()
    append_line(link, "{}")
    append_line(link, "[]")
    assert link.read_text() == "{}\n[]\n"
    link.write_text('{}\n{"cut off')
    append_line(link, "[]")
    assert link.read_text() == "{}\n[]\n"
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(FileError):
        append_line(link, "{}")


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    rates: list[float]
    about: dict[str, str]
    seed: int | None = None


GOOD = {"name": "a", "inner": {"size": 1, "other": 2}, "rates": [1, 2.5], "about": {"a": "b"}}


def test_records_become_dataclasses():
    assert from_record(Outer, GOOD, "x") == Outer("a", Inner(1), [1, 2.5], {"a": "b"})
    assert from_record(Outer, {**GOOD, "seed": 3}, "x").seed == 3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": 3}, "x: name must be a text, not 3"),
        ({"inner": []}, "x: inner: must be an object, not a list"),
        ({"inner": {"size": True}}, "x: inner: size must be a whole number, not True"),
        ({"inner": {"size": 2**64}}, "x: inner: size is an integer beyond 64 bits"),
        ({"rates": ["a"]}, "x: rates[0] must be a number, not 'a'"),
        ({"about": {"a": None}}, "x: about.a must be a text, not None"),
        ({"seed": "1"}, "x: seed must be a whole number or null, not '1'"),
    ],
)
def test_records_of_other_types_are_rejected(change, expected):
    with pytest.raises(FileError) as caught:
        from_record(Outer, {**GOOD, **change}, "x")
    assert str(caught.value) == expected


def test_a_record_without_a_field_is_rejected():
    with pytest.raises(FileError, match="x: lacks 'name'"):
        from_record(Outer, {key: value for key, value in GOOD.items() if key != "name"}, "x")


def test_valid_json_text_is_read_unchanged():
    assert parse_json('\ufeff{"a": [NaN, 1e400]}', "x")["a"][1] == float("inf")
    assert parse_json(json.dumps([1]), "x", list) == [1]


def test_text_is_appended_to_regular_files_only(tmp_path):
    with open_to_append(tmp_path / "log.txt") as stream:
        stream.write("a\n")
    with open_to_append(tmp_path / "log.txt") as stream:
        stream.write("b\n")
    assert (tmp_path / "log.txt").read_text() == "a\nb\n"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "log.txt")
    for name in ("pipe", "link", "."):
        with pytest.raises(FileError, match=name), open_to_append(tmp_path / name):
            pass
    assert (tmp_path / "log.txt").read_text() == "a\nb\n"

"""Decompression bombs and very long lines give one-line errors, in bounded memory."""

import gzip
import json
import tracemalloc
from contextlib import contextmanager

import pytest
import zstandard

from lit_illada.data.config import JsonlSource, TextSource
from lit_illada.data.corpora.sources import read
from lit_illada.data.corpora.text_files import raw_lines, read_text
from lit_illada.errors import UserError
from lit_illada.loops.files import read_entries

BOMB_BYTES = 100 * 2**20


def gz_bomb(path, line):
    with gzip.open(path, "wb", compresslevel=6) as stream:
        for _ in range(BOMB_BYTES // len(line)):
            stream.write(line)


def zst_bomb(path, line):
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as stream:
        for _ in range(BOMB_BYTES // len(line)):
            stream.write(line)


@contextmanager
def peak_below(mib):
    """Fails if the memory allocated within the block exceeds so many MiB."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mib * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("suffix", "write"), [(".gz", gz_bomb), (".zst", zst_bomb)])
@pytest.mark.parametrize(
    ("line", "line_mib"),
    [((b"a" * 1023 + b"\n") * 2**10, 8), (b"a" * 2**20, 80)],  # a line at its limit of 32 MiB is copied once
    ids=["lines", "one line"],
)
def test_decompression_bomb_is_rejected_early(suffix, write, line, line_mib, tmp_path):
    path = tmp_path / f"bomb.txt{suffix}"
    write(path, line)
    with (
        peak_below(line_mib),
        pytest.raises(UserError, match=rf"bomb\.txt\{suffix}.*(expands to more than|longer than) the limit of \d+ MiB"),
    ):
        for _ in raw_lines(path):
            pass
    with (
        peak_below(96),  # up to the limit of 64 MiB, the content is read at once
        pytest.raises(UserError, match=r"bomb\.txt.*expands to more than the limit of \d+ MiB"),
    ):
        read_text(path)


def test_line_of_100_mb_is_rejected_and_named(tmp_path):
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "a"}\n{"text": "')
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b'"}\n')
    seen, problems = [], []
    for document in read(JsonlSource([str(path)]), problems.append):
        seen.append(document.text)
    assert seen == ["a"]
    assert "long.jsonl:2: the line is longer than the limit of 32 MiB" in str(problems[0])
    with pytest.raises(UserError, match=r"long\.jsonl:2: the line is longer than the limit of 32 MiB"):
        list(read_entries(path, None))


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a": ' * 100_000, json.dumps({"a": 1})[:-1] + ', "b": ' + "9" * 5000]
)
def test_deep_nesting_and_long_numbers_in_corpus_are_named(content, tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text(content + "\n")
    problems = []
    assert list(read(JsonlSource([str(path)]), problems.append)) == []
    assert "deep.jsonl:1: " in str(problems[0])
    assert len(str(problems[0])) < 300


def test_compressed_text_within_limits_is_read(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"same words again\n" * 2**20))
    assert len(read_text(path)) == 17 * 2**20
    assert len(list(read(TextSource([str(path)]), pytest.fail))) == 1

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard

from lit_illada.data.config import HuggingFaceSource, JsonlSource, PreparedSource, StdlibSource, TextSource
from lit_illada.data.corpora.sources import Document, read, total_bytes
from lit_illada.errors import UserError


def documents(source) -> list[Document]:
    def stop(error: UserError) -> None:
        raise error

    return list(read(source, stop))


def texts(source) -> list[str]:
    return [document.text for document in documents(source)]


def bad_and_good(source) -> tuple[list[str], list[str]]:
    bad: list[str] = []
    good = [document.text for document in read(source, lambda error: bad.append(str(error)))]
    return bad, good


def test_stdlib_source_excludes_tests_and_has_fixed_order():
    result = documents(StdlibSource())
    origins = [document.origin for document in result]
    files = [origin.rpartition(":")[0] for origin in origins]
    assert files == sorted(files)
    assert result == documents(StdlibSource())
    assert len(result) > 5000
    assert any(file.endswith("argparse.py") for file in files)
    assert not any("site-packages" in origin or "/test/" in origin for origin in origins)
    num_bytes = sum(len(document.text.encode()) for document in result)
    assert 0.8 * total_bytes(StdlibSource()) < num_bytes <= total_bytes(StdlibSource()), (
        "only near-duplicates are left out"
    )


def test_text_source_reads_files_globs_folders_and_compressed_files(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("plain ä\n", encoding="utf-8")
    (tmp_path / "sub" / "b.txt.gz").write_bytes(gzip.compress(b"zipped"))
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "sub" / "c.txt.zst").write_bytes(compress(b"first frame, ") + compress(b"second frame"))
    (tmp_path / ".hidden").write_text("not me")
    everything = ["plain ä\n", "zipped", "first frame, second frame"]
    assert texts(TextSource([str(tmp_path)])) == everything
    assert texts(TextSource([str(tmp_path / "a.txt"), str(tmp_path / "sub/*")])) == everything
    assert texts(TextSource([str(tmp_path / "**/*.zst")])) == everything[2:]
    assert texts(TextSource([str(tmp_path / "a.txt")] * 2)) == everything[:1]
    assert total_bytes(TextSource([str(tmp_path / "a.txt")])) == 9
    assert total_bytes(TextSource([str(tmp_path)])) is None


def test_separator_line_ends_a_document(tmp_path: Path):
    path = tmp_path / "stories.txt"
    path.write_text("one\nstill one\n<|end|>\ntwo\n<|end|>\nthree <|end|> goes on\n")
    result = documents(TextSource([str(path)], "<|end|>"))
    assert [document.text for document in result] == ["one\nstill one\n", "two\n", "three <|end|> goes on\n"]
    assert [document.origin for document in result] == [f"{path}:1", f"{path}:4", f"{path}:6"]


def test_jsonl_origin_is_file_and_line(tmp_path: Path):
    path = tmp_path / "docs.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"body": "a"}\n\n{"body": "b"}\n'))
    assert documents(JsonlSource([str(path)], "body")) == [Document("a", f"{path}:1"), Document("b", f"{path}:3")]
    assert texts(JsonlSource([str(tmp_path)], "body")) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "docs.jsonl:2: not JSON"),
        (b'["a"]\n', "docs.jsonl:1: must be an object, not a list"),
        (b'{"body": 1, "title": 2}\n', "docs.jsonl:1: no field 'text'; fields seen: body, title"),
        (b'{"text": 3}\n', "docs.jsonl:1: field 'text' holds a int"),
        (b'{"text": "\\ud800"}\n', "an unpaired surrogate"),
        (b'{"text": "\xff"}\n', "docs.jsonl:1: broken UTF-8 at byte offset 10"),
    ],
)
def test_bad_jsonl_line_is_named_and_others_are_read(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "docs.jsonl"
    path.write_bytes(content + b'{"text": "last"}\n')
    with pytest.raises(UserError) as caught:
        documents(JsonlSource([str(path)]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    bad, good = bad_and_good(JsonlSource([str(path)]))
    assert len(bad) == 1
    assert good[-1] == "last"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.txt", b"ab\0cd", "b.txt: binary file (a zero byte at offset 2)"),
        ("b.txt", b"caf\xe9 au lait", "b.txt: broken UTF-8 at byte offset 3"),
        ("b.txt.gz", b"no gzip at all", "b.txt.gz: broken compressed file"),
        ("b.txt.gz", gzip.compress(b"text" * 1000, mtime=0)[:-9], "b.txt.gz: broken compressed file"),
        ("b.txt.zst", b"no zstd at all", "b.txt.zst: broken compressed file"),
    ],
)
def test_bad_text_file_is_named_and_others_are_read(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("good")
    for separator in (None, "---"):
        with pytest.raises(UserError) as caught:
            documents(TextSource([str(tmp_path)], separator))
        assert message in str(caught.value)
        bad, good = bad_and_good(TextSource([str(tmp_path)], separator))
        assert len(bad) == 1
        assert good == ["good"]


def test_missing_file_suggests_nearest(tmp_path: Path):
    (tmp_path / "corpus.txt").write_text("x")
    with pytest.raises(UserError, match=r"no such file; did you mean .*corpus\.txt"):
        texts(TextSource([str(tmp_path / "corpsu.txt")]))
    with pytest.raises(UserError, match="no folder"):
        texts(TextSource([str(tmp_path / "nowhere" / "corpus.txt")]))
    with pytest.raises(UserError, match="no file matches"):
        texts(TextSource([str(tmp_path / "*.md")]))
    with pytest.raises(UserError, match=r"contains no \.jsonl files"):
        texts(JsonlSource([str(tmp_path)]))
    with pytest.raises(UserError, match=r"data\.source\.paths is empty"):
        texts(TextSource())
    with pytest.raises(UserError, match="prepared"):
        texts(PreparedSource())


def test_hugging_face_rows_are_streamed(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        if args[0] == "missing":
            raise FileNotFoundError("Dataset 'missing' doesn't exist")
        return ({"text": f"row {i}"} for i in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    source = HuggingFaceSource("a/b", "sub", "train", "text", max_documents=2)
    assert documents(source) == [Document("row 0", "a/b[0]"), Document("row 1", "a/b[1]")]
    assert calls == [(("a/b", "sub"), {"split": "train", "streaming": True})]
    with pytest.raises(UserError, match=r"no field 'body'; fields seen: text"):
        documents(HuggingFaceSource("a/b", None, text_field="body"))
    with pytest.raises(UserError, match="Hugging Face data set missing, split train: Dataset 'missing'"):
        documents(HuggingFaceSource("missing", None))


def test_missing_datasets_library_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'lit-illada\[hf\]'"):
        documents(HuggingFaceSource())


def test_json_line_may_contain_any_text(tmp_path: Path):
    odd = "zero \0, emoji 😀, separators \u2028 \x85 \r, end"
    path = tmp_path / "docs.jsonl"
    path.write_text(json.dumps({"text": odd}) + "\n")
    assert texts(JsonlSource([str(path)])) == [odd]

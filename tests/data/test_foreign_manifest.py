"""An untrusted data set writes nothing outside its folder or cache, executes nothing and gives one-line errors."""

import functools
import hashlib
import io
import json
import shutil
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from lit_illada.data.dataset.reading import open_dataset
from lit_illada.errors import UserError


@pytest.fixture
def copy(prepared, tmp_path):
    return Path(shutil.copytree(prepared.dir, tmp_path / "copy"))


def change_manifest(folder, change):
    manifest = folder / "manifest.json"
    tree = json.loads(manifest.read_text())
    change(tree)
    manifest.write_text(json.dumps(tree))


def load_everything(location, cache=None):
    dataset = open_dataset(location, cache, attempts=1)
    dataset.tokenizer()
    for record in dataset.manifest.train.shards:
        dataset.load(record)


def serve(folder):
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize("name", ["../../escaped.tar", "{tmp}/escaped.tar", "sub/escaped.tar", "..", "", "x\0y", "-rf"])
def test_shard_name_outside_data_set_is_rejected_before_any_fetch(name, copy, tmp_path):
    name = name.format(tmp=tmp_path)
    change_manifest(copy, lambda tree: tree["train"]["shards"][0].update(file=name))
    server, url = serve(tmp_path)
    try:
        with pytest.raises(UserError, match="not a plain name inside the data set") as caught:
            load_everything(f"{url}/copy", str(tmp_path / "cache" / "deep"))
    finally:
        server.shutdown()
    assert "\n" not in str(caught.value)
    assert "manifest.json" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"copy"}


@pytest.mark.parametrize("key", ["file", "tokenizer_folder"])
@pytest.mark.parametrize("name", ["x; touch {tmp}/PWN", "$(touch {tmp}/PWN)", "x`touch {tmp}/PWN`", "a b", "x\ntouch"])
def test_manifest_name_does_not_reach_the_shell_of_a_pipe(name, key, copy, tmp_path):
    def change(tree):
        (tree if key == "tokenizer_folder" else tree["train"]["shards"][0])[key] = name.format(tmp=tmp_path)

    change_manifest(copy, change)
    with pytest.raises(UserError, match="not a plain name inside the data set"):
        load_everything(f"pipe:cat {copy}")
    assert not (tmp_path / "PWN").exists()


BAD_VALUES = {
    "vocab_size text": (lambda tree: tree.update(vocab_size="x"), "vocab_size must be a whole number, not 'x'"),
    "vocab_size negative": (lambda tree: tree.update(vocab_size=-1), "vocab_size is -1"),
    "vocab_size null": (lambda tree: tree.update(vocab_size=None), "vocab_size must be a whole number, not None"),
    "vocab_size huge": (lambda tree: tree.update(vocab_size=2**70), "vocab_size is an integer beyond 64 bits"),
    "vocab_size over dtype": (lambda tree: tree.update(vocab_size=2**17), "uint16 allows 1 to 65536"),
    "vocab_size other": (lambda tree: tree.update(vocab_size=tree["vocab_size"] + 1), "tokenizer has"),
    "dtype": (lambda tree: tree.update(dtype="object"), "dtype is 'object'; expected uint16 or uint32"),
    "shards": (lambda tree: tree["train"].update(shards={}), "train: shards must be a list"),
    "split": (lambda tree: tree.update(validation=[]), "validation: must be an object, not a list"),
    "no split": (lambda tree: tree.pop("train"), "lacks 'train'"),
    "tokens": (lambda tree: tree["train"]["shards"][0].update(tokens=1.5), "tokens must be a whole number, not 1.5"),
    "negative": (lambda tree: tree["train"]["shards"][0].update(tokens=-5), "cannot be negative"),
    "sha256": (lambda tree: tree["train"]["shards"][0].update(sha256="x"), "expected 64 hexadecimal digits"),
    "twice": (lambda tree: tree["train"]["shards"].append(tree["train"]["shards"][0]), "is listed twice"),
    "settings": (lambda tree: tree.update(settings=[]), "settings must be an object"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_impossible_manifest_value_is_named(case, copy):
    change, expected = BAD_VALUES[case]
    change_manifest(copy, change)
    with pytest.raises(UserError) as caught:
        load_everything(copy)
    assert expected in str(caught.value)
    assert "manifest.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"\xff\xfe", "not UTF-8 text at byte 0"), (b"[]", "must be an object"), (b"[" * 100_000, "nested deeper")],
)
def test_manifest_that_is_not_a_json_object_is_named(content, expected, copy):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=expected):
        open_dataset(copy)


def test_binary_tokenizer_file_is_named(copy):
    (copy / "tokenizer" / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"tokenizer\.json: not UTF-8 text at byte 0"):
        open_dataset(copy).tokenizer()


def resign(folder, content):
    """Put content in place of the first shard, with the size and hash that the manifest states."""

    def change(tree):
        record = tree["train"]["shards"][0]
        (folder / record["file"]).write_bytes(content)
        record.update(file_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    change_manifest(folder, change)


def tar(members, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header_only(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<u2", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def negative_size():
    content = bytearray(tar({"a.tokens.npy": b"x" * 600}))
    content[124:136] = b"\xff" * 11 + b"\x00"
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % (sum(content[:512]))
    return bytes(content)


LENGTHS = npy(np.array([2], "<u4"))
SHARDS = {
    "no tar": b"x" * 2000,
    "compressed": tar({"a.tokens.npy": npy(np.zeros(10**6, "<u2")), "a.lengths.npy": LENGTHS}, "w:gz"),
    "cut off": tar({"a.tokens.npy": npy(np.array([1, 2], "<u2"))})[:600],
    "negative size": negative_size(),
    "header larger than memory": tar({"a.tokens.npy": header_only((10**15,)), "a.lengths.npy": LENGTHS}),
    "two dimensions": tar({"a.tokens.npy": npy(np.ones((1, 2), "<u2")), "a.lengths.npy": LENGTHS}),
    "floats": tar({"a.tokens.npy": npy(np.ones(2)), "a.lengths.npy": LENGTHS}),
    "objects": tar({"a.tokens.npy": npy(np.array([{}, {}], object)), "a.lengths.npy": LENGTHS}),
    "link": b"".join([tarfile.TarInfo("a.tokens.npy").tobuf().replace(b"\x000", b"\x002")]) + bytes(1024),
    "empty": b"",
}


@pytest.mark.parametrize("case", SHARDS)
def test_shard_with_valid_hash_and_wrong_format_is_named(case, copy):
    resign(copy, SHARDS[case])
    with pytest.raises(UserError, match=r"train-000000-.*\.tar") as caught:
        load_everything(copy)
    assert "\n" not in str(caught.value)


def test_shard_with_valid_hash_and_ids_outside_vocabulary_is_named(copy):
    dataset = open_dataset(copy)
    record = dataset.manifest.train.shards[0]
    shard = dataset.load(record)
    tokens = shard.tokens.copy()
    tokens[3] = dataset.manifest.vocab_size
    resign(copy, tar({"a.tokens.npy": npy(tokens), "a.lengths.npy": npy(shard.lengths.astype("<u4"))}))
    with pytest.raises(UserError, match=f"contains the id {dataset.manifest.vocab_size}, outside the vocabulary of"):
        load_everything(copy)

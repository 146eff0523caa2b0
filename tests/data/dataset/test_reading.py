import functools
import io
import shutil
import tarfile
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from lit_illada.data.dataset.inspection import inspect, verify
from lit_illada.data.dataset.manifest import MANIFEST_FILE
from lit_illada.data.dataset.reading import open_dataset
from lit_illada.data.prepare.prepare import prepare
from lit_illada.errors import UserError


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    """A copy of the data set, to be damaged."""
    return Path(shutil.copytree(prepared.dir, tmp_path / "copy"))


@pytest.fixture(scope="session")
def url(prepared):
    """The data set behind a web server; the list of requested paths."""
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=prepared.dir))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()


def first_shard(folder: Path) -> Path:
    return folder / open_dataset(folder).manifest.train.shards[0].file


def load_first(folder: Path) -> None:
    dataset = open_dataset(folder)
    dataset.load(dataset.manifest.train.shards[0])


def assert_load_fails(folder: Path, *words: str) -> None:
    """Both reading and `verify` name the shard and the fix."""
    problems = verify(folder)
    assert len(problems) == 1
    with pytest.raises(UserError) as caught:
        load_first(folder)
    for message in (problems[0], str(caught.value)):
        assert first_shard(folder).name in message
        assert "prepare it again" in message
        assert "\n" not in message
        for word in words:
            assert word in message


def test_truncated_shard_is_named(copy):
    shard = first_shard(copy)
    content = shard.read_bytes()
    shard.write_bytes(content[:-700])
    assert_load_fails(copy, "truncated", f"{len(content) - 700} of {len(content)} bytes", "copy or download it again")


def test_altered_byte_is_detected(copy):
    shard = first_shard(copy)
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    assert_load_fails(copy, "altered")


def test_missing_shard_is_named(copy):
    first_shard(copy).unlink()
    with pytest.raises(UserError, match=r"train-000000-.*\.tar is missing: copy or download it again"):
        load_first(copy)
    assert len(verify(copy)) == 1


def rewrite(folder: Path, change) -> None:
    """Replaces the first shard by another tar and updates its size and hash in the manifest."""
    import hashlib
    import json

    shard = first_shard(folder)
    buffer = io.BytesIO()
    with tarfile.open(shard) as old, tarfile.open(fileobj=buffer, mode="w") as new:
        for member in old:
            if (content := change(member.name, old.extractfile(member).read())) is not None:
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
    shard.write_bytes(buffer.getvalue())
    tree = json.loads((folder / MANIFEST_FILE).read_text())
    record = tree["train"]["shards"][0]
    record.update(file_bytes=len(buffer.getvalue()), sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
    (folder / MANIFEST_FILE).write_text(json.dumps(tree))


def test_missing_member_is_named(copy):
    rewrite(copy, lambda name, content: None if name.endswith("lengths.npy") else content)
    assert_load_fails(copy, "a sample has no member 'lengths.npy'")


def test_shard_with_wrong_count_is_named(copy):
    def drop_last(name: str, content: bytes) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, np.load(io.BytesIO(content))[:-1])
        return buffer.getvalue()

    rewrite(copy, drop_last)
    assert_load_fails(copy, "the manifest says")


def test_tokenizer_of_another_data_set_is_rejected(copy, tmp_path, make_config, make_texts):
    other = make_config(tmp_path / "other", make_texts(50, seed=3))
    prepare(other)
    shutil.copytree(Path(other.dir, "tokenizer"), copy / "tokenizer", dirs_exist_ok=True)
    with pytest.raises(UserError, match="does not fit the shards"):
        open_dataset(copy).tokenizer()
    assert len(verify(copy)) == 1


def test_shard_missing_in_manifest_is_reported(copy):
    shutil.copy(first_shard(copy), copy / "train-000999-abc.tar")
    assert verify(copy) == [f"{copy}/train-000999-abc.tar: not in the manifest; delete it"]


def test_folder_without_readable_manifest_is_rejected(copy):
    manifest = copy / MANIFEST_FILE
    content = manifest.read_text()
    manifest.write_text(content[: len(content) // 2])
    with pytest.raises(UserError, match="is not a manifest"):
        open_dataset(copy)
    manifest.write_text(content.replace('"format": 1', '"format": 99'))
    with pytest.raises(UserError, match="has format 99; this version reads format 1"):
        open_dataset(copy)
    manifest.unlink()
    with pytest.raises(UserError, match="lit-illada data prepare"):
        open_dataset(copy)


def test_urls_and_pipes_read_the_same_as_the_folder(prepared, url, tmp_path):
    address, requests = url
    local = open_dataset(prepared.dir)
    expected = local.load(local.manifest.train.shards[0])
    for location in (address, f"pipe:cat {prepared.dir}"):
        remote = open_dataset(location)
        assert remote.manifest == local.manifest
        assert remote.tokenizer().sha256 == local.tokenizer().sha256
        np.testing.assert_array_equal(remote.load(remote.manifest.train.shards[0]).tokens, expected.tokens)

    cached = open_dataset(address, str(tmp_path / "cache"))
    record = cached.manifest.train.shards[1]
    requests.clear()
    for _ in range(2):
        cached.load(record)
    assert requests == [f"/{record.file}"]
    (cache_file,) = (tmp_path / "cache").rglob("*.tar")
    cache_file.write_bytes(b"spoilt")
    cached.load(record)
    assert requests == [f"/{record.file}"] * 2


def test_missing_url_is_reported(url):
    address, _ = url
    dataset = open_dataset(address)
    with pytest.raises(UserError, match=r"train-nowhere\.tar is missing: upload it again"):
        dataset.load(replace(dataset.manifest.train.shards[0], file="train-nowhere.tar"))


def test_inspection_shows_statistics_and_decoded_samples(prepared, texts):
    inspection = inspect(prepared.dir)
    manifest = inspection.manifest
    assert sum(length_bin.documents for length_bin in inspection.length_bins) == manifest.train.documents
    assert len(inspection.samples) == 3
    assert all(any(text.startswith(sample.removesuffix("<|eos|>")) for text in texts) for sample in inspection.samples)
    shown = str(inspection)
    assert f"{manifest.train.tokens:,}" in shown
    assert "bytes/token" in shown

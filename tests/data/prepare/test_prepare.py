import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from filelock import FileLock

from lit_illada.data.config import DataConfig, JsonlSource, LoadTokenizer, OnBadDocument, TextSource, TrainTokenizer
from lit_illada.data.dataset.inspection import verify
from lit_illada.data.dataset.manifest import TRAIN, VALIDATION, Manifest
from lit_illada.data.dataset.reading import open_dataset
from lit_illada.data.dataset.shards import tokenise
from lit_illada.data.prepare.prepare import prepare
from lit_illada.data.prepare.step_workers import prepare_by_parts
from lit_illada.errors import UserError
from lit_illada.runtime.files import write_atomically


def stored_texts(config: DataConfig, split: str) -> list[str]:
    """The documents of a split, decoded from its shards."""
    dataset = open_dataset(config.dir)
    tokenizer = dataset.tokenizer()
    texts = []
    for record in dataset.manifest.split(split).shards:
        shard = dataset.load(record)
        for ids in np.split(shard.tokens, np.cumsum(shard.lengths)[:-1]):
            assert ids[-1] == tokenizer.eos_token_id
            texts.append(tokenizer.decode(ids[:-1].tolist()))
    return texts


def contents(folder: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_each_document_is_stored_once_in_one_split(prepared, texts):
    train, validation = stored_texts(prepared, TRAIN), stored_texts(prepared, VALIDATION)
    assert Counter(train + validation) == Counter(texts)
    assert 0.1 < len(validation) / len(texts) < 0.3
    # within a split, documents are in the order of the corpus
    assert [text for text in texts if text in set(train)] == train


def test_manifest_counts_match_shards(prepared, texts):
    dataset = open_dataset(prepared.dir)
    manifest = dataset.manifest
    assert manifest == prepare(prepared)
    assert manifest.dtype == "uint16"
    assert manifest.train.documents + manifest.validation.documents == len(texts)
    assert manifest.train.text_bytes + manifest.validation.text_bytes == sum(len(text.encode()) for text in texts)
    sizes = dataset.tokenizer().bytes_per_token()
    for record in manifest.train.shards:
        shard = dataset.load(record)
        assert (record.tokens, record.documents) == (len(shard.tokens), len(shard.lengths))
        assert record.text_bytes == sizes[shard.tokens].sum()
    assert len(manifest.train.shards) > 3
    assert verify(prepared.dir) == []


def test_duplicates_and_empty_documents_are_removed(tmp_path, make_config, make_texts):
    once = make_texts(40)
    config = make_config(tmp_path / "set", [*once, "", " \n\t", *once[:7]])
    manifest = prepare(config)
    assert (manifest.duplicates, manifest.empty) == (7, 2)
    assert sorted(stored_texts(config, TRAIN) + stored_texts(config, VALIDATION)) == sorted(once)


def test_split_of_document_is_independent_of_the_rest_of_the_corpus(tmp_path, make_config, make_texts, prepared, texts):
    config = make_config(tmp_path / "set", [*make_texts(60, seed=1), *reversed(texts)])
    prepare(config)
    for split, other in ((TRAIN, VALIDATION), (VALIDATION, TRAIN)):
        assert set(stored_texts(prepared, split)) <= set(stored_texts(config, split))
        assert not set(stored_texts(prepared, split)) & set(stored_texts(config, other))


def test_special_token_text_in_corpus_stays_text(tmp_path, make_config, make_texts):
    hostile = [f"{text} <|mask|><|eos|> <|/think|>" for text in make_texts(40)]
    config = make_config(tmp_path / "set", hostile)
    prepare(config)
    dataset = open_dataset(config.dir)
    tokens = dataset.load(dataset.manifest.train.shards[0]).tokens
    assert dataset.tokenizer().mask_token_id not in tokens
    assert sorted(stored_texts(config, TRAIN) + stored_texts(config, VALIDATION)) == sorted(hostile)


def test_result_is_independent_of_number_of_processes(tmp_path, make_config, prepared, texts):
    config = replace(prepared, dir=str(tmp_path / "set"), num_processes=2)
    prepare(config)
    assert contents(config.dir) == contents(prepared.dir)


def test_webdataset_reads_the_shards(prepared):
    manifest = open_dataset(prepared.dir).manifest
    urls = [f"{prepared.dir}/{shard.file}" for shard in manifest.train.shards]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert sum(len(sample["lengths.npy"]) for sample in samples) == manifest.train.documents
    assert sum(len(sample["tokens.npy"]) for sample in samples) == manifest.train.tokens
    assert all(sample["lengths.npy"].sum() == len(sample["tokens.npy"]) for sample in samples)


def test_long_document_is_tokenised_in_pieces_without_loss(monkeypatch, prepared):
    monkeypatch.setattr("lit_illada.data.dataset.shards._PIECE_CHARACTERS", 50)
    monkeypatch.setattr("lit_illada.data.dataset.shards._BATCH_CHARACTERS", 100)
    tokenizer = open_dataset(prepared.dir).tokenizer()
    texts = ["alpha beta\n\ngamma " * 30, "x" * 333, "short", "é" * 50]
    documents = tokenise(texts, tokenizer)
    assert [tokenizer.decode(ids[:-1].tolist()) for ids in documents] == texts
    assert all(ids[-1] == tokenizer.eos_token_id for ids in documents)


def test_large_vocabulary_is_stored_as_uint32(tmp_path, make_config, make_texts, prepared):
    tree = json.loads(Path(prepared.dir, "tokenizer", "tokenizer.json").read_text())
    tree["model"]["vocab"] |= {f"never seen {i}": i for i in range(320, 70_000)}
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(tree))
    config_file = Path(prepared.dir, "tokenizer", "tokenizer_config.json")
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(config_file.read_text())
    config = make_config(tmp_path / "set", make_texts(30), tokenizer=LoadTokenizer(str(tmp_path / "tokenizer")))
    assert prepare(config).dtype == "uint32"
    assert verify(config.dir) == []


def test_finished_data_set_is_replaced_only_with_overwrite(tmp_path, make_config, make_texts):
    config = make_config(tmp_path / "set", make_texts(60))
    prepare(config)
    before = contents(config.dir)
    times = {path: path.stat().st_mtime_ns for path in Path(config.dir).iterdir()}
    prepare(replace(config, row_length=64, num_workers=2))
    assert {path: path.stat().st_mtime_ns for path in Path(config.dir).iterdir()} == times

    other = replace(config, validation_fraction=0.3, tokenizer=TrainTokenizer(vocab_size=300))
    with pytest.raises(UserError) as caught:
        prepare(other)
    assert "data.validation_fraction: 0.2 there, 0.3 here" in str(caught.value)
    assert "data.tokenizer.vocab_size: 320 there, 300 here" in str(caught.value)
    assert "shard_tokens" not in str(caught.value)
    assert contents(config.dir) == before

    prepare(other, overwrite=True)
    assert open_dataset(config.dir).manifest.vocab_size == 300
    assert verify(config.dir) == []


def test_failed_overwrite_leaves_old_data_set_intact(tmp_path, make_config, make_texts):
    config = make_config(tmp_path / "set", make_texts(60))
    prepare(config)
    bad = tmp_path / "bad.jsonl"
    bad.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(80, seed=2)) + "{\n")
    with pytest.raises(UserError, match="not JSON"):
        prepare(replace(config, source=JsonlSource([str(bad)])), overwrite=True)
    assert verify(config.dir) == []
    assert prepare(config).train.documents == open_dataset(config.dir).manifest.train.documents


@pytest.mark.parametrize("overwrite", [prepare, partial(prepare_by_parts, workers=1)], ids=["one process", "by parts"])
def test_old_data_set_stays_intact_until_its_manifest_is_replaced(
    overwrite, tmp_path, make_config, make_texts, monkeypatch
):
    def killed(path, content):
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        write_atomically(path, content)

    config = make_config(tmp_path / "set", make_texts(60))
    old = prepare(config)
    make_config(tmp_path / "set", make_texts(80, seed=2))  # another corpus in the same file
    with monkeypatch.context() as patch:
        patch.setattr("lit_illada.data.prepare.work_folder.write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            overwrite(config, overwrite=True)
    assert prepare(config) == old
    assert verify(config.dir) == []
    assert Counter(stored_texts(config, TRAIN) + stored_texts(config, VALIDATION)) == Counter(make_texts(60))

    for seed in (2, 3):
        make_config(tmp_path / "set", make_texts(80, seed=seed))
        new = overwrite(config, overwrite=True)
        texts = stored_texts(config, TRAIN) + stored_texts(config, VALIDATION)
        assert Counter(texts) == Counter(make_texts(80, seed=seed))
        assert [path.name for path in Path(config.dir).glob("tokenizer*")] == [new.tokenizer_folder]
        assert open_dataset(f"pipe:cat {config.dir}").tokenizer().sha256 == new.tokenizer_sha256
    assert new.tokenizer_folder == "tokenizer"  # its name is free, since the first preparation removed the old one


def test_manifest_without_tokenizer_folder_is_readable(prepared, tmp_path):
    copy = shutil.copytree(prepared.dir, tmp_path / "copy")
    tree = json.loads((copy / "manifest.json").read_text())
    del tree["tokenizer_folder"]  # as an earlier version wrote it
    (copy / "manifest.json").write_text(json.dumps(tree))
    assert open_dataset(copy).tokenizer().sha256 == open_dataset(prepared.dir).tokenizer().sha256


_PREPARE = """
import sys, time
from pathlib import Path
from lit_illada.data.config import DataConfig, JsonlSource, TrainTokenizer
from lit_illada.data.corpora import assignment
from lit_illada.data.prepare.prepare import prepare
plain = assignment.split_of
def split_of(*args):
    time.sleep(0.005)
    return plain(*args)
assignment.split_of = split_of
folder, corpus = sys.argv[1:]
prepare(DataConfig(dir=folder, source=JsonlSource([corpus]), tokenizer=TrainTokenizer(vocab_size=320),
    validation_fraction=0.2, shard_tokens=1024, num_processes=1))
"""


def test_killed_preparation_resumes_and_reuses_finished_shards(tmp_path, make_config, prepared, texts):
    config = make_config(tmp_path / "set", texts)
    child = subprocess.Popen([sys.executable, "-c", _PREPARE, config.dir, str(tmp_path / "set.jsonl")])
    folder = Path(config.dir)
    deadline = time.monotonic() + 30
    while len(list(folder.glob(".preparing/train-*.json"))) < 3:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with pytest.raises(UserError, match="no prepared data set"):
        open_dataset(folder)
    time.sleep(0.3)  # its child process ends after the shard that it is writing
    (folder / "train-000000-abc.tar.1.tmp").write_bytes(b"half")
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "tokenizer.json.abc.tmp").write_bytes(b"half")
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert len(finished) >= 3

    prepare(config)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    ours, undisturbed = contents(config.dir), contents(prepared.dir)
    manifests = [Manifest.from_json(files.pop("manifest.json").decode(), "") for files in (ours, undisturbed)]
    assert manifests[0].fingerprint == manifests[1].fingerprint
    assert ours == undisturbed


def test_second_preparation_waits_for_first(tmp_path, make_config, make_texts, caplog, monkeypatch):
    config = make_config(tmp_path / "set", make_texts(30))
    Path(config.dir).mkdir()
    script = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, f"{config.dir}/.lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        record = caplog.handler.emit

        def release(message):
            record(message)
            if "waiting for another preparation" in message.getMessage():
                other.stdin.close()

        monkeypatch.setattr(caplog.handler, "emit", release)
        prepare(config)
        assert other.wait() == 0
    assert "waiting for another preparation" in caplog.text
    assert verify(config.dir) == []
    FileLock(f"{config.dir}/.lock").acquire(timeout=0)


def test_bad_documents_raise_or_are_counted_and_listed(tmp_path, make_config, make_texts):
    config = make_config(tmp_path / "set", make_texts(40))
    with Path(tmp_path / "set.jsonl").open("a") as corpus:
        corpus.write('{"body": "x"}\n{broken\n')
    with pytest.raises(UserError, match=r"set\.jsonl:41: no field 'text'; fields seen: body"):
        prepare(config)
    assert not Path(config.dir, "manifest.json").exists()
    manifest = prepare(replace(config, on_bad_document=OnBadDocument.SKIP))
    assert manifest.bad_documents == 2
    assert "set.jsonl:41" in manifest.bad_examples[0]
    assert "set.jsonl:42" in manifest.bad_examples[1]


def test_empty_corpus_is_rejected(tmp_path, make_config):
    with pytest.raises(UserError, match=r"the corpus of .* has no text \(2 empty"):
        prepare(make_config(tmp_path / "set", ["", "  "]))
    (tmp_path / "nul.txt").write_bytes(b"\0")
    config = make_config(
        tmp_path / "set", [], source=TextSource([str(tmp_path / "nul.txt")]), on_bad_document=OnBadDocument.SKIP
    )
    with pytest.raises(UserError, match=r"1 unreadable documents removed; the first: .*nul\.txt: binary file"):
        prepare(config)
    assert not Path(config.dir, "manifest.json").exists()


@pytest.mark.parametrize(("fraction", "empty"), [(0.001, "validation"), (0.999, "train")])
def test_single_text_file_is_rejected_with_the_fixes(tmp_path, make_config, fraction, empty):
    (tmp_path / "book.txt").write_text("alpha beta\n---\n" * 40)
    source = TextSource([str(tmp_path / "book.txt")])
    config = make_config(tmp_path / "set", [], source=source, validation_fraction=fraction)
    with pytest.raises(UserError) as caught:
        prepare(config)
    assert f"the corpus has 1 document and the {empty} split got none of them" in str(caught.value)
    for way in ("set data.source.document_separator", "give more files", "change data.validation_fraction"):
        assert way in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(config.dir, "manifest.json").exists()


def test_fixes_are_limited_to_fields_of_the_source(tmp_path, make_config):
    config = make_config(tmp_path / "set", ["alpha", "beta"], validation_fraction=0.001)
    with pytest.raises(UserError, match=r"has 2 documents and the validation split got none of them .*: give more"):
        prepare(config)


def test_preparation_after_rejected_corpus_equals_fresh_preparation(tmp_path, make_config, make_texts):
    texts = make_texts(40)
    config = make_config(tmp_path / "set", texts[:1])
    with pytest.raises(UserError, match="split got none"):
        prepare(config)
    (tmp_path / "set.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare(config)
    other = make_config(tmp_path / "other", texts)
    assert prepare(other).fingerprint == prepare(config).fingerprint


def test_url_or_file_as_data_dir_is_rejected(tmp_path, make_config):
    config = make_config(tmp_path / "set", ["a"])
    with pytest.raises(UserError, match="prepare a data set in a local folder"):
        prepare(replace(config, dir="https://example.org/set"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        prepare(replace(config, dir=str(tmp_path / "file")))


def test_preparation_does_not_import_torch():
    script = "import sys; import lit_illada.data.prepare.prepare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_progress_reaches_total(tmp_path, make_config, make_texts):
    seen: list[tuple[str, int, int | None]] = []
    texts = make_texts(60)
    prepare(make_config(tmp_path / "set", texts), on_progress=lambda *step: seen.append(step))
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == ["sampling", "training the tokenizer", "tokenising"]
    tokenising = [done for stage, done, _ in seen if stage == "tokenising"]
    assert tokenising == sorted(tokenising)
    assert tokenising[-1] == sum(map(len, texts))


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_gives_one_line_error_and_preparation_resumes(tmp_path, small_disk, make_config, make_texts):
    config = make_config(tmp_path / "corpus", make_texts(2000))
    config = replace(config, dir=str(small_disk / "set"))
    with pytest.raises(UserError, match=r"the disk of .* is full: free some space") as caught:
        prepare(config)
    assert "\n" not in str(caught.value)
    assert not list(small_disk.rglob("*.tmp"))
    assert not (small_disk / "set" / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    prepare(config)
    assert verify(config.dir) == []


def test_killed_process_is_reported(tmp_path, make_config, make_texts, monkeypatch):
    config = make_config(tmp_path / "set", make_texts(40))
    monkeypatch.setattr("lit_illada.data.prepare.shard_pool.sys.executable", "/bin/false")
    with pytest.raises(UserError, match=r"ended with code 1 .*data\.num_processes"):
        prepare(config)

"""Divided preparation writes the same bytes as one process."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.data.config import JsonlSource, OnBadDocument, StdlibSource, TextSource
from lit_illada.data.corpora.sources import files_of
from lit_illada.data.dataset.inspection import verify
from lit_illada.data.dataset.manifest import Manifest
from lit_illada.data.prepare.division import Part, divide
from lit_illada.data.prepare.prepare import prepare
from lit_illada.data.prepare.step_workers import prepare_by_parts
from lit_illada.data.prepare.steps import Step, begin, run_step
from lit_illada.errors import UserError


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def run_all(config, count, write_order=None):
    begin(config)
    for index in range(count):
        run_step(Step.scan, config, Part(index, count))
    run_step(Step.plan, config, Part(0, count))
    for index in write_order or range(count):
        run_step(Step.write, config, Part(index, count))
    return run_step(Step.merge, config, Part(0, count))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, make_texts):
    """Files of very different sizes, one of them empty, with duplicates within and across them, and bad lines."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = make_texts(200)
    bounds = [0, 3, 3, 110, 111, 150, 200]
    for number, (first, last) in enumerate(pairwise(bounds)):
        records = [json.dumps({"text": text}) for text in chain(texts[first:last], texts[:number], ["", " "])]
        bad = ['{"body": 1}', "{broken"] if number % 2 else []
        folder.joinpath(f"{number}.jsonl").write_text("\n".join([*records, *bad]) + "\n" if number != 1 else "")
    return folder


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory, make_config):
    """The config of the corpus, prepared by one process."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    source = JsonlSource([str(corpus)])
    config = make_config(folder, [], source=source, on_bad_document=OnBadDocument.SKIP)
    manifest = prepare(config)
    assert manifest.duplicates > 10
    assert manifest.bad_documents == 4
    assert len(manifest.train.shards) > 5
    return config


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_divided_preparation_writes_same_bytes_as_one_process(count, whole, tmp_path):
    config = replace(whole, dir=str(tmp_path / "set"))
    manifest = run_all(config, count, write_order=range(count - 1, -1, -1))
    assert contents(config.dir) == contents(whole.dir)
    assert manifest == prepare(whole)
    assert verify(config.dir) == []


def test_shard_may_span_files_of_several_parts(whole, tmp_path):
    config = replace(whole, dir=str(tmp_path / "set"), shard_tokens=2**20)
    manifest = run_all(config, 6)
    assert len(manifest.train.shards) == 1
    other = replace(config, dir=str(tmp_path / "other"))
    assert prepare(other) == manifest
    assert contents(other.dir) == contents(config.dir)


def test_repeated_step_reuses_finished_work(whole, tmp_path):
    config = replace(whole, dir=str(tmp_path / "set"))
    begin(config)
    for step, index in [(Step.scan, 0), (Step.scan, 1), (Step.plan, 0), (Step.write, 0)]:
        run_step(step, config, Part(index, 2))
    times = {path: path.stat().st_mtime_ns for path in Path(config.dir).glob("*.tar")}
    assert times
    (Path(config.dir) / "tokenizer").mkdir(exist_ok=True)
    for name in ("train-000000-abc.tar.1.tmp", "tokenizer/tokenizer.json.abc.tmp"):
        (Path(config.dir) / name).write_bytes(b"half")
    begin(config)
    for step, index in [(Step.scan, 0), (Step.scan, 1), (Step.plan, 0), (Step.write, 0)]:
        run_step(step, config, Part(index, 2))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    with pytest.raises(UserError, match=r"shards are not written: lit-illada data part write --part 1/2$"):
        run_step(Step.merge, config, Part(0, 2))
    run_step(Step.write, config, Part(1, 2))
    run_step(Step.merge, config, Part(0, 2))
    assert contents(config.dir) == contents(whole.dir)


def test_step_before_its_predecessors_names_the_missing_step(whole, tmp_path):
    config = replace(whole, dir=str(tmp_path / "set"))
    run_step(Step.scan, config, Part(0, 2))
    with pytest.raises(UserError, match="part 1/2 is not scanned: lit-illada data part scan --part 1/2"):
        run_step(Step.plan, config, Part(0, 2))
    with pytest.raises(UserError, match="not planned: lit-illada data part plan --part 0/2"):
        run_step(Step.write, config, Part(0, 2))
    with pytest.raises(UserError, match="preparation with other settings"):
        run_step(Step.scan, replace(config, shard_tokens=2048), Part(1, 2))
    for text in ("2/2", "x/2", "1", "-1/2"):
        with pytest.raises(UserError, match="part"):
            Part.parse(text)


def test_corpus_changed_between_steps_is_rejected_and_can_be_rescanned(tmp_path, make_config, make_texts):
    texts = make_texts(60)
    files = [tmp_path / "corpus" / f"{number}.txt" for number in range(2)]
    files[0].parent.mkdir()
    for file, some in zip(files, (texts[:30], texts[30:]), strict=True):
        file.write_text("\n---\n".join(some))
    source = TextSource([str(files[0].parent)], document_separator="---")
    config = make_config(tmp_path / "set", [], source=source)
    begin(config)
    for index in range(2):
        run_step(Step.scan, config, Part(index, 2))
    files[1].write_text("\n---\n".join(texts[31:]))
    with pytest.raises(UserError, match="part 1/2 have changed since the scan"):
        run_step(Step.plan, config, Part(0, 2))
    run_all(config, 2)
    other = replace(config, dir=str(tmp_path / "other"))
    prepare(other)
    assert contents(other.dir) == contents(config.dir)


def test_divided_preparation_rejects_corpus_with_empty_split(tmp_path, make_config):
    config = make_config(tmp_path / "set", ["alpha", "beta"], validation_fraction=0.001)
    with pytest.raises(UserError, match="the validation split got none of them"):
        run_all(config, 2)
    assert not Path(config.dir, "manifest.json").exists()


def test_steps_do_not_change_finished_data_set(whole):
    before = contents(whole.dir)
    assert isinstance(begin(whole), Manifest)
    with pytest.raises(UserError, match="contains a finished data set"):
        run_step(Step.scan, whole, Part(0, 2))
    assert contents(whole.dir) == before


def test_workers_write_same_bytes_and_report_each_step(whole, tmp_path):
    config = replace(whole, dir=str(tmp_path / "set"))
    steps = []
    manifest = prepare_by_parts(config, 2, on_step=steps.append)
    assert steps == list(Step)
    assert contents(config.dir) == contents(whole.dir)
    assert prepare_by_parts(config, 3) == manifest
    assert len(steps) == 4
    other = replace(config, shard_tokens=2048)
    with pytest.raises(UserError, match="data set with other settings"):
        prepare_by_parts(other, 2)
    assert len(prepare_by_parts(other, 2, overwrite=True).train.shards) < len(manifest.train.shards)
    assert verify(config.dir) == []


def test_workers_do_not_outnumber_files(whole, corpus, tmp_path, monkeypatch):
    started = []

    def start(*arguments, **options):
        started.append(arguments)
        return popen(*arguments, **options)

    popen = subprocess.Popen
    monkeypatch.setattr("lit_illada.data.prepare.shard_pool.subprocess.Popen", start)
    source = replace(whole.source, paths=[str(corpus / "2.jsonl"), str(corpus / "4.jsonl")])
    prepare_by_parts(replace(whole, dir=str(tmp_path / "set"), source=source), 64)
    assert len(started) == 2 * 2  # in the two steps that are divided


def test_worker_error_is_raised_in_parent(tmp_path, make_config):
    (tmp_path / "bad.jsonl").write_text("{broken\n")
    config = make_config(tmp_path / "set", [], source=JsonlSource([str(tmp_path / "bad.jsonl")]))
    with pytest.raises(UserError, match=r"bad\.jsonl:1: not JSON"):
        prepare_by_parts(config, 2)


def test_killed_worker_is_reported(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_illada.data.prepare.shard_pool.sys.executable", "/bin/false")
    with pytest.raises(UserError, match=r"part 0/2 ended with code 1 .*fewer --workers"):
        prepare_by_parts(replace(whole, dir=str(tmp_path / "set")), 2)


# loaded by every process at its start: a step reports that it started, and never ends
ENDLESS = """
import os, time
from pathlib import Path
from lit_illada.data.prepare import steps

def run_step(*_):
    Path(os.environ["STARTED"], str(os.getpid())).touch()
    time.sleep(600)

steps.run_step = run_step
"""


def parent_of(pid):
    """The parent of a running process; None for one that has ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)


def wait_for(condition, limit_s=60):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_workers_exit_when_parent_is_killed(tiny_dataset, tmp_path):
    started_folder, code = tmp_path / "started_folder", tmp_path / "code"
    started_folder.mkdir()
    code.mkdir()
    (code / "sitecustomize.py").write_text(ENDLESS)
    overrides = [word for word in tiny_dataset if not word.startswith("data.dir=")]
    command = [sys.executable, "-m", "lit_illada", "data", "prepare", "--workers", "2"]
    path = os.pathsep.join([str(code), str(Path(__file__).parents[3])])
    process = subprocess.Popen(
        [*command, *overrides, f"data.dir={tmp_path / 'set'}"],
        env={**os.environ, "PYTHONPATH": path, "STARTED": str(started_folder)},
    )
    try:
        wait_for(lambda: len(list(started_folder.iterdir())) == 2)
        workers = [int(path.name) for path in started_folder.iterdir()]
        assert [parent_of(pid) for pid in workers] == [process.pid] * 2
    finally:
        process.kill()
        process.wait()
    try:
        wait_for(lambda: not any(map(parent_of, workers)), limit_s=20)
    finally:
        for pid in filter(parent_of, workers):
            os.kill(pid, signal.SIGKILL)


def test_command_line_runs_each_step(tiny_dataset, tmp_path):
    overrides = [word for word in tiny_dataset if not word.startswith("data.dir=")]
    for step in Step:
        arguments = ["data", "part", step, "--part", "0/1", *overrides, f"data.dir={tmp_path / 'set'}"]
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert "documents" in result.output
    (folder,) = (word.removeprefix("data.dir=") for word in tiny_dataset if word.startswith("data.dir="))
    assert contents(tmp_path / "set") == contents(folder)
    again = ["data", "prepare", "--workers", "2", *overrides, f"data.dir={tmp_path / 'set'}"]
    assert "documents" in CliRunner().invoke(main, again, catch_exceptions=False).output


def test_standard_library_is_divided_into_parts_of_similar_size():
    divided = divide(files_of(StdlibSource()), 4)
    assert list(chain(*divided)) == files_of(StdlibSource())
    sizes = [sum(path.stat().st_size for path in part) for part in divided]
    assert max(sizes) < 1.2 * min(sizes)

"""Every state file of a run and of a sweep, damaged in every way, ends in one line that names it."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lit_illada.config import load_file
from lit_illada.errors import UserError
from lit_illada.evaluation.writer import AnswerCache
from lit_illada.run_folder import RunFolder
from lit_illada.sweep.folder import PlannedRun, SweepFolder, SweepRunFolder, read_record
from lit_illada.training.checkpointing.rollback import complete_rollback

DAMAGE = {
    "not UTF-8": b'{"a": "\xff\xfe"}\n',
    "cut off": b'{"a": [\n',
    "a list": b"[1, 2]\n",
    "deep": b"[" * 100_000 + b"\n",
    "long integer": b'{"a": ' + b"7" * 5000 + b"}\n",
    "text": b'"text"\n',
}
READERS = {
    "summary.json": lambda path: RunFolder(path).read_summary(),
    "labels.json": lambda path: RunFolder(path).read_labels(),
    "rollbacks.jsonl": lambda path: RunFolder(path).read_rollbacks(),
    "rollback.json": lambda path: complete_rollback(RunFolder(path)),
    "config.yaml": lambda path: load_file("pretrain", path / "config.yaml"),
    "answers.jsonl": lambda path: AnswerCache(path / "answers.jsonl").read(),
    "attempts.jsonl": lambda path: SweepRunFolder(path).read_attempts(),
    "plan.json": lambda path: SweepFolder(path).read_plan(),
    "sweep.yaml": lambda path: SweepFolder(path).read_spec(),
    "progress.json": lambda path: read_record(path / "progress.json"),
    "done.json": lambda path: read_record(path / "done.json"),
    "failed.json": lambda path: read_record(path / "failed.json"),
}


def refusal(name, folder, content):
    file = SweepFolder(folder).spec.name if name == "sweep.yaml" else name
    (folder / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        READERS[name](folder)
    message = str(caught.value)
    assert str(folder / file) in message
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_state_file_is_one_line(name, damage, tmp_path):
    refusal(name, tmp_path, DAMAGE[damage])


PLANNED = PlannedRun("a", "s", "pretrain", [], [], None, ["x"], None, None, "f", {}, None, None, None)
WRONG_SHAPES = [
    ("summary.json", {"end": [1]}, "end must be an object, not [1]"),
    ("rollbacks.jsonl", {"skipped_rows": "x"}, "skipped_rows must be a list or null, not 'x'"),
    ("rollback.json", {"number": 1, "record": {}, "config": ""}, "record: lacks 'to_step'"),
    ("rollback.json", {"number": "1", "record": {"to_step": 1}, "config": ""}, "number must be a whole number"),
    ("attempts.jsonl", {"started_at": "never", "fingerprint": "", "before_s": 0}, "started_at must be a date and time"),
    ("plan.json", {"runs": {}}, "runs must be a list"),
    ("plan.json", {"runs": [{}]}, "runs[0]: lacks 'id'"),
    ("plan.json", {"runs": [{**asdict(PLANNED), "tokens": "many"}]}, "tokens must be a whole number or null"),
    ("progress.json", {"step": 1}, "lacks 'max_steps'"),
    ("done.json", {"elapsed_s": None}, "elapsed_s must be a number, not None"),
    ("failed.json", {"last_lines": [1]}, "last_lines[0] must be a text, not 1"),
    ("answers.jsonl", {"folder": 0}, "line 1: not a generated answer"),
]


@pytest.mark.parametrize(("name", "content", "expected"), WRONG_SHAPES)
def test_a_state_file_of_another_shape_is_one_line(name, content, expected, tmp_path):
    assert expected in refusal(name, tmp_path, json.dumps(content).encode() + b"\n")


def test_a_plan_is_read_as_written(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.plan.write_text(json.dumps({"runs": [asdict(PLANNED)]}))
    assert folder.read_plan() == [PLANNED]


def test_a_line_of_attempts_that_a_kill_cut_off_is_left_out(tmp_path):
    whole = {"started_at": "2026-01-01T00:00:00", "fingerprint": "f", "before_s": 0.0}
    (tmp_path / "attempts.jsonl").write_text(json.dumps(whole) + '\n{"started')
    assert SweepRunFolder(Path(tmp_path)).read_attempts() == [whole]

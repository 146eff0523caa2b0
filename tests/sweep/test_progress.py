"""The statuses of a sweep's runs, read from their files."""

import json
from datetime import datetime

import pytest

from lit_illada.sweep.folder import RunState, locked
from lit_illada.sweep.progress import Overview
from lit_illada.sweep.progress_table import time_left


def test_time_left_of_a_resumed_run_follows_the_pace_of_its_last_attempt(written, planned):
    """Steps 90 to 95 of 100 have taken 5 s: the whole run takes 100 s, and so does the one that has not started."""
    folder = written(planned("a"), planned("b"))
    run_folder = folder.run_folder(planned("a"))
    progress = {"step": 95, "max_steps": 100, "begun_at_step": 90, "elapsed_s": 5.0, "tokens_per_s": None}
    with locked(run_folder):
        attempt = {"started_at": "2026-01-01T00:00:00", "fingerprint": "x", "before_s": 90.0}
        run_folder.attempts.write_text(json.dumps(attempt) + "\n")
        updated_at = datetime.now().isoformat(timespec="seconds")
        run_folder.progress.write_text(json.dumps({**progress, "updated_at": updated_at, "metrics": {}}))
        running, pending = Overview(folder, folder.read_plan(), "score").look()
    assert (running.state, pending.state) == (RunState.RUNNING, RunState.PENDING)
    assert (running.elapsed_s, running.left_s) == (95.0, 5.0)
    assert time_left([running, pending], workers=1) == pytest.approx(105.0)

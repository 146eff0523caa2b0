"""Detection in several processes gives the outcomes of detection in one, in order."""

import os
import signal
import subprocess
import sys
from io import StringIO
from itertools import islice
from pathlib import Path

import pytest

from lit_illada.bench.loops import text
from lit_illada.commands import loops_analyze
from lit_illada.errors import UserError
from lit_illada.loops import parallel
from lit_illada.loops.config import LoopConfig
from lit_illada.loops.outcome import as_record
from lit_illada.loops.parallel import num_usable_processes, outcomes_of
from lit_illada.loops.records import Fields, Generation
from lit_illada.runtime.console import Console

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked on Linux only")


@pytest.fixture(autouse=True)
def workers(monkeypatch):
    """The processes that a test starts; texts are few, so that tests are fast."""
    started = []
    start = parallel._Worker.start.__func__

    def recorded(cls, config, others):
        started.append(start(cls, config, others))
        return started[-1]

    monkeypatch.setattr(parallel._Worker, "start", classmethod(recorded))
    monkeypatch.setattr(parallel, "_MIN_TEXTS_FOR_PROCESSES", 20)
    monkeypatch.setattr(parallel, "_BATCH_TEXTS", 3)
    yield started
    assert not any(worker.process.is_alive() for worker in started)


def _generations(number):
    return [Generation(file="f", number=n, text=text(n, length=60)) for n in range(number)]


# one batch more or less than the processes take, and more processes (10) than batches
@pytest.mark.parametrize(
    ("num_processes", "num_texts"), [(2, 20), (2, 21), (2, 31), (3, 27), (3, 28), (3, 100), (8, 24), (8, 25), (10, 20)]
)
def test_the_outcomes_of_several_processes_are_those_of_one_in_order(num_processes, num_texts, workers):
    generations = _generations(num_texts)
    serial, detected = (list(outcomes_of(generations, LoopConfig(), number)) for number in (1, num_processes))
    assert [each.generation.number for each in detected] == list(range(num_texts))
    assert [as_record(each) for each in detected] == [as_record(each) for each in serial]
    assert any(each.is_loop for each in detected)
    assert len(workers) == num_processes


def test_few_texts_start_no_process(workers):
    assert len(list(outcomes_of(_generations(19), LoopConfig(), 2))) == 19
    assert workers == []


def test_no_process_outlives_a_consumer_that_stops(workers):
    outcomes = outcomes_of(_generations(100), LoopConfig(), 2)
    next(outcomes)
    assert [worker.process.is_alive() for worker in workers] == [True, True]
    outcomes.close()


def test_errors_of_reading_and_of_detection_are_raised(monkeypatch):
    def unreadable():
        yield from _generations(40)
        raise UserError("line 41 is no JSON")

    with pytest.raises(UserError, match="line 41"):
        list(outcomes_of(unreadable(), LoopConfig(), 2))

    def defective(generation, config):
        raise ZeroDivisionError(f"text {generation.number}")

    monkeypatch.setattr(parallel, "outcome", defective)
    with pytest.raises(ZeroDivisionError, match="text 0"):
        list(outcomes_of(_generations(40), LoopConfig(), 2))


@pytest.mark.parametrize("num_read", [1, 4, 10])
def test_a_killed_process_is_an_error_in_one_line(num_read, workers):
    outcomes = outcomes_of(_generations(100), LoopConfig(), 2)
    assert len(list(islice(outcomes, num_read))) == num_read
    workers[1].process.kill()
    workers[1].process.join()
    with pytest.raises(UserError, match="was killed"):
        list(outcomes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_end_with_a_killed_parent(number):
    program = """
import itertools, sys
from lit_illada.loops import parallel
from lit_illada.loops.config import LoopConfig
from lit_illada.loops.records import Generation
texts = (Generation(file="f", number=n, text="a b c") for n in itertools.count())
outcomes = parallel.outcomes_of(texts, LoopConfig(), 3)
next(outcomes)
print("started", flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "started\n"
    parent.send_signal(number)
    # the processes hold the parent's output: its end of file is that of the last of them
    rest, _ = parent.communicate(timeout=120)
    assert rest == ""
    assert parent.returncode == -number


def test_the_command_uses_several_processes_and_shows_its_progress(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(loops_analyze, "num_usable_processes", lambda: 2)
    file = tmp_path / "texts.txt.jsonl"
    file.write_text("".join(f'{{"text": "{text(n, length=60)}"}}\n' for n in range(30)), encoding="utf-8")
    console = Console(file=StringIO(), force_terminal=True)
    outcomes = loops_analyze.analyze({None: [Path(file)]}, Fields(), None, LoopConfig(), console)
    assert [each.generation.number for each in outcomes] == [each + 1 for each in range(30)]
    assert len(workers) == 2


def test_nothing_is_forked_beside_the_threads_of_torch():
    import torch  # noqa: F401

    assert num_usable_processes() == 1


@pytest.mark.parametrize(("num_cores", "expected"), [(1, 1), (3, 3), (12, 8)])
def test_without_torch_every_core_is_used_up_to_eight(num_cores, expected, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)))
    assert num_usable_processes() == expected

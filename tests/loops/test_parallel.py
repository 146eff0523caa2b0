"""Detection in several processes gives the outcomes of detection in one, in order."""

import multiprocessing
import os
import subprocess
import sys
from itertools import islice

import pytest

from lit_illada.bench.loops import text
from lit_illada.errors import UserError
from lit_illada.loops.config import LoopConfig
from lit_illada.loops.outcome import as_record
from lit_illada.loops.parallel import _WORTH_A_POOL, num_usable_processes, outcomes_of
from lit_illada.loops.records import Generation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked on Linux only")


def _generations(number):
    return [Generation(file="f", number=n, text=text(n % 50, length=60)) for n in range(number)]


def test_the_outcomes_of_two_processes_are_those_of_one_in_order():
    generations = _generations(_WORTH_A_POOL + 77)
    serial, parallel = (list(outcomes_of(generations, LoopConfig(), number)) for number in (1, 2))
    assert [found.generation.number for found in parallel] == list(range(_WORTH_A_POOL + 77))
    assert [as_record(found) for found in parallel] == [as_record(found) for found in serial]
    assert any(found.is_loop for found in parallel)


def test_few_texts_start_no_process():
    found = outcomes_of(_generations(_WORTH_A_POOL - 1), LoopConfig(), 2)
    next(found)
    assert multiprocessing.active_children() == []


def test_no_process_outlives_a_consumer_that_stops():
    found = outcomes_of(_generations(4 * _WORTH_A_POOL), LoopConfig(), 2)
    next(found)
    assert len(multiprocessing.active_children()) == 2
    found.close()
    assert multiprocessing.active_children() == []


def test_an_error_of_reading_comes_after_the_outcomes_before_it():
    def broken():
        yield from _generations(2 * _WORTH_A_POOL)
        raise UserError("line 1025 is no JSON")

    found = outcomes_of(broken(), LoopConfig(), 2)
    assert len(list(islice(found, 100))) == 100
    with pytest.raises(UserError, match="line 1025"):
        list(found)
    assert multiprocessing.active_children() == []


def test_a_killed_process_is_an_error_in_one_line():
    found = outcomes_of(_generations(4 * _WORTH_A_POOL), LoopConfig(), 2)
    next(found)
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(UserError, match="was killed"):
        list(found)


def test_nothing_is_forked_beside_the_threads_of_torch():
    import torch  # noqa: F401

    assert num_usable_processes() == 1


def test_without_torch_every_core_is_used():
    program = "from lit_illada.loops.parallel import num_usable_processes; print(num_usable_processes())"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(printed) == min(8, len(os.sched_getaffinity(0)))

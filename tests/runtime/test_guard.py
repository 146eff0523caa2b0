"""The process of functions that may hang: its results, its limits, its restarts and its end."""

import os
import subprocess
import sys
import time

import pytest

from lit_illada.runtime.guard import CallError, Guard
from lit_illada.runtime.guard import call as call_with


def call(function, arguments, limit_s, package="json"):
    return call_with(function, arguments, limit_s, package)


def test_results_are_those_of_the_function():
    assert call("operator:add", [2, 3], 60) == 5
    assert call("operator:add", ["a", "b"], 60) == "ab"


def test_what_a_function_prints_does_not_mix_with_results():
    assert call("builtins:print", ["{}"], 60) is None


def test_an_exception_is_reported_and_the_process_lives_on():
    with pytest.raises(CallError, match="ZeroDivisionError: division by zero"):
        call("operator:truediv", [1, 0], 60)
    assert call("operator:truediv", [1, 2], 60) == 0.5


def test_a_call_that_hangs_is_stopped_and_the_next_one_succeeds():
    call("time:sleep", [0], 60)
    started = time.monotonic()
    with pytest.raises(CallError, match=r"exceeds the time limit of 0\.2 s"):
        call("time:sleep", [1000], 0.2)
    assert time.monotonic() - started < 60
    assert call("time:sleep", [0], 60) is None


def test_a_process_that_ends_itself_is_replaced():
    for _ in range(2):
        with pytest.raises(CallError, match="ended"):
            call("os:_exit", [3], 60)


def test_memory_is_limited():
    with pytest.raises(CallError, match="MemoryError"):
        call("builtins:bytearray", [8 * 2**30], 60)


def test_a_missing_module_is_named():
    with pytest.raises(CallError, match="No module named 'no_such_module'"):
        call("no_such_module:f", [], 1)
    with pytest.raises(CallError, match="No module named 'no_such_package'"):
        call("operator:add", [2, 3], 1, "no_such_package")


def test_a_function_that_cannot_be_imported_is_called_inside_a_guard_of_a_guard():
    inner = Guard(lambda value: value + 1)

    def outer(value):
        return 10 * Guard(lambda value: value + 1)(value, limit_s=60)

    assert inner(1, limit_s=60) == 2
    assert Guard(outer)(1, limit_s=60) == 20


def test_the_process_ends_with_its_owner_or_its_parent():
    guard = Guard(os.getpid)
    process = guard(limit_s=60)
    del guard
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    script = "import os; from lit_illada.runtime.guard import Guard as G; print(G(os.getpid)(limit_s=60), flush=True)"
    script += "; os._exit(1)"
    script += "; os._exit(1)"
    ended = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stdout)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(ended, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the process outlives its parent")

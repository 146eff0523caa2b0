"""Programming problems: which completions pass, what a program may not do, and pass@k."""

import json
import math
import os
import re
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest

from lit_illada.errors import UserError
from lit_illada.tasks import sandbox
from lit_illada.tasks.base import Split
from lit_illada.tasks.code import Code, pass_at_k
from lit_illada.tasks.sandbox import Limits, run

PROMPT = 'from math import sqrt\n\n\ndef half(x):\n    return x / 2\n\n\ndef quarter(x):\n    """A quarter of x."""\n'
FORGED = """
import os
for descriptor in range(3, 64):
    try:
        os.write(descriptor, b'{"token": 1}')
    except OSError:
        pass
os._exit(0)
"""
HUMAN_EVAL = {
    "task_id": "T/0",
    "prompt": PROMPT,
    "entry_point": "quarter",
    "canonical_solution": "    return half(half(x))\n",
    "test": "def check(candidate):\n    assert candidate(8) == 2\n    assert candidate(sqrt(16)) == 1",
}
MBPP = {
    "text": "Write a function to double a number.",
    "code": "def double(x):\n    return 2 * x",
    "test_list": ["assert double(2) == 4", "assert double(0) == 0"],
    "test_setup_code": "",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """(task, problem) by the name of the layout."""
    folder, built = tmp_path_factory.mktemp("code"), {}
    for name, row in (("human_eval", HUMAN_EVAL), ("mbpp", MBPP)):
        path = folder / f"{name}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        task = Code(path=str(path), test_path=str(path), allow_execution=True, cpu_limit_s=2)
        built[name] = task, task.problems(Split.TEST)[0]
    return built


@pytest.mark.parametrize("name", ["human_eval", "mbpp"])
def test_the_reference_solution_passes(tasks, name):
    task, problem = tasks[name]
    assert task.check(problem, problem.answer) == task.check(problem, problem.answer)
    assert task.check(problem, problem.answer).correct


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("    return x / 4", None),
        ("    return half(half(x))\n\nprint(undefined)", None),
        ("    # a comment\n    return x / 4\n\n\ndef other():", None),
        ("Here it is:\n```python\ndef quarter(x):\n    return x / 4\n```\nIt divides.", None),
        ("```\ndef quarter(x):\n    return half(half(x))", None),
        ("def quarter(x):\n    return sqrt(x * x) / 4", None),
        ("    return x / 2", "AssertionError"),
        ("    return y", "NameError: name 'y' is not defined"),
        ("def quarter(x) return", "SyntaxError"),
        ("", "no code"),
        ("```python\n```", "no code"),
        ("    import sys\n    sys.exit(0)", "SystemExit"),
        ("    import os\n    os._exit(0)", "ended itself early"),
        ("    raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("    return quarter(x)", "RecursionError"),
    ],
)
def test_completions_of_human_eval(tasks, completion, reason):
    task, problem = tasks["human_eval"]
    verdict = task.check(problem, completion)
    assert verdict.correct is (reason is None), verdict
    assert reason is None or reason in verdict.reason


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: pass", "exceeded its processor time"),
        ("9**9**9", "exceeded its processor time"),
        ("import time; time.sleep(1000)", "took longer than 3 s"),
        ("x = bytearray(2**31)", "MemoryError"),
        ("x = 'a'\nwhile True: x += x", "MemoryError"),
        ("open('f', 'w').write('a' * 2**22)", "OSError: [Errno 27] File too large"),
        ("import socket; socket.socket()", "PermissionError: socket"),
        ("import urllib.request as r; r.urlopen('http://127.0.0.1')", "socket.getaddrinfo is not"),
        ("import os; os.system('true')", "PermissionError: os.system"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError: "),
        ("import os; os.fork()", "PermissionError: os.fork"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError: os.kill"),
        ("import ctypes", "PermissionError: ctypes"),
        ("import shutil; shutil.rmtree('/tmp')", "PermissionError: shutil"),
        ("import os; os.remove('/tmp/x')", "PermissionError: os.remove"),
        ("open('/tmp/outside', 'w')", "PermissionError: writing outside"),
        ("import os; os.open('../outside', os.O_CREAT | os.O_WRONLY)", "PermissionError: writing outside"),
        ("import numpy", "ModuleNotFoundError"),
        ("import os; assert not set(os.environ) - {'PATH', 'HOME', 'LC_CTYPE'}, os.environ", None),
        ("import os; assert os.listdir() == []; open('f', 'w').write('a'); assert open('f').read() == 'a'", None),
        ("print('{}' * 10**6)", None),
        ("import sys; assert sys.stdin.read() == ''", None),
        ("raise ValueError('a\\nb')", "ValueError: a b"),
        ("\ud800", "UnicodeEncodeError"),
        ("x = 1\x00", "SyntaxError"),
        (FORGED, "None"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_a_program_may_do(program, reason):
    # Filling the memory takes processor time too, more on a loaded machine: only endless programs have a short limit.
    cpu_s = 1 if reason == "exceeded its processor time" else 60
    result = run(program, Limits(cpu_s=cpu_s, wall_s=3.0 if "sleep" in program else 60.0))
    assert result is None if reason is None else reason in result, result


def test_a_program_has_no_network_even_without_the_hook():
    if not sandbox._namespaces():
        pytest.skip("unshare is not allowed here")
    assert run("assert open('/proc/net/dev').read().count(':') == 1  # the loopback device", Limits()) is None


def test_processes_of_a_program_do_not_outlive_it(monkeypatch):
    """Nor those that start it: here a shell, which waits for the interpreter."""
    started = []

    class Started(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self.pid)

    monkeypatch.setattr(sandbox.subprocess, "Popen", Started)
    monkeypatch.setattr(sandbox, "_namespaces", lambda: ["sh", "-c", '"$@"; true', "sh"])
    assert "took longer" in run("import time\nwhile True: time.sleep(1)", Limits(wall_s=1.0))
    (group,) = started
    end = time.monotonic() + 10
    while is_alive(group):  # the interpreter is killed with the shell, but only the shell is waited for
        assert time.monotonic() < end, "a process of the program is still running"
        time.sleep(0.02)


def is_alive(group):
    """Whether a process group has a process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_execution_must_be_allowed_explicitly():
    with pytest.raises(UserError, match="allow_execution is false: the task `code` runs what the model writes"):
        Code(path="x.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "entry_point": "f; g", "test": "t"}, "entry_point must be a function's name"),
        ({"text": "t", "test_list": []}, "test_list must be a list of texts"),
        ({"text": "t"}, "no field 'test_list'"),
        ({"prompt": "p", "entry_point": "f"}, "no field 'test'"),
    ],
)
def test_an_invalid_line_is_named(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"rows.jsonl:1: ") as error:
        Code(path=str(path), allow_execution=True).problems(Split.TRAIN)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("n", "c", "k"), [(n, c, k) for n in range(1, 7) for c in range(n + 1) for k in range(1, n + 1)]
)
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(n, c, k):
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_1_is_the_accuracy_and_many_samples_are_exact():
    assert pass_at_k(1000, 37, 1) == pytest.approx(0.037)
    expected = 1 - math.comb(9963, 100) / math.comb(10_000, 100)
    assert pass_at_k(10_000, 37, 100) == pytest.approx(expected)
    with pytest.raises(UserError, match="k is 5: it must be in 1 … 4"):
        pass_at_k(4, 1, 5)


def test_the_script_imports_the_standard_library_only():
    source = Path(sandbox.sandbox_child.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r"(?m)^(?:import|from) (\w+)", source)) <= sys.stdlib_module_names

"""A table of cases per reward; terms that raise, hang or give no number are named, counted and survived."""

import os
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.alignment.reward_worker import RewardWorker
from lit_illada.alignment.rewards import (
    TERMS,
    Answered,
    Correct,
    Finished,
    Format,
    Length,
    Loop,
    NgramRepetition,
    OnFailure,
    RewardConfig,
    RewardTerm,
    Term,
)
from lit_illada.errors import UserError
from lit_illada.tasks.base import Split, Verdict
from lit_illada.tasks.registry import TASKS


def answered(text="", **changes):
    words = text.split()
    token_ids = [words.index(word) for word in words]
    known = Answered(None, text, text, token_ids, is_finished=True, max_new_tokens=40)
    return replace(known, **changes)


def says(problem, completion):
    """A check: correct if the completion holds the problem's text; half credit for its first letter."""
    if problem in completion:
        return Verdict.right(problem)
    return Verdict.wrong(None, "not there", 0.5 if problem[0] in completion else 0.0)


REASONING = "<reasoning>\nfirst\nsecond\n</reasoning>\n<answer>\n-3.5\n</answer>"
CASES = [
    (Correct(), answered("so 7", problem="7"), 1.0),
    (Correct(), answered("so 8", problem="7"), 0.0),
    (Correct(), answered("so 7", problem="7", is_finished=False), 0.0),
    (Correct(unfinished=0.5), answered("so 7", problem="7", is_finished=False), 0.5),
    (Correct(partial=True), answered("so 7", problem="71"), 0.5),
    (Correct(), replace(answered("7 was my first guess"), answer="8", problem="7"), 0.0),
    # a pattern without DOTALL does not match reasoning of several lines
    (Format(r"^<reasoning>.*</reasoning>\s*<answer>.*</answer>$"), answered(REASONING), 1.0),
    (Format(), answered(REASONING), 1.0),
    (Format(), answered("<answer>3"), 0.0),
    # "\boxed" in a text that is no raw string begins with a backspace
    (Format(r"\\boxed\{.+\}"), answered(r"so \boxed{\frac{1}{2}}"), 1.0),
    (Format(r"\\boxed\{.+\}"), answered("so \boxed{1}"), 0.0),
    # str.isdigit refuses negative numbers and decimals
    (Format(r"<answer>\s*-?\d+(\.\d+)?\s*</answer>"), answered(REASONING), 1.0),
    (Length(free=0.5), answered(" ".join("abcdefghij")), 0.0),
    (Length(free=0.5), replace(answered(), token_ids=range(30)), -0.5),
    (Length(free=0.5), replace(answered(), token_ids=range(40)), -1.0),
    (Length(free=0.0), answered(), 0.0),
    (Finished(), answered(), 0.0),
    (Finished(), answered(is_finished=False), -1.0),
    (NgramRepetition(), answered("a b"), 0.0),
    (NgramRepetition(), answered("a b c d e"), 0.0),
    (NgramRepetition(), answered("A b c a B c"), -0.25),
    (NgramRepetition(n=1), answered("so so so so"), -0.75),
    (Loop(), answered(" ".join(map(str, range(40)))), 0.0),
    (Loop(), answered(max_new_tokens=120, is_finished=False, token_ids=[5, 6, 7, 8, 9] * 20), -1.0),
    (Loop(coverage=True), answered(max_new_tokens=120, is_finished=False, token_ids=[5, 6, 7, 8, 9] * 20), -0.95),
    (Loop(), answered(), 0.0),
]


@pytest.mark.parametrize(("term", "case", "value"), CASES, ids=lambda value: type(value).__name__)
def test_reward_of_a_case(term, case, value):
    assert term(case, says) == pytest.approx(value)


def test_every_term_has_cases_of_different_rewards():
    for cls in TERMS.values():
        assert len({value for term, _, value in CASES if type(term) is cls}) > 1, cls


@given(st.text(), st.lists(st.integers(0, 4), max_size=60), st.booleans())
def test_rewards_of_any_text_are_finite_and_bounded(text, token_ids, is_finished):
    case = Answered("x", text, text, token_ids, is_finished, max_new_tokens=60)
    for cls in TERMS.values():
        assert -1 <= cls()(case, says) <= 1


def test_rewards_import_without_torch():
    script = "import sys, lit_illada.alignment.reward_worker; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", ["arithmetic", "countdown", "sudoku4"])
def test_correct_is_the_verdict_of_a_task(name):
    task = TASKS[name]()
    (problem,) = task.problems(Split.TRAIN, 1)
    with closing(RewardWorker(RewardConfig(), task.check)) as worker:
        rewards = worker(
            [answered(problem=problem, answer=text) for text in (problem.answer, "", "9**9**9", "no idea")]
        )
    assert rewards.total == [1.0, 0.0, 0.0, 0.0]
    assert None not in rewards.by_term["correct"]


@dataclass(frozen=True)
class Broken(Term):
    """Fails in a way that the completion's text names."""

    def __call__(self, answered, check):
        match answered.text:
            case "raise":
                raise ValueError("no\nsuch word")
            case "hang":
                return float(9**9**9 % 7)  # a call into C, which a signal handler does not interrupt
            case "sleep":
                time.sleep(60)
            case "nan":
                return float("nan")
            case "exit":
                os._exit(3)
        return 0.25


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setitem(TERMS, "broken", Broken)
    terms = [RewardTerm(Correct(), 1.0), RewardTerm(Broken(), 2.0), RewardTerm(Finished(), 1.0)]
    return RewardConfig(terms, time_limit_s=0.3)


def test_failures_are_named_counted_and_do_not_touch_other_rewards(broken, caplog):
    texts = ["fine", "raise", "hang", "nan", "exit", "sleep", "fine"]
    with closing(RewardWorker(broken, says)) as worker:
        rewards = worker([answered(text, problem="fi", is_finished=text != "nan") for text in texts])
    assert rewards.by_term["broken"] == [0.25, None, None, None, None, None, 0.25]
    assert rewards.by_term["correct"] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert rewards.total == [1.5, 0.0, 0.0, -1.0, 0.0, 0.0, 1.5]
    assert caplog.messages == [
        "reward broken, completion 1: raises ValueError: no such word; failures count 0 "
        "(alignment.reward.on_failure=zero)",
        "reward broken failed for 5 of 7 completions",
    ]


FAILURES = {
    "raise": "raises ValueError: no such word",
    "hang": "exceeds the time limit of 0.3 s",
    "nan": "raises ValueError: nan is not finite",
    "exit": "ended its process",
    "sleep": "exceeds the time limit of 0.3 s",
}


@pytest.mark.parametrize("text", FAILURES)
def test_a_failure_is_reported_with_its_reason(text, broken, caplog):
    with closing(RewardWorker(broken, says)) as worker:
        worker([answered(text, problem="x")])
    assert caplog.messages[0].startswith(f"reward broken, completion 0: {FAILURES[text]}; failures count 0")


def test_a_failure_is_reported_before_the_next_completion_is_judged(broken, caplog):
    """A term that always hangs takes the time limit for each completion of a rollout."""
    reported = []

    def notes(problem, completion):
        return Verdict.right(completion)

    class Watched(RewardWorker):
        def __init__(self):
            super().__init__(broken, notes)
            guard = self._guard
            self._guard = lambda *call, limit_s: reported.append(len(caplog.messages)) or guard(*call, limit_s=limit_s)
            self.close = guard.close

    with closing(Watched()) as worker:
        worker([answered(text) for text in ("hang", "fine")])
    assert reported == [0, 0, 1, 1, 1, 1]


def test_a_failure_stops_the_run_if_configured(broken):
    config = replace(broken, on_failure=OnFailure.STOP)
    with (
        closing(RewardWorker(config, says)) as worker,
        pytest.raises(UserError, match="reward broken, completion 1: raises"),
    ):
        worker([answered("fine", problem="f"), answered("raise", problem="f")])


def test_a_check_of_a_local_function_needs_no_import():
    with closing(RewardWorker(RewardConfig(), lambda problem, text: Verdict.right(text))) as worker:
        assert worker([answered("x")]).total == [1.0]


def test_names_of_equal_terms_differ():
    terms = [RewardTerm(), RewardTerm(Format()), RewardTerm(Format(".")), RewardTerm(Format("x"))]
    assert RewardConfig(terms).names == ["correct", "format", "format_2", "format_3"]


def test_bad_settings_are_named():
    with pytest.raises(UserError, match=r"term.pattern is '\('"):
        Format("(")
    with pytest.raises(UserError, match="at least one term"):
        RewardConfig([])

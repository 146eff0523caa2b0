"""The laws of every task: disjoint splits, reproducible problems, accepted reference answers, and total checkers."""

import random
import string
import time
from dataclasses import replace

import pytest

from lit_illada.errors import UserError
from lit_illada.tasks.base import Split, Verdict
from lit_illada.tasks.registry import TASKS

GENERATED = {name: task() for name, task in TASKS.items()}
MOST = {"arithmetic": 200, "countdown": 200, "sudoku4": 200}
TASK_NAMES = pytest.mark.parametrize("name", GENERATED)


def problems(name, split, num=None, **settings):
    return replace(GENERATED[name], **settings).problems(split, num or MOST[name])


@TASK_NAMES
def test_splits_are_disjoint_for_any_seed(name):
    seen = [{p.question for seed in (0, 1) for p in problems(name, split, seed=seed)} for split in Split]
    assert all(seen)
    assert len(set.union(*seen)) == sum(map(len, seen))


@TASK_NAMES
def test_held_out_problems_are_distinct(name):
    for split in (Split.VALIDATION, Split.TEST):
        questions = [p.question for p in problems(name, split)]
        assert len(set(questions)) == len(questions)


@TASK_NAMES
def test_equal_settings_give_equal_problems_and_fewer_are_the_first_ones(name):
    for split in Split:
        assert problems(name, split, 10) == problems(name, split)[:10]
    assert problems(name, Split.TRAIN) != problems(name, Split.TRAIN, seed=1)


@TASK_NAMES
def test_the_checker_accepts_reference_answers_and_reads_them(name):
    for split in Split:
        for problem in problems(name, split):
            verdict = GENERATED[name].check(problem, problem.answer)
            assert verdict.correct, (problem, verdict)
            assert verdict.score == 1
            assert verdict.reason is None


@TASK_NAMES
def test_an_empty_completion_is_wrong_and_says_why(name):
    (problem,) = problems(name, Split.TEST, 1)
    verdict = GENERATED[name].check(problem, "")
    assert not verdict.correct
    assert verdict.answer is None
    assert verdict.reason


@TASK_NAMES
def test_the_prompt_is_the_question_in_the_wording(name):
    (problem,) = problems(name, Split.TRAIN, 1)
    task = replace(GENERATED[name], wording="Solve {question} now")
    assert task.prompt(problem) == f"Solve {problem.question} now"


@TASK_NAMES
def test_impossible_settings_are_rejected(name):
    for settings in ({"held_out_fraction": 0.5}, {"held_out_fraction": 0.0}, {"wording": "no place"}):
        with pytest.raises(UserError, match="must be"):
            replace(GENERATED[name], **settings)


FRAGMENTS = [
    *string.printable,
    *("9**9", "((((", "))))", "<answer>", "</answer>", "\\boxed{", "}", "####", "\\frac{1}{2}", "1,000", "=", "\x00"),
    *("the answer is ", "٣", "½", "\ud800", "9" * 400, "1" * 5000, "{" * 2000, "-" * 500, " 1 2 3 4\n", "eval(", "1/0"),
]


def fuzzed(rng, problem):
    """A random text, from fragments that checkers look for and from pieces of the problem's own answer."""
    own = [problem.answer, problem.question, problem.answer[: len(problem.answer) // 2]]
    length = rng.choice([0, 1, 3, 10, 40])
    return "".join(rng.choice(own if rng.random() < 0.2 else FRAGMENTS) for _ in range(length))


def judge(name, num):
    """The longest time in seconds to judge one of `num` random completions."""
    rng = random.Random(0)
    examples = problems(name, Split.TEST)
    longest = 0.0
    for _ in range(num):
        problem = rng.choice(examples)
        text = fuzzed(rng, problem)
        started = time.process_time()
        verdict = GENERATED[name].check(problem, text)
        longest = max(longest, time.process_time() - started)
        assert type(verdict) is Verdict
        assert verdict.correct == (verdict.reason is None)
        assert 0 <= verdict.score <= 1
    return longest


@TASK_NAMES
def test_random_completions_get_a_verdict(name):
    judge(name, 300)


@pytest.mark.slow
@TASK_NAMES
def test_ten_thousand_random_completions_get_a_verdict_in_time(name):
    assert judge(name, 10_000) < 1.0

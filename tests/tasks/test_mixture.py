"""Mixtures: proportions, which task words and checks a problem, and settings that cannot work."""

from collections import Counter

import pytest

from lit_illada.errors import UserError
from lit_illada.evaluation.task_problems import read_task
from lit_illada.tasks.arithmetic import Arithmetic
from lit_illada.tasks.base import Split
from lit_illada.tasks.chains import ProblemRange
from lit_illada.tasks.countdown import Countdown
from lit_illada.tasks.mixture import Mixture, Part


def test_the_proportions_hold_in_every_beginning():
    task = Mixture(parts=[Part(Arithmetic(), 3), Part(Countdown(), 1)])
    parts = [problem.difficulty for problem in task.problems(Split.TRAIN, 40)]
    for end in range(1, 41):
        assert abs(parts[:end].count(1) - 0.75 * end) < 1
    assert Counter(parts) == {1: 30, 2: 10}


def test_every_problem_is_worded_and_checked_by_its_task():
    task = read_task("{name: mixture, parts: [{task: arithmetic}, {task: {name: countdown, max_number: 9}}]}")
    sum_, game = task.problems(Split.TEST, 2)
    (alone,) = Countdown(max_number=9).problems(Split.TEST, 1)
    assert task.prompt(game) == Countdown().prompt(alone)
    assert "mod" in task.prompt(sum_)
    assert task.check(game, alone.answer).correct
    assert task.check(sum_, sum_.answer).correct
    assert not task.check(sum_, alone.answer).correct


def test_the_problems_are_those_of_the_tasks_in_their_order():
    parts = [Arithmetic(seed=4), Countdown(seed=4)]
    mixed = Mixture(seed=3, parts=[Part(part) for part in parts]).problems(Split.VALIDATION, 10)
    for number, part in enumerate([Arithmetic(seed=7), Countdown(seed=7)], 1):
        own = [problem.question for problem in mixed if problem.difficulty == number]
        assert own == [part.prompt(problem) for problem in part.problems(Split.VALIDATION, 5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: mixture, parts: []}", r"parts is \[\]: it must be a list of at least one task"),
        ("{name: mixture, parts: [{task: arithmetic, weight: 0}]}", "parts.weight is 0.*above 0"),
        ("{name: mixture, parts: [{task: countdwn}]}", "countdown"),
    ],
)
def test_settings_that_cannot_work_are_rejected(text, message):
    with pytest.raises(UserError, match=message):
        read_task(text)


def test_parts_that_share_held_out_problems_are_rejected_and_may_share_training_problems():
    ranges = [ProblemRange(min_depth=1, max_depth=2), ProblemRange(min_depth=2, max_depth=2)]
    task = Mixture(parts=[Part(Arithmetic(range=range_)) for range_ in ranges])
    assert len(task.problems(Split.TRAIN, 400)) == 400
    with pytest.raises(UserError, match=r"the same test problem, .*: give them disjoint ranges"):
        task.problems(Split.TEST, 60)

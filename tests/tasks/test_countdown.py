"""Countdown: what its checker accepts, and its problems."""

import pytest

from lit_illada.errors import UserError
from lit_illada.tasks.base import Problem, Split
from lit_illada.tasks.countdown import Countdown

TASK = Countdown()
PROBLEM = Problem("numbers: 6 4 8\ntarget: 12", [[6, 4, 8], 12], 3, "here")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer>6*8/4</answer>", "6*8/4"),
        ("<answer> (8-6)*4+4 </answer> no, <answer>8*6/4</answer>", "8*6/4"),
        ("<answer>6 * 8 / 4 = 12</answer>", "6 * 8 / 4"),
        ("<answer>6 × 8 ÷ 4</answer>", "6 * 8 / 4"),
        (r"thus \boxed{\frac{1}{2}}, no: \boxed{8/4*6}", "8/4*6"),
        ("6*8/4", "6*8/4"),
        ("we try\n8/4*6=12", "8/4*6"),
        ("<answer>6/(4/8)</answer>", "6/(4/8)"),
        ("<answer>((((6))))*8/4</answer>", "((((6))))*8/4"),
        ("<answer>--6*8/4</answer>", "--6*8/4"),
    ],
)
def test_solutions_are_right(completion, answer):
    verdict = TASK.check(PROBLEM, completion)
    assert verdict.correct, verdict
    assert verdict.answer == answer


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "no expression"),
        ("<answer></answer>", "no expression"),
        ("<answer>12</answer>", "uses the numbers 12"),
        ("<answer>6+6</answer>", "uses the numbers 6, 6"),
        ("<answer>6*8/4+0</answer>", "uses the numbers 0, 4, 6, 8"),
        ("<answer>68/4</answer>", "uses the numbers 4, 68"),
        ("<answer>6*8*4</answer>", "is 192, not 12"),
        ("<answer>6/8/4</answer>", "is 3/16, not 12"),
        ("<answer>6/(8-4-4)</answer>", "uses the numbers"),
        ("<answer>4**8**6</answer>", "not an expression"),
        ("<answer>6//8*4</answer>", "not an expression"),
        ("<answer>6 8 4</answer>", "not an expression"),
        ("<answer>(6*8/4</answer>", "unclosed"),
        ("<answer>6*8/4)</answer>", "not an expression"),
        ("<answer>6*8/4; 1</answer>", "uses the numbers"),
        ("<answer>__import__('os').abort() or 6*8/4</answer>", "not an expression"),
        (f"<answer>{'(' * 300}6*8/4{')' * 300}</answer>", "more than 200 characters"),
        ("<answer>" + "9" * 5000 + "</answer>", "more than 200 characters"),
        ("<answer>9**9**9</answer>", "uses the numbers 9, 9, 9"),
        ("<answer>٦*8/4</answer>", "not an expression"),
        ("<answer>6*8/4", "not an expression"),
        ("6*8/4 is 12", "uses the numbers"),
    ],
)
def test_other_completions_are_wrong_for_a_named_reason(completion, reason):
    verdict = TASK.check(PROBLEM, completion)
    assert not verdict.correct
    assert reason in verdict.reason


def test_a_division_by_zero_is_wrong():
    assert TASK.check(Problem("", [[6, 6, 6], 1], 3, ""), "6/(6-6)").reason == "divides by 0"


def test_every_size_occurs_with_numbers_and_targets_in_their_ranges():
    task = Countdown(num_numbers=[2, 4, 6], max_number=9, max_target=20)
    problems = task.problems(Split.TRAIN, 300)
    assert {p.difficulty for p in problems} == {2, 4, 6}
    for problem in problems:
        numbers, target = problem.reference
        assert len(numbers) == problem.difficulty
        assert all(1 <= number <= 9 for number in numbers)
        assert 1 <= target <= 20


def test_the_steps_lead_to_the_target():
    for problem in Countdown(num_numbers=[5]).problems(Split.TRAIN, 100):
        steps = problem.solution.split("\n")
        assert len(steps) == 4
        for step in steps:
            expression, _, value = step.partition("=")
            assert eval(expression) == int(value)
        assert int(value) == problem.reference[1]


def test_games_that_differ_in_the_order_of_numbers_are_in_one_split():
    task = Countdown(num_numbers=[2], max_number=12, max_target=24)
    keys = [
        {(*sorted(p.reference[0]), p.reference[1]) for p in task.problems(split, num)}
        for split, num in zip(Split, (2000, 15, 15), strict=True)
    ]
    assert len(set.union(*keys)) == sum(map(len, keys))


def test_a_range_with_too_few_games_is_named():
    with pytest.raises(UserError, match=r"countdown: only .* of 500 test problems .* raise num_numbers"):
        Countdown(num_numbers=[2], max_number=3).problems(Split.TEST, 500)
    with pytest.raises(UserError, match=r"countdown: only \d of 9 "):
        Countdown(num_numbers=[6], max_number=10_000, max_target=2).problems(Split.TEST, 9)


@pytest.mark.parametrize("fields", [{"num_numbers": []}, {"num_numbers": [1]}, {"max_number": 1}, {"max_target": 0}])
def test_impossible_ranges_are_rejected(fields):
    with pytest.raises(UserError, match="must be"):
        Countdown(**fields)

"""Generators of reasoning-gym: their parameters, scorers and limits."""

import importlib.util

import pytest

from lit_illada.errors import UserError
from lit_illada.tasks.base import Split
from lit_illada.tasks.gym import ReasoningGym

needs_gym = pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs the extra `gym`")


@needs_gym
def test_the_generators_parameters_and_scorer_are_used():
    task = ReasoningGym(generator="chain_sum", parameters={"min_terms": 2, "max_terms": 2, "max_digits": 1})
    for problem in task.problems(Split.TRAIN, 20):
        assert problem.question.count("+") + problem.question.count("-") == 1
        value = problem.answer.removeprefix("<answer>").removesuffix("</answer>")
        assert task.check(problem, f"so\n\\boxed{{{value}}}").correct
        assert task.check(problem, value).correct
        wrong = task.check(problem, f"<answer>{value}1</answer>")
        assert not wrong.correct
        assert wrong.score < 1


@needs_gym
def test_a_scorer_that_hangs_is_stopped():
    task = ReasoningGym(generator="countdown", time_limit_s=2)
    (problem,) = task.problems(Split.TEST, 1)
    task.check(problem, "1")  # starts the process
    verdict = task.check(problem, "<answer>9**9**9**9</answer>")
    assert not verdict.correct


@needs_gym
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generator": "no_such"}, "no_such"),
        ({"parameters": {"no_such": 1}}, "no_such"),
        ({"parameters": {"min_terms": 9, "max_terms": 2}}, "generator chain_sum: "),
    ],
)
def test_an_unknown_generator_or_parameter_is_one_line(settings, message):
    with pytest.raises(UserError) as error:
        ReasoningGym(**settings).problems(Split.TRAIN, 1)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is not None, reason="reasoning-gym is installed")
def test_a_missing_package_is_named_with_its_command():
    with pytest.raises(UserError, match=r"pip install 'lit-illada\[gym\]'"):
        ReasoningGym()

"""The laws of every task: disjoint splits, reproducible problems, accepted reference answers, and total checkers."""

import importlib.util
import json
import random
import string
import time
from dataclasses import replace

import pytest

from lit_illada.errors import UserError
from lit_illada.tasks.base import Split, Verdict
from lit_illada.tasks.code import Code
from lit_illada.tasks.files import FileTask
from lit_illada.tasks.mixture import SINGLE_TASKS, Mixture, Part
from lit_illada.tasks.registry import TASKS

HAS_GYM = importlib.util.find_spec("reasoning_gym") is not None
NAMES = [name for name in TASKS if name != "reasoning_gym" or HAS_GYM]
TASK_NAMES = pytest.mark.parametrize("name", NAMES)
# `code` starts a process per completion; test_code.py has its table of cases
FUZZED = pytest.mark.parametrize("name", [name for name in NAMES if name != "code"])
NUM_LINES = 300


def lines_of(name):
    """JSON lines of a task that is read from a file."""
    for n in range(NUM_LINES):
        if name == "gsm8k":
            yield {"question": f"{n} and {n}?", "answer": f"{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n:,}"}
        elif name == "math":
            yield {
                "problem": f"Halve ${n}$.",
                "level": "Level 2",
                "solution": f"It is $\\boxed{{\\frac{{{n}}}{{2}}}}$.",
            }
        elif name == "code":
            tests = [f"assert add(2) == {n + 2}"]
            yield {"text": f"Add {n}.", "code": f"def add(x):\n    return x + {n}", "test_list": tests}
        else:
            yield {"question": f"Which is {n}?", "choices": [f"{n}", f"{n + 1}", f"not {n}"], "answer": 0}


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    """Every task by its registered name, those of files with a file."""
    folder, built = tmp_path_factory.mktemp("tasks"), {}
    for name in NAMES:
        task, settings = TASKS[name], {}
        if issubclass(task, FileTask):
            path = folder / f"{name}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines_of(name)))
            settings = {"path": str(path), **({"allow_execution": True} if name == "code" else {})}
        built[name] = task(**settings)
    return built


@pytest.fixture
def task(tasks, name):
    return tasks[name]


def problems(task, split, num=None, **settings):
    is_file = isinstance(task, FileTask)
    return replace(task, **settings).problems(split, num or (None if is_file else 200))


@TASK_NAMES
def test_splits_are_disjoint_for_any_seed(task):
    seen = [{p.question for seed in (0, 1) for p in problems(task, split, seed=seed)} for split in Split]
    assert all(seen)
    assert len(set.union(*seen)) == sum(map(len, seen))


@TASK_NAMES
def test_held_out_problems_are_distinct(task):
    for split in (Split.VALIDATION, Split.TEST):
        questions = [p.question for p in problems(task, split)]
        assert len(set(questions)) == len(questions)


@TASK_NAMES
def test_equal_settings_give_equal_problems_and_fewer_are_the_first_ones(task):
    for split in Split:
        assert problems(task, split, 10) == problems(task, split)[:10]
    is_generated = not isinstance(task, FileTask)
    assert (problems(task, Split.TRAIN) != problems(task, Split.TRAIN, seed=1)) == is_generated


@TASK_NAMES
def test_the_checker_accepts_reference_answers_and_reads_them(task):
    for split in Split:
        for problem in problems(task, split)[:: 40 if isinstance(task, Code) else 1]:
            verdict = task.check(problem, problem.answer)
            assert verdict.correct, (problem, verdict)
            assert verdict.score == 1
            assert verdict.reason is None


@pytest.mark.parametrize("name", [name for name in NAMES if name in SINGLE_TASKS and name != "code"])
@pytest.mark.parametrize("wording", [None, "Solve 2 {question}!"])
def test_a_mixture_judges_every_answer_as_the_task_of_its_part(task, wording):
    part = task if wording is None else replace(task, wording=wording)
    mixture = Mixture(parts=[Part(part)])
    own, mixed = (each.problems(Split.TEST, 12) for each in (part, mixture))
    for alone, problem, other in zip(own, mixed, own[1:] + own[:1], strict=True):
        assert mixture.prompt(problem) == part.prompt(alone)
        assert mixture.check(problem, problem.answer).correct
        for completion in (alone.answer, other.answer, ""):
            assert mixture.check(problem, completion) == part.check(alone, completion)


@TASK_NAMES
def test_an_empty_completion_is_wrong_and_says_why(task):
    (problem,) = problems(task, Split.TEST, 1)
    verdict = task.check(problem, "")
    assert not verdict.correct
    assert verdict.answer is None
    assert verdict.reason


@TASK_NAMES
def test_the_prompt_is_the_question_in_the_wording(task):
    (problem,) = problems(task, Split.TRAIN, 1)
    assert replace(task, wording="Solve {question} now").prompt(problem) == f"Solve {problem.question} now"


@TASK_NAMES
def test_impossible_settings_are_rejected(task):
    for settings in ({"held_out_fraction": 0.5}, {"held_out_fraction": 0.0}, {"wording": "no place"}):
        with pytest.raises(UserError, match="must be"):
            replace(task, **settings)


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


def judge(task, num):
    """The longest time in seconds to judge one of `num` random completions."""
    rng = random.Random(0)
    examples = problems(task, Split.TEST)
    longest = 0.0
    for _ in range(num):
        problem = rng.choice(examples)
        text = fuzzed(rng, problem)
        started = time.process_time()
        verdict = task.check(problem, text)
        longest = max(longest, time.process_time() - started)
        assert type(verdict) is Verdict
        assert verdict.correct == (verdict.reason is None)
        assert 0 <= verdict.score <= 1
    return longest


@FUZZED
def test_random_completions_get_a_verdict(task):
    judge(task, 300)


@pytest.mark.slow
@FUZZED
def test_ten_thousand_random_completions_get_a_verdict_in_time(task):
    assert judge(task, 10_000) < 1.0

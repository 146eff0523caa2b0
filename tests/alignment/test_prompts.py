"""Prompts of a task: how many problems of the requested difficulties there are, and what is said where they are few."""

import json
import random
from dataclasses import dataclass, replace

import pytest

from lit_illada.alignment.config import ProblemsConfig
from lit_illada.alignment.prompts import task_prompts
from lit_illada.data.sft.chat_template import ChatTemplate
from lit_illada.data.sft.config import RoleTexts
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.tasks.arithmetic import Arithmetic
from lit_illada.tasks.base import Problem, Split, Task, TooFewProblemsError, Verdict
from lit_illada.tasks.chains import ProblemRange
from lit_illada.tasks.gsm8k import Gsm8k
from lit_illada.tasks.mixture import Mixture, Part

TEMPLATE = ChatTemplate(RoleTexts(), Tokenizer.load(sweeps_dir() / "loop_base" / "diffusion" / "tokenizer"))
SMALL = Arithmetic(range=ProblemRange(moduli=[2], min_depth=1, max_depth=2, max_numbers=[3]))


def prompts(task, num_train, difficulties, num_held_out):
    """Difficulties of the training and the held-out problems."""
    both = task_prompts(task, ProblemsConfig(num_train, difficulties), TEMPLATE, num_held_out)
    return [[prompt.problem.difficulty for prompt in part] for part in (both.train, both.held_out)]


@dataclass(frozen=True)
class Finite(Task):
    """Problems of given difficulties, as a task of a user: where too many are requested, an error or fewer."""

    levels: tuple[int, ...] = ()
    is_silent: bool = False

    def problems(self, split, num=None):
        if num > len(self.levels) and not self.is_silent:
            raise TooFewProblemsError(f"only {len(self.levels)} of {num}", len(self.levels))
        return [Problem(f"{split} {n}", n, level, f"{n}") for n, level in enumerate(self.levels[:num])]

    def check(self, problem, completion):
        return Verdict.wrong(None, "never")


@pytest.mark.parametrize("is_silent", [False, True])
def test_the_problems_are_the_first_ones_of_the_difficulties_up_to_the_last_of_the_task(is_silent):
    for seed in range(200):
        rng = random.Random(seed)
        levels = tuple(rng.choices(range(1, 6), k=rng.randrange(20, 60)))
        low, num = rng.randrange(1, 6), rng.randrange(2, 20)
        wanted = [level for level in levels if low <= level <= low + 1]
        if len(wanted) >= 2:
            task = Finite(levels=levels, is_silent=is_silent)
            train, held_out = prompts(task, num, [low, low + 1], num)
            assert train == held_out == wanted[:num]


def test_a_rare_difficulty_is_drawn_until_there_are_enough(caplog):
    task = Arithmetic(range=ProblemRange(max_depth=8))
    assert prompts(task, 5, [8, 8], 40) == [[8] * 5, [8] * 40]
    assert not caplog.text


def test_a_task_with_just_enough_problems_is_not_refused(caplog):
    assert list(map(len, prompts(SMALL, 200, [1, 2], 100))) == [200, 100]
    assert not caplog.text


def test_fewer_held_out_problems_than_requested_are_reported(caplog):
    _, held_out = prompts(Finite(levels=(1, 2) * 10), 5, [1, 1], 15)
    assert len(held_out) == 10
    assert caplog.messages == [
        "trainer.val_rows is 15, but the task gives only 10 validation problems of problems.difficulties=[1, 1]"
    ]


@pytest.mark.parametrize(
    ("max_depth", "seen"), [(1, "problems have depth 1: choose"), (4, "problems have depth 1 … 4: choose")]
)
def test_a_difficulty_that_the_task_lacks_is_refused(max_depth, seen):
    task = Arithmetic(range=ProblemRange(max_depth=max_depth))
    with pytest.raises(UserError, match=seen):
        prompts(task, 20, [7, 9], 20)


@pytest.fixture
def file(tmp_path):
    """GSM8K problems, of one step and of two in turn."""
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"{n}?", "answer": "so\n" * (1 + n % 2) + f"#### {n}"} for n in range(300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Gsm8k(path=str(path))


def test_problems_of_a_file_are_filtered_before_they_are_counted(file, caplog):
    whole = [p.difficulty for p in file.problems(Split.TRAIN)]
    train, held_out = prompts(file, 50, [2, 2], 400)
    assert train == [2] * 50
    assert "trainer.val_rows is 400, but the task gives only" in caplog.text
    assert len(prompts(file, None, [2, 2], 5)[0]) == whole.count(2)
    assert 2 <= len(held_out) == [p.difficulty for p in file.problems(Split.VALIDATION)].count(2)


@pytest.mark.parametrize("num", [5000, None])
def test_too_few_problems_of_a_part_name_the_key_of_their_number(file, num):
    task = Mixture(parts=[Part(SMALL), Part(file)])
    seen = "5000" if num else "null, which requests 10000"
    with pytest.raises(UserError, match=rf"part 2 of the mixture: .*only 2\d\d of .*; problems.num_train is {seen}$"):
        prompts(task, num, None, 10)
    with pytest.raises(UserError, match=r"trainer.val_rows is 200$"):
        prompts(replace(task, parts=[Part(file)]), 10, None, 200)

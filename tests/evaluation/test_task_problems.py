"""Tasks on the command line, and the evaluation of their problems."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_illada.errors import UserError
from lit_illada.evaluation.jobs import EvaluationRequest
from lit_illada.evaluation.task_problems import NUM_GENERATED, TaskProblems, names_task, read_task
from lit_illada.runtime import plugins
from lit_illada.scoring.config import Chat, Plain
from lit_illada.tasks.arithmetic import Arithmetic
from lit_illada.tasks.base import Split
from lit_illada.tasks.countdown import Countdown


@pytest.mark.parametrize(
    ("text", "is_task"),
    [
        ("countdown", True),
        ("{name: countdown}", True),
        ("dir/my_task.py:MyTask", True),
        ("items.jsonl", False),
        ("countdown.jsonl", False),
        ("reasoning", False),
        ("C:/items.jsonl", False),
    ],
)
def test_a_task_is_told_from_a_file(text, is_task):
    assert names_task(text) is is_task


def test_a_word_that_is_neither_a_file_nor_a_task_is_named(tmp_path):
    path = tmp_path / "items"
    path.write_text("")
    assert EvaluationRequest.split_tasks([str(path), "sudoku4", "none.jsonl"]) == (
        [path, Path("none.jsonl")],
        ["sudoku4"],
    )
    with pytest.raises(UserError, match=r"unknown task 'countdwn': allowed are a file, .*did you mean 'countdown'\?"):
        EvaluationRequest.split_tasks(["countdwn"])


def test_a_task_is_read_with_its_settings():
    assert read_task("countdown") == Countdown()
    assert read_task("{name: countdown, num_numbers: [2, 3], seed: 5}") == Countdown(seed=5, num_numbers=[2, 3])
    assert read_task("{name: arithmetic, range: {max_depth: 2}}").range.max_depth == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: countdwn}", "unknown task 'countdwn'"),
        ("{name: countdwn}", "did you mean 'countdown'?"),
        ("{name: countdown, max_numbr: 3}", "max_numbr"),
        ("{name: countdown, max_number: many}", "'many' is not a whole number"),
        ("{name: countdown", "not a mapping such as"),
        ("{max_number: 3}", "task needs a name"),
        ("none.py:Task", "none.py:Task: no such file in"),
        ("gsm8k", "path is empty"),
        ("code", "path is empty"),
        ("{name: code, path: x.jsonl}", "allow_execution is false"),
    ],
)
def test_a_wrong_task_is_one_line(text, message):
    with pytest.raises(UserError) as error:
        read_task(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_generated_task_has_a_default_number_of_problems(tmp_path):
    assert len(TaskProblems.read("countdown", None, "f").problems) == NUM_GENERATED
    assert len(TaskProblems.read("countdown", 3, "f").problems) == 3
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}?", "answer": n}) + "\n" for n in range(300)))
    whole = TaskProblems.read(f"{{name: gsm8k, path: {path}, test_path: {path}}}", None, "f")
    assert len(whole.problems) == 300


class Model:
    """A model that gives fixed answers, one character per token; > closes a reasoning segment."""

    def __init__(self, texts, wording):
        self.config = SimpleNamespace(
            score=SimpleNamespace(wording=wording), generation=SimpleNamespace(max_new_tokens=9, temperature=0.0)
        )
        self.writer = SimpleNamespace(tokenizer=SimpleNamespace(decode="".join), write=self.write, details=self.details)
        self.scorer = SimpleNamespace(encode_prompt=list, positions_after=lambda prompt: 40 - len(prompt))
        self.scorer.model = SimpleNamespace(max_length=40)
        self.template = SimpleNamespace(read=lambda ids: SimpleNamespace(answer="".join(ids).rpartition(">")[2]))
        self.texts = texts

    def write(self, prompts, is_traced):
        assert len(prompts) == len(self.texts)
        return (SimpleNamespace(token_ids=list(text)) for text in self.texts)

    def details(self, written):
        ids, steps = list(map(ord, written.token_ids)), list(range(len(written.token_ids)))
        counts = {"is_finished": True, "num_tokens": len(ids), "num_forwards": 1.0, "stop_text": "<|eos|>"}
        return {**counts, "token_ids": ids, "tokens": list(written.token_ids), "steps": steps}


PROBLEMS = Arithmetic().problems(Split.TEST, 3)


@pytest.mark.parametrize(
    ("wording", "before", "after"), [(Plain(), "", "\nQuestion: 99"), (Chat(), "99>", ""), (Chat(), "", "")]
)
def test_completions_are_checked_without_reasoning_and_after_cutting_at_stop_texts(tmp_path, wording, before, after):
    answers = [PROBLEMS[0].answer, "17", "none"]
    model = Model([before + answer + after for answer in answers], wording)
    result = TaskProblems("arithmetic", Arithmetic(), PROBLEMS, "rows.jsonl").run(
        model, tmp_path, lambda _name, _size: lambda _done: None
    )
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["is_correct"] for row in rows] == [True, False, False]
    assert [row["answer"] for row in rows] == [PROBLEMS[0].answer, "17", None]
    assert rows[2]["reason"] == "the completion has no number"
    assert [row["difficulty"] for row in rows] == [problem.difficulty for problem in PROBLEMS]
    assert (result["num_correct"], result["num_items"], result["num_without_answer"]) == (1, 3, 1)
    assert sum(figures["num_correct"] for figures in result["levels"].values()) == 1
    assert [row["text"] for row in rows] == [before + answer for answer in answers]
    assert (result["endless"], result["mean_tokens"]) == (0.0, sum(len(before + answer) for answer in answers) / 3)
    result.show()


class Picky(Arithmetic):
    """A task whose check raises for some completions."""

    def check(self, problem, completion):
        return super().check(problem, str(int(completion)))


def test_a_check_that_raises_for_a_completion_is_named_with_its_problem_and_line(tmp_path):
    model = Model([PROBLEMS[0].answer, "one\ntwo", "3"], Plain())
    message = rf"task Picky, {PROBLEMS[1].origin}: its check raises ValueError: .*\(test_task_problems.py:\d+\)"
    with pytest.raises(UserError, match=message) as error:
        TaskProblems("mine", Picky(), PROBLEMS, "rows.jsonl").run(model, tmp_path, lambda *_: lambda _done: None)
    assert "\n" not in str(error.value)


def test_a_task_without_enough_problems_names_the_key_of_their_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}?", "answer": n}) + "\n" for n in range(300)))
    for limit, seen in ((1000, "1000"), (None, "null, which requests 128")):
        with pytest.raises(UserError, match=rf"part 1 of the mixture: .*only \d+ of .*; score.limit is {seen}$"):
            TaskProblems.read(f"{{name: mixture, parts: [{{task: {{name: gsm8k, path: {path}}}}}]}}", limit, "f")


def test_a_prompt_that_leaves_too_few_positions_is_named():
    evaluation = TaskProblems("countdown", Countdown(), Countdown().problems("test", 1), "f")
    with pytest.raises(UserError, match=r"countdown, test problem \d+: the prompt leaves -?\d+ of"):
        evaluation.check(Model([], Plain()))


def test_a_users_task_needs_its_name_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_allowed", set())
    source = "from dataclasses import dataclass\nfrom lit_illada.tasks.countdown import Countdown\n\n"
    (tmp_path / "mine.py").write_text(
        source + "@dataclass(frozen=True)\nclass Mine(Countdown):\n    max_number: int = 5\n"
    )
    monkeypatch.chdir(tmp_path)
    assert type(read_task("mine.py:Mine")).__name__ == "Mine"
    assert read_task("{name: 'mine.py:Mine', max_target: 7}").max_target == 7

"""The examples of the guide to tasks work as written."""

import re
from pathlib import Path

import pytest
import torch

from lit_illada.config import load, load_file
from lit_illada.errors import UserError
from lit_illada.evaluation.task_problems import read_task
from lit_illada.runtime import plugins
from lit_illada.schema import dump
from lit_illada.tasks.base import Split
from lit_illada.tasks.registry import TASKS

GUIDE = (Path(__file__).parents[2] / "lit_illada" / "tasks" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """The files of the guide in the working folder."""
    for code in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        (tmp_path / re.match(r'"""(.*?)"""', code)[1]).write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_allowed", set())


def overrides_of(command):
    """The quoted overrides of a command in the guide."""
    (line,) = [line for line in GUIDE.splitlines() if line.startswith(f"lit-illada {command}")]
    return re.findall(r"'(.*?)'", line)


def test_the_task_of_the_guide_holds_the_laws_of_tasks():
    task = read_task("my_task.py:Reverse")
    splits = [task.problems(split) for split in Split]
    questions = [{problem.question for problem in split} for split in splits]
    assert len(set.union(*questions)) == sum(map(len, questions)) == 900
    for problem in splits[2]:
        assert task.check(problem, problem.answer).correct
        assert not task.check(problem, problem.answer + "1").correct
    assert task.prompt(splits[0][0]) == f"Reverse {splits[0][0].question}."
    assert read_task('{name: "my_task.py:Reverse", digits: 4}').problems(Split.TEST, 1)[0].difficulty == 4


def test_a_config_takes_the_task_of_the_guide():
    config = load("sft", ["sft_data/source=task", 'sft_data.source.task={name: "my_task.py:Reverse", digits: 2}'])
    assert config.sft_data.source.task.digits == 2


def test_the_weight_and_the_reward_of_the_guide_are_those_of_the_config():
    config = load("pretrain", ["experiment=demo", *overrides_of("pretrain experiment=demo")])
    assert config.objective.weighting(torch.tensor(16.0)) == pytest.approx(0.5)
    terms = load("align", overrides_of("align RUN 'alignment")).alignment.reward.terms
    assert [type(term.term).__name__ for term in terms] == ["Correct", "Brief"]


def test_resuming_needs_the_key_that_the_guide_names(tmp_path):
    config = load("pretrain", ["experiment=demo", *overrides_of("pretrain experiment=demo")])
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    plugins._allowed.clear()
    with pytest.raises(UserError, match=r"add objective.weighting.name=my_parts.py:Power to the command"):
        load_file("pretrain", tmp_path / "config.yaml")
    assert load_file("pretrain", tmp_path / "config.yaml", ["objective.weighting.name=my_parts.py:Power"]) == config


def test_the_table_has_every_task_with_its_difficulty():
    rows = re.findall(r"(?m)^\| `(\w+)` \| .*? \| `(\w+)` \|", GUIDE)
    assert dict(rows) == {name: task.difficulty_name for name, task in TASKS.items()}

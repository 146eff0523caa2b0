"""A user's own classes: named on the command line they work like those of the package, elsewhere they are refused."""

import importlib.metadata
from dataclasses import dataclass, field

import pytest
import torch

from lit_illada.config import compose_tree, load, load_file
from lit_illada.errors import UserError
from lit_illada.generation.commit_rules import CommitRule
from lit_illada.objective.weighting import WEIGHTINGS, Weighting
from lit_illada.runtime import plugins
from lit_illada.schema import choice, dump, from_tree, to_tree
from lit_illada.tasks.base import Split, Task
from lit_illada.tasks.registry import TASKS

PARTS = """
from __future__ import annotations
from dataclasses import dataclass
from lit_illada.objective.weighting import Weighting
from lit_illada.tasks.base import Problem, Split, Task, Verdict

@dataclass(frozen=True)
class Power(Weighting):
    power: float = 0.5

    def __call__(self, t):
        return t ** -self.power

@dataclass(frozen=True)
class Echo(Task):
    word: str = "hello"

    def problems(self, split, num=None):
        return [Problem(self.word, self.word, 1.0, "here", "", self.word)] * (num or 1)

    def check(self, problem, completion):
        return Verdict.right(completion) if completion == self.word else Verdict.wrong(completion, "another word")

class Bare(Weighting):
    def __call__(self, t):
        return t

@dataclass
class Mutable:
    power: float = 1.0

@dataclass(frozen=True)
class Other:
    power: float = 1.0

@dataclass(frozen=True)
class Unfinished(Weighting):
    pass

@dataclass(frozen=True)
class Latest:
    counts = True

    def __call__(self, proposals, steps_left, draws, num_commits_B=None):
        return proposals.is_masked

def function():
    pass
"""
COMMAND = ["experiment=demo"]


@dataclass(frozen=True)
class Holder:
    task: Task = choice(TASKS, "arithmetic")
    weighting: Weighting = choice(WEIGHTINGS, "elbo")
    many: list[int] = field(default_factory=list)


@pytest.fixture(autouse=True)
def parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_allowed", set())
    (tmp_path / "parts.py").write_text(PARTS)
    return tmp_path / "parts.py"


@pytest.mark.parametrize("power", [[], ["objective.weighting.power=0.25"]])
def test_a_name_on_the_command_line_is_the_class_of_its_file(power):
    config = load("pretrain", [*COMMAND, "objective.weighting.name=parts.py:Power", *power])
    expected = 0.25 if power else 0.5
    assert type(config.objective.weighting).__name__ == "Power"
    assert config.objective.weighting(torch.tensor(16.0)) == pytest.approx(16.0**-expected)
    assert to_tree(config)["objective"]["weighting"] == {"name": "parts.py:Power", "power": expected}


def test_a_mapping_replaces_the_section():
    config = load("pretrain", [*COMMAND, 'objective.weighting={name: "parts.py:Power", power: 0.25}'])
    assert config.objective.weighting.power == 0.25


def test_a_commit_rule_has_the_members_of_its_protocol():
    config = load("generate", ["generation.commit_rule.name=parts.py:Latest"])
    assert type(config.generation.commit_rule).__name__ == "Latest"
    assert not hasattr(CommitRule, "__abstractmethods__") or not CommitRule.__abstractmethods__


def test_a_task_of_a_file_has_the_interface():
    plugins.allow(["parts.py:Echo", "parts.py:Power"])
    task = from_tree(Holder, {"task": {"name": "parts.py:Echo", "word": "bye"}, "weighting": "parts.py:Power"}).task
    (problem,) = task.problems(Split.TEST, 1)
    assert task.prompt(problem) == "bye"
    assert task.check(problem, "bye").correct


def test_a_saved_config_is_refused_until_the_user_names_the_class(parts):
    name = "objective.weighting.name=parts.py:Power"
    config = load("pretrain", [*COMMAND, name, "objective.weighting.power=0.25"])
    saved = parts.parent / "config.yaml"
    saved.write_text(dump(config))
    plugins._allowed.clear()
    with pytest.raises(UserError) as error:
        load_file("pretrain", saved)
    assert "objective.weighting.name is 'parts.py:Power', a class outside the package" in str(error.value)
    assert f"add {name} to the command" in str(error.value)
    assert "\n" not in str(error.value)
    assert load_file("pretrain", saved, [name]) == config


def test_a_file_is_not_run_before_the_user_names_it(parts):
    parts.write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match="which runs its file"):
        from_tree(Holder, {"task": "parts.py:Echo"})
    plugins.allow("parts.py:Echo")
    with pytest.raises(UserError, match=r"parts.py:1: cannot be imported: SystemExit: it ran"):
        from_tree(Holder, {"task": "parts.py:Echo"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py:Power", "none.py:Power: no such file in "),
        ("parts.py:Powr", "unknown class of parts.py 'Powr': allowed are "),
        ("parts.py:Powr", "did you mean 'Power'?"),
        ("parts.py:", "unknown class of parts.py ''"),
        ("parts.py:function", "parts.py:function: must be a class, not a function"),
        ("parts.py:Bare", "parts.py:Bare: must be a frozen dataclass"),
        ("parts.py:Mutable", "parts.py:Mutable: must be a frozen dataclass"),
        ("parts.py:Other", "must be a subclass of lit_illada.objective.weighting.Weighting; its base is object"),
        ("parts.py:Unfinished", "Weighting; it lacks __call__"),
    ],
)
def test_a_wrong_name_or_class_is_one_line(name, message):
    with pytest.raises(UserError) as error:
        load("pretrain", [*COMMAND, f"objective.weighting.name='{name}'"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_class_without_a_protocols_members_is_refused():
    with pytest.raises(UserError, match=r"must have the members of .*CommitRule; it lacks __call__, counts"):
        load("generate", ["generation.commit_rule.name=parts.py:Other"])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\ndef f(:\n", "parts.py:2: cannot be imported: SyntaxError"),
        ("\n\nimport no_such_module", "parts.py:3: cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_broken_file_is_named_with_its_line(parts, code, message):
    parts.write_text(code)
    with pytest.raises(UserError) as error:
        load("pretrain", [*COMMAND, "objective.weighting.name=parts.py:Power"])
    assert message in str(error.value)


def test_an_unknown_field_of_a_users_class_is_named():
    with pytest.raises(UserError, match=r"objective.weighting.powr.*power"):
        load("pretrain", [*COMMAND, 'objective.weighting={name: "parts.py:Power", powr: 1}'])


def test_a_closed_choice_takes_no_class_of_a_file():
    with pytest.raises(UserError, match=r"unknown trainer.on_divergence.name 'parts.py:Other'"):
        load("pretrain", [*COMMAND, "trainer.on_divergence.name=parts.py:Other"])


def test_an_entry_point_is_named_by_its_name(monkeypatch):
    point = importlib.metadata.EntryPoint("echo", "lit_illada.tasks.countdown:Countdown", plugins.GROUP)
    found = {(plugins.GROUP, "echo"): [point]}
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group, name: found.get((group, name), []))
    with pytest.raises(UserError, match=r"task.name is 'echo', a class outside the package"):
        from_tree(Holder, {"task": "echo", "weighting": "parts.py:Power"})
    plugins.allow(["echo", "parts.py:Power"])
    assert type(from_tree(Holder, {"task": "echo", "weighting": "parts.py:Power"}).task).__name__ == "Countdown"


def test_a_saved_config_cannot_permit_the_execution_of_completions(parts):
    task = "sft_data.source.task={name: code, path: x.jsonl, allow_execution: true}"
    config = load("sft", ["sft_data/source=task", task])
    saved = parts.parent / "config.yaml"
    saved.write_text(dump(config))
    plugins._allowed.clear()
    with pytest.raises(UserError, match=r"which only you can set: .* add sft_data.source.task.allow_execution=true"):
        load_file("sft", saved)
    assert load_file("sft", saved, ["sft_data.source.task.allow_execution=true"]) == config


def test_names_of_the_package_need_no_permission():
    assert compose_tree("pretrain", COMMAND)["objective"]["weighting"]["name"] in ("elbo", "flat")

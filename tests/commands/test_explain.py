"""`config --explain` and the values that the shell offers."""

from dataclasses import dataclass
from enum import StrEnum
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.cli.completion import complete_override
from lit_illada.commands.explain import _find, explain
from lit_illada.config import SCHEMAS, load
from lit_illada.errors import UserError
from lit_illada.run_folder import flatten
from lit_illada.runtime.field_docs import _docs_of, summary
from lit_illada.schema import to_tree


class Kind(StrEnum):
    first = "first"
    """The one before."""
    second = "second"  # the one after


@dataclass(frozen=True)
class Documented:
    """A summary. old: from the docstring; None: off. older, oldest: of both."""

    below: int = 1
    """Below
    the field."""
    behind: int = 2  # behind the field
    old: int | None = None
    older: int = 0
    oldest: int = 0
    bare: int = 0


def test_field_docs_are_read_from_below_behind_and_the_class():
    assert _docs_of(Documented) == {
        "below": "Below the field.", "behind": "behind the field", "old": "from the docstring; None: off.",
        "older": "of both.", "oldest": "of both.",
    }  # fmt: skip
    assert _docs_of(Kind) == {"first": "The one before.", "second": "the one after"}
    assert summary(Documented) == "A summary."


@pytest.mark.parametrize(
    ("key", "command", "overrides", "message"),
    [
        ("data.on_bad_shard", None, (), ["sha256", "stop", "skip", "data.config.DataConfig"]),
        ("trainer.max_time_s", None, (), ["Seconds of training", "a number or null", "null"]),
        ("trainer.compile", None, (), ["true", "false"]),
        ("optim.schedule.name", "pretrain", ("optim/schedule=cosine",), ["wsd", "Linear warm-up, constant", "cosine"]),
        ("optim.schedule.decay_fraction", "pretrain", ("optim/schedule=wsd",), ["0.2"]),
        ("generation.cache", "generate", (), ["prefix", "Caches the columns before the block"]),
        ("trainer.parallel", None, (), ["a group of keys", "tensor_parallel"]),
        ("loops.unit", None, (), ["words", "tokens"]),
    ],
)
def test_key_is_explained(key, command, overrides, message):
    words = ["config", *([command] if command else []), "--explain", key, *overrides]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{key}\n")
    assert all(text in result.output for text in message), result.output


def test_unknown_key_suggests_the_nearest():
    with pytest.raises(UserError, match=r"did you mean 'optim\.optimizer\.learning_rate'"):
        explain("trainer.lr")


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_key_can_be_explained(command):
    config = load(command)
    for key in flatten(to_tree(config)):
        info = _find(config, key)
        assert info is not None, key
        assert info.type, key


@pytest.mark.parametrize(
    ("command", "typed", "offered"),
    [
        ("pretrain", "optim.schedule.name=", {"optim.schedule.name=wsd", "optim.schedule.name=cosine"}),
        ("pretrain", "optim.schedule.name=w", {"optim.schedule.name=wsd"}),
        ("pretrain", "trainer.compile=", {"trainer.compile=true", "trainer.compile=false"}),
        ("pretrain", "trainer.precision=b", {"trainer.precision=bf16-mixed"}),
        ("generate", "generation.canvas=", {"generation.canvas=append", "generation.canvas=fixed"}),
        ("pretrain", "trainer.max_steps=", set()),
        ("pretrain", "trainer.unknown=", set()),
    ],
)
def test_shell_completes_values(command, typed, offered):
    context = SimpleNamespace(info_name=command, params={"overrides": ()})
    values = {item.value for item in complete_override(context, None, typed)}
    assert values >= offered
    assert bool(values) == bool(offered)


@pytest.mark.parametrize(
    "key", ["objective.mask_ratio.name", "objective.weighting.name", "model.attention", "sft_data.source.name"]
)
def test_each_allowed_value_has_a_line(key):
    assert all(explain(key).allowed.values())

"""Parses KEY=VALUE in Hydra's grammar and applies it to a config tree.

For files that Hydra does not compose, such as saved configs, sweeps and loops.yaml, and for values on the command line.
"""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lit_illada.errors import UserError
from lit_illada.runtime import plugins
from lit_illada.runtime.key_hints import nearest_key
from lit_illada.runtime.lazy import LazyModule
from lit_illada.runtime.terminal import one_line

parser = LazyModule("hydra.core.override_parser.overrides_parser")  # without overrides, Hydra is not needed

_MAX_LENGTH = 10_000  # characters; ANTLR takes a second for 100 000


@dataclass(frozen=True)
class Assignment:
    """A parsed KEY=VALUE."""

    key: str  # without a leading `+`
    value: Any  # plain lists, mappings and scalars


def require_assignment(override: str) -> str:
    """Return the key of a KEY=VALUE with its `+` or `~`. Raises UserError for anything else."""
    key, equals, _ = override.partition("=")
    bare = key.lstrip("+~").strip()
    if key.startswith("~") and bare:
        raise UserError(
            f"{override!r} would delete a key, and a config needs all of them: set it instead, to null for none"
        )
    if not equals or not bare:
        raise UserError(f"{override!r} is no override: write KEY=VALUE, such as trainer.max_steps=500")
    if len(override) > _MAX_LENGTH:
        raise UserError(f"the override of {key[:40]!r} is longer than {_MAX_LENGTH} characters: write a file instead")
    return key


def parse_assignment(override: str) -> Assignment:
    """Parse KEY=VALUE or +KEY=VALUE. Raises UserError where Hydra's grammar does not allow it."""
    require_assignment(override)
    return copy.deepcopy(_parsed(override))


@cache  # the arms of a sweep repeat most overrides, and ANTLR takes 2 ms for each
def _parsed(override: str) -> Assignment:
    try:
        parsed = parser.OverridesParser.create().parse_override(override)
        if parsed.is_sweep_override():
            raise UserError(f"{override!r} gives several values: write a list, such as {parsed.key_or_group}=[1,2]")
        return Assignment(parsed.key_or_group, parsed.value())
    except UserError:
        raise
    except Exception as error:  # ANTLR and the converters raise errors of many classes
        reason = str(error).partition("See https://hydra.cc")[0].strip()
        raise UserError(
            one_line(f"{override!r} is no KEY=VALUE ({reason}): quote a value with special characters, KEY='\"VALUE\"'")
        ) from error


def quoted(value: Any) -> str:
    """Return a plain value in the grammar of overrides: the inverse of parsing KEY=VALUE."""
    match value:
        case dict():
            return "{" + ", ".join(f"{key}: {quoted(item)}" for key, item in value.items()) + "}"
        case list():
            return f"[{', '.join(map(quoted, value))}]"
        case str():
            # a backslash is an escape only before a quote, which includes the closing one
            return "'" + re.sub(r"(\\+)(?='|\Z)", r"\1\1", value).replace("'", "\\'") + "'"
    return json.dumps(value)


def apply_overrides(tree: DictConfig, overrides: Sequence[str], *, resolve: bool = False) -> dict[str, Any]:
    """Apply KEY=VALUE overrides and return plain dicts. Raises UserError for an unknown key.

    resolve: replace interpolations such as ${seed}; a saved config has none, and its texts may look like one.
    """
    known = keys_of(tree)
    own: list[str] = []  # replaced sections
    for override in overrides:
        assignment = parse_assignment(override)
        if assignment.key not in known and not assignment.key.startswith(tuple(own)):
            raise nearest_key(assignment.key, known)
        plugins.allow_assignment(assignment.key, assignment.value)
        try:
            if section := _replaced_section(tree, assignment):
                own.append(f"{section}.")  # its fields are checked when the class is read
            else:
                OmegaConf.update(tree, assignment.key, assignment.value)
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise UserError(one_line(f"{override!r}: {error}")) from error
    try:
        return OmegaConf.to_container(tree, resolve=resolve)  # type: ignore[return-value]
    except (OmegaConfBaseException, RecursionError) as error:
        raise UserError(one_line(f"{' '.join(overrides)}: {error}")) from error


def _replaced_section(tree: DictConfig, assignment: Assignment) -> str | None:
    """Replace a section by one of another class, whose fields are others; None where the assignment does not.

    That is a mapping with another `name` than the section has, or the name of a user's class.
    """
    key, value = assignment.key, assignment.value
    if key.endswith(".name") and plugins.is_plugin(value):
        key, value = key.removesuffix(".name"), {"name": value}
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or OmegaConf.select(tree, f"{key}.name", default=name) == name:
        return None
    OmegaConf.update(tree, key, value, merge=False)
    return key


def keys_of(node: DictConfig) -> list[str]:
    """Return the dotted keys of a tree, sections included."""
    return list(_walk(node, ""))


def _walk(node: DictConfig, where: str) -> Iterator[str]:
    for key in map(str, node):
        yield f"{where}{key}"
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _walk(child, f"{where}{key}.")

"""Explanation of a config key: meaning, type, default, allowed values and definition in the source."""

import dataclasses
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import EnumType
from types import UnionType
from typing import Any, get_args, get_type_hints

from lit_illada.config import SCHEMAS, load
from lit_illada.errors import UserError
from lit_illada.run_folder import flatten
from lit_illada.runtime.field_docs import member_docs, summary
from lit_illada.runtime.key_hints import nearest_key
from lit_illada.runtime.leaves import type_name
from lit_illada.schema import choice_name, to_tree


@dataclass(frozen=True)
class KeyInfo:
    """One key of a config."""

    key: str
    meaning: str
    """Effect of the key; empty if the source has no doc."""
    type: str
    """Type in words, such as `a whole number or null`."""
    value: Any
    """Value with the given overrides; without overrides, the default."""
    allowed: dict[str, str]
    """Meaning by allowed value; empty if every value of the type is allowed."""
    source: str
    """Module, class and line of the definition."""


def explain(key: str, command: str | None = None, overrides: Sequence[str] = ()) -> KeyInfo:
    """Explain a key of a command's config; without a command, of the first one that has the key.

    overrides: choose the class of a choice, and with it the keys below. Raises UserError for an unknown key.
    """
    commands = [command] if command else list(SCHEMAS)
    known: list[str] = []
    for each in commands:
        config = load(each, overrides if command else ())
        if info := _find(config, key):
            return info
        known += flatten(to_tree(config))
    raise nearest_key(key, list(dict.fromkeys(known)))


def show(info: KeyInfo) -> str:
    """Return the text of `config --explain`."""
    lines = [info.key, *([f"  {info.meaning}"] if info.meaning else [])]
    lines += [f"  type     {info.type}", f"  default  {info.value}"]
    if info.allowed:
        width = max(map(len, info.allowed))
        lines += ["  allowed", *(f"    {name:<{width}}  {text}".rstrip() for name, text in info.allowed.items())]
    return "\n".join([*lines, f"  source   {info.source}"]) + "\n"


def _find(config: Any, key: str) -> KeyInfo | None:
    """Look up a dotted key in a config object; None if it does not exist."""
    *parents, name = key.split(".")
    owner, field = config, None
    for part in parents:
        items = _fields(owner)
        if part not in items:
            return None
        field, owner = items[part], getattr(owner, part)
    if name == "name" and field is not None and (table := field.metadata.get("choices")):
        allowed = {chosen: summary(cls) for chosen, cls in table.items()}
        return KeyInfo(key, summary(type(owner)), "a choice", choice_name(table, owner), allowed, _place(type(owner)))
    if name not in _fields(owner):
        return None
    return _info(key, owner, name)


def _info(key: str, owner: Any, name: str) -> KeyInfo:
    value = getattr(owner, name)
    cls: type = type(owner)
    kind: type = type(value)
    hint, meaning = get_type_hints(cls)[name], yaml_null(member_docs(cls).get(name, ""))
    if table := _fields(owner)[name].metadata.get("choices"):
        allowed = {chosen: summary(each) for chosen, each in table.items()}
        return KeyInfo(key, meaning, "a choice, by its name", choice_name(table, value), allowed, _place(cls))
    if dataclasses.is_dataclass(hint):
        allowed = {item: member_docs(kind).get(item, "") for item in _fields(value)}
        return KeyInfo(key, meaning or summary(kind), "a group of keys", "see its keys", allowed, _place(cls))
    return KeyInfo(key, meaning, type_name(hint), shown(to_tree(value)), allowed_values(hint), _place(cls))


def allowed_values(hint: Any) -> dict[str, str]:
    """Return the values of an enumeration or a boolean, with null if it is allowed; empty for other types."""
    allowed: dict[str, str] = {}
    for part in get_args(hint) if isinstance(hint, UnionType) else (hint,):
        if isinstance(part, EnumType):
            allowed |= {str(member): member_docs(part).get(member.name, "") for member in part}  # type: ignore[var-annotated]
        elif part is bool:
            allowed |= {"true": "", "false": ""}
        elif part is type(None) and allowed:
            allowed["null"] = ""
    return allowed


def _fields(owner: Any) -> dict[str, dataclasses.Field[Any]]:
    return {item.name: item for item in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}


def shown(value: Any) -> str:
    """Format a value as in YAML."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value) or "''"


def yaml_null(doc: str) -> str:
    """Return a doc with YAML's null in place of Python's None."""
    return re.sub(r"\bNone\b", "null", doc)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}, line {inspect.getsourcelines(cls)[1]}"


def values_of(key: str, command: str, overrides: Sequence[str] = ()) -> list[str]:
    """Return the values that a shell completes for a key; empty for an unknown key or a type without a list."""
    try:
        return list(explain(key, command, overrides).allowed)
    except UserError:
        return []

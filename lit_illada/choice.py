"""A choice: a config field whose value is one frozen dataclass out of a table, named in YAML by its `name`."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any


def choice(table: Mapping[str, type], default: str) -> Any:
    """A dataclass field that takes an instance of any class in `table`; by default what the name `default` makes.

    In YAML it reads `{name: <key of the table>, <the class's own fields>}`.
    """
    return field(default_factory=lambda: table[default](), metadata={"choices": table})


def choice_name(table: Mapping[str, type], value: object) -> str:
    """The table's key for an instance: the inverse of reading its `name`."""
    return next(name for name, cls in table.items() if cls is type(value))

"""Reads items of local tasks from JSON lines and checks every line.

Multiple choice: {"question": …, "choices": [text, …], "answer": …}, where the answer is an index from 0, a letter from
A, or the text of a choice. Problems with a numeric answer, as in GSM8K's files: {"question": …, "answer": "… #### 42"}.
Other fields are ignored.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from lit_illada.errors import UserError
from lit_illada.runtime.files import parse_json, read_bytes
from lit_illada.tasks.answers import final_number

# an escaped surrogate, \ud800 to \udfff
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class ChoiceItem:
    """A multiple-choice question."""

    line: int
    """Line in the file, from 1."""
    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the correct choice."""


@dataclass(frozen=True)
class NumberItem:
    """A problem with a numeric answer."""

    line: int
    """Line in the file, from 1."""
    question: str
    answer: Fraction


def read_items(path: Path, limit: int | None = None) -> list[ChoiceItem] | list[NumberItem]:
    """The items of a file, all of the kind of the first line.

    limit: read only the first items; None: all. Raises UserError that names the line of an invalid item.
    """
    all_rows = list(rows(path, limit))
    if not all_rows:
        raise UserError(f"{path}: no items in it")
    if "choices" in all_rows[0][1]:
        return [choice_item(f"{path}:{line}", line, row) for line, row in all_rows]
    return [_number_item(f"{path}:{line}", line, row) for line, row in all_rows]


def rows(path: Path, limit: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, its object) of each line that is not blank."""
    lines = read_bytes(path).splitlines()
    filled = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    for count, (number, line) in enumerate(filled):
        if count == limit:
            return
        where = f"{path}:{number}"
        row = parse_json(line, where)
        if (
            _SURROGATE.search(line)
            and (name := next((name for name in row if _is_broken(row[name])), None)) is not None
        ):
            raise UserError(f"{where}: field {name!r} contains an unpaired surrogate, which is not valid text")
        yield number, row


def _is_broken(value: Any) -> bool:
    """Whether a text in the value has an unpaired surrogate, which JSON allows and tokenizers reject."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def choice_item(where: str, line: int, row: dict[str, Any]) -> ChoiceItem:
    choices = field(where, row, "choices")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise UserError(f"{where}: choices must be a list of at least two texts, none empty; got {shown(choices)}")
    answer = _answer_index(where, field(where, row, "answer"), choices)
    return ChoiceItem(line, text_field(where, row, "question"), tuple(choices), answer)


def _answer_index(where: str, answer: Any, choices: list[str]) -> int:
    """Index of the answer among the choices. The text of a choice takes precedence over a letter."""
    last = ascii_uppercase[len(choices) - 1 : len(choices)]
    allowed = f"a number from 0 to {len(choices) - 1}, a letter from A to {last}, or the text of a choice"
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str):
        if choices.count(answer) == 1:
            return choices.index(answer)
        if len(answer) == 1 and answer in ascii_uppercase[: len(choices)]:
            return ascii_uppercase.index(answer)
    raise UserError(f"{where}: answer is {shown(answer)}; with {len(choices)} choices it must be {allowed}")


def _number_item(where: str, line: int, row: dict[str, Any]) -> NumberItem:
    answer = field(where, row, "answer")
    number = final_number(str(answer)) if isinstance(answer, str | int | float) else None
    if number is None:
        raise UserError(f"{where}: no number in answer {shown(answer)}, and no field 'choices'")
    return NumberItem(line, text_field(where, row, "question"), number)


def text_field(where: str, row: dict[str, Any], name: str) -> str:
    """The value of a field. Raises UserError unless it is a text that is not blank."""
    text = field(where, row, name)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: {name} must be a non-empty text; got {shown(text)}")
    return text


def field(where: str, row: dict[str, Any], name: str) -> Any:
    """The value of a field. Raises UserError where it is missing."""
    if name not in row:
        raise UserError(f"{where}: no field {name!r}; it has {', '.join(sorted(map(repr, row))) or 'none'}")
    return row[name]


def shown(value: Any) -> str:
    """A value as JSON of at most 60 characters, for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"

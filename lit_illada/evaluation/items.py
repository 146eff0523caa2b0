"""Which questions are asked, and what is right? Local JSON lines, checked line by line.

Multiple choice: {"question": …, "choices": [text, …], "answer": …}, the answer a number counted from 0, a letter
counted from A, or the text of a choice. Problems with a number for an answer (GSM8K's own files): {"question": …,
"answer": "… #### 42"}. Other fields are left alone.
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

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class ChoiceItem:
    """A question with choices; answer is the place of the right one."""

    line: int
    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class NumberItem:
    """A problem whose answer is a number."""

    line: int
    question: str
    answer: Fraction


def read_items(path: Path, limit: int | None = None) -> list[ChoiceItem] | list[NumberItem]:
    """The items of a file, of one kind all: the first line's. Raises UserError that names the line of a bad one."""
    rows = list(_rows(path, limit))
    if not rows:
        raise UserError(f"{path}: no items there")
    if "choices" in rows[0][1]:
        return [_choice_item(f"{path}:{line}", line, row) for line, row in rows]
    return [_number_item(f"{path}:{line}", line, row) for line, row in rows]


def _rows(path: Path, limit: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line counted from 1, its object), blank lines left out."""
    lines = read_bytes(path).splitlines()
    given = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    for count, (number, line) in enumerate(given):
        if count == limit:
            return
        where = f"{path}:{number}"
        row = parse_json(line, where)
        if _HALF.search(line) and (name := next((name for name in row if _is_broken(row[name])), None)) is not None:
            raise UserError(f"{where}: field {name!r} holds half a surrogate pair, which is no text")
        yield number, row


def _is_broken(value: Any) -> bool:
    """Whether a text in it has half a surrogate pair, which JSON may hold and no tokenizer takes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _choice_item(where: str, line: int, row: dict[str, Any]) -> ChoiceItem:
    choices = _field(where, row, "choices")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise UserError(f"{where}: choices must be a list of two texts or more, none empty; got {_shown(choices)}")
    place = _place(where, _field(where, row, "answer"), choices)
    return ChoiceItem(line, _question(where, row), tuple(choices), place)


def _place(where: str, answer: Any, choices: list[str]) -> int:
    """The answer's place among the choices. A choice's own text goes before a letter's meaning."""
    last = ascii_uppercase[len(choices) - 1 : len(choices)]
    allowed = f"a number from 0 to {len(choices) - 1}, a letter from A to {last}, or the text of a choice"
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str):
        if choices.count(answer) == 1:
            return choices.index(answer)
        if len(answer) == 1 and answer in ascii_uppercase[: len(choices)]:
            return ascii_uppercase.index(answer)
    raise UserError(f"{where}: answer is {_shown(answer)}; with {len(choices)} choices it must be {allowed}")


def _number_item(where: str, line: int, row: dict[str, Any]) -> NumberItem:
    answer = _field(where, row, "answer")
    number = final_number(str(answer)) if isinstance(answer, str | int | float) else None
    if number is None:
        raise UserError(f"{where}: no number in answer {_shown(answer)}, and no field 'choices' to choose from")
    return NumberItem(line, _question(where, row), number)


def _question(where: str, row: dict[str, Any]) -> str:
    question = _field(where, row, "question")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: question must be a text, not empty; got {_shown(question)}")
    return question


def _field(where: str, row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise UserError(f"{where}: no field {name!r}; it has {', '.join(sorted(map(repr, row))) or 'none'}")
    return row[name]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"

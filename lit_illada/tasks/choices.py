"""Multiple choice by generation: the model writes the letter or the text of a choice."""

import re
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, ClassVar

from lit_illada.errors import UserError
from lit_illada.tasks.answers import announced_clauses, marked_answer
from lit_illada.tasks.base import Problem, Verdict
from lit_illada.tasks.files import FileTask
from lit_illada.tasks.items import choice_item

_DECORATION = re.compile(r"[*_`$]+|\\(?:text|textbf|mathrm)\s*(?=\{)|[{}]")  # of Markdown and LaTeX
# A letter with its punctuation. Without any, it must stand alone: "A dog" does not choose A.
_LETTER = re.compile(r"[\s:]*(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:\(([A-Z])\)|([A-Z])[.:)]|([A-Z])\s*$)")
_MAX_CHOICES = len(ascii_uppercase)


@dataclass(frozen=True)
class Choices(FileTask):
    """Lines {"question": …, "choices": [text, …], "answer": index, letter or text}, as `score` reads them.

    The difficulty is the number of choices.
    """

    difficulty_name: ClassVar[str] = "choices"

    wording: str = "{question}\nGive the letter of the answer after ####."
    """Text of the prompt around the question."""

    def read_row(self, row: dict[str, Any], origin: str) -> Problem:
        item = choice_item(origin, 0, row)
        if len(item.choices) > _MAX_CHOICES:
            raise UserError(
                f"{origin}: {len(item.choices)} choices; the task takes at most {_MAX_CHOICES}, from A to Z"
            )
        listed = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, item.choices, strict=False)]
        return Problem(
            question="\n".join([item.question, *listed]),
            reference=[ascii_uppercase[item.answer], list(item.choices)],
            difficulty=len(item.choices),
            origin=origin,
            answer=f"#### {ascii_uppercase[item.answer]}",
        )

    def check(self, problem: Problem, completion: str) -> Verdict:
        """Reads the answer after the last ####, in the last box or tag, after "answer is", else the whole text."""
        expected, choices = problem.reference
        marked = marked_answer(completion)
        texts = [*announced_clauses(completion), *([] if marked is None else [marked]), completion]
        letter = next((found for text in texts if (found := _letter(text, choices)) is not None), None)
        if letter is None:
            return Verdict.wrong(None, "the completion names no choice")
        return Verdict.right(letter) if letter == expected else Verdict.wrong(letter, f"expected {expected}")


def _letter(text: str, choices: list[str]) -> str | None:
    """The letter of the choice that a text names by its own text or by a letter; None where it names none."""
    bare = text.strip().rstrip(".").casefold()
    texts = [choice.strip().rstrip(".").casefold() for choice in choices]
    if texts.count(bare) == 1:
        return ascii_uppercase[texts.index(bare)]
    match = _LETTER.match(_DECORATION.sub("", text))
    letter = next(filter(None, match.groups()), None) if match else None
    return letter if letter is not None and letter in ascii_uppercase[: len(choices)] else None

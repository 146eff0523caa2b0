"""How good is a model at a task? Items go in; per-item rows and the task's figures come out, ready to be written.

accuracy: of the choice with the highest score. accuracy_per_byte: of the highest score a byte of the choice's text, for
choices of unequal length (lm-eval's acc_norm).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_illada.errors import UserError
from lit_illada.evaluation.agreement import agreement
from lit_illada.evaluation.items import ChoiceItem, NumberItem
from lit_illada.scoring.candidates import Candidate, Score
from lit_illada.scoring.config import ScoreRule
from lit_illada.scoring.scorer import OnWork, Scorer
from lit_illada.stats.intervals import wilson
from lit_illada.tasks.answers import final_number

Progress = Callable[[str, int], OnWork]
"""(what is done, how much work it is) -> told of its progress."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model wrote. about: how, to be kept with it."""

    text: str
    about: dict[str, Any] = dataclasses.field(default_factory=dict)


Write = Callable[[Sequence[str], int | None, float | None], Iterator[Answer]]
"""(prompts, tokens at most or None for the configured budget, temperature or None for the configured one) -> what is
written for each, in their order, a batch after the other."""

Row = dict[str, Any]


def check(path: Path, items: Sequence[ChoiceItem | NumberItem], scorer: Scorer, max_new_tokens: int) -> None:
    """Raises UserError that names the line of an item that does not fit the model, before any is scored."""
    for item in items:
        try:
            if isinstance(item, ChoiceItem):
                _candidates(item, scorer)
                continue
            room = scorer.room_behind(_prompt(item, scorer))
            if room < max_new_tokens:
                raise UserError(
                    f"the prompt leaves {room} of the model's {scorer.model.max_length} positions, but "
                    f"generation.max_new_tokens is {max_new_tokens}"
                )
        except UserError as error:
            raise UserError(f"{path}:{item.line}: {error}") from error


def windows_of(path: Path, text: str, scorer: Scorer) -> list[Candidate]:
    """The windows of a file's text; a UserError names the file."""
    try:
        return scorer.windows(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def score_choices(
    path: Path, items: Sequence[ChoiceItem], scorer: Scorer, progress: Progress
) -> tuple[list[Row], dict[str, Any]]:
    """Every rule's score of every choice; how often each rule is right, and how often two choose the same."""
    groups = [_candidates(item, scorer) for item in items]
    rows: list[Row] = [{**dataclasses.asdict(item), "scores": {}} for item in items]
    figures = {}
    for rule in scorer.rules:
        num_before, started_at = scorer.num_forwards, time.perf_counter()
        scores = scorer.scores(groups, rule, progress(rule.value, scorer.work(groups, rule)))
        for row, one in zip(rows, scores, strict=True):
            row["scores"][rule.value] = _chosen(row["choices"], one)
        figures[rule.value] = {
            **_accuracies(rule, rows),
            "num_forwards": scorer.num_forwards - num_before,
            "elapsed_s": time.perf_counter() - started_at,
        }
    return rows, {
        "kind": "multiple_choice",
        "file": str(path),
        "num_items": len(items),
        "accuracy_by_chance": sum(1 / len(item.choices) for item in items) / len(items),
        "rules": figures,
        "agreement": agreement({rule: [row["scores"][rule]["choice"] for row in rows] for rule in figures}),
    }


def score_numbers(
    path: Path, items: Sequence[NumberItem], scorer: Scorer, write: Write, progress: Progress
) -> tuple[list[Row], dict[str, Any]]:
    """Generated solutions, right where their number is the answer's."""
    on_work = progress(path.stem, len(items))
    rows: list[Row] = []
    written = write([_prompt(item, scorer) for item in items], None, None)
    for item, answer in zip(items, written, strict=True):
        text = cut_at(answer.text, scorer.config.wording.stop_texts)
        number = final_number(text)
        rows.append(
            {
                "line": item.line,
                "question": item.question,
                "text": text,
                "number": None if number is None else str(number),
                "answer": str(item.answer),
                "is_correct": number == item.answer,
                **answer.about,
            }
        )
        on_work(1)
    return rows, {
        "kind": "number",
        "file": str(path),
        "num_items": len(items),
        "num_without_number": sum(row["number"] is None for row in rows),
        **_proportion([row["is_correct"] for row in rows]),
    }


def score_text(
    path: Path, text: str, windows: Sequence[Candidate], scorer: Scorer, progress: Progress
) -> dict[str, Any]:
    """The likelihood of a text in nats a token and bits a byte, by the scorer's first rule."""
    rule, num_before = scorer.rules[0], scorer.num_forwards
    groups = [[window] for window in windows]
    scores = scorer.scores(groups, rule, progress(path.name, scorer.work(groups, rule)))
    whole = Score.sum([score for (score,) in scores])
    return {
        "kind": "text",
        "file": str(path),
        "rule": rule.value,
        "num_tokens": whole.num_tokens,
        "num_bytes": len(text.encode()),
        "num_windows": len(windows),
        "nats": -whole.value,
        "nats_stderr": whole.stderr,
        "nats_per_token": -whole.value / whole.num_tokens,
        "nats_per_token_stderr": whole.stderr / whole.num_tokens,
        "bits_per_byte": -whole.value / (math.log(2) * len(text.encode())),
        "num_forwards": scorer.num_forwards - num_before,
    }


def cut_at(text: str, stop_texts: Sequence[str]) -> str:
    """The text before the first of the stop texts."""
    return text[: min((place for stop in stop_texts if (place := text.find(stop)) >= 0), default=len(text))]


def _candidates(item: ChoiceItem, scorer: Scorer) -> list[Candidate]:
    return [
        scorer.answer(_prompt(item, scorer), scorer.config.wording.choice.replace("{choice}", text))
        for text in item.choices
    ]


def _prompt(item: ChoiceItem | NumberItem, scorer: Scorer) -> str:
    return scorer.config.wording.prompt.replace("{question}", item.question)


def _chosen(choices: Sequence[str], scores: Sequence[Score]) -> dict[str, Any]:
    """What a row keeps of a rule. margin_stderr: the standard error of the lead over the runner-up, taken as if the two
    were independent; they share their masks, so it is smaller."""
    values = [score.value for score in scores]
    per_byte = [value / len(choice.encode()) for value, choice in zip(values, choices, strict=True)]
    best, second = sorted(scores, key=lambda score: -score.value)[:2]
    return {
        "values": values,
        "stderrs": [score.stderr for score in scores],
        "num_tokens": [score.num_tokens for score in scores],
        "choice": values.index(max(values)),
        "choice_per_byte": per_byte.index(max(per_byte)),
        "margin": best.value - second.value,
        "margin_stderr": math.hypot(best.stderr, second.stderr),
    }


def _accuracies(rule: ScoreRule, rows: Sequence[Row]) -> dict[str, Any]:
    told = [row["scores"][rule.value] for row in rows]
    figures = _proportion([one["choice"] == row["answer"] for one, row in zip(told, rows, strict=True)])
    per_byte = [one["choice_per_byte"] == row["answer"] for one, row in zip(told, rows, strict=True)]
    figures["accuracy_per_byte"] = sum(per_byte) / len(rows)
    if rule is ScoreRule.BOUND:
        stderrs = [stderr for one in told for stderr in one["stderrs"]]
        figures["mean_stderr"] = sum(stderrs) / len(stderrs)
        figures["num_undecided"] = sum(one["margin"] < 2 * one["margin_stderr"] for one in told)
    return figures


def _proportion(are_correct: Sequence[bool]) -> dict[str, Any]:
    num_correct, num_items = sum(are_correct), len(are_correct)
    return {
        "num_correct": num_correct,
        "accuracy": num_correct / num_items,
        "wilson_95": list(wilson(num_correct, num_items)),
    }

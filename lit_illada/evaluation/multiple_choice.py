"""Multiple choice: every scoring rule scores every choice; the choice with the highest score is the model's answer.

accuracy counts the highest log-likelihood of the whole choice, accuracy_per_byte the highest log-likelihood divided by
the choice's length in UTF-8 bytes (lm-eval's acc_norm), which does not favour short choices.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.table import Table

from lit_illada.errors import UserError
from lit_illada.evaluation.base import LoadedModel, Progress, Result, Row, percent_with_interval, proportion, write_rows
from lit_illada.runtime.console import Console
from lit_illada.runtime.terminal import print_lines
from lit_illada.scoring.candidates import Candidate, Score
from lit_illada.scoring.config import ScoreRule
from lit_illada.scoring.scorer import Scorer
from lit_illada.tasks.items import ChoiceItem


@dataclasses.dataclass(frozen=True)
class MultipleChoice:
    """The evaluation of one file of multiple-choice items."""

    path: Path
    """The file, for messages and the result."""
    items: Sequence[ChoiceItem]
    items_file: str
    """Name of the file written with one row per item."""

    def check(self, model: LoadedModel) -> None:
        """Raises UserError that names the line of an item that exceeds the model's positions."""
        for item in self.items:
            try:
                _candidates(item, model.scorer)
            except UserError as error:
                raise UserError(f"{self.path}:{item.line}: {error}") from error

    def run(self, model: LoadedModel, folder: Path, progress: Progress) -> "ChoiceResult":
        rows, result = score_choices(self.path, self.items, model.scorer, progress)
        result["items"] = self.items_file
        write_rows(folder / self.items_file, rows)
        return result


class ChoiceResult(Result):
    """Accuracies by rule, and the agreement of the rules."""

    def show(self) -> None:
        console = Console()
        console.print(_accuracy_table(self))
        if len(self["rules"]) > 1:
            table = Table(title="agreement: items with the same choice", title_justify="left")
            for heading in ("", *self["agreement"]):
                table.add_column(heading.replace("_", " "), justify="right")
            for rule, row in self["agreement"].items():
                table.add_row(rule, *(f"{100 * fraction:.1f} %" for fraction in row.values()))
            console.print(table)
        if bound := self["rules"].get(ScoreRule.BOUND):
            print_lines(f"bound: a choice's standard error is {bound['mean_stderr']:.3f} nats on average;")
            print_lines(
                f"in {bound['num_undecided']} of {self['num_items']} items the lead is below two standard errors"
            )


def score_choices(
    path: Path, items: Sequence[ChoiceItem], scorer: Scorer, progress: Progress
) -> tuple[list[Row], ChoiceResult]:
    """Scores every choice of every item by every rule of the scorer.

    Returns one row per item with all scores, and the accuracy, cost and agreement of the rules.
    """
    groups = [_candidates(item, scorer) for item in items]
    rows: list[Row] = [{**dataclasses.asdict(item), "scores": {}} for item in items]
    figures = {}
    for rule in scorer.rules:
        num_before, started_at = scorer.num_forwards, time.perf_counter()
        scores = scorer.scores(groups, rule, progress(rule.value, scorer.work(groups, rule)))
        for row, choice_scores in zip(rows, scores, strict=True):
            row["scores"][rule.value] = _row_scores(row["choices"], choice_scores)
        figures[rule.value] = {
            **_accuracies(rule, rows),
            "num_forwards": scorer.num_forwards - num_before,
            "elapsed_s": time.perf_counter() - started_at,
        }
    return rows, ChoiceResult(
        kind="multiple_choice",
        file=str(path),
        num_items=len(items),
        accuracy_by_chance=sum(1 / len(item.choices) for item in items) / len(items),
        rules=figures,
        agreement=agreement({rule: [row["scores"][rule]["choice"] for row in rows] for rule in figures}),
    )


def agreement(choices: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """Fraction of items on which two rules choose the same, as a symmetric table with 1 on the diagonal.

    choices: the chosen indices of all items, by rule.
    """
    table = {rule: {rule: 1.0} for rule in choices}
    for one, other in combinations(choices, 2):
        pairs = list(zip(choices[one], choices[other], strict=True))
        table[one][other] = table[other][one] = sum(a == b for a, b in pairs) / len(pairs)
    return {rule: {other: table[rule][other] for other in choices} for rule in choices}


def _candidates(item: ChoiceItem, scorer: Scorer) -> list[Candidate]:
    wording = scorer.config.wording
    prompt = wording.prompt.replace("{question}", item.question)
    return [scorer.answer(prompt, wording.choice.replace("{choice}", text)) for text in item.choices]


def _row_scores(choices: Sequence[str], scores: Sequence[Score]) -> dict[str, Any]:
    """One rule's scores of one item.

    margin_stderr is the standard error of the lead over the runner-up as if the two were independent. They share their
    masks, so the true error is smaller.
    """
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
    scores = [row["scores"][rule.value] for row in rows]
    figures = proportion([one["choice"] == row["answer"] for one, row in zip(scores, rows, strict=True)])
    per_byte = [one["choice_per_byte"] == row["answer"] for one, row in zip(scores, rows, strict=True)]
    figures["accuracy_per_byte"] = sum(per_byte) / len(rows)
    if rule is ScoreRule.BOUND:  # the only rule with sampling error
        stderrs = [stderr for one in scores for stderr in one["stderrs"]]
        figures["mean_stderr"] = sum(stderrs) / len(stderrs)
        figures["num_undecided"] = sum(one["margin"] < 2 * one["margin_stderr"] for one in scores)
    return figures


def _accuracy_table(result: ChoiceResult) -> Table:
    title = f"{result['file']}: {result['num_items']} items, by chance {100 * result['accuracy_by_chance']:.1f} %"
    table = Table(title=title, title_justify="left")
    for heading in ("rule", "accuracy, 95 % interval", "per byte", "passes", "seconds"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for rule, figures in result["rules"].items():
        per_byte = f"{100 * figures['accuracy_per_byte']:.1f} %"
        passes, seconds = f"{figures['num_forwards']:,}", f"{figures['elapsed_s']:.1f}"
        table.add_row(rule, percent_with_interval(figures), per_byte, passes, seconds)
    return table

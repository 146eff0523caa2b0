"""Interface of the evaluations: what each one reads, runs and returns.

An evaluation is constructed from material read without a model, so a mistake in a file is reported before a checkpoint
is loaded. `check` then compares the material with the model, and `run` evaluates it. `jobs.py` lists the evaluations.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from lit_illada.config import ScoreConfig
from lit_illada.data.sft.chat_template import ChatTemplate
from lit_illada.evaluation.writer import Write, Writer
from lit_illada.scoring.config import Chat
from lit_illada.scoring.scorer import OnWork, Scorer, build_scorer
from lit_illada.stats.intervals import wilson

Progress = Callable[[str, int], OnWork]
"""(name of the work, its total amount) -> a function that is called with each amount done."""

Row = dict[str, Any]
"""Result of one item, written as one JSON line."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with everything that evaluations need of it."""

    writer: Writer
    """Generates answers."""
    config: ScoreConfig
    """Settings of the `score` command."""

    @cached_property
    def scorer(self) -> Scorer:
        """Computes likelihoods. Raises UserError for a rule that the model does not support."""
        template = self.template if isinstance(self.config.score.wording, Chat) else None
        return build_scorer(self.writer.model, self.writer.tokenizer, self.config.score, template)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template; built on first use, since a base model's tokenizer need not support one."""
        return ChatTemplate(self.config.template, self.writer.tokenizer)

    @property
    def write(self) -> Write:
        """Generation from texts in the configured wording."""

        def write(prompts: Sequence[str], max_new_tokens: int | None, temperature: float | None) -> Any:
            return self.writer.answers(self.scorer.encode_prompt, prompts, max_new_tokens, temperature)

        return write


class Result(dict[str, Any]):
    """Figures of one evaluation, stored in summary.json as they are; the key `kind` names the evaluation."""

    def show(self) -> None:
        """Prints the figures."""
        raise NotImplementedError


class Evaluation(Protocol):
    """One kind of evaluation with its material."""

    def check(self, model: LoadedModel) -> None:
        """Raises UserError for material that does not fit the model. Runs before any evaluation starts."""

    def run(self, model: LoadedModel, folder: Path, progress: Progress) -> Result:
        """Evaluates the model. Rows of single items go to a file in `folder`, which the result names as `items`."""


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def proportion(are_correct: Sequence[bool]) -> dict[str, Any]:
    """Number and fraction of correct items, with the fraction's 95 % Wilson interval."""
    num_correct, num_items = sum(are_correct), len(are_correct)
    return {
        "num_correct": num_correct,
        "accuracy": num_correct / num_items,
        "wilson_95": list(wilson(num_correct, num_items)),
    }


def percent_with_interval(figures: Mapping[str, Any]) -> str:
    """The accuracy and its interval as a table shows them, such as `50.0 % (9.5–90.5)`."""
    low, high = figures["wilson_95"]
    return f"{100 * figures['accuracy']:.1f} % ({100 * low:.1f}–{100 * high:.1f})"

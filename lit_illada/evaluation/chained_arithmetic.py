"""Chained arithmetic: generated problems by difficulty, whose solutions are checked for correctness and for loops."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from lit_illada.data.sft.chat_template import ChatTemplate
from lit_illada.data.sft.config import ReasoningTask
from lit_illada.data.sft.examples import Example, make_examples
from lit_illada.errors import UserError
from lit_illada.evaluation.base import LoadedModel, Progress, Result, Row, percent_with_interval, proportion
from lit_illada.evaluation.loop_rates import is_endless, loop_fields, loop_rates
from lit_illada.evaluation.writer import Writer, Written
from lit_illada.loops.detect.ending import reasoning_segment
from lit_illada.runtime.console import Console
from lit_illada.tasks.base import Split
from lit_illada.tasks.references import judge_exact
from lit_illada.tasks.traces import RECHECK, well_formed_fraction

_ITEMS_FILE = "generations-reasoning.jsonl"
_KEEPS_FORM = 0.8
"""Fraction of well-formed lines from which a text counts as one that keeps its form."""
_SCALARS = (
    "unfinished",
    "looped",
    "endless",
    "endless_in_form",
    "endless_well_formed",
    "endless_rechecks",
    "wasted",
    "mean_tokens",
    "num_forwards",
)


@dataclass(frozen=True)
class ChainedArithmetic:
    """The evaluation of problems by level, such as `depth_4`."""

    examples: Mapping[str, Sequence[Example]]

    @classmethod
    def read(cls, task: ReasoningTask) -> "ChainedArithmetic":
        """Generates the problems of the test portion. Raises UserError where a level has too few."""
        return cls(
            {
                level: make_examples(task.source(), range_, Split.TEST, task.num_problems, task.held_out_fraction)
                for level, range_ in task.levels().items()
            }
        )

    def check(self, model: LoadedModel) -> None:
        """Raises UserError where the longest problem and the token budget exceed the model's positions."""
        longest = max(len(prompt) for _, _, prompt, _ in self._encoded(model.template))
        max_positions = model.writer.model.config.max_position_embeddings
        if model.writer.generation.max_new_tokens > max_positions - longest:
            raise UserError(
                f"generation.max_new_tokens is {model.writer.generation.max_new_tokens}, but the longest problem "
                f"leaves {max_positions - longest} of the model's {max_positions} positions"
            )

    def run(self, model: LoadedModel, folder: Path, progress: Progress) -> "ArithmeticResult":
        """Solves all problems. A row with its trace is written as soon as its batch is generated."""
        encoded = self._encoded(model.template)
        on_work = progress("problems", len(encoded))
        rows = []
        with (folder / _ITEMS_FILE).open("w", encoding="utf-8") as stream:
            answers = model.writer.write([prompt for _, _, prompt, _ in encoded], is_traced=True)
            for (level, example, _, response), written in zip(encoded, answers, strict=True):
                row = _row(level, example, len(response), written, model.writer, model.template)
                row |= loop_fields(row, has_answer=bool(row["answer"]))
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                stream.flush()
                rows.append(row)
                on_work(1)
        by_level = {level: _figures([row for row in rows if row["level"] == level]) for level in self.examples}
        return ArithmeticResult(
            kind="reasoning", num_items=len(rows), **_figures(rows), levels=by_level, items=_ITEMS_FILE
        )

    def _encoded(self, template: ChatTemplate) -> list[tuple[str, Example, list[int], list[int]]]:
        """(level, example, prompt ids, response ids) of all problems."""
        examples = [(level, example) for level, group in self.examples.items() for example in group]
        pairs = template.encode_batch([example.messages for _, example in examples])
        return [(*one, prompt, response) for one, (prompt, response) in zip(examples, pairs, strict=True)]


class ArithmeticResult(Result):
    """Accuracy, loops, form and lengths, of all problems and by level."""

    def show(self) -> None:
        table = Table(title=f"chained arithmetic: {self['num_items']} problems", title_justify="left")
        for heading in ("level", "right, 95 % interval", "unfinished", "looped", "endless in form", "tokens, mean"):
            table.add_column(heading, justify="right")
        for level, figures in {**self["levels"], "all": self}.items():
            fractions = (f"{100 * figures[name]:.1f} %" for name in ("unfinished", "looped", "endless_in_form"))
            mean_tokens = f"{figures['mean_tokens']:.0f}"
            table.add_row(level.replace("_", " "), percent_with_interval(figures), *fractions, mean_tokens)
        Console().print(table)


def scalars(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, value) of each figure reported as one number, for all problems and by level.

    result: an ArithmeticResult, or its dict read back from summary.json.
    """
    for level, figures in {"": result, **result["levels"]}.items():
        suffix = f"_{level}" if level else ""
        yield f"exact_match{suffix}", figures["accuracy"]
        for name in _SCALARS:
            if (value := figures.get(name)) is not None:  # a median of no text, or a figure of a later version
                yield f"{name}{suffix}", value


def _row(
    level: str, example: Example, gold_tokens: int, written: Written, writer: Writer, template: ChatTemplate
) -> Row:
    """gold_tokens: length of the reference answer, its EOS included."""
    assert example.truth is not None
    response = template.read(written.token_ids)
    # A text that neither closes its reasoning segment nor stops has no answer: its last number is where the budget
    # happened to end. Data without reasoning segments has nothing to close.
    has_ended = written.is_stopped or response.reasoning is not None or not example.messages[-1].reasoning
    prompt = example.messages[0].content
    text = writer.tokenizer.decode(written.token_ids)
    reasoning = reasoning_segment(text)
    return {
        "level": level,
        "prompt": prompt,
        "text": text,
        "truth": example.truth,
        "answer": response.answer,
        "is_right": has_ended and judge_exact(response.answer, example.truth).correct,
        "is_reasoning_closed": response.reasoning is not None,
        "gold_tokens": gold_tokens,
        "max_new_tokens": writer.generation.max_new_tokens,
        "share_well_formed": well_formed_fraction(prompt, reasoning),
        "num_rechecks": reasoning.count(RECHECK),
        **writer.details(written),
    }


def _figures(rows: Sequence[Row]) -> dict[str, Any]:
    return {**proportion([row["is_right"] for row in rows]), **loop_rates(rows), **_form(rows)}


def _form(rows: Sequence[Row]) -> dict[str, float | None]:
    """Form of the endless texts; the rows have `loop_fields`.

    endless_in_form: fraction of all texts that are endless and keep their form, at least 80 % of the lines well formed.
    endless_well_formed: median fraction of well-formed lines of the endless texts.
    endless_rechecks: median number of re-checks in the endless texts.
    The medians are None where no text is endless.
    """
    endless = [row for row in rows if is_endless(row)]
    fractions = [row["share_well_formed"] or 0.0 for row in endless]  # None: no line at all
    return {
        "endless_in_form": sum(fraction >= _KEEPS_FORM for fraction in fractions) / len(rows),
        "endless_well_formed": median(fractions) if fractions else None,
        "endless_rechecks": median(row["num_rechecks"] for row in endless) if endless else None,
    }

"""Problems with a numeric answer, such as GSM8K: the model generates a solution, whose final number is compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_illada.errors import UserError
from lit_illada.evaluation.base import LoadedModel, Progress, Result, Row, percent_with_interval, proportion, write_rows
from lit_illada.evaluation.loop_rates import ended_at, loop_fields, loop_rates
from lit_illada.evaluation.writer import cut_at
from lit_illada.runtime.terminal import print_lines
from lit_illada.scoring.scorer import Scorer
from lit_illada.tasks.items import NumberItem
from lit_illada.tasks.references import judge_number


@dataclass(frozen=True)
class NumericProblems:
    """The evaluation of one file of problems."""

    path: Path
    """The file, for messages and the result."""
    items: Sequence[NumberItem]
    items_file: str
    """Name of the file written with one row per problem."""

    def check(self, model: LoadedModel) -> None:
        """Raises UserError that names the line of a prompt that leaves too few positions for an answer."""
        max_new_tokens = model.config.generation.max_new_tokens
        for item in self.items:
            free = model.scorer.positions_after(_prompt(item, model.scorer))
            if free < max_new_tokens:
                raise UserError(
                    f"{self.path}:{item.line}: the prompt leaves {free} of the model's "
                    f"{model.scorer.model.max_length} positions, but generation.max_new_tokens is {max_new_tokens}"
                )

    def run(self, model: LoadedModel, folder: Path, progress: Progress) -> "NumericResult":
        on_work = progress(self.path.stem, len(self.items))
        rows: list[Row] = []
        answers = model.write([_prompt(item, model.scorer) for item in self.items], None, None)
        for item, answer in zip(self.items, answers, strict=True):
            stop_texts = model.config.score.wording.stop_texts
            verdict = judge_number(cut_at(answer.text, stop_texts), item.answer)
            row = {
                "line": item.line,
                "question": item.question,
                "text": answer.text,
                "number": verdict.answer,
                "answer": str(item.answer),
                "is_correct": verdict.correct,
                **answer.details,
            }
            row = ended_at(row, stop_texts)
            rows.append(row | loop_fields(row, has_answer=verdict.answer is not None))
            on_work(1)
        write_rows(folder / self.items_file, rows)
        return NumericResult(
            kind="number",
            file=str(self.path),
            num_items=len(self.items),
            num_without_number=sum(row["number"] is None for row in rows),
            **proportion([row["is_correct"] for row in rows]),
            **loop_rates(rows),
            items=self.items_file,
        )


class NumericResult(Result):
    """Accuracy, the number of solutions without any number, loops and lengths."""

    def show(self) -> None:
        print_lines(
            f"{self['file']}: {self['num_correct']} of {self['num_items']} right, {percent_with_interval(self)}; "
            f"{self['num_without_number']} without a number, {self['num_unfinished']} unfinished, "
            f"{100 * self['looped']:.1f} % looped, {self['mean_tokens']:.0f} tokens on average"
        )


def _prompt(item: NumberItem, scorer: Scorer) -> str:
    return scorer.config.wording.prompt.replace("{question}", item.question)

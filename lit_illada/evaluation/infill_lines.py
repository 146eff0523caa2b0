"""Lines of a pretrained run's held-out text, filled in given the text on both sides, and given the text before only.

A diffusion model reads both sides; a causal one only what stands before, so the second accuracy compares the two kinds
of models, and the difference of the two is what the other side is worth. Every gap has the true number of tokens.

A line is right if all its tokens are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path

import torch
from rich.table import Table

from lit_illada import build
from lit_illada.batch import TokenBatch
from lit_illada.config import load_file
from lit_illada.data.datamodule import PackedDataModule
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.evaluation.base import LoadedModel, Progress, Result, Row, percent_with_interval, proportion, write_rows
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.infill import Gap, Part, infill
from lit_illada.generation.text import complete_batch
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.console import Console
from lit_illada.runtime.yaml_files import read_yaml
from lit_illada.schema import from_tree, to_tree
from lit_illada.stats.tests import mcnemar, paired_interval

_ITEMS_FILE = "items-infill-lines.jsonl"
_MOST_TOKENS = 24  # of a line
_FEWEST_CHARACTERS = 4  # of a line, without spaces


@dataclass(frozen=True)
class Line:
    """A line of a text with the text on both sides; ends of lines belong to the sides."""

    before: str
    line: str
    after: str


@dataclass(frozen=True)
class InfillLines:
    """The evaluation of a pretrained run."""

    lines: Sequence[Line]

    @classmethod
    def read(cls, run: RunFolder, num: int) -> "InfillLines":
        """Takes one line from each of at most `num` held-out passages, rows cut at the ends of documents.

        Raises UserError for a checkpoint that is not of a pretraining run, and where no passage has three lines.
        """
        if not run.config.is_file():
            raise UserError(f"{run.path}: not a run folder, so its held-out data are unknown")
        tree = read_yaml(run.config)
        if "sft_data" in tree or "alignment" in tree:
            raise UserError(f"{run.path} is not a pretraining run, and only these have held-out text: use --held-out")
        config = load_file("pretrain", run.config)
        datamodule = build.build_datamodule(config)
        datamodule.validation_rows = datamodule.val_rows.rows_per_epoch
        lines = list(islice(_lines(datamodule), num))
        if not lines:
            raise UserError(f"{config.data.dir}: no held-out passage of data.row_length has a line between two others")
        return cls(lines)

    def check(self, model: LoadedModel) -> None:
        """Nothing to compare: a passage of more tokens than the model has positions is shortened at its ends."""

    def run(self, model: LoadedModel, folder: Path, progress: Progress) -> "InfillResult":
        on_work = progress("held-out lines", len(self.lines))
        rows = []
        for line in self.lines:
            rows.append(_row(model, line))
            on_work(1)
        write_rows(folder / _ITEMS_FILE, rows)
        result = InfillResult(kind="infill_lines", num_items=len(rows), items=_ITEMS_FILE)
        sides = [side for side in ("both", "before") if f"is_right_{side}" in rows[0]]
        for side in sides:
            result[side] = proportion([row[f"is_right_{side}"] for row in rows])
            result[f"exact_match_{side}"] = result[side]["accuracy"]
            result[f"tokens_right_{side}"] = sum(row[f"tokens_right_{side}"] for row in rows) / sum(
                row["num_tokens"] for row in rows
            )
        if len(sides) == 2:
            table = mcnemar([(row["is_right_before"], row["is_right_both"]) for row in rows])
            result |= {"difference_95": list(paired_interval(table)), "mcnemar_p": table.p_value}
        return result


class InfillResult(Result):
    """Exact match and the fraction of right tokens, by what was given."""

    def show(self) -> None:
        table = Table(title=f"held-out lines: {self['num_items']}", title_justify="left")
        for heading in ("given", "exact match, 95 % interval", "right tokens"):
            table.add_column(heading, justify="left" if heading == "given" else "right")
        for side, label in {"both": "both sides", "before": "text before"}.items():
            if side in self:
                table.add_row(label, percent_with_interval(self[side]), f"{self[f'tokens_right_{side}']:.1%}")
        Console().print(table)


def _row(model: LoadedModel, line: Line) -> Row:
    """One line, filled in by the model; a causal model and one in blocks continue the text before."""
    tokenizer = model.writer.tokenizer
    before, truth, after = (tokenizer.encode(text) for text in (line.before, line.line, line.after))
    # encoded in three parts a passage may have more tokens than its row, hence than the model has positions
    room = model.writer.model.config.max_position_embeddings - len(truth)
    before = before[-room:]
    after = after[: room - len(before)]
    device_type = model.writer.model.lm_head_weight.device.type
    with torch.autocast(device_type, torch.bfloat16, enabled=model.writer.is_bf16):
        if model.writer.model.config.is_causal or model.writer.model.config.block_length is not None:
            written = {"before": _continued(model, before, len(truth))}
        else:
            gap: list[Part] = [before, Gap(len(truth), len(truth))]
            written = {"both": _filled(model, [*gap, after]), "before": _filled(model, gap)}
    row: Row = {"prompt": line.before, "after": line.after, "truth": line.line, "num_tokens": len(truth)}
    for side, ids in written.items():
        right = sum(first == second for first, second in zip(ids, truth, strict=True))
        row |= {
            f"text_{side}": tokenizer.decode(ids),
            f"is_right_{side}": ids == truth,
            f"tokens_right_{side}": right,
        }
    return row


def _filled(model: LoadedModel, parts: Sequence[Part]) -> list[int]:
    """Tokens that a diffusion model puts into the gap, the second part."""
    tokenizer = model.writer.tokenizer
    filled = infill(
        model.writer.model,
        parts,
        model.writer.generation,
        mask_token_id=tokenizer.mask_token_id,
        stop_token_ids=[tokenizer.eos_token_id],
    )
    return filled.parts[1]


def _continued(model: LoadedModel, before: list[int], num_tokens: int) -> list[int]:
    """Tokens of a causal model after a text, without a stop token."""
    tree = to_tree(model.writer.generation)
    changes = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "canvas": Canvas.append.value}
    config = from_tree(GenerationConfig, {**tree, **changes}, "generation.")
    (text,) = complete_batch(model.writer.model, model.writer.tokenizer, [before], config).texts()
    return text


def _lines(datamodule: PackedDataModule) -> Iterator[Line]:
    tokenizer = datamodule.tokenizer
    batches: list[TokenBatch] = datamodule.val_dataloader()  # type: ignore[assignment]
    for ids in chain.from_iterable(batch.input_ids.tolist() for batch in batches):
        for passage in _split(ids, tokenizer.eos_token_id):
            yield from _middle_line(tokenizer, tokenizer.decode(passage))


def _split(ids: Sequence[int], end: int) -> Iterator[list[int]]:
    """The stretches of a row between end-of-document tokens."""
    stops = [-1, *(index for index, token in enumerate(ids) if token == end), len(ids)]
    return (list(ids[first + 1 : last]) for first, last in pairwise(stops))


def _middle_line(tokenizer: Tokenizer, text: str) -> Iterator[Line]:
    """The line nearest to the middle of a text that is neither its first nor last one, nor too short or too long."""
    lines = text.splitlines(keepends=True)
    middle = len(lines) // 2
    for index in sorted(range(1, len(lines) - 1), key=lambda index: abs(index - middle)):
        line = lines[index].rstrip("\n")
        is_long_enough = len("".join(line.split())) >= _FEWEST_CHARACTERS
        if is_long_enough and len(tokenizer.encode(line)) <= _MOST_TOKENS:
            after = lines[index][len(line) :] + "".join(lines[index + 1 :])
            yield Line("".join(lines[:index]), line, after)
            return

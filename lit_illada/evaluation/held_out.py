"""Questions made of a run's own held-out data, without a task file.

A fine-tuned run solves the problems of its validation set by generation. A pretrained run chooses the continuation of a
held-out text among four: its own and those of three other texts. That is no public benchmark, but the same for all arms
of a sweep.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from lit_illada import build
from lit_illada.batch import TokenBatch
from lit_illada.config import PretrainConfig, SFTConfig, load_file
from lit_illada.data.datamodule import PackedDataModule
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.evaluation.base import LoadedModel, Progress, Result, Row, write_rows
from lit_illada.evaluation.multiple_choice import ChoiceResult, MultipleChoice
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.terminal import print_lines
from lit_illada.runtime.yaml_files import read_yaml
from lit_illada.scoring.config import Plain
from lit_illada.stats.intervals import wilson
from lit_illada.tasks.items import ChoiceItem

_ITEMS_FILE = "items-held-out.jsonl"
_CONTEXT_TOKENS = 32
_CHOICE_TOKENS = 8
_NUM_CHOICES = 4


def read_held_out(run: RunFolder, num: int) -> "HeldOutProblems | HeldOutContinuations":
    """The evaluation that fits a run: problems of a fine-tuned one, continuations of a pretrained one.

    num: questions; of problems, for each difficulty. Raises UserError for a checkpoint that is not of a run, and for a
    pretrained run with too little held-out text.
    """
    if not run.config.is_file():
        raise UserError(f"{run.path}: not a run folder, so its held-out data are unknown")
    tree = read_yaml(run.config)
    if "alignment" in tree:
        raise UserError(f"{run.path} is an alignment run, which reports its held-out problems itself: use --task")
    config = load_file("sft" if "sft_data" in tree else "pretrain", run.config)
    return HeldOutProblems(config, num) if isinstance(config, SFTConfig) else HeldOutContinuations.read(config, num)


@dataclass(frozen=True)
class HeldOutContinuations:
    """The evaluation of a pretrained run."""

    items: Sequence[ChoiceItem]

    @classmethod
    def read(cls, config: PretrainConfig, num: int) -> "HeldOutContinuations":
        """Makes at most `num` items of the run's validation rows. Raises UserError where there are too few."""
        datamodule = build.build_datamodule(config)
        datamodule.validation_rows = datamodule.val_rows.rows_per_epoch
        length = _CONTEXT_TOKENS + _CHOICE_TOKENS
        if config.data.row_length < length:
            raise UserError(f"data.row_length is {config.data.row_length}; a continuation takes {length} tokens")
        texts: list[tuple[str, str]] = []
        different: set[str] = set()
        for context, own in _texts(datamodule):
            texts.append((context, own))
            different.add(own)
            if len(texts) >= num and len(different) >= _NUM_CHOICES:
                break
        if len(different) < _NUM_CHOICES:
            raise UserError(
                f"{config.data.dir}: only {len(different)} different continuations of held-out texts; a question needs "
                f"{_NUM_CHOICES}"
            )
        return cls(_items(texts)[:num])

    def check(self, model: LoadedModel) -> None:
        """Raises UserError for a text that exceeds the model's positions."""
        self._choices.check(_with_plain_wording(model))

    def run(self, model: LoadedModel, folder: Path, progress: Progress) -> ChoiceResult:
        return self._choices.run(_with_plain_wording(model), folder, progress)

    @property
    def _choices(self) -> MultipleChoice:
        return MultipleChoice(Path("continuations"), self.items, _ITEMS_FILE)


@dataclass(frozen=True)
class HeldOutProblems:
    """The evaluation of a fine-tuned run."""

    config: SFTConfig
    """Config of the run."""
    num: int
    """Problems of each difficulty."""

    def check(self, model: LoadedModel) -> None:
        """Nothing to compare: the run was validated on these problems."""

    def run(self, model: LoadedModel, folder: Path, progress: Progress) -> "ProblemsResult":
        """Generates the answers. Raises UserError where the run's data have no reference answers."""
        writer = model.writer
        datamodule = build.build_sft_datamodule(self.config, writer.tokenizer)
        if not datamodule.difficulties:
            raise UserError("the run's conversations have no reference answers to compare with")
        rows: list[Row] = []
        result = ProblemsResult(kind="held_out_problems")
        num_forwards, started_at = 0.0, time.perf_counter()
        for level in datamodule.difficulties:
            examples = datamodule.evaluation_examples(level, self.num)
            on_work = progress(f"{level} problems", len(examples))
            are_right: list[bool] = []
            answers = writer.write([example.prompt_ids for example in examples])
            for example, written in zip(examples, answers, strict=True):
                ids = written.token_ids
                num_forwards += written.num_forwards
                are_right.append(datamodule.is_right(example, ids))
                rows.append(_row(level.value, writer.tokenizer, example.prompt_ids, ids, example.truth, are_right[-1]))
                on_work(1)
            result[f"exact_match_{level.value}"] = sum(are_right) / len(are_right)
            result[f"wilson_95_{level.value}"] = list(wilson(sum(are_right), len(are_right)))
            result[f"num_{level.value}"] = len(are_right)
        write_rows(folder / _ITEMS_FILE, rows)
        result |= {"num_forwards": num_forwards, "elapsed_s": time.perf_counter() - started_at, "items": _ITEMS_FILE}
        return result


class ProblemsResult(Result):
    """Exact match by difficulty."""

    def show(self) -> None:
        for level in ("easy", "harder"):
            if f"num_{level}" in self:
                low, high = self[f"wilson_95_{level}"]
                accuracy, num = self[f"exact_match_{level}"], self[f"num_{level}"]
                print_lines(f"{level} problems: {accuracy:.1%} ({low:.0%}–{high:.0%}) of {num} right")


def _with_plain_wording(model: LoadedModel) -> LoadedModel:
    """The same model, prompted with the text itself instead of the wording of a task."""
    score = replace(model.config.score, wording=Plain(prompt="{question}", choice="{choice}"))
    return replace(model, config=replace(model.config, score=score))


def _items(texts: Sequence[tuple[str, str]]) -> list[ChoiceItem]:
    """One item per text, with wrong choices from the texts after it; the right choice moves through the positions."""
    items = []
    for line, (context, own) in enumerate(texts, 1):
        # line - 1 is this text's index, so `line` is the next one's
        others = dict.fromkeys(texts[(line + n) % len(texts)][1] for n in range(len(texts) - 1))
        wrong = [text for text in others if text != own][: _NUM_CHOICES - 1]
        answer = line % (len(wrong) + 1)
        items.append(ChoiceItem(line, context, (*wrong[:answer], own, *wrong[answer:]), answer))
    return items


def _row(
    difficulty: str, tokenizer: Tokenizer, prompt_ids: Sequence[int], ids: Sequence[int], truth: str, is_right: bool
) -> dict[str, Any]:
    return {
        "difficulty": difficulty,
        "prompt": tokenizer.decode(prompt_ids),
        "response": tokenizer.decode(ids),
        "truth": truth,
        "is_right": is_right,
    }


def _texts(datamodule: PackedDataModule) -> Iterator[tuple[str, str]]:
    """(context, continuation) from the beginning of every row that lies within one document."""
    tokenizer, end = datamodule.tokenizer, _CONTEXT_TOKENS + _CHOICE_TOKENS
    batches: list[TokenBatch] = datamodule.val_dataloader()  # type: ignore[assignment]
    for ids in chain.from_iterable(batch.input_ids.tolist() for batch in batches):
        if tokenizer.eos_token_id in ids[:end]:
            continue
        context, choice = tokenizer.decode(ids[:_CONTEXT_TOKENS]), tokenizer.decode(ids[_CONTEXT_TOKENS:end])
        if context.strip() and choice.strip():
            yield context, choice

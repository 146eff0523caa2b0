"""What can a run be asked that it has not seen? Questions made of its own held-out data, without a file of tasks.

A fine-tuned run answers the problems of its validation, by generation. A pretrained one tells how a held-out text goes
on, from that text's own continuation and those of three others: no benchmark, but the same for every arm of a sweep.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from lit_illada import build
from lit_illada.batch import TokenBatch
from lit_illada.config import PretrainConfig, SFTConfig, load_file
from lit_illada.data.datamodule import PackedDataModule
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.evaluation.items import ChoiceItem
from lit_illada.evaluation.task_scores import Progress, Row
from lit_illada.evaluation.writer import Writer
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.yaml_files import read_yaml
from lit_illada.stats.intervals import wilson

_CONTEXT_TOKENS = 32
_CHOICE_TOKENS = 8
_CHOICES = 4


def config_of(run: RunFolder) -> PretrainConfig | SFTConfig:
    """The config of the run that a checkpoint is of. Raises UserError for one that is of no run of ours."""
    if not run.config.is_file():
        raise UserError(f"{run.path}: no run there, so that nothing is known to be held out from it")
    return load_file("sft" if "sft_data" in read_yaml(run.config) else "pretrain", run.config)


def continuations(config: PretrainConfig, num: int) -> list[ChoiceItem]:
    """Which of four pieces of held-out text follows this one?"""
    datamodule = build.build_datamodule(config)
    datamodule.validation_rows = datamodule.val_rows.rows_per_epoch
    length = _CONTEXT_TOKENS + _CHOICE_TOKENS
    if config.data.row_length < length:
        raise UserError(f"data.row_length is {config.data.row_length}; a continuation takes {length} tokens")
    texts = list(islice(_texts(datamodule), num))
    if len(texts) < _CHOICES:
        raise UserError(f"{config.data.dir}: too little held-out text to ask for continuations")
    items = []
    for line, (context, own) in enumerate(texts, 1):
        others = dict.fromkeys(texts[(line + n) % len(texts)][1] for n in range(len(texts) - 1))
        wrong = [text for text in others if text != own][: _CHOICES - 1]
        place = line % (len(wrong) + 1)
        items.append(ChoiceItem(line, context, (*wrong[:place], own, *wrong[place:]), place))
    return items


def score_problems(
    config: SFTConfig,
    num: int,
    writer: Writer,
    progress: Progress,
) -> tuple[list[Row], dict[str, Any]]:
    """Exact match on the first `num` problems of each difficulty, and what generating the answers took."""
    datamodule = build.build_sft_datamodule(config, writer.tokenizer)
    if not datamodule.difficulties:
        raise UserError("the run's conversations have no truth to compare answers with")
    rows: list[Row] = []
    result: dict[str, Any] = {"kind": "held_out_problems"}
    num_forwards, since = 0.0, time.perf_counter()
    for level in datamodule.difficulties:
        examples = datamodule.evaluation_examples(level, num)
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
    return rows, {**result, "num_forwards": num_forwards, "elapsed_s": time.perf_counter() - since}


def _row(
    difficulty: str, tokenizer: Tokenizer, prompt_ids: Sequence[int], ids: Sequence[int], truth: str, is_right: bool
) -> Row:
    return {
        "difficulty": difficulty,
        "prompt": tokenizer.decode(prompt_ids),
        "response": tokenizer.decode(ids),
        "truth": truth,
        "is_right": is_right,
    }


def _texts(datamodule: PackedDataModule) -> Iterator[tuple[str, str]]:
    """(context, continuation) from the beginning of every row that one document fills so far."""
    tokenizer, end = datamodule.tokenizer, _CONTEXT_TOKENS + _CHOICE_TOKENS
    batches: list[TokenBatch] = datamodule.val_dataloader()  # type: ignore[assignment]
    for ids in chain.from_iterable(batch.input_ids.tolist() for batch in batches):
        if tokenizer.eos_token_id in ids[:end]:
            continue
        context, choice = tokenizer.decode(ids[:_CONTEXT_TOKENS]), tokenizer.decode(ids[_CONTEXT_TOKENS:end])
        if context.strip() and choice.strip():
            yield context, choice

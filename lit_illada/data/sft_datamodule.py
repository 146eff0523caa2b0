"""Data module of fine-tuning: rows of examples, and held-out prompts for exact match."""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from lit_illada.data.corpora.tally import Tally
from lit_illada.data.row_datamodule import VALIDATION_SEED, RowDataModule
from lit_illada.data.sft.chat_template import ChatTemplate
from lit_illada.data.sft.config import Gsm8kSource, Packed, Padded, ReasoningSource, SFTDataConfig, TaskSource
from lit_illada.data.sft.examples import Example, make_examples, read_examples, task_examples
from lit_illada.data.sft.rows import EncodedExamples, ExampleRows, build_stream
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.tasks.base import Problem, Split, judged
from lit_illada.tasks.references import judge_exact, judge_number

_log = logging.getLogger(__name__)
# Validation scores the response given its prompt, whatever layout is trained on, so that arms are comparable.
_VALIDATION_ROWS = Padded(is_prompt_maskable=False, is_padding_maskable=False)


class Difficulty(StrEnum):
    """Which held-out examples to evaluate on."""

    EASY = "easy"
    """Examples like those of training."""
    HARDER = "harder"
    """Examples beyond the training range."""


@dataclass(frozen=True)
class EvaluationExample:
    """A held-out prompt and its reference answer."""

    prompt_ids: list[int]
    response_ids: list[int]  # the response in the data, with its reasoning and EOS
    truth: str  # reference that an answer is compared with
    origin: str
    problem: Problem | None = None  # of a task, which checks the answer instead; None: another source


@dataclass(frozen=True)
class _Split:
    """Examples that fit a row, and their tokens."""

    examples: list[Example]
    pairs: list[tuple[list[int], list[int]]]  # (prompt ids, response ids)

    def encoded(self) -> EncodedExamples:
        return EncodedExamples.of(self.pairs)

    def conversations(self) -> NDArray[np.int64]:
        """(D,): a number per example, equal for the turns of one conversation."""
        _, numbers = np.unique([example.origin for example in self.examples], return_inverse=True)
        return numbers.astype(np.int64)


class SFTDataModule(RowDataModule):
    """Rows of examples, tokenised with the model's tokenizer.

    left_out: tally of the skipped examples.
    """

    config: SFTDataConfig

    def __init__(
        self,
        config: SFTDataConfig,
        tokenizer: Tokenizer,
        *,
        seed: int,
        batch_rows: int,
        micro_batch_rows: int,
        total_steps: int,
        validation_rows: int,
    ) -> None:
        """Builds the chat template. Raises UserError if the tokenizer has no token for a mark of the template.

        batch_rows: rows per optimizer step, over all ranks. micro_batch_rows: rows per forward on one rank.
        """
        super().__init__(
            config,
            seed=seed,
            batch_rows=batch_rows,
            micro_batch_rows=micro_batch_rows,
            total_steps=total_steps,
            validation_rows=validation_rows,
        )
        self._tokenizer = tokenizer
        self.template = ChatTemplate(config.template, tokenizer)
        self.left_out = Tally(config.on_bad_example)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @cached_property
    def fingerprint(self) -> str:
        digests = [split.encoded().digest() for split in self._splits]
        return hashlib.sha256(" ".join([self.tokenizer.sha256, *digests]).encode()).hexdigest()

    @property
    def location(self) -> str:
        return "sft_data"

    @property
    def row_settings(self) -> dict[str, str]:
        rows = {"sft_data.rows": str(self.config.rows)}
        is_cut = isinstance(self.config.rows, Packed)  # a padded row is one example, whatever the row length
        return {**rows, "sft_data.row_length": str(self.config.row_length)} if is_cut else rows

    @cached_property
    def train_rows(self) -> ExampleRows:
        train, _ = self._splits
        return self._rows(train, self.config.rows, self.seed)

    @cached_property
    def val_rows(self) -> ExampleRows:
        """One example per row with a maskable response, whatever layout `rows` configures."""
        _, validation = self._splits
        stream = self._rows(validation, _VALIDATION_ROWS, VALIDATION_SEED).stream
        return ExampleRows(stream, validation.conversations())

    def steps(self, epochs: float) -> int:
        """Optimizer steps in this number of epochs, rounded up."""
        return max(1, math.ceil(epochs * self.rows_per_epoch / self.batch_rows))

    def training_counts(self) -> NDArray[np.int64]:
        """(V,): token counts of the training responses."""
        examples = self._splits[0].encoded()
        return np.bincount(examples.tokens[examples.is_response], minlength=self.tokenizer.vocab_size)

    @property
    def difficulties(self) -> list[Difficulty]:
        """The difficulties that have examples with a reference answer; none for open-ended conversations."""
        if isinstance(self.config.source, ReasoningSource):
            return list(Difficulty)
        _, validation = self._splits
        return [Difficulty.EASY] if any(example.truth is not None for example in validation.examples) else []

    def evaluation_examples(self, difficulty: Difficulty, num: int) -> list[EvaluationExample]:
        """The first `num` prompts with a reference answer, or all if there are fewer; the order never changes.

        Raises UserError where the data have no such examples.
        """
        if difficulty not in self.difficulties:
            raise UserError(f"{self.location} has no {difficulty} examples with a reference answer")
        split = self._harder if difficulty is Difficulty.HARDER else self._splits[1]
        return [
            EvaluationExample(prompt, response, example.truth, example.origin, example.problem)
            for example, (prompt, response) in zip(split.examples, split.pairs, strict=True)
            if example.truth is not None
        ][:num]

    def validation_prompts(self, num: int) -> list[list[int]]:
        """The ids of the first `num` validation prompts, or of all if there are fewer."""
        return [prompt for prompt, _ in self._splits[1].pairs[:num]]

    def is_right(self, example: EvaluationExample, response_ids: Sequence[int]) -> bool:
        """Whether a response, up to its EOS, is correct; one with unclosed reasoning is not.

        The task decides; for GSM8K's files the same rule as for the task `gsm8k`; for other sources exact match.
        """
        answer, source = self.template.read(response_ids).answer, self.config.source
        if isinstance(source, TaskSource):
            assert example.problem is not None
            return judged(source.task, example.problem, answer).correct
        if isinstance(source, Gsm8kSource):
            return judge_number(answer, Fraction(example.truth)).correct
        return judge_exact(answer, example.truth).correct

    @cached_property
    def _splits(self) -> tuple[_Split, _Split]:
        """(training, validation)."""
        source, fraction = self.config.source, self.config.validation_fraction
        if isinstance(source, ReasoningSource):
            train = make_examples(source, source.easy, Split.TRAIN, source.num_train, fraction)
            validation = make_examples(source, source.easy, Split.VALIDATION, source.num_validation, fraction)
        elif isinstance(source, TaskSource):
            train, validation = task_examples(source, self.left_out.on_bad)
        else:
            train, validation = read_examples(source, fraction, self.left_out.on_bad)
        if not self.config.rows.is_prompt_maskable:
            train = [turn for example in train for turn in example.turns()]
        validation = [turn for example in validation for turn in example.turns()]
        splits = self._encoded(train, "training"), self._encoded(validation, "validation")
        if self.left_out.bad:
            _log.warning("skipped %d bad examples; the first: %s", self.left_out.bad, self.left_out.examples[0])
        return splits

    @cached_property
    def _harder(self) -> _Split:
        source = self.config.source
        assert isinstance(source, ReasoningSource)
        examples = make_examples(source, source.harder, Split.TEST, source.num_harder, self.config.validation_fraction)
        # used as prompts, never as training rows, so they may exceed row_length
        return _Split(examples, self.template.encode_batch([example.messages for example in examples]))

    def _encoded(self, examples: list[Example], split: str) -> _Split:
        pairs = self.template.encode_batch([example.messages for example in examples])
        fits = [self._fits(example, pair) for example, pair in zip(examples, pairs, strict=True)]
        fitting = _Split(list(compress(examples, fits)), list(compress(pairs, fits)))
        if not fitting.examples:
            first = f"; the first skipped: {self.left_out.examples[0]}" if self.left_out.examples else ""
            raise UserError(
                f"sft_data.source{_listed(self.config.source)} has no {split} examples "
                f"({self.left_out.bad} bad ones skipped{first}); add files, or change validation_fraction"
            )
        return fitting

    def _fits(self, example: Example, pair: tuple[list[int], list[int]]) -> bool:
        length = len(pair[0]) + len(pair[1])
        if length <= self.config.row_length:
            return True
        self.left_out.on_bad(
            UserError(
                f"{example.origin}: {length} tokens, more than sft_data.row_length={self.config.row_length}; raise "
                "it, or set sft_data.on_bad_example=skip"
            )
        )
        return False

    def _rows(self, split: _Split, rows: Packed | Padded, seed: int) -> ExampleRows:
        return ExampleRows(
            build_stream(
                rows,
                split.encoded(),
                row_length=self.config.row_length,
                batch_rows=self.batch_rows,
                eos_token_id=self.tokenizer.eos_token_id,
                seed=seed,
            )
        )


def _listed(source: object) -> str:
    """The first paths of a source, for a message; empty for a source without files."""
    paths = getattr(source, "paths", [])
    return f".paths=[{', '.join(paths[:3])}{', …' if len(paths) > 3 else ''}]" if paths else ""

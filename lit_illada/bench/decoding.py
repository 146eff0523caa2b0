"""One way of decoding, timed: a model, its generation settings, and the texts that it writes in batches."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from lit_illada.bench.figure import now
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.generation.canvas import Commit
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.text import complete_batch
from lit_illada.model.transformer import Transformer

Clock = Callable[[], float]
"""Seconds since a fixed moment."""


def clock_of(device: torch.device) -> tuple[Clock, str]:
    """The clock of the measurements and its name.

    One CPU thread is timed by the CPU seconds of the process, which other processes hardly affect; anything else by
    wall-clock seconds.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time, "CPU seconds of one thread"
    return partial(now, device), "wall-clock seconds"


@dataclass(frozen=True, eq=False)
class Way:
    """A model with a way of decoding."""

    model: Transformer
    tokenizer: Tokenizer
    generation: GenerationConfig
    is_bf16: bool

    def write(self, prompts: Sequence[Sequence[int]], batch_prompts: int) -> "Written":
        """Continue the prompts in batches of `batch_prompts` and measure it."""
        device = self.model.lm_head_weight.device
        clock, _ = clock_of(device)
        texts, num_tokens, row_forwards, first_s = [], 0, 0, 0.0
        started_at = clock()
        for first in range(0, len(prompts), batch_prompts):
            batch = prompts[first : first + batch_prompts]
            stopwatch = _FirstToken(clock)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.is_bf16):
                generation = complete_batch(
                    self.model, self.tokenizer, batch, self.generation,
                    row_numbers=range(first, first + len(batch)), on_commit=stopwatch,
                )  # fmt: skip
            texts += generation.texts()
            # the EOS of a stopped response is a generated token
            num_tokens += int(generation.num_tokens.sum() + generation.is_stopped.sum())
            row_forwards += generation.num_forwards * len(batch)
            first_s += stopwatch.elapsed_s * len(batch)
        return Written(texts, num_tokens, row_forwards, clock() - started_at, first_s / len(prompts))


@dataclass(frozen=True)
class Written:
    """The continuations of all prompts."""

    texts: list[list[int]]
    num_tokens: int
    """Tokens up to and including the EOS, of all texts."""
    row_forwards: int
    """Forward passes of each batch times its rows."""
    elapsed_s: float
    first_token_s: float
    """Mean over the prompts, from the start of their batch until the first token of all its texts is final."""

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.elapsed_s

    @property
    def forwards_per_token(self) -> float:
        """Forward passes that a text takes part in, per token of the text; 1 for an autoregressive model, more where
        texts of a batch differ in length."""
        return self.row_forwards / self.num_tokens


class _FirstToken:
    """Measures the seconds until the first token of every row has been committed."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._started_at, self.elapsed_s = clock, clock(), 0.0
        self._is_written: torch.Tensor | None = None

    def __call__(self, commit: Commit) -> None:
        if self.elapsed_s:
            return
        is_now = commit.is_committed[:, commit.prompt_length]
        self._is_written = is_now if self._is_written is None else self._is_written | is_now
        if self._is_written.all():
            self.elapsed_s = self._clock() - self._started_at

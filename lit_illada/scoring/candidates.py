"""Candidates, the answers that are scored given a prompt: made from texts, and padded into batches.

Shapes: B rows, T tokens per row.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from lit_illada.batch import Layout, TokenBatch
from lit_illada.errors import UserError

Encode = Callable[[str], list[int]]
"""Text to token ids."""


@dataclass(frozen=True)
class Candidate:
    """An answer to score, given a prompt."""

    prompt_ids: list[int]
    """Always visible to the model."""
    answer_ids: list[int]
    """The scored tokens, at least one."""
    row_id: int
    """Key of the masks, so that they do not depend on the other candidates."""

    @classmethod
    def answering(cls, prompt_ids: list[int], answer_ids: list[int]) -> Self:
        """A choice of a question, keyed by its prompt.

        The choices of a question thus share their masks (common random numbers), so their differences have less noise.
        """
        return cls(prompt_ids, answer_ids, _row_id(prompt_ids))

    @classmethod
    def continuing(cls, context_ids: list[int], text_ids: list[int]) -> Self:
        """A window of a text, keyed by its context and text, so that the errors of windows are independent."""
        return cls(context_ids, text_ids, _row_id(context_ids + text_ids))

    @property
    def token_ids(self) -> list[int]:
        """Prompt and answer."""
        return self.prompt_ids + self.answer_ids

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True)
class Score:
    """The score of a candidate."""

    value: float
    """Sum over the answer's tokens in nats; higher is better."""
    stderr: float
    """Standard error of a sampled value; 0 where nothing is sampled."""
    num_tokens: int
    """Tokens of the answer."""

    @classmethod
    def sum(cls, parts: Sequence[Self]) -> "Score":
        """The score of several parts together, whose errors are independent."""
        stderr = sum(part.stderr**2 for part in parts) ** 0.5
        return Score(sum(part.value for part in parts), stderr, sum(part.num_tokens for part in parts))


def encode_pair(encode: Encode, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the answer.

    Both are encoded as one text, as in the training data, and split where the prompt's own encoding ends; trailing
    spaces of the prompt move to the answer, whose first token includes them (both as in the evaluations of LLaDA and
    EleutherAI). Where the tokenizer merges characters across the split, prompt and answer are encoded separately.
    """
    spaces = prompt[len(prompt.rstrip()) :]
    prompt, answer = prompt.rstrip(), spaces + answer
    prompt_ids, all_ids = encode(prompt), encode(prompt + answer)
    num_prompt = len(prompt_ids)
    if all_ids[:num_prompt] != prompt_ids or len(all_ids) == num_prompt:
        return prompt_ids, encode(answer)
    return prompt_ids, all_ids[num_prompt:]


def rolling_windows(ids: Sequence[int], window_length: int, context_length: int) -> list[Candidate]:
    """Windows that together score every token of a text once, each given the `context_length` tokens before it.

    The scores add up to the text's log-likelihood, truncated to this context (chain rule).
    """
    if context_length >= window_length:
        raise UserError(
            f"score.context_length is {context_length}, but a window has {window_length} tokens: no tokens would be "
            "left to score"
        )
    windows = []
    start = 0
    while start < len(ids):
        context_start = max(0, start - context_length)
        end = min(len(ids), context_start + window_length)
        windows.append(Candidate.continuing(list(ids[context_start:start]), list(ids[start:end])))
        start = end
    return windows


def padded_batch(rows: Sequence[Candidate], pad_token_id: int) -> TokenBatch:
    """The candidates as a batch on the CPU, with maskable answers. The padding of a row is a separate segment, to
    which the candidate does not attend."""
    row_length = max(map(len, rows))
    ids_BT = torch.full((len(rows), row_length), pad_token_id, dtype=torch.int64)
    is_maskable_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row)] = torch.tensor(row.token_ids)
        is_maskable_BT[number, len(row.prompt_ids) : len(row)] = True
    layout = padded_layout(list(map(len, rows)), row_length)
    return TokenBatch(ids_BT, is_maskable_BT, torch.tensor([row.row_id for row in rows]), layout)


def padded_layout(lengths: Sequence[int], row_length: int) -> Layout:
    """Layout of rows with one document each, padded to `row_length`."""
    segments = [part for length in lengths for part in (length, row_length - length) if part]
    return Layout.from_lengths(torch.tensor(segments), row_length)


def batched_groups(groups: Sequence[Sequence[Candidate]], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of the groups in batches of at most `batch_tokens` padded tokens.

    A group is never split, even if it exceeds the limit. Groups are sorted by length of answer, then of row, the
    longest first, to save padding and forward passes.
    """

    def size(group: int) -> tuple[int, int]:
        return max(len(c.answer_ids) for c in groups[group]), max(map(len, groups[group]))

    batch: list[int] = []
    num_rows = row_length = 0
    for group in sorted(range(len(groups)), key=size, reverse=True):
        longer = max(row_length, size(group)[1])
        if batch and (num_rows + len(groups[group])) * longer > batch_tokens:
            yield batch
            batch, num_rows, longer = [], 0, size(group)[1]
        batch.append(group)
        num_rows, row_length = num_rows + len(groups[group]), longer
    if batch:
        yield batch


def _row_id(ids: list[int]) -> int:
    """A 64-bit hash of the tokens."""
    digest = hashlib.blake2b(array("q", ids).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)

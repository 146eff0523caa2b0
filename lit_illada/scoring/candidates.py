"""What is scored: an answer given a prompt; how texts become such pairs, and pairs of any length become batches.

Shapes: B rows, T tokens a row.
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


@dataclass(frozen=True)
class Candidate:
    """answer_ids, of one token or more, are scored; prompt_ids before them are always visible.

    row_id: names the answer's noise, so that its masks do not depend on what else is scored.
    """

    prompt_ids: list[int]
    answer_ids: list[int]
    row_id: int

    @classmethod
    def answering(cls, prompt_ids: list[int], answer_ids: list[int]) -> Self:
        """Named after the prompt: the choices of a question share their masks, and so are told apart with less noise
        than by masks of their own."""
        return cls(prompt_ids, answer_ids, _name(prompt_ids))

    @classmethod
    def continuing(cls, context_ids: list[int], text_ids: list[int]) -> Self:
        """Named after the whole text: the errors of different texts, or windows, are independent."""
        return cls(context_ids, text_ids, _name(context_ids + text_ids))

    @property
    def token_ids(self) -> list[int]:
        return self.prompt_ids + self.answer_ids

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True)
class Score:
    """value: in nats, summed over the answer; higher is better. stderr: of a sampled value, 0 where none is drawn."""

    value: float
    stderr: float
    num_tokens: int

    @classmethod
    def sum(cls, parts: Sequence[Self]) -> "Score":
        """Of parts with independent errors."""
        stderr = sum(part.stderr**2 for part in parts) ** 0.5
        return Score(sum(part.value for part in parts), stderr, sum(part.num_tokens for part in parts))


def encode_pair(encode: Encode, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The two texts' ids, cut where the prompt's own encoding ends.

    They are encoded as one text, as the model has read such texts; spaces at the prompt's end go to the answer, whose
    first word they belong to (both as in LLaDA's and EleutherAI's evaluation). Where the tokenizer merges across the
    cut, each is encoded alone.
    """
    spaces = prompt[len(prompt.rstrip()) :]
    prompt, answer = prompt.rstrip(), spaces + answer
    prompt_ids, all_ids = encode(prompt), encode(prompt + answer)
    num_prompt = len(prompt_ids)
    if all_ids[:num_prompt] != prompt_ids or len(all_ids) == num_prompt:
        return prompt_ids, encode(answer)
    return prompt_ids, all_ids[num_prompt:]


def rolling_windows(ids: Sequence[int], window_length: int, context_length: int) -> list[Candidate]:
    """Windows that score every token of a text once, each after the `context_length` tokens before it.

    By the chain rule their scores add up to the text's, given that no window needs more context than it has.
    """
    if context_length >= window_length:
        raise UserError(
            f"score.context_length is {context_length}, but a window has {window_length} tokens: nothing would be left "
            "of it to score"
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
    """The candidates as rows of one length, on the CPU, their answers maskable. What pads a row is a segment of its
    own, which the candidate does not see."""
    row_length = max(map(len, rows))
    ids_BT = torch.full((len(rows), row_length), pad_token_id, dtype=torch.int64)
    is_maskable_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row)] = torch.tensor(row.token_ids)
        is_maskable_BT[number, len(row.prompt_ids) : len(row)] = True
    layout = padded_layout(list(map(len, rows)), row_length)
    return TokenBatch(ids_BT, is_maskable_BT, torch.tensor([row.row_id for row in rows]), layout)


def padded_layout(lengths: Sequence[int], row_length: int) -> Layout:
    """Of rows of one document each, padded to `row_length`; without padding every row is one segment."""
    segments = [part for length in lengths for part in (length, row_length - length) if part]
    return Layout.from_lengths(torch.tensor(segments), row_length)


def batched_groups(groups: Sequence[Sequence[Candidate]], batch_tokens: int) -> Iterator[list[int]]:
    """The groups' numbers in batches of at most `batch_tokens` padded tokens; a group is never split, even where it is
    larger than that. Groups of similar answers and lengths come together, the longest first."""

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


def _name(ids: list[int]) -> int:
    digest = hashlib.blake2b(array("q", ids).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)

"""Batches of packed rows, their division into segments, and the model's scores of them.

Shapes: B rows, T tokens per row, S segments (documents or parts of them), M selected tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


class Movable:
    """Moves all tensors of a dataclass, also nested ones. Lightning and the DataLoader call these methods by name."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda value: value.pin_memory())

    def _map(self, move) -> Self:  # type: ignore[no-untyped-def]
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        moved = {name: move(value) for name, value in values.items() if isinstance(value, Tensor | Movable)}
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Layout(Movable):
    """Segments of packed rows. Attention does not cross the border of a segment."""

    position_ids: Tensor
    """(B, T) int64, 0 at the first token of every segment."""
    cu_seqlens: Tensor
    """(S + 1,) int32, borders of the segments in the flattened B·T tokens; every row starts a segment."""
    # the next two are Python integers, since reading them from the device would synchronise with it
    max_seqlen: int
    """Tokens of the longest segment."""
    num_pairs: int
    """Pairs of tokens in the same segment: the sum of the squared segment lengths."""
    blocks: Tensor | None = None
    """(B, T) int64, number of each token's block, rising along the row; attention is then block-causal. None: none."""
    num_noisy: int = 0
    """Columns of noisy tokens, followed by a clean copy of the rows; cu_seqlens, max_seqlen and num_pairs are then
    those of one copy. 0: no copy."""
    visible_later: Tensor | None = None
    """(B, T, T) bool, whether a query (dim 1) attends to a later key (dim 2) of its segment; None: to every one."""

    @classmethod
    def whole_rows(cls, num_rows: int, row_length: int, device: torch.device | str | None = None) -> Self:
        """Layout of rows that are one segment each."""
        position_ids = torch.arange(row_length, device=device).expand(num_rows, -1)
        borders = torch.arange(0, (num_rows + 1) * row_length, row_length, dtype=torch.int32, device=device)
        return cls(position_ids, borders, row_length, num_rows * row_length**2)

    @classmethod
    def from_lengths(cls, lengths: Tensor, row_length: int) -> Self:
        """Layout from the segment lengths in order, (S,), which must fill complete rows of `row_length` tokens."""
        borders = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        starts = torch.repeat_interleave(borders[:-1], lengths)
        position_ids = torch.arange(len(starts), device=lengths.device) - starts
        max_seqlen, num_pairs = int(lengths.max()), int(lengths.square().sum())
        return cls(position_ids.view(-1, row_length), borders.to(torch.int32), max_seqlen, num_pairs)

    @classmethod
    def left_padded(cls, num_padding: Sequence[int], row_length: int, device: torch.device | str | None = None) -> Self:
        """Layout of rows that are one segment each, after `num_padding` columns that form a separate segment."""
        if not any(num_padding):
            return cls.whole_rows(len(num_padding), row_length, device)
        lengths = [length for padding in num_padding for length in (padding, row_length - padding) if length]
        return cls.from_lengths(torch.tensor(lengths, device=device), row_length)

    @property
    def is_whole_rows(self) -> bool:
        """Whether every row is one segment, all of which is visible, so that no attention mask is needed. Reads only
        shapes: no device sync."""
        has_mask = self.blocks is not None or self.visible_later is not None
        return not has_mask and len(self.cu_seqlens) == len(self.position_ids) + 1

    def segment_ids(self) -> Tensor:
        """(B, T) int64: the index of each token's segment, from 1; a clean copy is in the segment of its original."""
        starts = self.position_ids[:, self.num_noisy :] == 0
        ids = starts.reshape(-1).cumsum(0).view_as(starts)
        return torch.cat([ids, ids], 1) if self.num_noisy else ids

    def with_clean_copy(self) -> Self:
        """Layout of rows [noisy | clean], 2·T columns with equal positions and blocks in both halves."""
        assert self.blocks is not None
        assert not self.num_noisy
        position_ids, blocks = (torch.cat([part, part], 1) for part in (self.position_ids, self.blocks))
        return replace(self, position_ids=position_ids, blocks=blocks, num_noisy=self.blocks.shape[1])

    def repeat(self, times: int) -> Self:
        """Layout of the batch repeated `times` along the rows."""
        lengths = self.cu_seqlens.diff().repeat(times)
        borders = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        position_ids = self.position_ids.repeat(times, 1)
        return replace(
            self,
            position_ids=position_ids,
            cu_seqlens=borders,
            num_pairs=times * self.num_pairs,
            blocks=None if self.blocks is None else self.blocks.repeat(times, 1),
            visible_later=None if self.visible_later is None else self.visible_later.repeat(times, 1, 1),
        )


@dataclass(frozen=True, eq=False)
class TokenBatch(Movable):
    """A batch of packed rows."""

    input_ids: Tensor
    """(B, T) int64, unmasked tokens."""
    is_maskable: Tensor
    """(B, T) bool. Other tokens stay visible and carry no loss."""
    # the key of the row's noise, which therefore depends on neither world size nor accumulation nor resumes
    row_ids: Tensor
    """(B,) int64, number of each row in the endless stream of the run, over all ranks and epochs."""
    layout: Layout
    is_response: Tensor | None = None
    """(B, T) bool, an assistant's tokens and the EOS that ends them; None: the rows are plain text."""
    document_ids: Tensor | None = None
    """(B, T) int64, index of each token's document in the validation split; None: training rows."""

    def repeat(self, times: int) -> Self:
        """The batch repeated `times` along the rows."""
        return replace(
            self,
            input_ids=self.input_ids.repeat(times, 1),
            is_maskable=self.is_maskable.repeat(times, 1),
            row_ids=self.row_ids.repeat(times),
            layout=self.layout.repeat(times),
            is_response=None if self.is_response is None else self.is_response.repeat(times, 1),
            document_ids=None if self.document_ids is None else self.document_ids.repeat(times, 1),
        )


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Scores of the selected tokens, in row-major order."""

    nll: Tensor
    """(M,) float32, −log p(target) in nats, differentiable."""
    is_correct: Tensor
    """(M,) bool, whether the target is the argmax."""

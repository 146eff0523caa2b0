"""What flows from the data to the model: packed rows of documents, and how the documents lie in them.

Shapes: B rows, T tokens a row, S segments (documents or parts of them), M selected tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


class _Movable:
    """Moves every tensor of a dataclass; Lightning and the DataLoader call these by name."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda value: value.pin_memory())

    def _map(self, move) -> Self:  # type: ignore[no-untyped-def]
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        moved = {name: move(value) for name, value in values.items() if isinstance(value, Tensor | _Movable)}
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Layout(_Movable):
    """Which tokens of the packed rows see each other: attention never crosses a segment's border.

    position_ids: (B, T) int64, 0 at the first token of every segment.
    cu_seqlens: (S + 1,) int32, the segments' borders in the flattened B·T tokens; every row starts a segment.
    max_seqlen: tokens in the longest segment. num_pairs: pairs of tokens that see each other, the sum of the segments'
    squared lengths. Both are counted on the host, so that nobody has to ask a device for them.
    """

    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    num_pairs: int

    @classmethod
    def whole_rows(cls, num_rows: int, row_length: int, device: torch.device | str | None = None) -> Self:
        """Every row is one segment."""
        position_ids = torch.arange(row_length, device=device).expand(num_rows, -1)
        borders = torch.arange(0, (num_rows + 1) * row_length, row_length, dtype=torch.int32, device=device)
        return cls(position_ids, borders, row_length, num_rows * row_length**2)

    @classmethod
    def from_lengths(cls, lengths: Tensor, row_length: int) -> Self:
        """From the segments' lengths in order, (S,); they must fill whole rows of `row_length`."""
        borders = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        starts = torch.repeat_interleave(borders[:-1], lengths)
        position_ids = torch.arange(len(starts), device=lengths.device) - starts
        max_seqlen, num_pairs = int(lengths.max()), int(lengths.square().sum())
        return cls(position_ids.view(-1, row_length), borders.to(torch.int32), max_seqlen, num_pairs)

    @classmethod
    def left_padded(cls, num_padding: Sequence[int], row_length: int, device: torch.device | str | None = None) -> Self:
        """Every row is one segment behind `num_padding` columns, which are a segment of their own: nobody sees them."""
        if not any(num_padding):
            return cls.whole_rows(len(num_padding), row_length, device)
        lengths = [length for padding in num_padding for length in (padding, row_length - padding) if length]
        return cls.from_lengths(torch.tensor(lengths, device=device), row_length)

    @property
    def is_whole_rows(self) -> bool:
        """Whether every row is one segment, so that no attention mask is needed. Shapes only: no device sync."""
        return len(self.cu_seqlens) == len(self.position_ids) + 1

    def segment_ids(self) -> Tensor:
        """(B, T) int64: the same number within a segment, another in every other."""
        starts = self.position_ids.reshape(-1) == 0
        return starts.cumsum(0).view_as(self.position_ids)

    def repeat(self, times: int) -> Self:
        """The layout of the rows laid `times` over, one copy of the batch after the other."""
        lengths = self.cu_seqlens.diff().repeat(times)
        borders = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        position_ids = self.position_ids.repeat(times, 1)
        return replace(self, position_ids=position_ids, cu_seqlens=borders, num_pairs=times * self.num_pairs)


@dataclass(frozen=True, eq=False)
class TokenBatch(_Movable):
    """Packed rows.

    input_ids: (B, T) int64, clean tokens.
    is_maskable: (B, T) bool; the others stay visible and carry no loss.
    row_ids: (B,) int64, the row's number in the endless stream of the run (over all ranks and epochs): the key of
        its noise, so that the noise does not depend on the world size, the accumulation or a resume.
    is_response: (B, T) bool, an assistant's tokens and the EOS that ends them; None where rows are plain text.
    document_ids: (B, T) int64, number of each token's document in its split; only on validation rows, None elsewhere.
    """

    input_ids: Tensor
    is_maskable: Tensor
    row_ids: Tensor
    layout: Layout
    is_response: Tensor | None = None
    document_ids: Tensor | None = None

    def repeat(self, times: int) -> Self:
        """The batch laid `times` over, one copy after the other."""
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
    """What the model says of the selected tokens, in the row-major order of the selection.

    nll: (M,) float32, −log p(target), nats, differentiable. is_correct: (M,) bool, whether the target is the argmax.
    """

    nll: Tensor
    is_correct: Tensor

"""What does a row look like to the model, and which of its tokens does it learn?"""

from collections.abc import Iterator
from dataclasses import dataclass

from lit_illada.batch import TokenBatch
from lit_illada.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Span:
    """Neighbouring tokens of one segment that are alike maskable.

    starts_segment: attention does not reach from here to what stands before it in the row.
    """

    text: str
    num_tokens: int
    is_maskable: bool
    starts_segment: bool


def spans(batch: TokenBatch, row: int, tokenizer: Tokenizer) -> list[Span]:
    """A row of a batch, from its first token to its last."""
    return [
        Span(tokenizer.decode(ids), len(ids), is_maskable, starts_segment)
        for ids, is_maskable, starts_segment in _runs(batch, row)
    ]


def _runs(batch: TokenBatch, row: int) -> Iterator[tuple[list[int], bool, bool]]:
    ids = batch.input_ids[row].tolist()
    is_maskable = batch.is_maskable[row].tolist()
    is_start = (batch.layout.position_ids[row] == 0).tolist()
    changes = [t for t in range(1, len(ids)) if is_start[t] or is_maskable[t] != is_maskable[t - 1]]
    for start, end in zip([0, *changes], [*changes, len(ids)], strict=True):
        yield ids[start:end], is_maskable[start], is_start[start]

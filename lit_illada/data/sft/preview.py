"""A readable view of a row: its segments and the tokens that are learnt."""

from collections.abc import Iterator
from dataclasses import dataclass

from lit_illada.batch import TokenBatch
from lit_illada.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Span:
    """Adjacent tokens of one segment that are all maskable, or all not."""

    text: str
    num_tokens: int
    is_maskable: bool
    starts_segment: bool  # attention does not cross to the preceding span


def spans(batch: TokenBatch, row: int, tokenizer: Tokenizer) -> list[Span]:
    """The spans of a row of a batch, in order."""
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

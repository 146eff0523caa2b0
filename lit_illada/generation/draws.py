"""Random numbers for generation, with one generator per row.

The text of a row therefore depends on the seed and the row number only, not on the other rows of its batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_ODD = 0x9E3779B1  # 2³² divided by the golden ratio: consecutive rows get seeds far apart


class Draws:
    """Uniform float64 numbers in [0, 1) for the rows of a batch.

    Row number 0 uses `torch.Generator(device).manual_seed(seed)`.
    """

    def __init__(self, seed: int, row_numbers: Sequence[int], device: torch.device) -> None:
        # a CPU generator takes the low 32 bits of its seed
        seeds = [seed if row == 0 else (seed + row * _ODD) % 2**32 for row in row_numbers]
        self._generators = [torch.Generator(device).manual_seed(row_seed) for row_seed in seeds]
        self._device = device

    def of(self, rows: Sequence[int]) -> "RowDraws":
        """The generators of some rows, given as indices into the batch."""
        return RowDraws([self._generators[row] for row in rows], self._device)


class RowDraws:
    """Random numbers for the rows of one step, in their order."""

    def __init__(self, generators: list[torch.Generator], device: torch.device) -> None:
        self._generators = generators
        self._device = device

    def each(self, counts: Sequence[int], width: int) -> Tensor:
        """(sum of counts, width): `counts[b]` draws of `width` numbers for row b, concatenated."""
        parts = [self._draw((count, width), g) for count, g in zip(counts, self._generators, strict=True)]
        return torch.cat(parts) if parts else torch.empty(0, width, dtype=torch.float64, device=self._device)

    def uniform(self, width: int) -> Tensor:
        """(rows, width): one draw of `width` numbers per row."""
        return self.each([1] * len(self._generators), width)

    def _draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, device=self._device, generator=generator)

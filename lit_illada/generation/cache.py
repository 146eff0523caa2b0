"""Cache plans: the columns that a denoising step recomputes; keys and values of the others come from a cache.

Source: Fast-dLLM, arXiv 2505.22618. The first step of a block computes every column and fills the cache. Later steps
compute a window of columns and attend to cached keys and values outside it. These are slightly outdated, except those
of earlier blocks under block diffusion. `reader.py` holds the keys and values.
"""

from dataclasses import dataclass
from typing import Protocol

from lit_illada.errors import UserError


class CachePlan(Protocol):
    """Selects the columns to compute in each step."""

    @property
    def is_on(self) -> bool:
        """Whether keys and values are cached at all."""
        ...

    def window(self, step: int, block: slice, num_columns: int) -> slice:
        """Columns to compute in a step of the block, counted from 0: all columns, or a window that contains `block`."""
        ...


@dataclass(frozen=True)
class NoCache:
    """Computes every column in every step; exact."""

    @property
    def is_on(self) -> bool:
        return False

    def window(self, step: int, block: slice, num_columns: int) -> slice:
        return slice(0, num_columns)


@dataclass(frozen=True)
class _RefreshedCache:
    refresh_every_steps: int | None = None
    """Denoising steps between two refreshes of the cache within a block; None: refresh at its first step only."""

    def __post_init__(self) -> None:
        if self.refresh_every_steps is not None and self.refresh_every_steps < 1:
            raise UserError(
                f"generation.cache.refresh_every_steps is {self.refresh_every_steps}: it must be 1 or more, or null to "
                "refresh at the beginning of a block only"
            )

    @property
    def is_on(self) -> bool:
        return True

    def window(self, step: int, block: slice, num_columns: int) -> slice:
        is_refresh = step == 0 if self.refresh_every_steps is None else step % self.refresh_every_steps == 0
        return slice(0, num_columns) if is_refresh else self._uncached(block, num_columns)

    def _uncached(self, block: slice, num_columns: int) -> slice:
        raise NotImplementedError


@dataclass(frozen=True)
class PrefixCache(_RefreshedCache):
    """Caches the columns before the block. With `canvas: append` there are none after it."""

    def _uncached(self, block: slice, num_columns: int) -> slice:
        return slice(block.start, num_columns)


@dataclass(frozen=True)
class DualCache(_RefreshedCache):
    """Caches the columns before the block and the masked columns after it."""

    def _uncached(self, block: slice, num_columns: int) -> slice:
        return block


CACHES: dict[str, type] = {"none": NoCache, "prefix": PrefixCache, "dual": DualCache}

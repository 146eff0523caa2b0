"""Which columns does the model compute again in a denoising step, and which come from a cache?

After Fast-dLLM (arXiv 2505.22618): a block's first step computes every column and fills the cache; its later steps
compute a window only, and see the rest as it then was.
"""

from dataclasses import dataclass
from typing import Protocol

from lit_illada.errors import UserError


class CachePlan(Protocol):
    def window(self, step: int, block: slice, num_columns: int) -> slice:
        """The columns to compute in the block's step, counted from 0: all of them, or those from `block` on that the
        plan does not cache."""
        ...

    @property
    def is_on(self) -> bool: ...


@dataclass(frozen=True)
class NoCache:
    """Everything, in every step: exact."""

    @property
    def is_on(self) -> bool:
        return False

    def window(self, step: int, block: slice, num_columns: int) -> slice:
        return slice(0, num_columns)


@dataclass(frozen=True)
class _RefreshedCache:
    """refresh_every_steps: denoising steps between two refreshes within a block; None: only at its beginning."""

    refresh_every_steps: int | None = None

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
    """Keeps what lies before the block. Where blocks are appended nothing lies behind it, and this is all there is."""

    def _uncached(self, block: slice, num_columns: int) -> slice:
        return slice(block.start, num_columns)


@dataclass(frozen=True)
class DualCache(_RefreshedCache):
    """Keeps what lies before the block and the masked canvas behind it."""

    def _uncached(self, block: slice, num_columns: int) -> slice:
        return block


CACHES: dict[str, type] = {"none": NoCache, "prefix": PrefixCache, "dual": DualCache}

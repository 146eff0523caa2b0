"""Responses to loops during generation: none, remasking the looped span, or a higher temperature.

A loop is a run of exact copies among the new tokens that reaches into the block just finished. Shapes: N new tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_illada.errors import require
from lit_illada.loops.detect.runs import Run, periodic_runs
from lit_illada.runtime.lazy import Tensor


@dataclass(frozen=True)
class NoResponse:
    """No loop detection."""


@dataclass(frozen=True)
class _Response:
    min_period: int = 3
    """Shortest copy that counts, tokens."""
    max_period: int = 256
    """Longest copy that counts, tokens."""
    min_cycles: int = 3
    """Number of copies from which a run is a loop."""
    min_length: int = 24
    """Length of the whole run from which it is a loop, tokens."""

    def __post_init__(self) -> None:
        require(self.min_period >= 1, "generation.on_loop.min_period", self.min_period, "1 or more")
        require(
            self.max_period >= self.min_period, "generation.on_loop.max_period", self.max_period, "at least min_period"
        )
        require(self.min_cycles >= 2, "generation.on_loop.min_cycles", self.min_cycles, "2 or more")
        require(self.min_length >= 1, "generation.on_loop.min_length", self.min_length, "1 or more")

    def runs(self, new_ids_N: Tensor) -> list[Run]:
        """The loops among the new tokens, (N,) int64."""
        ids = new_ids_N.cpu().numpy()
        return periodic_runs(ids, self.max_period, self.min_cycles, self.min_length, min_period=self.min_period)


@dataclass(frozen=True)
class RemaskSpan(_Response):
    """Masks the copies after the first and denoises them again; a position may not get its previous token back."""

    max_remasks: int = 2
    """Remaskings per position; after that its loop remains."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_remasks >= 1, "generation.on_loop.max_remasks", self.max_remasks, "1 or more")


@dataclass(frozen=True)
class TemperatureKick(_Response):
    """Samples the block after a loop at a higher temperature."""

    increase: float = 0.5
    """Added to the temperature."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.increase < float("inf"), "generation.on_loop.increase", self.increase, "above 0")


LoopResponse = NoResponse | RemaskSpan | TemperatureKick
LOOP_RESPONSES: dict[str, type] = {
    "none": NoResponse,
    "remask_span": RemaskSpan,
    "temperature_kick": TemperatureKick,
}

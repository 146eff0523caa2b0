"""What happens when a text begins to loop while it is written? Nothing; the looped span is written anew; or heat.

A loop is an exact run of copies (`periodic`) among the new tokens that reaches into the block just finished. Shapes:
B rows, T tokens so far, N new tokens, M masked tokens in row-major order, L tokens of the block, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_illada.errors import UserError
from lit_illada.generation.loop_control.periodic import Run, periodic_runs
from lit_illada.runtime.lazy import Tensor


@dataclass(frozen=True)
class NoResponse:
    """Loops are not looked for."""


@dataclass(frozen=True)
class _Response:
    """min_period, max_period: of a copy, tokens. min_cycles: copies. min_length: of all copies, tokens."""

    min_period: int = 3
    max_period: int = 256
    min_cycles: int = 3
    min_length: int = 24

    def __post_init__(self) -> None:
        _require(self.min_period >= 1, "min_period", self.min_period, "1 or more")
        _require(self.max_period >= self.min_period, "max_period", self.max_period, "at least min_period")
        _require(self.min_cycles >= 2, "min_cycles", self.min_cycles, "2 or more")
        _require(self.min_length >= 1, "min_length", self.min_length, "1 or more")

    def runs(self, new_ids_N: Tensor) -> list[Run]:
        ids = new_ids_N.cpu().numpy()
        return periodic_runs(ids, self.max_period, self.min_cycles, self.min_length, min_period=self.min_period)


@dataclass(frozen=True)
class RemaskSpan(_Response):
    """The copies after the first are masked and written again; no place gets its old token back at once.

    max_remasks: how often a place may be masked for this; after that its loop stays.
    """

    max_remasks: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.max_remasks >= 1, "max_remasks", self.max_remasks, "1 or more")


@dataclass(frozen=True)
class TemperatureKick(_Response):
    """The block after the alarm is drawn at a temperature raised by `increase`."""

    increase: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 < self.increase < float("inf"), "increase", self.increase, "above 0")


LoopResponse = NoResponse | RemaskSpan | TemperatureKick
LOOP_RESPONSES: dict[str, type] = {
    "none": NoResponse,
    "remask_span": RemaskSpan,
    "temperature_kick": TemperatureKick,
}


def _require(is_right: bool, name: str, value: float, allowed: str) -> None:
    if not is_right:
        raise UserError(f"generation.on_loop.{name} is {value}: it must be {allowed}")

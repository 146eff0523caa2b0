"""Computes rewards in a guarded process, so that a term that hangs can be ended. No torch."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lit_illada.alignment.rewards import Answered, Check, OnFailure, RewardConfig
from lit_illada.errors import UserError
from lit_illada.runtime.guard import CallError, Guard
from lit_illada.runtime.terminal import one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rewards:
    """Rewards of completions, in their order."""

    total: list[float]
    """Weighted sum of the terms; a failed one counts 0."""
    by_term: dict[str, list[float | None]]
    """Values without weight by name of the term; None: it failed."""


class RewardWorker:
    """Computes rewards under a time limit."""

    def __init__(self, config: RewardConfig, check: Check) -> None:
        self.config = config
        self._guard = Guard(partial(_value, config, check))

    def __call__(self, answered: Sequence[Answered]) -> Rewards:
        """Warns of the first failure of each term, or raises UserError at it if `on_failure` is stop."""
        names = self.config.names
        by_term: dict[str, list[float | None]] = {name: [] for name in names}
        failures: Counter[str] = Counter()
        total = []
        for number, one in enumerate(answered):
            for index, name in enumerate(names):
                try:
                    by_term[name].append(self._guard(one, index, limit_s=self.config.time_limit_s))
                except CallError as error:
                    message = one_line(f"reward {name}, completion {number}: {error}")
                    if self.config.on_failure is OnFailure.STOP:
                        raise UserError(f"{message}: fix the term, or set alignment.reward.on_failure=zero") from error
                    if not failures[name]:  # at once: a term that hangs takes the time limit for every completion
                        log.warning("%s; failures count 0 (alignment.reward.on_failure=zero)", message)
                    by_term[name].append(None)
                    failures[name] += 1
            values = [by_term[name][number] or 0.0 for name in names]
            total.append(sum(each.weight * value for each, value in zip(self.config.terms, values, strict=True)))
        for name, count in failures.items():
            log.warning("reward %s failed for %d of %d completions", name, count, len(answered))
        return Rewards(total, by_term)

    def close(self) -> None:
        """End the process; the next call starts another."""
        self._guard.close()


def _value(config: RewardConfig, check: Check, answered: Answered, index: int) -> float:
    value = float(config.terms[index].term(answered, check))
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return value

"""Kaplan–Meier estimate of a survival curve with right-censored times."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_illada.stats.intervals import Z_95


@dataclass(frozen=True)
class Survival:
    """A step function: from times[i] on, the fraction survival[i] has had no event."""

    times: list[float]
    survival: list[float]
    low: list[float]  # lower end of the 95 % interval, by Greenwood's variance of log(−log S)
    high: list[float]  # upper end
    at_risk: list[int]  # observations that reached times[i] without an event


def kaplan_meier(times: Sequence[float], is_event: Sequence[bool]) -> Survival:
    """times: of the event, or of the end of an observation without one (censored)."""
    when, happened = np.asarray(times, float), np.asarray(is_event, bool)
    survival, greenwood = 1.0, 0.0
    rows = [(0.0, 1.0, 1.0, 1.0, len(when))]
    for time in np.unique(when[happened]).tolist():
        at_risk, events = int((when >= time).sum()), int((happened & (when == time)).sum())
        survival *= 1 - events / at_risk
        low = high = survival
        if 0 < survival < 1:
            greenwood += events / (at_risk * (at_risk - events))
            spread = Z_95 * np.sqrt(greenwood) / abs(np.log(survival))
            low, high = survival ** np.exp(spread), survival ** np.exp(-spread)
        rows.append((time, survival, float(low), float(high), at_risk))
    if len(when) and when.max() > rows[-1][0]:  # extend the curve to the end of the longest observation
        last = float(when.max())
        rows.append((last, *rows[-1][1:4], int((when >= last).sum())))
    times, shares, lows, highs, numbers = zip(*rows, strict=True)
    return Survival(list(times), list(shares), list(lows), list(highs), list(numbers))

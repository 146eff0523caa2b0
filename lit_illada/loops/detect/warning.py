"""Early warning of loops: a CUSUM on signals that are observable during denoising.

    S_t = max(0, S_{t−1} + z_t − κ),  an alarm at the first S_t ≥ h

z is a signal standardised on the generations without loops; h is set so that 1 % of those alarm. t runs over the tokens
in the order of their commitment; an n-gram is observable once its last token is committed. CUSUM for loops: arXiv
2601.05693.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_illada.loops.config import WarningRule

_LEAST_DEVIATION = 1e-3  # floor for a signal that is constant in texts without loops


@dataclass(frozen=True)
class Signal:
    """Values of one signal, shape (units,)."""

    values: NDArray[np.float64]  # high near a loop
    seen_at: NDArray[np.int64]  # denoising step from which each value is observable


@dataclass(frozen=True)
class Watched:
    """Signals of one generation."""

    signals: dict[str, Signal]  # by name
    onset: float | None  # median step that committed the second copy; None: no loop


@dataclass(frozen=True)
class Warning:
    """Performance of one signal."""

    signal: str
    threshold: float  # h
    false_alarms: float  # fraction of texts without loops that alarm
    num_watched: int  # looping generations
    num_warned: int  # of these, with an alarm
    num_early: int  # of these, with an alarm before the onset
    leads: list[float]  # onset minus alarm of each alarm, denoising steps; above 0: early


def watch(
    ids: NDArray[np.int32],
    steps: Sequence[int],
    entropy: Sequence[float] | None,
    sentences: Sequence[tuple[int, int, bool]],
    onset: float | None,
    rule: WarningRule,
) -> Watched:
    """Signals of a generation. sentences: (start, end, whether it repeats an earlier sentence) of each sentence."""
    when = np.asarray(steps[: len(ids)], np.int64)
    by_ngram = when.copy()
    for back in range(1, min(rule.ngram, len(when))):
        by_ngram[back:] = np.maximum(by_ngram[back:], when[:-back])
    is_revisited, by_sentence = np.zeros(len(ids)), when.copy()
    for start, end, is_revisit in sentences:
        is_revisited[start:end], by_sentence[start:end] = is_revisit, when[start:end].max()
    signals = {
        "n-gram novelty deficit": Signal(is_repeated(ids, rule.ngram).astype(float), by_ngram),
        "repeated sentences": Signal(is_revisited, by_sentence),
    }
    if entropy is not None:
        signals["commit entropy, sign flipped"] = Signal(-np.asarray(entropy[: len(ids)], float), when)
    return Watched(signals, onset)


def warnings(watched: Sequence[Watched], rule: WarningRule) -> list[Warning]:
    """One result per signal that all generations have; empty with fewer than min_texts texts without loops."""
    calm = [item for item in watched if item.onset is None]
    looping = [item for item in watched if item.onset is not None]
    if len(calm) < rule.min_texts or not looping:
        return []
    names = [name for name in calm[0].signals if all(name in item.signals for item in watched)]
    return [_warning(name, calm, looping, rule) for name in names]


def cusum(z: NDArray[np.float64], kappa: float) -> NDArray[np.float64]:
    """S_t for all t: the cumulative sum of z − κ minus its minimum so far, 0 included."""
    walk = np.cumsum(z - kappa)
    return walk - np.minimum(np.minimum.accumulate(walk), 0)


def is_repeated(ids: NDArray[np.int32], n: int) -> NDArray[np.bool_]:
    """Whether the n-gram that ends at each unit occurred before, shape (units,)."""
    repeated = np.zeros(len(ids), bool)
    if len(ids) >= n:
        grams = np.lib.stride_tricks.sliding_window_view(ids, n)
        _, first, inverse = np.unique(grams, axis=0, return_index=True, return_inverse=True)
        repeated[n - 1 :] = first[inverse.reshape(-1)] < np.arange(len(grams))
    return repeated


def _warning(name: str, calm: list[Watched], looping: list[Watched], rule: WarningRule) -> Warning:
    values = np.concatenate([item.signals[name].values for item in calm])
    mean, deviation = values.mean(), max(values.std(), _LEAST_DEVIATION)

    def path(item: Watched) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        signal = item.signals[name]
        order = np.argsort(signal.seen_at, kind="stable")
        return cusum((signal.values[order] - mean) / deviation, rule.kappa), signal.seen_at[order]

    peaks = np.sort([path(item)[0].max(initial=0) for item in calm])
    num_allowed = int(rule.false_alarms * len(peaks))
    threshold = max(1.0, float(np.nextafter(peaks[len(peaks) - 1 - num_allowed], np.inf)))
    leads = []
    for item in looping:
        sums, seen_at = path(item)
        alarms = np.flatnonzero(sums >= threshold)
        if len(alarms):
            assert item.onset is not None
            leads.append(item.onset - float(seen_at[alarms[0]]))
    return Warning(
        signal=name,
        threshold=threshold,
        false_alarms=float(np.mean(peaks >= threshold)),
        num_watched=len(looping),
        num_warned=len(leads),
        num_early=sum(lead > 0 for lead in leads),
        leads=leads,
    )

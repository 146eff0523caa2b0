"""The early warning alarms where a signal rises, and seldom where nothing loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.loops.config import WarningRule
from lit_illada.loops.detect.warning import Signal, Watched, cusum, is_repeated, warnings, watch


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=50), st.floats(0, 1))
def test_the_sum_is_the_recursion(z, kappa):
    slow, total = [], 0.0
    for value in z:
        total = max(0.0, total + value - kappa)
        slow.append(total)
    assert cusum(np.array(z), kappa) == pytest.approx(slow, abs=1e-9)


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 4))
def test_an_ngram_is_repeated_if_it_occurred_before(x, n):
    grams = [tuple(x[max(0, i - n + 1) : i + 1]) for i in range(len(x))]
    slow = [len(gram) == n and gram in grams[:i] for i, gram in enumerate(grams)]
    assert is_repeated(np.asarray(x, np.int32), n).tolist() == slow


def noise(rng, count, onset=None, rise=60):
    values = rng.normal(size=count)
    if onset is not None:
        values[rise:] += 2
    return Watched({"signal": Signal(values, np.arange(count))}, onset)


def test_a_signal_that_rises_before_the_onset_warns_early():
    rng = np.random.default_rng(0)
    calm = [noise(rng, 150) for _ in range(200)]
    looping = [noise(rng, 150, onset=100.0) for _ in range(50)]
    (warning,) = warnings([*calm, *looping], WarningRule())
    assert warning.false_alarms <= 0.01
    assert warning.num_warned == warning.num_watched == 50
    assert warning.num_early >= 45
    assert 20 <= np.median(warning.leads) <= 40


def test_too_few_texts_without_loops_set_no_threshold():
    rng = np.random.default_rng(0)
    assert warnings([noise(rng, 50) for _ in range(19)] + [noise(rng, 50, onset=20.0)], WarningRule()) == []


def test_ngrams_are_observable_once_their_last_token_is_committed():
    x = np.array([1, 2, 3, 4, 1, 2, 3, 4], np.int32)
    steps = [7, 6, 5, 4, 3, 2, 1, 0]  # written from the right
    found = watch(x, steps, None, [(4, 8, True)], None, WarningRule())
    ngrams, sentences = found.signals["n-gram novelty deficit"], found.signals["repeated sentences"]
    assert ngrams.values.tolist() == [0] * 7 + [1]
    assert ngrams.seen_at[7] == 3
    assert sentences.values.tolist() == [0] * 4 + [1] * 4
    assert sentences.seen_at[4:].tolist() == [3] * 4

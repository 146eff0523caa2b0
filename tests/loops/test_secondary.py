"""The usual measures and the literature's definitions, against slow references."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.loops.detect.secondary import (
    longest_repeat,
    presets,
    repeated_ngram,
    repeated_tail,
    secondary,
    windowed_zlib,
)

texts = st.lists(st.integers(0, 3), max_size=60)


def ngrams(x, n):
    return [tuple(x[i : i + n]) for i in range(len(x) - n + 1)]


@given(texts)
def test_the_longest_repeat_is_the_longest(x):
    slow = max((n for n in range(1, len(x)) if max(Counter(ngrams(x, n)).values()) > 1), default=0)
    assert longest_repeat(np.asarray(x, np.int32)) == slow


@given(texts)
def test_ngram_fractions_are_counted(x):
    found = secondary(np.asarray(x, np.int32), None)
    twos, fours = Counter(ngrams(x, 2)), Counter(ngrams(x, 4))
    if fours:
        repeated = sum(count for count in fours.values() if count > 1)
        assert found.rep_4 == pytest.approx(repeated / fours.total())
        assert found.seq_rep_4 == pytest.approx(1 - len(fours) / fours.total())
    if twos:
        assert found.distinct_2 == pytest.approx(len(twos) / twos.total())


@given(texts, st.integers(1, 5), st.integers(2, 6))
def test_the_repeated_ngram_preset_counts_occurrences(x, n, k):
    slow = max(Counter(ngrams(x, n)).values(), default=0) >= k
    assert repeated_ngram(np.asarray(x, np.int32), n, k) == slow


@pytest.mark.parametrize(("length", "copies"), [(1, 48), (1, 49), (30, 20), (31, 20), (30, 19)])
def test_presets_do_not_depend_on_the_known_longest_repeat(length, copies):
    x = np.asarray(list(range(length)) * copies, np.int32)
    found = presets(x, longest_repeat(x))
    assert found == presets(x, None)
    assert found["30-gram ≥ 20 times"] == (length * copies - 30 + 1 >= length * 19 + 1)


def degen(x):
    """As Holtzman's code counts: at each unit, copies back from the end; the first unit with most of them decides."""
    counts = {}
    for unit in range(1, 91):
        copies = 1
        while len(x) >= unit * (copies + 1) and x[len(x) - unit * (copies + 1) : len(x) - unit * copies] == x[-unit:]:
            copies += 1
        counts[unit] = copies
    best = max(counts, key=counts.get)
    return counts[best] > 1 and (best >= 3 or counts[best] > 50)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 12), st.integers(1, 70))
def test_the_repeated_tail_preset_equals_holtzmans_definition(x, unit, copies):
    text = x + x[-unit:] * copies
    assert repeated_tail(np.asarray(text, np.int32)) == degen(text)


def test_a_repetitive_window_compresses():
    assert windowed_zlib("ab" * 2000) > 6
    rng = np.random.default_rng(0)
    assert windowed_zlib(rng.bytes(3000).hex()) < 2.5
    assert windowed_zlib("") >= 0

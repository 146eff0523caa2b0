"""Exact runs, against a search that tries every start, period and length."""

import numpy as np
import pytest

from lit_illada.loops.detect.runs import Run, periodic_runs


def slow_runs(ids, max_period, min_cycles, min_length, min_period):
    n, found = len(ids), []
    for period in range(min_period, max_period + 1):
        for start in range(n):
            for end in range(n, start + max(min_cycles * period, min_length) - 1, -1):
                inside = all(ids[i] == ids[i - period] for i in range(start + period, end))
                is_open_left = start > 0 and ids[start - 1] == ids[start - 1 + period]
                if inside and not is_open_left:
                    found.append(Run(start, period, end - start))
                    break
    shortest = [
        run
        for run in found
        if not any(o.period < run.period and o.start <= run.start and run.end <= o.end for o in found)
    ]
    return sorted(shortest)


@pytest.mark.parametrize("seed", range(30))
def test_periodic_runs_equal_an_exhaustive_search(seed):
    rng = np.random.default_rng(seed)
    unit = rng.integers(0, 3, rng.integers(1, 6))
    ids = np.concatenate([rng.integers(0, 3, 8), np.tile(unit, rng.integers(1, 6)), rng.integers(0, 3, 8)])
    for limits in [(6, 3, 6, 1), (6, 2, 4, 1), (6, 3, 6, 3), (100, 3, 1, 2)]:
        assert periodic_runs(ids, *limits[:3], min_period=limits[3]) == slow_runs(ids, *limits)


def test_a_run_begins_with_its_first_copy_and_its_onset_is_the_second():
    ids = np.array([9, 8, *[1, 2, 3, 4] * 7, 1, 2, 7])
    (run,) = periodic_runs(ids)
    assert run == Run(start=2, period=4, length=30)
    assert (run.onset, run.end, run.cycles) == (6, 32, 7.5)


@pytest.mark.parametrize("ids", [[], [1], [1, 2], list(range(60)), [1, 2, 3] * 7])
def test_no_run_where_too_little_repeats(ids):
    assert periodic_runs(np.array(ids, np.int64)) == []


def test_a_flood_is_found_with_a_longer_minimum_period():
    assert periodic_runs(np.ones(40, np.int64), min_period=3) == [Run(0, 3, 40)]

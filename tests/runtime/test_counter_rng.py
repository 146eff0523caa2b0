import numpy as np

from lit_illada.runtime.counter_rng import GOLDEN, mix, permutation, uniform


def test_uniform_numbers_fill_the_interval_and_depend_on_key_and_counter():
    counters = np.arange(100_000)
    u = uniform(counters, 1, 2)
    assert u.min() >= 0
    assert u.max() < 1
    counts, _ = np.histogram(u, 50, (0, 1))
    assert abs(counts - 2000).max() < 6 * np.sqrt(2000)
    assert abs(np.corrcoef(u, uniform(counters, 1, 3))[0, 1]) < 0.02
    assert abs(np.corrcoef(u, uniform(counters, 2, 2))[0, 1]) < 0.02
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.02
    np.testing.assert_array_equal(u[[7, 3]], uniform(np.array([7, 3]), 1, 2))


def test_the_draws_are_the_same_on_every_machine():
    # the published first number of splitmix64 from this seed
    assert mix(np.array([1234567]) + GOLDEN).tolist() == [6457827717110365317]
    assert permutation(8, 1, 2, 3).tolist() == [7, 6, 4, 1, 3, 2, 0, 5]
    assert uniform(np.array([0, 1, -1]), -5).tolist() == [0.5427397592870641, 0.24282163027801607, 0.6710098091648192]


def test_a_permutation_contains_every_number_once():
    order = permutation(1000, 5)
    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() != permutation(1000, 6).tolist()
    assert permutation(0, 5).tolist() == []

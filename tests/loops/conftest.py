"""Random text without loops."""

import string

import pytest


@pytest.fixture(scope="session")
def words():
    """Made-up words, of which hardly any comes twice: give it a generator and how many."""

    def made_up(rng, count):
        return ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 9))) for _ in range(count)]

    return made_up

"""Shared data, and random text without loops."""

import os
import string
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data():
    def folder(name):
        path = Path(os.environ.get("LIT_ILLADA_DATA") or Path(__file__).parents[3] / "shared" / "data") / name
        if not path.exists():
            pytest.skip(f"{path} is not here")
        return path

    return folder


@pytest.fixture(scope="session")
def words():
    """Made-up words, of which hardly any comes twice: give it a generator and how many."""

    def made_up(rng, count):
        return ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 9))) for _ in range(count)]

    return made_up

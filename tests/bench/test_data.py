"""Benchmarks restore the state of their process."""

import os

import pytest

from lit_illada.bench.data import _parallel_library

NAME = "TOKENIZERS_PARALLELISM"


@pytest.mark.parametrize("before", ["false", None])
def test_tokenizers_parallelism_is_restored_after_measurement(monkeypatch, before):
    monkeypatch.setenv(NAME, "")
    monkeypatch.delenv(NAME) if before is None else monkeypatch.setenv(NAME, before)
    with _parallel_library():
        assert os.environ[NAME] == "true"
    assert os.environ.get(NAME) == before

"""A small corpus and its prepared data set, shared by the tests of this folder."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_illada.data.config import DataConfig, JsonlSource, TrainTokenizer
from lit_illada.data.prepare.prepare import prepare

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu".split()


def _make_texts(num: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{seed}-{i}: " + " ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for i in range(num)]


def _make_config(folder: Path, texts: list[str], **fields: object) -> DataConfig:
    """The config of a data set in `folder`; writes its corpus of these texts next to the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    corpus = folder.with_suffix(".jsonl")
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    defaults: dict[str, object] = {
        "dir": str(folder),
        "source": JsonlSource([str(corpus)]),
        "tokenizer": TrainTokenizer(vocab_size=320),
        "validation_fraction": 0.2,
        "shard_tokens": 1024,
        "num_processes": 1,
        "row_length": 32,
        "num_streams": 4,
    }
    return DataConfig(**{**defaults, **fields})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_texts() -> Callable[..., list[str]]:
    return _make_texts


@pytest.fixture(scope="session")
def make_config() -> Callable[..., DataConfig]:
    return _make_config


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return _make_texts(240)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> DataConfig:
    """The config of a finished data set of `texts`; do not write to its folder."""
    config = _make_config(tmp_path_factory.mktemp("prepared") / "set", texts)
    prepare(config)
    return config

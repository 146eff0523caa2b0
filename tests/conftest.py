"""What every test runs under: one thread, so that results do not depend on the machine's load or size."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from lit_illada.config import load
from lit_illada.data.prepare.prepare import prepare
from lit_illada.model.config import ModelConfig
from lit_illada.model.transformer import Transformer

torch.set_num_threads(1)
# the examples are drawn from the test's own source, so that a failure fails for everyone
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")


def _slurm_answers():
    return bool(shutil.which("sinfo")) and not subprocess.run(["sinfo"], capture_output=True, check=False).returncode


def pytest_collection_modifyitems(items):
    if any(item.get_closest_marker("slurm") for item in items) and not _slurm_answers():
        for item in items:
            if item.get_closest_marker("slurm"):
                item.add_marker(pytest.mark.skip(reason="no Slurm answers here: .ci/install-slurm starts one"))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shared_data():
    """Path of a file or folder of real data: in LIT_ILLADA_DATA, else in shared/data beside the checkout.

    Without it the test is skipped; it fails if LIT_ILLADA_DATA is set, since it then names the wrong folder.
    """

    def path_of(name):
        given = os.environ.get("LIT_ILLADA_DATA")
        path = Path(given or Path(__file__).parents[2] / "shared" / "data") / name
        if not path.exists():
            (pytest.fail if given else pytest.skip)(f"{path} does not exist")
        return path

    return path_of


WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau".split()


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    """A folder of 80 small texts with something to learn: each repeats a random phrase."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for index in range(80):
        phrase = " ".join(rng.choices(WORDS, k=5))
        folder.joinpath(f"{index:03d}.txt").write_text(". ".join([phrase] * rng.randint(2, 20)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tiny_corpus, tmp_path_factory):
    """A prepared data set of the tiny corpus: the folder, and the overrides that name it."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    overrides = [
        "data=text",
        f"data.source.paths=[{tiny_corpus}]",
        f"data.dir={folder}",
        "data.tokenizer.vocab_size=300",
        "data.validation_fraction=0.2",
        "data.shard_tokens=1024",
        "data.num_processes=1",
    ]
    prepare(load("data", overrides).data)
    return overrides


TINY_RUN = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "data.row_length=32",
    "data.num_streams=4",
    "optim.schedule.warmup_steps=1",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.batch_rows=8",
    "trainer.micro_batch_rows=8",
    "trainer.max_steps=12",
    "trainer.log_every_steps=2",
    "trainer.val_every_steps=6",
    "trainer.val_rows=8",
    "trainer.val_draws=2",
    "trainer.checkpoint_every_steps=3",
]


@pytest.fixture(scope="session")
def tiny_run():
    """What makes a run tiny, whatever its data."""
    return TINY_RUN


@pytest.fixture(scope="session")
def tiny_overrides(tiny_dataset, tiny_run):
    """The command line of a run that takes a second or two."""
    return [*tiny_dataset, *tiny_run]


TINY = ModelConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.3,  # far from 0, so that a wrong attention shows in the logits
)


@pytest.fixture
def tiny():
    return TINY


@pytest.fixture
def make_model():
    def make(seed=0, **changes):
        model = Transformer(replace(TINY, **changes))
        model.init_weights(seed)
        return model

    return make

"""Speed beside other libraries, in one run: reading of packed rows, and the training step.

The libraries are installed from PyPI in an environment of their own, .venv-peers, with this environment's version of
torch; `peer_programs.py` runs there. Ours and the peers alternate, each on one core. For the training step of a library
that is not on PyPI (dllm, mdlm), the user gives a program: see README.md.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from lit_illada.bench import peer_programs as programs
from lit_illada.bench.data import one_core, packed_rows
from lit_illada.bench.figure import attempted, cpu_seconds, did_not_run, figure
from lit_illada.bench.training_step import Case, TrainingStep, batches
from lit_illada.data.config import DataConfig
from lit_illada.data.dataset.reading import open_dataset
from lit_illada.data.prepare.prepare import prepare
from lit_illada.errors import UserError

ENVIRONMENT = Path(".venv-peers")
_PACKAGES = ("litdata", "mosaicml-streaming", "transformers>=4.48,<5", "numpy")
_STEPS = 2


def measure(repeats: int = 5, own: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Tokens per CPU second of ours and of each peer, and ours divided by the peer's within a repeat.

    reading: batches of int64 tokens, packed with documents and checked in ours. nano, pico: the training step with
    AdamW. own: the user's programs of a training step, by name. Raises UserError where the packages cannot be
    installed.
    """
    own = own or {}
    python = _environment()
    with TemporaryDirectory() as scratch, one_core():
        folder = Path(scratch)
        return {
            "reading": attempted(lambda: _reading(python, folder, repeats)),
            "step_nano": attempted(lambda: _step(python, folder, Case("nano", 16, 256), repeats, own)),
            "step_pico": attempted(lambda: _step(python, folder, Case("pico", 32, 128), repeats, own)),
        }


def _environment() -> Path:
    """The interpreter of the environment, which is created if it is missing."""
    python = ENVIRONMENT.absolute() / "bin" / "python"
    complete = ENVIRONMENT / "complete"  # written last, so that an interrupted installation is repeated
    if complete.exists():
        return python
    wanted = [*_PACKAGES, f"torch=={torch.__version__.partition('+')[0]}"]
    pip = [str(python), "-m", "pip"]
    commands = [
        [sys.executable, "-m", "venv", str(ENVIRONMENT)],
        [*pip, "install", "--quiet", *wanted],
        # mosaicml-streaming installs it, no program needs it, and of another build than torch it breaks transformers
        [*pip, "uninstall", "--quiet", "--yes", "torchvision"],
    ]
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True, text=True)
        complete.touch()
    except subprocess.CalledProcessError as error:
        raise UserError(f"{ENVIRONMENT}: cannot install {', '.join(wanted)}: {error.stderr.strip()[-200:]}") from error
    return python


def _reading(python: Path, folder: Path, repeats: int) -> dict[str, Any]:
    config = DataConfig(dir=str(folder / "stdlib"), row_length=programs.ROW_LENGTH)
    prepare(config)
    dataset = open_dataset(config.dir)
    tokens = np.concatenate([dataset.load(shard).tokens for shard in dataset.manifest.train.shards])
    np.save(folder / "tokens.npy", tokens)
    read = packed_rows(config, programs.READ_TOKENS, programs.BATCH_ROWS)
    peers = ["litdata", "mosaicml_streaming", "memory_map"]
    return _compared(python, folder, read, peers, programs.READ_TOKENS, repeats)


def _step(python: Path, folder: Path, case: Case, repeats: int, own: Mapping[str, Path]) -> dict[str, Any]:
    case = case.on(torch.device("cpu"))
    step = TrainingStep.of(case, torch.device("cpu"))
    config = step.config
    drawn = list(islice(batches(case, config.known_vocab_size), _STEPS))
    noisy = [step.objective.corrupt(batch) for batch in drawn]
    labels = [torch.where(one.is_masked, batch.input_ids, -100) for one, batch in zip(noisy, drawn, strict=True)]
    sizes = {
        "vocab_size": config.known_vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
    }
    arrays: dict[str, Any] = {
        "noisy_ids": torch.stack([one.noisy_ids for one in noisy]).numpy(),
        "labels": torch.stack(labels).numpy(),
        "sizes": np.array(json.dumps(sizes)),
        "precision": np.array(case.precision.value),
    }
    np.savez(folder / "step.npz", **arrays)

    def steps() -> None:
        for batch in drawn:
            step(batch)

    steps()  # warm-up
    return _compared(python, folder, steps, ["modernbert"], _STEPS * case.num_rows * case.row_length, repeats, own)


def _compared(
    python: Path,
    folder: Path,
    ours: Callable[[], None],
    peers: Sequence[str],
    num_tokens: int,
    repeats: int,
    own: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Tokens per CPU second of `ours`, of the programs `peers` and of the user's programs `own`, which alternate."""
    with ExitStack() as stack:
        ways: dict[str, Callable[[], float]] = {"ours": lambda: cpu_seconds(ours)}
        failed: dict[str, Any] = {}
        for name, file in [*((name, None) for name in peers), *(own or {}).items()]:
            try:
                ways[name] = stack.enter_context(_program(python, name, folder, file))
            except subprocess.SubprocessError as error:
                failed[name] = did_not_run(error)
        rounds = [{name: run() for name, run in ways.items()} for _ in range(repeats)]
    rates = {f"{name}_tokens_per_cpu_s": figure([num_tokens / one[name] for one in rounds]) for name in ways}
    ratios = {f"over_{name}": figure([one[name] / one["ours"] for one in rounds]) for name in ways if name != "ours"}
    return {**rates, **ratios, **failed}


@contextmanager
def _program(python: Path, name: str, folder: Path, file: Path | None = None) -> Iterator[Callable[[], float]]:
    """A function that runs a peer's program once and returns its CPU seconds.

    file: the user's program, which may import what lies beside it, and runs in the environment .venv beside it if there
    is one; None: that of this name in `peer_programs.py`. Raises CalledProcessError, with the last lines of its errors,
    where it ends.
    """
    beside = "" if file is None else str(file.absolute().parent)
    if file is not None and (theirs := Path(beside) / ".venv" / "bin" / "python").exists():
        python = theirs
    errors = folder / f"{name}.txt"
    process = subprocess.Popen(
        # -P: otherwise profile.py beside the program hides Python's own
        [str(python), "-P", programs.__file__, name if file is None else str(file.absolute()), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors.open("w"),
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": beside},
        cwd=folder,
    )
    questions, answers = process.stdin, process.stdout
    assert questions is not None
    assert answers is not None

    def answer(word: str) -> str:
        for line in answers:  # libraries print too
            if line.startswith(word):
                return line.removeprefix(word)
        raise subprocess.CalledProcessError(process.wait(), name, stderr=errors.read_text())

    def run() -> float:
        questions.write("\n")
        questions.flush()
        return float(answer("seconds "))

    try:
        answer("ready")
        run()  # warm-up
        yield run
    finally:
        questions.close()  # ends the program
        answers.close()
        process.wait()

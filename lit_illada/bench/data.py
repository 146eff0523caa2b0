"""Speed of preparing and reading a data set, and memory of preparation by corpus size.

The corpus is the source text of the standard library. Compared cases alternate.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer as Backend

from lit_illada.bench.figure import Figure, attempted, figure, seconds
from lit_illada.data.config import DataConfig, LoadTokenizer, StdlibSource
from lit_illada.data.corpora.sources import read
from lit_illada.data.datamodule import PackedDataModule
from lit_illada.data.dataset.manifest import TOKENIZER_FOLDER
from lit_illada.data.prepare.prepare import prepare
from lit_illada.errors import UserError


def measure(repeats: int = 5) -> dict[str, Any]:
    """The figures of `preparation`, `reading` and `memory`."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(DataConfig(dir=str(folder / "stdlib")))
        return {
            "preparation": attempted(lambda: preparation(folder, repeats)),
            "reading": attempted(lambda: reading(folder, repeats)),
            "memory": attempted(lambda: memory(folder)),
        }


def preparation(folder: Path, repeats: int) -> dict[str, Figure]:
    """Seconds of a preparation against seconds of `tokenizers`' encode_batch on the same documents in memory.

    The preparation loads its tokenizer; it includes reading, deduplication, writing and the start of the processes.
    ratio: encode_batch_s / prepare_s within a repeat. Goal: 0.8.
    """
    tokenizer_folder = folder / "stdlib" / TOKENIZER_FOLDER
    texts = [document.text for document in read(StdlibSource(), _raise)]
    backend = Backend.from_file(str(tokenizer_folder / "tokenizer.json"))
    config = DataConfig(dir=str(folder / "again"), tokenizer=LoadTokenizer(str(tokenizer_folder)))

    def prepare_again() -> None:
        shutil.rmtree(config.dir, ignore_errors=True)
        prepare(config)

    # in pairs, so that both are measured under the same load of the machine
    with _parallel_library():
        pairs = [(seconds(prepare_again), seconds(lambda: backend.encode_batch(texts))) for _ in range(repeats)]
    return {
        "prepare_s": figure([ours for ours, _ in pairs]),
        "encode_batch_s": figure([library for _, library in pairs]),
        "ratio": figure([library / ours for ours, library in pairs]),
    }


def reading(folder: Path, repeats: int, *, row_length: int = 256, batch_rows: int = 16) -> dict[str, Figure]:
    """Tokens/s of packed batches on one core, loading and checking of the shards included. Goal: 1.8e7."""
    tokens = 10_000_000
    read = packed_rows(DataConfig(dir=str(folder / "stdlib"), row_length=row_length), tokens, batch_rows)
    with one_core():
        return {"tokens_per_s": figure([tokens / seconds(read) for _ in range(repeats)])}


def packed_rows(config: DataConfig, tokens: int, batch_rows: int) -> Callable[[], None]:
    """A function that reads this many training tokens in batches, from the opening of the data set on."""
    steps = tokens // (config.row_length * batch_rows)

    def read_batches() -> None:
        module = PackedDataModule(
            config,
            seed=0,
            batch_rows=batch_rows,
            micro_batch_rows=batch_rows,
            total_steps=steps,
            validation_rows=0,
        )
        for _ in module.train_dataloader():
            pass

    return read_batches


def memory(folder: Path) -> dict[str, Figure]:
    """Peak resident MiB of the preparing process and of its largest child, for one and four copies of the corpus.

    Constant memory means that it does not grow with the corpus. Linux only.
    """
    tokenizer = str(folder / "stdlib" / TOKENIZER_FOLDER)
    figures = {}
    for times in (1, 4):
        corpus = folder / f"corpus_{times}.jsonl"
        _write_corpus(corpus, times)
        command = [sys.executable, "-c", _MEASURE_MEMORY, str(corpus), str(folder / f"memory_{times}"), tokenizer]
        parent, child = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        figures[f"corpus_x{times}"] = {
            "corpus_mib": corpus.stat().st_size / 2**20,
            "parent_mib": parent / 2**10,
            "child_mib": child / 2**10,
        }
    return figures


_MEASURE_MEMORY = f"""
import re, resource, sys
from pathlib import Path
from {DataConfig.__module__} import DataConfig, JsonlSource, LoadTokenizer
from {prepare.__module__} import prepare
corpus, folder, tokenizer = sys.argv[1:]
prepare(DataConfig(dir=folder, source=JsonlSource([corpus]), tokenizer=LoadTokenizer(tokenizer), num_processes=2))
# not ru_maxrss, which starts at the peak of the parent process
parent = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(parent, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def _write_corpus(path: Path, times: int) -> None:
    with path.open("w") as stream:
        for copy in range(times):
            for document in read(StdlibSource(), _raise):
                stream.write(json.dumps({"text": f"# copy {copy}\n{document.text}"}) + "\n")


@contextmanager
def _parallel_library() -> Iterator[None]:
    """Lets `tokenizers` use all cores, which it otherwise disables in a process that has forked."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@contextmanager
def one_core() -> Iterator[None]:
    """Restricts this process to one core."""
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def _raise(error: UserError) -> None:
    raise error

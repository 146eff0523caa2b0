"""Programs of other libraries that `bench peers` times in an environment of their own; imports nothing of this package.

    python peer_programs.py NAME FOLDER

NAME is a program of this file, or the path of a file with a function `prepare(folder)` like these. The process
prepares, prints "ready", and for each line of its input runs once and prints its CPU seconds. FOLDER contains
tokens.npy (the training tokens, uint16) or step.npz (noisy_ids, labels, the sizes of the model as JSON, and the
precision of our step: 32-true or bf16-mixed).
"""

import importlib.machinery
import json
import runpy
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROW_LENGTH, BATCH_ROWS, READ_TOKENS = 256, 16, 10_000_000
_SHARD_TOKENS = 1000 * ROW_LENGTH


def litdata(folder: Path) -> Callable[[], None]:
    """litdata's StreamingDataset of token blocks, shuffled."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

    stored = folder / "litdata"
    tokens = np.load(folder / "tokens.npy")
    if not stored.exists():
        shards = [tokens[start : start + _SHARD_TOKENS] for start in range(0, len(tokens), _SHARD_TOKENS)]
        optimize(
            fn=_as_tensor, inputs=shards, output_dir=str(stored), num_workers=1, chunk_size=_SHARD_TOKENS,
            item_loader=TokensLoader(block_size=ROW_LENGTH),
        )  # fmt: skip
    dataset = StreamingDataset(str(stored), item_loader=TokensLoader(block_size=ROW_LENGTH), shuffle=True, seed=0)
    loader = StreamingDataLoader(dataset, batch_size=BATCH_ROWS, num_workers=0)
    return lambda: _read(loader)


def _as_tensor(tokens: np.ndarray) -> Iterator[torch.Tensor]:
    yield torch.from_numpy(tokens.copy())


def mosaicml_streaming(folder: Path) -> Callable[[], None]:
    """mosaicml-streaming's StreamingDataset of rows, shuffled."""
    # it imports torchvision for its data sets of images, whose wheels fit few builds of torch
    for name, attributes in _TORCHVISION.items():
        module = types.ModuleType(name)
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
        for attribute in attributes:
            setattr(module, attribute, type(attribute, (), {}))
        sys.modules[name] = module
    from streaming import MDSWriter, StreamingDataset

    stored = folder / "mds"
    tokens = np.load(folder / "tokens.npy")
    if not stored.exists():
        columns = {"tokens": f"ndarray:uint16:{ROW_LENGTH}"}
        with MDSWriter(out=str(stored), columns=columns, size_limit=2 * _SHARD_TOKENS) as writer:
            for row in tokens[: len(tokens) // ROW_LENGTH * ROW_LENGTH].reshape(-1, ROW_LENGTH):
                writer.write({"tokens": row})
    dataset = StreamingDataset(local=str(stored), shuffle=True, batch_size=BATCH_ROWS)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH_ROWS, num_workers=0)
    return lambda: _read(loader, "tokens")


_TORCHVISION = {
    "torchvision": [],
    "torchvision.datasets": ["VisionDataset"],
    "torchvision.transforms": [],
    "torchvision.transforms.functional": ["to_tensor"],
}


def memory_map(folder: Path) -> Callable[[], None]:
    """Shuffled rows of a memory map: without documents, checks or a library, the most that is possible."""
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    rows = tokens[: len(tokens) // ROW_LENGTH * ROW_LENGTH].reshape(-1, ROW_LENGTH)
    order = np.random.default_rng(0).permutation(len(rows))
    return lambda: _read(_Rows(rows, order))


class _Rows:
    def __init__(self, rows: np.ndarray, order: np.ndarray) -> None:
        self.rows, self.order = rows, order

    def __iter__(self) -> Iterator[torch.Tensor]:
        for start in range(0, len(self.rows) - BATCH_ROWS, BATCH_ROWS):
            yield torch.from_numpy(self.rows[self.order[start : start + BATCH_ROWS]])


def _read(loader: Iterable[Any], key: str | None = None) -> None:
    """Reads batches of int64 tokens, epoch after epoch, until READ_TOKENS are read."""
    num_read = 0
    while num_read < READ_TOKENS:
        for batch in loader:
            tokens = (batch if key is None else batch[key]).to(torch.int64)
            num_read += tokens.numel()
            if num_read >= READ_TOKENS:
                return


def modernbert(folder: Path) -> Callable[[], None]:
    """A training step of Hugging Face's ModernBERT with the sizes, tokens and masks of our model's step.

    AdamW, clipping at 1 and the precision of our step; all layers attend globally, and logits are those of masked
    tokens only.
    """
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    arrays = np.load(folder / "step.npz")
    sizes = json.loads(str(arrays["sizes"]))
    noisy_ids, labels = (torch.from_numpy(arrays[name]) for name in ("noisy_ids", "labels"))
    is_mixed = str(arrays["precision"]) == "bf16-mixed"
    special = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
    config = ModernBertConfig(
        **sizes, **special, global_attn_every_n_layers=1, sparse_prediction=True, attn_implementation="sdpa",
        tie_word_embeddings=True,
    )  # fmt: skip
    model = ModernBertForMaskedLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    is_attended = torch.ones_like(noisy_ids[0])

    def steps() -> None:
        for ids, label in zip(noisy_ids, labels, strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
                loss = model(input_ids=ids, attention_mask=is_attended, labels=label).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    steps()  # warm-up
    return steps


PROGRAMS = {
    "litdata": litdata,
    "mosaicml_streaming": mosaicml_streaming,
    "memory_map": memory_map,
    "modernbert": modernbert,
}


def main(name: str, folder: str) -> None:
    """Prepares the program, and runs it once per line of the input."""
    torch.set_num_threads(1)
    prepare = PROGRAMS[name] if name in PROGRAMS else runpy.run_path(name)["prepare"]
    run = prepare(Path(folder))
    _answer("ready")
    for _ in sys.stdin:
        started_at = time.process_time()
        run()
        _answer(f"seconds {time.process_time() - started_at}")


def _answer(line: str) -> None:
    sys.stdout.buffer.write(f"{line}\n".encode())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What will a run of a resolved config cost? FLOPs, seconds, memory and disk, before it has begun."""

import json
from pathlib import Path
from typing import Any

import torch

from lit_illada.batch import Layout
from lit_illada.config import RunConfig
from lit_illada.data.config import DataConfig, LoadTokenizer, PreparedSource, TrainTokenizer
from lit_illada.data.manifest import MANIFEST_FILE, is_url
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.model.config import ModelConfig, num_parameters
from lit_illada.model.flops import training_flops
from lit_illada.objective import AutoregressiveObjectiveConfig, JointDraw
from lit_illada.tree import from_tree

# what interpreter and libraries hold before there is a model, seen with torch 2.13 on Linux
_BASE_BYTES = 0.7e9
# weights, gradients and the optimizer's two moments in float32, and a copy while saving
_BYTES_PER_PARAMETER = 20
# weights and two moments
_CHECKPOINT_BYTES_PER_PARAMETER = 12
# activations a token and layer, in multiples of the width: attention and feed-forward, kept for the backward pass
_ACTIVATIONS_PER_WIDTH = 40


def step_flops(tree: dict[str, Any]) -> float | None:
    """Of an optimizer step, as `perf/mfu` counts them, documents taken as long as rows.

    None while the vocabulary's size is not known. For fine-tuning every token counts as one that may be masked.
    """
    config = from_tree(RunConfig, {key: tree[key] for key in ("model", "objective", "trainer")})
    model = _with_vocabulary(config.model, tree)
    if model.vocab_size is None:
        return None
    rows, length = config.trainer.batch_rows, row_length(tree)
    share = 1.0
    if not isinstance(config.objective, AutoregressiveObjectiveConfig):
        share = _mean_ratio(config)
        if config.objective.joint_draw is JointDraw.COMPLEMENTARY:
            rows, share = 2 * rows, 0.5
    return float(training_flops(model, Layout.whole_rows(rows, length), round(share * rows * length)))


def row_length(tree: dict[str, Any]) -> int:
    return (tree.get("data") or tree["sft_data"])["row_length"]


def parameters(tree: dict[str, Any]) -> int:
    """As though the vocabulary were small where it is not known yet."""
    model = _with_vocabulary(from_tree(ModelConfig, tree["model"]), tree)
    return num_parameters(model if model.vocab_size is not None else model.with_vocab_size(4096))


def memory_bytes(tree: dict[str, Any]) -> float:
    """Roughly what a process of the run holds at most."""
    model = _with_vocabulary(from_tree(ModelConfig, tree["model"]), tree)
    tokens = tree["trainer"]["micro_batch_rows"] * row_length(tree)
    activations = 4 * tokens * model.hidden_size * model.num_hidden_layers * _ACTIVATIONS_PER_WIDTH
    logits = 4 * 4 * min(tokens, 4096) * (model.vocab_size or 4096)
    return _BASE_BYTES + _BYTES_PER_PARAMETER * parameters(tree) + activations + logits


def disk_bytes(tree: dict[str, Any]) -> float:
    """Of the checkpoints that it keeps."""
    kept = tree["trainer"]["keep_checkpoints"]
    return kept * _CHECKPOINT_BYTES_PER_PARAMETER * parameters(tree)


def expected_vocab_size(tree: dict[str, Any]) -> int | None:
    """What the data set's tokenizer has or will have; None where only reading it tells."""
    config = from_tree(DataConfig, tree, "data.")
    manifest = Path(config.dir) / MANIFEST_FILE
    if not is_url(config.dir) and manifest.is_file():
        return json.loads(manifest.read_text(encoding="utf-8"))["vocab_size"]
    match config.source, config.tokenizer:
        case PreparedSource(), _:
            return None
        case _, LoadTokenizer() as load:
            return Tokenizer.load(load.path, load.token_names).vocab_size if Path(load.path).is_dir() else None
        case _, TrainTokenizer() as train:
            return train.vocab_size


def _with_vocabulary(model: ModelConfig, tree: dict[str, Any]) -> ModelConfig:
    size = expected_vocab_size(tree["data"]) if "data" in tree and model.vocab_size is None else None
    return model if size is None else model.with_vocab_size(size)


def _mean_ratio(config: RunConfig) -> float:
    """The masked share of tokens, over the whole training."""
    u = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    ratio = config.objective.mask_ratio  # type: ignore[union-attr]
    return sum(float(ratio.at(progress).quantile(u).mean()) for progress in (0.0, 0.5, 1.0)) / 3

"""FLOPs, memory and disk space of a run, estimated from its resolved config."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lit_illada.alignment.forms import Anchor
from lit_illada.batch import Layout
from lit_illada.config import AlignConfig, ObjectiveRunConfig, PretrainConfig, RunConfig, SFTConfig
from lit_illada.cost.alignment import TYPICAL_PROMPT, align_config, align_step_flops, completion_passes
from lit_illada.cost.memory import MicroBatch, StepMemory, kernel_on, step_memory
from lit_illada.data.config import DataConfig, LoadTokenizer, PreparedSource, TrainTokenizer
from lit_illada.data.dataset.manifest import Manifest, is_url
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.model.config import ModelConfig
from lit_illada.model.flops import training_flops
from lit_illada.model.lora import num_adapter_parameters
from lit_illada.objective.config import AutoregressiveObjectiveConfig, JointDraw, MaskDraw
from lit_illada.objective.masking import draw_masks
from lit_illada.schema import from_tree
from lit_illada.training.config.trainer import Accelerator

# memory of interpreter and libraries before there is a model, measured with torch 2.13 on Linux
_BASE_BYTES = 0.7e9
# cache of oneDNN on a CPU, which has an entry for every number of masked tokens seen
_CPU_CACHE_BYTES = 0.8e9
_UNKNOWN_VOCABULARY = 4096
_WITHOUT_COST = ("seed", "name", "run_dir")  # settings that no estimate depends on


def step_flops(tree: dict[str, Any]) -> float | None:
    """FLOPs of an optimizer step as `perf/mfu` counts them, for documents as long as rows.

    None if the size of the vocabulary is not known. For fine-tuning every token counts as maskable. A step of an
    alignment includes its part of the rollout.
    """
    if "alignment" in tree:
        aligned = align_config(_costing(tree))
        return None if aligned.model.vocab_size is None else sum(align_step_flops(aligned, aligned.model).values())
    config = _config(tree)
    model = with_vocabulary(config.model, tree)
    if model.vocab_size is None:
        return None
    length = row_length(tree)
    rows = num_processed_rows(config, config.trainer.batch_rows)
    num_selected = round(loss_fraction(config) * rows * length)
    num_adapters = num_adapter_parameters(model, config.lora)
    return float(training_flops(model, Layout.whole_rows(rows, length), num_selected, num_adapters))


def num_processed_rows(config: ObjectiveRunConfig, rows: int) -> int:
    """Rows that the model processes for `rows` rows of data."""
    return 2 * rows if _is_complementary(config) else rows


def loss_fraction(config: ObjectiveRunConfig) -> float:
    """Mean fraction of the tokens of processed rows that has loss, 0 to 1."""
    if isinstance(config.objective, AutoregressiveObjectiveConfig):
        return 1.0
    return 0.5 if _is_complementary(config) else _mean_ratio(config)


def row_length(tree: dict[str, Any]) -> int:
    """Tokens per row; in an alignment of a prompt of typical length with its longest completion."""
    if "alignment" in tree:
        longest: int = tree["model"]["max_position_embeddings"]
        return min(TYPICAL_PROMPT + int(tree["generation"]["max_new_tokens"]), longest)
    return (tree.get("data") or tree["sft_data"])["row_length"]


def memory_bytes(tree: dict[str, Any]) -> float:
    """Estimated peak memory of a process of the run; while saving it holds a copy of the state."""
    memory = _step_memory(tree)
    caches = _CPU_CACHE_BYTES if _accelerator(tree) is Accelerator.cpu else 0.0
    return _BASE_BYTES + caches + max(memory.peak, memory.state + memory.checkpoint)


def disk_bytes(tree: dict[str, Any]) -> float:
    """Disk space of the checkpoints that are retained."""
    return tree["trainer"]["keep_checkpoints"] * _step_memory(tree).checkpoint


def expected_vocab_size(tree: dict[str, Any]) -> int | None:
    """Vocabulary size of the tokenizer that a data set has or will have; None if it is not known yet."""
    config = from_tree(DataConfig, tree, "data.")
    if not is_url(config.dir) and (manifest := Manifest.of_folder(Path(config.dir))) is not None:
        return manifest.vocab_size
    match config.source, config.tokenizer:
        case PreparedSource(), _:
            return None
        case _, LoadTokenizer() as load:
            return Tokenizer.load(load.path, load.token_names).vocab_size if Path(load.path).is_dir() else None
        case _, TrainTokenizer() as train:
            return train.vocab_size


def with_vocabulary(model: ModelConfig, tree: dict[str, Any]) -> ModelConfig:
    """The model config with `vocab_size` filled in where the data config determines it."""
    size = expected_vocab_size(tree["data"]) if "data" in tree and model.vocab_size is None else None
    return model if size is None else model.with_vocab_size(size)


def micro_batch(
    config: ObjectiveRunConfig, model: ModelConfig, accelerator: Accelerator, length: int, fraction: float | None = None
) -> MicroBatch:
    """The micro-batch of one device, for rows of `length` tokens.

    fraction: tokens with loss, 0 to 1; None: the objective's mean.
    """
    trainer = config.trainer
    rows = num_processed_rows(config, trainer.micro_batch_rows)
    num_selected = math.ceil((loss_fraction(config) if fraction is None else fraction) * rows * length)
    device, compute_bytes = accelerator.device.type, trainer.precision.resolve(accelerator).dtype.itemsize
    columns = length if config.block_length is None else 2 * length  # [noisy | clean]
    kernel = kernel_on(model, device, compute_bytes, columns, has_annealing=config.has_annealing)
    batch = MicroBatch(rows, columns, num_selected, compute_bytes, kernel, device, is_packed=True, lora=config.lora)
    return batch.shared(trainer.parallel, trainer.world_size)


def align_micro_batch(config: AlignConfig, model: ModelConfig, accelerator: Accelerator, length: int) -> MicroBatch:
    """The micro-batch of one device in an update, for rows of `length` tokens; each view of an estimator is a row.

    With `recompute_views` the backward pass holds one view at a time.
    """
    trainer = config.trainer
    views = 1 if config.alignment.recompute_views else completion_passes(config).views
    rows = views * trainer.micro_batch_rows
    device, compute_bytes = accelerator.device.type, trainer.precision.resolve(accelerator).dtype.itemsize
    kernel = kernel_on(model, device, compute_bytes, length)
    num_selected = trainer.micro_batch_rows * config.generation.max_new_tokens
    batch = MicroBatch(rows, length, num_selected, compute_bytes, kernel, device, lora=config.lora)
    return batch.shared(trainer.parallel, trainer.world_size)


def memory_of_step(config: RunConfig, model: ModelConfig, batch: MicroBatch) -> StepMemory:
    """Memory of one device in a step with the config's optimizer, moving average and parallelism."""
    trainer = config.trainer
    return step_memory(
        model,
        config.optim.optimizer,
        batch,
        has_moving_average=trainer.ema_decay is not None,
        is_accumulating=trainer.accumulation > 1,
        parallel=trainer.parallel,
        world_size=trainer.world_size,
        has_reference=isinstance(config, AlignConfig) and config.alignment.needs(Anchor.REF),
    )


def _step_memory(tree: dict[str, Any]) -> StepMemory:
    """Memory of a step, assuming that every token has loss and that an unknown vocabulary is small."""
    accelerator, length = _accelerator(tree), row_length(tree)
    if "alignment" in tree:
        aligned = align_config(_costing(tree))
        return memory_of_step(aligned, aligned.model, align_micro_batch(aligned, aligned.model, accelerator, length))
    config = _config(tree)
    model = with_vocabulary(config.model, tree)
    if model.vocab_size is None:
        model = model.with_vocab_size(_UNKNOWN_VOCABULARY)
    return memory_of_step(config, model, micro_batch(config, model, accelerator, length, 1.0))


def _accelerator(tree: dict[str, Any]) -> Accelerator:
    """The configured accelerator; a GPU need not be present on the planning machine."""
    accelerator = Accelerator(tree["trainer"]["accelerator"])
    return accelerator if accelerator is Accelerator.gpu else accelerator.resolve()


def _costing(tree: dict[str, Any]) -> dict[str, Any]:
    """The settings that estimates depend on."""
    return {key: value for key, value in tree.items() if key not in _WITHOUT_COST}


def _config(tree: dict[str, Any]) -> ObjectiveRunConfig:
    return _read_config(json.dumps(_costing(tree)))


@cache  # the runs of a sweep differ in little but their seeds, and each is asked for memory, disk space and FLOPs
def _read_config(text: str) -> ObjectiveRunConfig:
    tree = json.loads(text)
    return from_tree(SFTConfig if "sft_data" in tree else PretrainConfig, tree)


def _is_complementary(config: ObjectiveRunConfig) -> bool:
    """Whether each row is processed twice, with complementary masks."""
    objective = config.objective
    return not isinstance(objective, AutoregressiveObjectiveConfig) and objective.joint_draw is JointDraw.COMPLEMENTARY


def _mean_ratio(config: ObjectiveRunConfig) -> float:
    """Mean mask ratio over the training, 0 to 1."""
    objective = config.objective
    assert not isinstance(objective, AutoregressiveObjectiveConfig)
    u = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    ratios = [objective.mask_ratio.at(progress) for progress in (0.0, 0.5, 1.0)]
    if objective.block_length is None or objective.mask_draw is not MaskDraw.EXACT_K:
        return sum(float(ratio.quantile(u).mean()) for ratio in ratios) / 3
    # exact-k masks at least one token of a block, so much more than the mean ratio of short blocks
    is_maskable = torch.ones(256, objective.block_length, dtype=torch.bool)
    parts = u, torch.zeros_like(is_maskable, dtype=u.dtype), is_maskable
    masks = [draw_masks(objective.mask_draw, ratio, objective.weighting, *parts) for ratio in ratios]
    return sum(float(each.mask_ratio.mean()) for each in masks) / 3

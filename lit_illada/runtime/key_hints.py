"""Suggestions for unknown config keys, by the names of other libraries and by spelling."""

import difflib
from collections.abc import Sequence

from lit_illada.errors import UserError

# from names in Lightning, Hugging Face and other trainers to keys of this package, or their last parts
SYNONYMS: dict[str, tuple[str, ...]] = {
    "accumulate_grad_batches": ("trainer.micro_batch_rows",),
    "batch_size": ("trainer.batch_rows", "score.batch_prompts"),
    "beta": ("optim.optimizer.beta1",),
    "betas": ("optim.optimizer.beta1",),
    "bf16": ("trainer.precision",),
    "block_size": ("data.row_length", "sft_data.row_length", "generation.block_length"),
    "checkpoint_every": ("trainer.checkpoint_every_steps",),
    "context_length": ("data.row_length", "sft_data.row_length"),
    "d_ff": ("model.intermediate_size",),
    "d_model": ("model.hidden_size",),
    "dim": ("model.hidden_size",),
    "dtype": ("trainer.precision", "precision"),
    "ema": ("trainer.ema_decay",),
    "epoch": ("epochs", "trainer.max_steps"),
    "epochs": ("epochs", "trainer.max_steps"),
    "eval_interval": ("trainer.val_every_steps",),
    "eval_steps": ("trainer.val_every_steps",),
    "gen_length": ("generation.max_new_tokens",),
    "global_batch_size": ("trainer.batch_rows",),
    "gpus": ("trainer.devices",),
    "grad_clip": ("optim.gradient_clip_norm",),
    "gradient_accumulation_steps": ("trainer.micro_batch_rows",),
    "gradient_clip_val": ("optim.gradient_clip_norm",),
    "learning_rate": ("optim.optimizer.learning_rate",),
    "length": ("generation.max_new_tokens", "data.row_length"),
    "log_every_n_steps": ("trainer.log_every_steps",),
    "logging_steps": ("trainer.log_every_steps",),
    "lr": ("optim.optimizer.learning_rate",),
    "lr_scheduler": ("optim.schedule.name",),
    "max_epochs": ("epochs", "trainer.max_steps"),
    "max_grad_norm": ("optim.gradient_clip_norm",),
    "max_iters": ("trainer.max_steps",),
    "max_length": ("data.row_length", "sft_data.row_length", "generation.max_new_tokens"),
    "max_seq_len": ("data.row_length", "sft_data.row_length"),
    "max_seq_length": ("data.row_length", "sft_data.row_length"),
    "max_time": ("trainer.max_time_s",),
    "micro_batch_size": ("trainer.micro_batch_rows",),
    "min_lr": ("optim.schedule.final_factor",),
    "n_embd": ("model.hidden_size",),
    "n_head": ("model.num_attention_heads",),
    "n_layer": ("model.num_hidden_layers",),
    "nodes": ("trainer.num_nodes",),
    "num_epochs": ("epochs", "trainer.max_steps"),
    "num_gpus": ("trainer.devices",),
    "num_heads": ("model.num_attention_heads",),
    "num_kv_heads": ("model.num_key_value_heads",),
    "num_layers": ("model.num_hidden_layers",),
    "num_steps": ("trainer.max_steps", "generation.num_steps"),
    "num_train_epochs": ("epochs", "trainer.max_steps"),
    "optimizer": ("optim.optimizer.name",),
    "output_dir": ("run_dir",),
    "per_device_train_batch_size": ("trainer.micro_batch_rows",),
    "precision": ("trainer.precision", "precision"),
    "random_seed": ("seed",),
    "remasking": ("generation.commit_rule.name",),
    "save_steps": ("trainer.checkpoint_every_steps",),
    "save_top_k": ("trainer.keep_best",),
    "scheduler": ("optim.schedule.name",),
    "seed": ("seed",),
    "seed_everything": ("seed",),
    "seq_len": ("data.row_length", "sft_data.row_length"),
    "sequence_length": ("data.row_length", "sft_data.row_length"),
    "steps": ("trainer.max_steps", "generation.num_steps"),
    "strategy": ("trainer.parallel.strategy",),
    "temp": ("generation.temperature",),
    "train_batch_size": ("trainer.batch_rows",),
    "unit": ("budget.measure",),
    "val_check_interval": ("trainer.val_every_steps",),
    "warmup": ("optim.schedule.warmup_steps",),
    "warmup_ratio": ("optim.schedule.warmup_steps", "warmup_fraction"),
    "wd": ("optim.optimizer.weight_decay",),
    "weight_decay": ("optim.optimizer.weight_decay",),
    "world_size": ("trainer.devices",),
}


def similar_key(key: str, known: Sequence[str]) -> str | None:
    """Return the most similar key of `known`, or None.

    In this order: a key with the same parent and nearly the same last word, a synonym, the same last word elsewhere,
    nearly the same last word elsewhere, nearly the same key.
    """
    parent, _, last = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    if close := difflib.get_close_matches(last, siblings, n=1, cutoff=0.75):
        return siblings[close[0]]
    for meant in SYNONYMS.get(last, ()):
        if ends := [name for name in known if name == meant or name.endswith(f".{meant}")]:
            return ends[0]
    by_last: dict[str, list[str]] = {}
    for name in known:
        by_last.setdefault(name.rpartition(".")[2], []).append(name)
    if close := difflib.get_close_matches(last, by_last, n=1, cutoff=0.8):
        return difflib.get_close_matches(key, by_last[close[0]], n=1, cutoff=0.0)[0]
    if close := difflib.get_close_matches(last, siblings, n=1, cutoff=0.5):
        return siblings[close[0]]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return close[0] if close else None


class UnknownKeyError(UserError):
    """A config key that does not exist."""

    def __init__(self, key: str, message: str) -> None:
        """key: as the user wrote it."""
        super().__init__(message)
        self.key = key


def nearest_key(key: str, known: Sequence[str]) -> UnknownKeyError:
    """Build the error for a key that is not among `known`, with the nearest of them."""
    parent = key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    if siblings:
        allowed = f"allowed there are {', '.join(siblings)}"
    else:
        allowed = f"top-level keys are {', '.join(dict.fromkeys(name.partition('.')[0] for name in known))}"
    near = similar_key(key, known)
    hint = f" (did you mean {near!r}?)" if near else ""
    return UnknownKeyError(key, f"unknown config key {key!r}{hint}: {allowed}")

"""Overhead of the Lightning training loop over a plain PyTorch loop with equal model, objective, optimizer and batches.

Both run the demo's training step, alternate, and start from newly built models; warm-up steps are not counted.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_illada import build
from lit_illada.bench.figure import Figure, figure, now
from lit_illada.config import PretrainConfig, load
from lit_illada.data.prepare.prepare import prepare
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.console import Console
from lit_illada.training.callbacks.stopping import GracefulStop
from lit_illada.training.config.trainer import Precision
from lit_illada.training.optim import build_optimizer
from lit_illada.training.schedule import LearningRate

_WARM_UP_STEPS = 2


def measure(repeats: int = 5, steps: int = 8) -> dict[str, Figure]:
    """Seconds per step of each loop, and the ratio Lightning / plain within a repeat. Goal: at most 1.05."""
    with TemporaryDirectory() as scratch:
        overrides = ["experiment=demo", f"data.dir={scratch}/stdlib", "samples.prompts=[]"]
        overrides += ["optim.schedule.warmup_steps=1"]
        overrides += [f"trainer.max_steps={_WARM_UP_STEPS + steps}", "trainer.log_every_steps=10"]
        overrides += ["trainer.val_every_steps=1000000", "trainer.checkpoint_every_steps=1000000"]
        config = load("pretrain", overrides)
        prepare(config.data)
        pairs = [(_with_lightning(config, Path(scratch), index), _bare(config)) for index in range(repeats)]
    return {
        "lightning_s_per_step": figure([ours for ours, _ in pairs]),
        "bare_s_per_step": figure([bare for _, bare in pairs]),
        "ratio": figure([ours / bare for ours, bare in pairs]),
    }


class _Stopwatch(Callback):
    """Times from the end of the last warm-up step to the end of the last step, so that work between steps counts."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == _WARM_UP_STEPS:
            self.started_at = now(pl_module.device)
        elif trainer.global_step == trainer.max_steps:
            self.ended_at = now(pl_module.device)


def _with_lightning(config: PretrainConfig, scratch: Path, index: int) -> float:
    datamodule = build.build_datamodule(config)
    tokenizer = datamodule.tokenizer
    config = config.resolve(tokenizer.vocab_size)
    module = build.build_module(config, tokenizer, datamodule.unigram_cross_entropy(), weights={})
    folder = RunFolder(scratch / f"run-{index}")
    trainer, _, _ = build.build_trainer(config, folder, module, datamodule, Console(quiet=True), GracefulStop())
    stopwatch = _Stopwatch()
    trainer.callbacks.append(stopwatch)  # type: ignore[attr-defined]
    # the plain loop does not validate
    trainer.limit_val_batches = 0
    trainer.fit(module, datamodule=datamodule)
    return (stopwatch.ended_at - stopwatch.started_at) / (config.trainer.max_steps - _WARM_UP_STEPS)


def _bare(config: PretrainConfig) -> float:
    datamodule = build.build_datamodule(config)
    tokenizer = datamodule.tokenizer
    config = config.resolve(tokenizer.vocab_size)
    accelerator, precision = config.trainer.hardware()
    device = accelerator.device
    model = build.build_model(config.model, config.seed).to(device)
    objective = build.build_objective(config.objective, tokenizer, config.seed, config.trainer.batch_rows)
    optimizer = build_optimizer(model, config.optim.optimizer)
    schedule = LearningRate(optimizer, config.optim.schedule, config.trainer.max_steps)
    started_at = 0.0
    for step, batch in enumerate(datamodule.train_dataloader(), start=1):
        noisy = objective.corrupt(batch.to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision is Precision.bf16_mixed):
            scores = model(noisy.noisy_ids, noisy.layout, noisy.is_masked, noisy.targets)
            loss = objective.loss(scores, noisy)
        (loss.sum / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.gradient_clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step == _WARM_UP_STEPS:
            started_at = now(device)
    return (now(device) - started_at) / (config.trainer.max_steps - _WARM_UP_STEPS)

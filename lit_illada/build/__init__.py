"""Builds model, objective, data module, LightningModule and Trainer from the config dataclasses."""

from lit_illada.build.data import build_align_datamodule, build_datamodule, build_sft_datamodule
from lit_illada.build.models import build_model, build_objective
from lit_illada.build.modules import build_align_module, build_module, build_validation_score
from lit_illada.build.trainer import build_trainer

__all__ = [
    "build_align_datamodule",
    "build_align_module",
    "build_datamodule",
    "build_model",
    "build_module",
    "build_objective",
    "build_sft_datamodule",
    "build_trainer",
    "build_validation_score",
]

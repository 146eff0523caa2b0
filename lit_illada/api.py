"""The public names: what a notebook or another package builds on."""

from lit_illada.batch import Layout, TokenBatch, TokenScores
from lit_illada.build import build_datamodule, build_model, build_module, build_objective, complete, load_checkpoint
from lit_illada.config import GenerateConfig, PretrainConfig, load, load_file
from lit_illada.data.datamodule import PackedDataModule
from lit_illada.data.prepare import prepare
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.generation.canvas import Generation
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.generate import generate
from lit_illada.model.config import ModelConfig
from lit_illada.model.transformer import Transformer
from lit_illada.objective.autoregressive import AutoregressiveObjective
from lit_illada.objective.config import DiffusionObjectiveConfig
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.scoring.likelihood import Likelihood, MaskGrid, nll, nll_bound
from lit_illada.training.module import PretrainModule
from lit_illada.tree import dump

__all__ = [
    "AutoregressiveObjective",
    "DiffusionObjective",
    "DiffusionObjectiveConfig",
    "GenerateConfig",
    "Generation",
    "GenerationConfig",
    "Layout",
    "Likelihood",
    "MaskGrid",
    "ModelConfig",
    "PackedDataModule",
    "PretrainConfig",
    "PretrainModule",
    "TokenBatch",
    "TokenScores",
    "Tokenizer",
    "Transformer",
    "UserError",
    "build_datamodule",
    "build_model",
    "build_module",
    "build_objective",
    "complete",
    "dump",
    "generate",
    "load",
    "load_checkpoint",
    "load_file",
    "nll",
    "nll_bound",
    "prepare",
]

"""Public names of the package, importable as `lit_illada.NAME`."""

from lit_illada.api.checkpoints import TextBound, build_module, generate, infill, load_module, nll_bound
from lit_illada.batch import Layout, TokenBatch, TokenScores
from lit_illada.build import build_datamodule, build_model, build_objective, build_sft_datamodule
from lit_illada.checkpoints.open import load_checkpoint
from lit_illada.checkpoints.start import load_sft
from lit_illada.config import GenerateConfig, PretrainConfig, SFTConfig, load, load_file
from lit_illada.data.datamodule import PackedDataModule
from lit_illada.data.prepare.prepare import prepare
from lit_illada.data.sft_datamodule import SFTDataModule
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.generation.canvas import Generation
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.text import LanguageModel
from lit_illada.model.config import ModelConfig
from lit_illada.model.transformer import Transformer
from lit_illada.objective.autoregressive import AutoregressiveObjective
from lit_illada.objective.config import DiffusionObjectiveConfig
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.schema import dump
from lit_illada.scoring.likelihood import Likelihood
from lit_illada.scoring.mask_grid import MaskGrid
from lit_illada.training.module import PretrainModule
from lit_illada.training.sft_module import SFTModule

__all__ = [
    "AutoregressiveObjective",
    "DiffusionObjective",
    "DiffusionObjectiveConfig",
    "GenerateConfig",
    "Generation",
    "GenerationConfig",
    "LanguageModel",
    "Layout",
    "Likelihood",
    "MaskGrid",
    "ModelConfig",
    "PackedDataModule",
    "PretrainConfig",
    "PretrainModule",
    "SFTConfig",
    "SFTDataModule",
    "SFTModule",
    "TextBound",
    "TokenBatch",
    "TokenScores",
    "Tokenizer",
    "Transformer",
    "UserError",
    "build_datamodule",
    "build_model",
    "build_module",
    "build_objective",
    "build_sft_datamodule",
    "dump",
    "generate",
    "infill",
    "load",
    "load_checkpoint",
    "load_file",
    "load_module",
    "load_sft",
    "nll_bound",
    "prepare",
]

"""Config dataclasses of the commands, and loading them from the files of conf/ or from a saved config."""

from lit_illada.config.align import AlignConfig
from lit_illada.config.loading import SCHEMAS, check_overrides, compose_tree, load, load_file
from lit_illada.config.runs import (
    EvaluationConfig,
    ObjectiveRunConfig,
    PretrainConfig,
    RunConfig,
    SamplesConfig,
    SFTConfig,
)
from lit_illada.config.use import ExamplesConfig, GenerateConfig, PrepareConfig, ScoreConfig

__all__ = [
    "SCHEMAS",
    "AlignConfig",
    "EvaluationConfig",
    "ExamplesConfig",
    "GenerateConfig",
    "ObjectiveRunConfig",
    "PrepareConfig",
    "PretrainConfig",
    "RunConfig",
    "SFTConfig",
    "SamplesConfig",
    "ScoreConfig",
    "check_overrides",
    "compose_tree",
    "load",
    "load_file",
]

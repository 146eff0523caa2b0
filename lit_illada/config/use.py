"""Configs of the commands that use a checkpoint or show data."""

from dataclasses import dataclass, field

from lit_illada.data.config import DataConfig
from lit_illada.data.sft.config import TEMPLATES, ReasoningTask, RoleTexts, RoleTokens, SFTDataConfig
from lit_illada.generation.config import GenerationConfig
from lit_illada.schema import choice
from lit_illada.scoring.config import ScoringConfig
from lit_illada.training.config.trainer import Accelerator, Precision


@dataclass(frozen=True)
class GenerateConfig:
    """Generation from a checkpoint."""

    accelerator: Accelerator = Accelerator.auto  # device
    precision: Precision = Precision.float32  # bf16-mixed is faster on hardware with bfloat16, and rounds
    template: RoleTokens | RoleTexts = choice(TEMPLATES, "role_tokens")  # chat template for --chat
    generation: GenerationConfig = field(default_factory=GenerationConfig)  # sampler settings


@dataclass(frozen=True)
class ScoreConfig:
    """Scoring with a checkpoint."""

    accelerator: Accelerator = Accelerator.auto  # device
    precision: Precision = Precision.float32  # of generation; likelihoods are computed in float32
    template: RoleTokens | RoleTexts = choice(TEMPLATES, "role_tokens")  # chat template for score/wording=chat
    score: ScoringConfig = field(default_factory=ScoringConfig)  # scoring rule and its settings
    reasoning: ReasoningTask = field(default_factory=ReasoningTask)  # problems of --reasoning
    generation: GenerationConfig = field(default_factory=GenerationConfig)  # sampler settings


@dataclass(frozen=True)
class PrepareConfig:
    """Preparation of a data set."""

    data: DataConfig = field(default_factory=DataConfig)  # data set and its preparation


@dataclass(frozen=True)
class ExamplesConfig:
    """A preview of fine-tuning data."""

    sft_data: SFTDataConfig = field(default_factory=SFTDataConfig)  # fine-tuning examples and their rows

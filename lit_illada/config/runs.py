"""Configs of pretraining and fine-tuning runs."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from lit_illada.data.config import DataConfig
from lit_illada.data.sft.config import SFTDataConfig
from lit_illada.errors import UserError, require
from lit_illada.generation.config import GenerationConfig
from lit_illada.model.config import ModelConfig
from lit_illada.model.lora_config import ADAPTERS, FullWeights, LoraConfig
from lit_illada.objective.config import OBJECTIVES, AutoregressiveObjectiveConfig, DiffusionObjectiveConfig
from lit_illada.schema import choice, choice_name
from lit_illada.training.config.loggers import LoggerConfig
from lit_illada.training.config.optim import MuonConfig, OptimConfig
from lit_illada.training.config.trainer import TrainerConfig


@dataclass(frozen=True)
class SamplesConfig:
    """Texts generated at every validation and logged to TensorBoard, one per prompt."""

    prompts: list[str] = field(default_factory=list)  # continued at every validation; empty: none
    generation: GenerationConfig = field(default_factory=GenerationConfig)  # sampler settings


@dataclass(frozen=True)
class RunConfig:
    """Settings shared by all training runs."""

    name: str = "run"  # name of the run, and of its folder
    seed: int = 0  # seed of initial weights, data order and noise
    run_dir: str | None = None  # null: runs/<name>-<start time>
    init_from: str | None = None  # checkpoint with the initial weights, of a run or converted; null: random weights
    model: ModelConfig = field(default_factory=ModelConfig)  # architecture
    optim: OptimConfig = field(default_factory=OptimConfig)  # optimizer and learning rate schedule
    trainer: TrainerConfig = field(default_factory=TrainerConfig)  # devices, batch, length, validation, checkpoints
    logger: LoggerConfig = field(default_factory=LoggerConfig)  # loggers beside TensorBoard

    def __post_init__(self) -> None:
        self._check_parallel()
        self._check_batch()
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must lie between 0 and 2**32 - 1")

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters to train; None if every weight is trained."""
        return None

    def _check_batch(self) -> None:
        self.trainer.check_batch()

    def _check_parallel(self) -> None:
        parallel = self.trainer.parallel
        parallel.check_model(self.model, self.trainer.world_size)
        if parallel.tensor_parallel > 1 and isinstance(self.optim.optimizer, MuonConfig):
            raise UserError(
                f"optim.optimizer.name=muon updates whole matrices, and trainer.parallel.tensor_parallel="
                f"{parallel.tensor_parallel} shards them along both dimensions: use optim=adamw, or tensor_parallel=1"
            )
        if parallel.tensor_parallel > 1 and self.lora is not None:
            raise UserError(
                f"adapter.name=lora and trainer.parallel.tensor_parallel={parallel.tensor_parallel}: adapters are not "
                "sharded by heads; use trainer.parallel.strategy=fsdp with tensor_parallel=1"
            )

    def check_warmup(self) -> None:
        steps = self.optim.schedule.warmup_steps
        if steps >= self.trainer.max_steps:
            raise UserError(
                f"optim.schedule.warmup_steps is {steps}, not below trainer.max_steps={self.trainer.max_steps}: the "
                "run would end before its learning rate is reached"
            )

    def check_generation_length(self, key: str, generation: GenerationConfig) -> None:
        longest = self.model.max_position_embeddings
        if generation.max_new_tokens > longest:
            raise UserError(
                f"{key}.max_new_tokens is {generation.max_new_tokens}, more than "
                f"model.max_position_embeddings={longest}"
            )

    def _check_row_length(self, key: str, row_length: int) -> None:
        longest = self.model.max_position_embeddings
        if row_length > longest:
            raise UserError(f"{key} is {row_length}, longer than model.max_position_embeddings={longest}")


@dataclass(frozen=True)
class ObjectiveRunConfig(RunConfig):
    """Settings of runs that train on an objective."""

    objective: DiffusionObjectiveConfig | AutoregressiveObjectiveConfig = choice(OBJECTIVES, "diffusion")
    """Training loss."""
    adapter: FullWeights | LoraConfig = choice(ADAPTERS, "none")
    """Which weights are trained."""

    @property
    def lora(self) -> LoraConfig | None:
        return self.adapter if isinstance(self.adapter, LoraConfig) else None

    def __post_init__(self) -> None:
        is_autoregressive = isinstance(self.objective, AutoregressiveObjectiveConfig)
        if is_autoregressive != self.model.is_causal:
            raise UserError(
                f"objective.name={choice_name(OBJECTIVES, self.objective)} needs "
                f"model.is_causal={str(is_autoregressive).lower()}; got {str(self.model.is_causal).lower()}"
            )
        self._set_block_length()
        super().__post_init__()

    @property
    def block_length(self) -> int | None:
        """Tokens per block of block diffusion; None for other objectives."""
        return None if isinstance(self.objective, AutoregressiveObjectiveConfig) else self.objective.block_length

    @property
    def has_annealing(self) -> bool:
        """Whether attention grows from causal to bidirectional."""
        objective = self.objective
        return isinstance(objective, DiffusionObjectiveConfig) and objective.attention_annealing is not None

    def _set_block_length(self) -> None:
        """Record the objective's blocks in the model, which generation and scoring read."""
        length, recorded = self.block_length, self.model.block_length
        if recorded not in (None, length):
            raise UserError(
                f"model.block_length is {recorded}, but objective.block_length is "
                f"{'null' if length is None else length}: set objective.block_length={recorded}; the model's follows it"
            )
        object.__setattr__(self, "model", replace(self.model, block_length=length))

    def _check_block_length(self, key: str, row_length: int) -> None:
        length = self.block_length
        if length is not None and length > row_length:
            raise UserError(
                f"objective.block_length is {length}, longer than {key}={row_length}: set it to at most {row_length}, "
                "or to null for the whole row"
            )


@dataclass(frozen=True)
class PretrainConfig(ObjectiveRunConfig):
    """A pretraining run."""

    name: str = "pretrain"  # name of the run, and of its folder
    data: DataConfig = field(default_factory=DataConfig)  # data set and its preparation
    samples: SamplesConfig = field(default_factory=SamplesConfig)  # texts generated at every validation

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_warmup()
        self._check_row_length("data.row_length", self.data.row_length)
        self._check_block_length("data.row_length", self.data.row_length)
        self._check_whole_blocks()
        if self.lora is not None and self.init_from is None:
            raise UserError(
                "adapter.name=lora freezes every other weight, which are random without init_from: give a checkpoint "
                "with --init-from, or set adapter=none"
            )
        if self.samples.prompts:
            self.check_generation_length("samples.generation", self.samples.generation)

    def _check_whole_blocks(self) -> None:
        length, row_length = self.block_length, self.data.row_length
        if length is not None and row_length % length:
            divisors = [n for n in range(1, row_length + 1) if row_length % n == 0]
            below, above = max(n for n in divisors if n < length), min(n for n in divisors if n > length)
            raise UserError(
                f"objective.block_length is {length}, which does not divide data.row_length={row_length}, so the rows "
                f"of long documents would end within a block: set it to {below} or {above}, or data.row_length to "
                f"{row_length // length * length}"
            )

    def resolve(self, vocab_size: int) -> "PretrainConfig":
        """Return the config with the vocabulary size of the data set's tokenizer."""
        return replace(self, model=self.model.with_vocab_size(vocab_size))


@dataclass(frozen=True)
class EvaluationConfig:
    """Exact match of generated answers at every validation."""

    num_examples: int = 32  # held-out examples per difficulty
    generation: GenerationConfig = field(default_factory=GenerationConfig)  # sampler settings

    def __post_init__(self) -> None:
        require(self.num_examples >= 0, "evaluation.num_examples", self.num_examples, "0 or more")


@dataclass(frozen=True)
class SFTConfig(ObjectiveRunConfig):
    """A fine-tuning run. `model` is that of `init_from`."""

    name: str = "sft"  # name of the run, and of its folder
    epochs: float | None = None  # passes over the examples; null: train for trainer.max_steps
    sft_data: SFTDataConfig = field(default_factory=SFTDataConfig)  # fine-tuning examples and their rows
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)  # exact match at validations

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_row_length("sft_data.row_length", self.sft_data.row_length)
        self._check_block_length("sft_data.row_length", self.sft_data.row_length)
        if self.evaluation.num_examples:
            self.check_generation_length("evaluation.generation", self.evaluation.generation)
        if self.epochs is None:
            self.check_warmup()
        is_positive = self.epochs is None or self.epochs > 0
        require(is_positive, "epochs", self.epochs, "above 0, or null for trainer.max_steps")

    def resolve(self, epoch_steps: Callable[[float], int]) -> "SFTConfig":
        """Return the config with max_steps computed from `epochs`, if set.

        epoch_steps: maps a number of epochs to optimizer steps. Raises UserError for a warmup that is too long.
        """
        if self.epochs is None:
            return self
        config = replace(self, trainer=replace(self.trainer, max_steps=epoch_steps(self.epochs)))
        config.check_warmup()
        return config

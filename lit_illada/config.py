"""Config dataclasses of the commands, and loading them from the files of conf/ or from a saved config."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from lit_illada.alignment.config import AlignmentConfig, ProblemsConfig
from lit_illada.config_files import chooses_file, compose_files, is_group
from lit_illada.data.config import DataConfig
from lit_illada.data.sft.config import TEMPLATES, ReasoningTask, RoleTexts, RoleTokens, SFTDataConfig
from lit_illada.errors import UserError, require, unknown
from lit_illada.generation.config import GenerationConfig
from lit_illada.loops.config import LoopsConfig
from lit_illada.model.config import ModelConfig
from lit_illada.model.lora_config import ADAPTERS, FullWeights, LoraConfig
from lit_illada.objective.config import OBJECTIVES, AutoregressiveObjectiveConfig, DiffusionObjectiveConfig
from lit_illada.overrides import apply_overrides, keys_of, parse_assignment, require_assignment
from lit_illada.runtime import plugins
from lit_illada.runtime.key_hints import UnknownKeyError, nearest_key
from lit_illada.runtime.paths import conf_dir
from lit_illada.runtime.yaml_files import read_yaml
from lit_illada.schema import check_fields, choice, choice_name, from_tree, with_defaults
from lit_illada.scoring.config import ScoringConfig
from lit_illada.tasks.base import Task
from lit_illada.tasks.registry import TASKS
from lit_illada.training.config.divergence import Rollback
from lit_illada.training.config.loggers import LoggerConfig
from lit_illada.training.config.optim import MuonConfig, OptimConfig
from lit_illada.training.config.trainer import Accelerator, Precision, TrainerConfig

T = TypeVar("T")
_SECTIONS = {"model", "optim", "trainer"}  # sections of every config saved by any version


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
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must lie between 0 and 2**32 - 1")

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters to train; None if every weight is trained."""
        return None

    def _check_parallel(self) -> None:
        parallel = self.trainer.parallel
        parallel.check_model(self.model, self.trainer.world_size)
        if parallel.tensor_parallel > 1 and isinstance(self.optim.optimizer, MuonConfig):
            raise UserError(
                f"optim.optimizer.name=muon updates whole matrices, and trainer.parallel.tensor_parallel="
                f"{parallel.tensor_parallel} shards them along both dimensions: use optim=adamw, or tensor_parallel=1"
            )

    def check_warmup(self) -> None:
        steps = self.optim.schedule.warmup_steps
        if steps >= self.trainer.max_steps:
            raise UserError(
                f"optim.schedule.warmup_steps is {steps}, not below trainer.max_steps={self.trainer.max_steps}: the "
                "run would end before its learning rate is reached"
            )

    def _check_generation_length(self, key: str, generation: GenerationConfig) -> None:
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

    def __post_init__(self) -> None:
        is_autoregressive = isinstance(self.objective, AutoregressiveObjectiveConfig)
        if is_autoregressive != self.model.is_causal:
            raise UserError(
                f"objective.name={choice_name(OBJECTIVES, self.objective)} needs "
                f"model.is_causal={str(is_autoregressive).lower()}; got {str(self.model.is_causal).lower()}"
            )
        super().__post_init__()


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
        if self.samples.prompts:
            self._check_generation_length("samples.generation", self.samples.generation)

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
    adapter: FullWeights | LoraConfig = choice(ADAPTERS, "none")  # which weights are trained
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)  # exact match at validations

    @property
    def lora(self) -> LoraConfig | None:
        return self.adapter if isinstance(self.adapter, LoraConfig) else None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_row_length("sft_data.row_length", self.sft_data.row_length)
        if self.evaluation.num_examples:
            self._check_generation_length("evaluation.generation", self.evaluation.generation)
        if self.trainer.parallel.tensor_parallel > 1 and self.lora is not None:
            raise UserError(
                f"adapter.name=lora and trainer.parallel.tensor_parallel={self.trainer.parallel.tensor_parallel}: "
                "adapters are not sharded by heads; use trainer.parallel.strategy=fsdp with tensor_parallel=1"
            )
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


@dataclass(frozen=True)
class AlignConfig(RunConfig):
    """An alignment run. `model` is that of `init_from`.

    `trainer.batch_rows` is computed as prompts_per_step × alignment.group_size, and `trainer.micro_batch_rows` lowered
    to a divisor of what a device has of them; `trainer.val_rows` counts held-out problems.
    """

    name: str = "align"  # name of the run, and of its folder
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)  # how rewards change the policy
    task: Task = choice(TASKS, "arithmetic")  # problems and their checker
    problems: ProblemsConfig = field(default_factory=ProblemsConfig)  # which problems of the task are used
    preferences: str | None = None  # file of pairs {"prompt", "chosen", "rejected"} for alignment=vrpo; null: the task
    template: RoleTokens | RoleTexts = choice(TEMPLATES, "role_tokens")  # chat template of the fine-tuned model
    adapter: FullWeights | LoraConfig = choice(ADAPTERS, "none")  # which weights are trained
    prompts_per_step: int = 8  # prompts per rollout and optimizer step, over all devices
    generation: GenerationConfig = field(default_factory=lambda: GenerationConfig(temperature=1.0))
    """Sampler of the rollouts; its seed is added to the run's."""
    rollout_rows: int = 64  # completions that a device generates at once; the completions do not depend on it
    held_out_temperature: float = 0.0  # temperature on held-out problems; 0: the most probable tokens

    @property
    def lora(self) -> LoraConfig | None:
        return self.adapter if isinstance(self.adapter, LoraConfig) else None

    @property
    def held_out_generation(self) -> GenerationConfig:
        """The sampler of the held-out problems."""
        temperature = self.held_out_temperature
        top_p = self.generation.top_p if temperature else 1.0
        return replace(self.generation, temperature=temperature, top_p=top_p)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.is_causal:
            raise UserError(
                "the checkpoint is causal (model.is_causal=true), and the estimators score masked states: align a "
                "masked-diffusion model"
            )
        require(self.prompts_per_step >= 1, "prompts_per_step", self.prompts_per_step, "1 or more")
        require(self.rollout_rows >= 1, "rollout_rows", self.rollout_rows, "1 or more")
        require(self.held_out_temperature >= 0, "held_out_temperature", self.held_out_temperature, "0 or more")
        self._check_source()
        self._check_generation_length("generation", self.generation)
        self.check_warmup()
        response, ranks = self.trainer.on_divergence, self.trainer.num_data_ranks
        if isinstance(response, Rollback) and response.skip_rows:
            raise UserError("trainer.on_divergence.skip_rows is true, but alignment skips no prompts: set it to false")
        require(self.prompts_per_step % ranks == 0, "prompts_per_step", self.prompts_per_step, f"a multiple of {ranks}")
        if self.trainer.parallel.tensor_parallel > 1 and self.lora is not None:
            raise UserError(
                f"adapter.name=lora and trainer.parallel.tensor_parallel={self.trainer.parallel.tensor_parallel}: "
                "adapters are not sharded by heads; use trainer.parallel.strategy=fsdp with tensor_parallel=1"
            )

    def _check_source(self) -> None:
        is_pair = self.alignment.form.is_pair
        if is_pair != (self.preferences is not None):
            raise UserError(
                "alignment.form.name=dpo learns from pairs: give preferences=FILE"
                if is_pair
                else f"preferences={self.preferences} needs alignment.form.name=dpo: set alignment=vrpo"
            )
        if not is_pair and self.generation.temperature == 0:
            raise UserError(
                "generation.temperature is 0, so the completions of a prompt would be equal: set it above 0, such as 1"
            )
        if self.alignment.estimator.needs_steps and self.generation.remask.is_on:
            raise UserError(
                "alignment.estimator scores the states of the rollout, but generation.remask masks tokens again: set "
                "generation/remask=none, or choose another estimator"
            )

    def resolve(self) -> "AlignConfig":
        """Return the config with the rows per optimizer step and per forward pass."""
        group_size, trainer = self.alignment.group_size, self.trainer
        batch_rows = self.prompts_per_step * group_size
        own = batch_rows // trainer.num_data_ranks
        unit = 2 if self.alignment.form.is_pair else 1
        sizes = [size for size in range(unit, own + 1, unit) if own % size == 0]
        micro = max((size for size in sizes if size <= trainer.micro_batch_rows), default=sizes[0])
        return replace(self, trainer=replace(trainer, batch_rows=batch_rows, micro_batch_rows=micro))


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


SCHEMAS: dict[str, type] = {
    "sft": SFTConfig,
    "pretrain": PretrainConfig,
    "align": AlignConfig,
    "generate": GenerateConfig,
    "score": ScoreConfig,
    "data": PrepareConfig,
    "examples": ExamplesConfig,
    "loops": LoopsConfig,
}


def load(command: str, overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None) -> Any:
    """Compose the config of a command (a file at the top of conf/) with Hydra overrides, and validate it.

    given: top-level values that come from no file, such as the model of a checkpoint.
    Raises UserError for an unknown key or choice (naming the nearest), a wrong type or an impossible combination.
    """
    if command not in SCHEMAS:
        raise unknown("command", command, SCHEMAS)
    tree = {**compose_tree(command, overrides), **(given or {})}
    try:
        return from_tree(SCHEMAS[command], tree)
    except UnknownKeyError as error:
        raise _nearest_key(command, tree, error.key) from error


def compose_tree(command: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose the config of a command as an unchecked tree.

    Precedence, lowest first: defaults of the dataclasses, files of conf/, overrides of values.
    """
    choices = [override for override in overrides if chooses_file(override)]
    values = [override for override in overrides if override not in choices]
    return apply_overrides(_completed(command, choices), values, resolve=True)


def _completed(command: str, choices: Sequence[str] = ()) -> DictConfig:
    """Return the composed files with the defaults of the dataclasses."""
    tree = compose_files(command, choices)
    for override in choices:
        _drop_settings_of_another_choice(command, tree, override, choices)
    plugins.allow(tree)
    return OmegaConf.create(with_defaults(SCHEMAS[command], tree))


def _drop_settings_of_another_choice(command: str, tree: dict[str, Any], override: str, choices: Sequence[str]) -> None:
    """Replace the settings that a file of alignment/ makes for one estimator, form, … where another one is chosen.

    alignment=espo sets alignment.estimator.num_pairs, which alignment/estimator=elbo does not have.
    """
    group, _, name = override.partition("=")
    method, _, axis = group.partition("/")
    if method != "alignment" or not axis:
        return
    others = [each for each in choices if each != override]
    if compose_files(command, others)[method][axis]["name"] != tree[method][axis]["name"]:
        tree[method][axis] = read_yaml(conf_dir() / group / f"{name.strip()}.yaml")


def check_overrides(command: str, overrides: Sequence[str] = (), *, is_whole: bool = True) -> dict[str, Any]:
    """Return the composed tree. Raises UserError where `load` would, without slow imports.

    is_whole: False if the model comes from a checkpoint, which is not read here; fields are then checked separately.
    """
    tree = compose_tree(command, overrides)
    try:
        if is_whole:
            from_tree(SCHEMAS[command], tree)
        else:
            check_fields(SCHEMAS[command], tree)
    except UnknownKeyError as error:  # a key added with +: the nearest may be in another group
        raise _nearest_key(command, tree, error.key) from error
    return tree


def _nearest_key(command: str, tree: Mapping[str, Any], key: str) -> UserError:
    """Return the error for an unknown key of a composed tree; the allowed ones include the fields of users' classes."""
    full = OmegaConf.create(with_defaults(SCHEMAS[command], tree))
    return nearest_key(key, [known for known in keys_of(full) if known != key])


def load_file(command: str, path: Path, overrides: Sequence[str] = ()) -> Any:
    """Load the config saved with a run, with overrides of values.

    Raises UserError for an incomplete or invalid config, and for an override that chooses a file of a group.
    """
    for override in overrides:
        assignment = parse_assignment(override)
        plugins.allow_assignment(assignment.key, assignment.value)
    saved = read_yaml(path)
    sections = [item.name for item in fields(SCHEMAS[command]) if item.name in _SECTIONS]
    if missing := [name for name in sections if name not in saved]:
        raise UserError(f"{path}: lacks {', '.join(missing)}: it is not the complete config of a run")
    tree = OmegaConf.create(with_defaults(SCHEMAS[command], saved))
    try:
        from_tree(SCHEMAS[command], OmegaConf.to_container(tree))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for override in overrides:
        key = require_assignment(override)
        if is_group(key):
            raise UserError(
                f"{override!r} would choose a file of the group {key}: on a saved config only values can be set, such "
                "as trainer.max_steps=500"
            )
    return from_tree(SCHEMAS[command], apply_overrides(tree, overrides))

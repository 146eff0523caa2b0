"""Config of alignment runs."""

from dataclasses import dataclass, field, replace

from lit_illada.alignment.config import AlignmentConfig, ProblemsConfig
from lit_illada.alignment.estimators import BlockElbo, EuboMix
from lit_illada.alignment.levels import Level
from lit_illada.alignment.regularisers import NoRegulariser
from lit_illada.config.runs import RunConfig
from lit_illada.data.sft.config import TEMPLATES, RoleTexts, RoleTokens
from lit_illada.errors import UserError, require
from lit_illada.generation.config import GenerationConfig
from lit_illada.model.lora_config import ADAPTERS, FullWeights, LoraConfig
from lit_illada.schema import choice, to_tree
from lit_illada.tasks.base import Task
from lit_illada.tasks.registry import TASKS
from lit_illada.training.config.divergence import Rollback
from lit_illada.training.config.trainer import TrainerConfig


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
    max_forwards: float | None = None
    """Forward passes, of one completion each, in rollouts, scoring and updates; the run ends after the rollout that
    comes nearest. null: no limit."""

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
        if self.model.block_length is not None:
            raise UserError(
                f"the checkpoint was trained in blocks (model.block_length={self.model.block_length}), and the "
                "estimators score states of whole rows: align a model trained with objective.block_length=null"
            )
        require(self.prompts_per_step >= 1, "prompts_per_step", self.prompts_per_step, "1 or more")
        require(self.rollout_rows >= 1, "rollout_rows", self.rollout_rows, "1 or more")
        require(self.held_out_temperature >= 0, "held_out_temperature", self.held_out_temperature, "0 or more")
        limit = self.max_forwards
        require(limit is None or 0 < limit < float("inf"), "max_forwards", limit, "above 0, or null for no limit")
        batch_rows = self.prompts_per_step * self.alignment.group_size
        if self.trainer.batch_rows not in (TrainerConfig.batch_rows, batch_rows):
            raise UserError(
                f"trainer.batch_rows is {self.trainer.batch_rows}, but an optimizer step trains on prompts_per_step × "
                f"alignment.group_size = {self.prompts_per_step} × {self.alignment.group_size} = {batch_rows} "
                "completions: leave it out, and set those"
            )
        self._check_source()
        self._check_steps()
        self._check_blocks()
        self._check_scored_policy()
        self.check_generation_length("generation", self.generation)
        self.check_warmup()
        response, ranks = self.trainer.on_divergence, self.trainer.num_data_ranks
        if isinstance(response, Rollback) and response.skip_rows:
            raise UserError("trainer.on_divergence.skip_rows is true, but alignment skips no prompts: set it to false")
        require(self.prompts_per_step % ranks == 0, "prompts_per_step", self.prompts_per_step, f"a multiple of {ranks}")

    def _check_batch(self) -> None:
        """Check nothing: `resolve` computes a batch that the devices divide."""

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

    def _check_steps(self) -> None:
        """Raise UserError if the loss needs the step of each token, and the rollout may commit tokens twice."""
        if not (remasking := self.generation.remasking):
            return
        name = remasking[0]
        again = f"but generation.{name} masks tokens again: set generation/{name}=none"
        if self.alignment.estimator.needs_steps:
            raise UserError(
                f"alignment.estimator scores the states of the rollout, {again}, or choose an estimator that does not, "
                "such as alignment/estimator=elbo"
            )
        alignment = self.alignment
        levels = {"alignment.level": alignment.level}
        if not isinstance(alignment.regulariser, NoRegulariser):
            levels["alignment.regulariser.level"] = alignment.regulariser.level
        for key, level in levels.items():
            if level is Level.STEP:
                raise UserError(f"{key} is 'step', {again}, or {key}=token")

    def _check_blocks(self) -> None:
        """Raise UserError if the states that are scored have other blocks than the rollout."""
        estimator, canvas = self.alignment.estimator, self.generation.max_new_tokens
        if not isinstance(estimator, BlockElbo | EuboMix) or self.alignment.form.is_pair:  # pairs have no rollout
            return
        scored, written = estimator.block_length, self.generation.block_length
        if scored is not None and min(scored, canvas) != min(written, canvas):
            raise UserError(
                f"alignment.estimator.block_length is {scored}, but the rollout writes blocks of "
                f"generation.block_length={written}, so other states would be scored than the sampler sees: set "
                f"alignment.estimator.block_length={written}"
            )

    def _check_scored_policy(self) -> None:
        """Raise UserError if the policy that samples is not one of a temperature, which is what scores can take.

        Caches are allowed: their logits are approximations of those that are scored.
        """
        if not self.alignment.temperature_in_score:
            return
        sampler = self.generation
        needed = {
            "temperature": (sampler.temperature > 0, "above 0"),
            "top_p": (sampler.top_p == 1, "1"),
            "guidance_scale": (sampler.guidance_scale == 0, "0"),
            "min_new_tokens": (sampler.min_new_tokens == 0, "0"),
        }
        with_it = "with alignment.temperature_in_score=true, or set that to false"
        for name, (is_valid, allowed) in needed.items():
            require(is_valid, f"generation.{name}", getattr(sampler, name), f"{allowed} {with_it}")
        for name in ("thinking_stop", "repetition", "on_loop", "early_exit"):
            chosen = to_tree(sampler)[name]["name"]
            require(chosen == "none", f"generation.{name}", repr(chosen), f"'none' {with_it}")

    def resolve(self) -> "AlignConfig":
        """Return the config with the rows per optimizer step and per forward pass."""
        group_size, trainer = self.alignment.group_size, self.trainer
        batch_rows = self.prompts_per_step * group_size
        own = batch_rows // trainer.num_data_ranks
        unit = 2 if self.alignment.form.is_pair else 1
        sizes = [size for size in range(unit, own + 1, unit) if own % size == 0]
        micro = max((size for size in sizes if size <= trainer.micro_batch_rows), default=sizes[0])
        return replace(self, trainer=replace(trainer, batch_rows=batch_rows, micro_batch_rows=micro))

"""Scores completions under the policy, the rollout's policy and the reference: a base of the alignment's module.

It holds the reference, numbers the masks and counts the forward passes; `module` samples, judges and updates with it.
Shapes: S completions of this rank.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lit_illada.alignment.completions import Completions
from lit_illada.alignment.config import AlignmentConfig
from lit_illada.alignment.forms import Anchor
from lit_illada.alignment.loss import mismatch
from lit_illada.alignment.passes import Passes
from lit_illada.alignment.reference import Reference
from lit_illada.alignment.rollout import Rollout
from lit_illada.alignment.scores import Scores, completions_noise, rollout_policy, score
from lit_illada.alignment.trajectories import Trajectory
from lit_illada.alignment.views import Estimator
from lit_illada.model.transformer import Transformer
from lit_illada.objective.loss import ScoreFn
from lit_illada.training.config.optim import OptimConfig
from lit_illada.training.run_module import RunModule, TokenizerFiles


class ScoringModule(RunModule):
    """A run that scores completions with its model and with a frozen reference."""

    def __init__(
        self,
        model: Transformer,
        config: AlignmentConfig,
        optim: OptimConfig,
        *,
        rollout_temperature: float,
        mask_token_id: int,
        seed: int,
        max_steps: int,
        batch_rows: int,
        micro_batch_rows: int,
        num_adapters: int | None,
        tokenizer: TokenizerFiles,
        hparams: dict[str, Any],
        shard: Callable[[DeviceMesh], None] | None,
    ) -> None:
        """
        Args:
            rollout_temperature: at which completions are sampled.
            seed: of the masks.
            micro_batch_rows: completions per forward pass where a frozen policy is scored.
            num_adapters: parameters of the adapters where only those are trained; None: all weights are.
            The others are those of `RunModule`.
        """
        super().__init__(
            model, optim, max_steps=max_steps, batch_rows=batch_rows, tokenizer=tokenizer, hparams=hparams, shard=shard
        )
        self.config = config
        self.rollout_temperature = rollout_temperature
        self.mask_token_id = mask_token_id
        self.seed = seed
        self.micro_batch_rows = micro_batch_rows
        self.passes = Passes(model, model.config, num_adapters)
        self.reference: Reference | None = None
        if shard is None:
            self._make_reference()

    def configure_model(self) -> None:
        super().configure_model()
        self._make_reference()

    def _make_reference(self) -> None:
        if self.reference is None and self.config.needs(Anchor.REF):
            self.reference = Reference(self.model)

    def _masks(self, update: int) -> int:
        """Number of the masks of an update of the present rollout."""
        return self.config.mask_number(self.global_step // self.config.updates, update)

    def _score(self, completions: Completions, mask_number: int) -> Scores:
        """Scores under the model's present parameters and the masks of this number."""
        estimator = self.config.estimator
        # sharded, every pass gathers the weights: all ranks run equally many
        num_views = self._largest(estimator.num_views(completions)) if self._is_sharded else None
        return score(
            estimator,
            completions,
            self._score_fn,
            completions_noise(completions, self.seed, mask_number),
            self.mask_token_id,
            masked_prompt=self.config.masked_prompt,
            num_views=num_views,
            recompute=self.config.recompute_views and torch.is_grad_enabled(),
        )

    def _score_some(self, completions: Completions, mask_number: int, is_scored_B: Tensor) -> Scores:
        """Scores of some completions and 0 of the others; of the first if there is none, so that a gradient exists."""
        index = is_scored_B.nonzero()[:, 0]
        if len(index) == len(is_scored_B):
            return self._score(completions, mask_number)
        index = index if len(index) else index.new_zeros(1)
        scores = self._score(completions.select(index), mask_number)
        return scores.spread(index, *completions.token_ids.shape)

    @property
    def _score_fn(self) -> ScoreFn:
        if not self.config.temperature_in_score:
            return self.model
        return rollout_policy(self.model, self.rollout_temperature, self.mask_token_id)

    def _score_frozen(self, rollout: Rollout) -> None:
        """Score the frozen policies under the masks of every update."""
        every = self.config.reference_every
        rollout_number = self.global_step // self.config.updates
        if self.reference is not None and every is not None and rollout_number and rollout_number % every == 0:
            self.reference.copy_from(self.model)
        num_masks = self.config.updates if self.config.has_fresh_views else 1
        with self.passes.phase("scoring"):
            if self.config.needs(Anchor.OLD):  # under the masks of the first update its own scores serve
                rollout.old = {update: self._score_all(rollout, update) for update in range(1, num_masks)}
            if self.config.needs(Anchor.REF):
                assert self.reference is not None
                with self.reference.in_place_of(self.model):
                    rollout.ref = {update: self._score_all(rollout, update) for update in range(num_masks)}

    def _score_all(self, rollout: Rollout, update: int) -> Scores:
        """Scores of all completions under the masks of an update, in the micro-batches of the updates."""
        indices = torch.arange(len(rollout.completions), device=self.device).split(self.micro_batch_rows)
        return Scores.join([self._score(rollout.completions.select(index), self._masks(update)) for index in indices])

    def _gain(self, completions: Completions) -> Tensor:
        """(S,) log-likelihood of completions under the model minus that under the reference."""
        assert self.reference is not None
        own = self._score(completions, 0).sequence
        with self.reference.in_place_of(self.model):
            return own - self._score(completions, 0).sequence

    def _mismatch_of(self, completions: Completions) -> Tensor:
        """(2,) sum and count of log p at which tokens were committed minus that of the exact trajectory, scored again.

        0 unless caches, guidance or controls make the sampler another policy than the model. Nothing is counted where
        the sampler masks tokens again.
        """
        completions = completions.to(self.device)
        if completions.steps is None:
            return torch.zeros(2, dtype=torch.float64, device=self.device)
        policy, noise = rollout_policy(self.model, 1.0, self.mask_token_id), completions_noise(completions, 0, 0)
        estimator: Estimator = Trajectory()
        return mismatch(score(estimator, completions, policy, noise, self.mask_token_id), completions)

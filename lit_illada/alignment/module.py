"""The LightningModule of alignment: rollouts with the run's own sampler, rewards, then updates on them.

Rollout and updates alternate in one process and share the weights. The first micro-batch of a rollout samples the
completions of this rank's prompts, judges them and scores the frozen policies; every optimizer step then updates on all
of them. Offline pairs take the place of a rollout's completions.

Shapes: S completions of this rank, B of a micro-batch, G of each prompt.
"""

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torchmetrics import Metric

from lit_illada.alignment.advantages import is_mixed
from lit_illada.alignment.config import AlignmentConfig
from lit_illada.alignment.datamodule import CompletionBatch, HeldOutBatch
from lit_illada.alignment.figures import UpdateCurves, kl_from_old, rollout_figures, rollout_table
from lit_illada.alignment.flat import FlatRollouts
from lit_illada.alignment.forms import Anchor
from lit_illada.alignment.held_out import HeldOut
from lit_illada.alignment.loss import Frozen, policy_loss
from lit_illada.alignment.passes import HELD_OUT, UPDATE
from lit_illada.alignment.prompts import Prompt
from lit_illada.alignment.resuming import check_stored_rollout
from lit_illada.alignment.reward_worker import Rewards, RewardWorker
from lit_illada.alignment.rollout import Rollout, RolloutSampler, Sample, map_tensors
from lit_illada.alignment.scoring_module import ScoringModule
from lit_illada.model.transformer import Transformer
from lit_illada.training.config.optim import OptimConfig
from lit_illada.training.distributed.parallel import num_data_ranks
from lit_illada.training.metrics import publish
from lit_illada.training.run_module import TokenizerFiles
from lit_illada.training.user_trainer import check_batch

log = logging.getLogger(__name__)

_NUM_MISMATCH = 4  # held-out completions whose trajectory is scored again


class AlignModule(ScoringModule):
    """Alignment of `model` with rewards or preference pairs.

    Logged as `rollout/…` (rewards by term, groups without variance, lengths, loops, entropy), `train/…` (loss, clip
    fraction, KL), `val/…` (accuracy on held-out problems, paired with the start) and `perf/…` (passes and FLOPs).
    """

    selected_by: ClassVar[str] = "val/error"

    def __init__(
        self,
        model: Transformer,
        config: AlignmentConfig,
        optim: OptimConfig,
        *,
        prompt_at: Callable[[int], Prompt],
        sampler: RolloutSampler,
        rewards: RewardWorker | None,
        held_out: HeldOut,
        mask_token_id: int,
        eos_token_id: int,
        seed: int,
        max_steps: int,
        batch_rows: int,
        micro_batch_rows: int,
        num_adapters: int | None,
        tokenizer: TokenizerFiles,
        hparams: dict[str, Any],
        shard: Callable[[DeviceMesh], None] | None = None,
    ) -> None:
        """
        Args:
            prompt_at: the training prompt at a position of the stream.
            sampler: samples the completions of training.
            rewards: computes the rewards; None: preference pairs.
            held_out: prompts of the validation.
            The others are those of `ScoringModule`.
        """
        super().__init__(
            model,
            config,
            optim,
            rollout_temperature=sampler.generation.temperature,
            mask_token_id=mask_token_id,
            seed=seed,
            max_steps=max_steps,
            batch_rows=batch_rows,
            micro_batch_rows=micro_batch_rows,
            num_adapters=num_adapters,
            tokenizer=tokenizer,
            hparams=hparams,
            shard=shard,
        )
        self.prompt_at = prompt_at
        self.sampler = sampler
        self.rewards = rewards
        self.held_out = held_out
        self.eos_token_id = eos_token_id
        self.curves = UpdateCurves()
        self.rollout: Rollout | None = None
        self.rollout_step = 0  # optimizer steps before the last rollout
        self.samples: list[Sample] = []  # completions of the last rollout on this rank
        self.sampled: Rewards | None = None  # rewards of `samples`; None: preference pairs
        self.on_phase: Callable[[str], None] = lambda phase: None  # called when a phase begins, for the progress bar
        self._num_completions = 0  # sampled on this rank
        self._flat = FlatRollouts()
        self._flops_before = 0.0
        self._mismatch: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "AlignModule":
        """A copy of the weights, for their moving average; it shares the parts that sample and judge."""
        shared = (self.prompt_at, self.sampler, self.rewards, self.held_out, self.on_phase, self.samples, self.rollout)
        memo.update((id(part), part) for part in shared)
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        copy.__setstate__(deepcopy(self.__getstate__(), memo))
        return copy

    def training_step(self, batch: CompletionBatch, batch_idx: int) -> dict[str, Any]:
        """Compute the loss of one micro-batch; the first one of a rollout samples it.

        Returns:
            loss: scalar, differentiable. tokens, flops: of this call, the rollout's included.
        """
        if not self._is_batch_checked:
            check_batch(self.trainer, len(batch.index), self.batch_rows)
            self._is_batch_checked = True
        if batch.is_first:
            self.rollout = self._begin_rollout(batch.groups)
        assert self.rollout is not None, "a resumed run loads its rollout"
        if self.rollout.advantage.device != self.device:  # loaded from a checkpoint
            self.rollout = self.rollout.to(self.device)
        rollout = self.rollout
        part = rollout.completions.select(batch.index)
        masked_as = batch.update if self.config.has_fresh_views else 0  # the update whose masks are used
        has_old = batch.update == 0 or masked_as in rollout.old  # at the first update the policy is the old one
        assert has_old or not self.config.needs(Anchor.OLD), "the scores of the rollout's policy are stored"
        tokens_before = self.passes.num_tokens
        advantage_B, is_counted_B = rollout.advantage[batch.index], rollout.is_counted[batch.index]
        is_scored_B = (advantage_B != 0) | self.config.needs_scores_at_zero_advantage
        with self.passes.phase(UPDATE):
            scores = self._score_some(part, self._masks(masked_as), is_scored_B)
        width = part.token_ids.shape[1]
        frozen = Frozen(*(
            None if masked_as not in stored else stored[masked_as].select(batch.index, width)
            for stored in (rollout.old, rollout.ref)
        ))  # fmt: skip
        loss = policy_loss(self.config, part, scores, advantage_B, frozen, is_counted_B, is_scored_B)
        kl_old = None
        if self.config.updates > 1 and self.config.needs(Anchor.OLD):
            if batch.update == 0:
                rollout.keep(scores.detach())
            kl_old = kl_from_old(scores, frozen.old or scores, part.is_scored & is_scored_B[:, None])
        self.curves.update(loss, kl_old)
        # a constant until the step's global count is known
        self._reference = float(self.batch_rows)
        num_tokens, flops = self.passes.num_tokens - tokens_before, self.passes.total_flops
        # (2,): loss count, tokens, of which ranks have different numbers
        self._step_sums = self._step_sums + torch.stack([loss.count, loss.count.new_full((), num_tokens)])
        outputs = {"loss": loss.sum / self._reference, "tokens": num_tokens, "flops": flops - self._flops_before}
        self._flops_before = flops
        return outputs

    def global_count(self) -> float:
        count, num_tokens = self._sum_over_ranks(torch.as_tensor(self._step_sums)).tolist()
        self._step_sums = 0.0
        self.tokens_seen += int(num_tokens)
        return count

    def training_values(self) -> dict[str, float | Tensor]:
        values = {f"train/{name}": value for name, value in self.curves.compute().items()}
        self.curves.reset()
        return {**values, **super().training_values()}

    @property
    def interval_metrics(self) -> dict[str, Metric]:
        return {"curves": self.curves}

    @torch.no_grad()
    def _begin_rollout(self, groups: range) -> Rollout:
        """Sample, judge and score the completions of this rank's prompts, given by their positions in the stream."""
        self.rollout_step = self.global_step
        prompts = [self.prompt_at(position) for position in groups]
        group_size = self.config.group_size
        numbers = [position * group_size + member for position in groups for member in range(group_size)]
        self._num_completions += len(numbers)
        rollout = (
            Rollout.of_pairs(prompts, numbers, self.eos_token_id)
            if self.rewards is None
            else self._of_samples(prompts, numbers)
        )
        if self.config.share_noise:
            rollout.completions = rollout.completions.sharing_noise(group_size)
        rollout = rollout.to(self.device)
        self.on_phase("scoring")
        self._score_frozen(rollout)
        self.on_phase("update")
        torch.clear_autocast_cache()  # weights cast without gradients
        return rollout

    def _of_samples(self, prompts: Sequence[Prompt], numbers: Sequence[int]) -> Rollout:
        group_size = self.config.group_size
        repeated = [prompt for prompt in prompts for _ in range(group_size)]
        self.on_phase("rollout")
        with self.whole_weights(), self.passes.phase("rollout"):
            self.samples = self.sampler.sample(self._transformer, repeated, numbers)
        assert self.rewards is not None
        self.on_phase("rewards")
        self.sampled = self.rewards([sample.answered for sample in self.samples])
        table = {name: self._gathered(values) for name, values in rollout_table(self.samples, self.sampled).items()}
        figures = rollout_figures(table, group_size)
        publish(self, figures)
        correct = self.rewards.config.correct_name
        self._flat.observe(
            table["reward"].view(-1, group_size),
            None if correct is None else table[f"reward_{correct}"].view(-1, group_size),
            self.global_step,
            self.trainer.is_global_zero,
        )
        reward_PG = torch.tensor(self.sampled.total, dtype=torch.float64).view(-1, group_size)
        is_counted_P = is_mixed(reward_PG) | (not self.config.only_mixed_groups)
        return Rollout(
            self.sampler.completions(self.samples, numbers, self.config.score_after_eos),
            self.config.advantage(reward_PG).flatten(),
            is_counted_P.repeat_interleave(group_size),
        )

    def end_step(self) -> None:
        """Log the curves of a step that has ended, and the passes of a rollout whose last update it was."""
        is_rollout_over = self.global_step != self._step_before and self.global_step % self.config.updates == 0
        super().end_step()
        if is_rollout_over:
            self._publish_passes()

    def _publish_passes(self) -> None:
        """Log forward passes in total, and per completion by phase, and FLOPs, over the finished rollouts."""
        rows = self.passes.training_rows(self._summed)
        totals = torch.tensor([self.passes.total_flops, self._num_completions], dtype=torch.float64)
        flops, completions = self._summed(totals).tolist()
        each = {f"perf/passes_{phase}": number / completions for phase, number in rows.items()}
        publish(self, {**each, "perf/forwards": sum(rows.values()), "perf/flops": flops})

    def cost(self) -> dict[str, float]:
        """Forward passes of completions so far, in total and by phase, over all ranks. Collective."""
        rows = self.passes.training_rows(self._summed)
        return {"forwards": sum(rows.values()), **{f"forwards_{phase}": number for phase, number in rows.items()}}

    def on_validation_epoch_start(self) -> None:
        self.held_out.begin()
        self._mismatch = None

    @torch.no_grad()
    def validation_step(self, batch: HeldOutBatch, batch_idx: int) -> None:
        """Answer held-out problems, or compare the likelihoods of held-out pairs."""
        if self.held_out.verdicts is None:
            self.held_out.add_table(self._compare_pairs(batch.index))
            return
        with self.whole_weights(), self.passes.phase(HELD_OUT):
            samples = self.held_out.sample(self._transformer, batch.index)
            # with it, confidences are renormalised without the stop tokens, whose own are 0
            if batch_idx == 0 and not self.held_out.sampler.generation.zero_stop_confidence:
                first = samples[:_NUM_MISMATCH]
                self._mismatch = self._mismatch_of(self.held_out.sampler.completions(first, range(len(first)), False))
        self.held_out.add(batch.index, samples)

    def on_validation_epoch_end(self) -> None:
        self.validated_at = self.global_step
        figures = self.held_out.figures(self._gathered)
        if self._mismatch is not None:
            total, count = self._sum_over_ranks(self._mismatch).tolist()
            figures |= {"val/mismatch": total / count} if count else {}
        publish(self, figures)
        if self.trainer.state.fn == "fit" and self._schedule().observe(figures["val/error"]):
            publish(self, {"train/plateau_at_step": float(self.global_step)})

    def _compare_pairs(self, index: list[int]) -> dict[str, Tensor]:
        """Whether the chosen answer of each held-out pair gained more likelihood over the reference than the other.

        `correct` is 1, 0, or one half where both gained equally.
        """
        prompts = [self.held_out.prompts[each] for each in index]
        numbers = [-1 - 2 * each - member for each in index for member in (0, 1)]  # no training completion has these
        completions = Rollout.of_pairs(prompts, numbers, self.eos_token_id).completions.to(self.device)
        with self.passes.phase(HELD_OUT):
            gain = self._gain(completions).double().cpu()
        margin = gain[0::2] - gain[1::2]
        return {"index": torch.tensor(index).double(), "correct": (margin.sign() + 1) / 2, "margin": margin}

    def teardown(self, stage: str) -> None:
        for worker in (self.rewards, self.held_out.verdicts):
            if worker is not None:
                worker.close()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        is_within = self.rollout is not None and self.global_step % self.config.updates != 0
        checkpoint["alignment"] = {
            "rollout": map_tensors(self.rollout.state_dict(), self._gathered) if is_within and self.rollout else None,
            "first_correct": self.held_out.first_correct,
            "passes": self.passes.state_dict(self._summed),
            "num_completions": int(self._summed(torch.tensor(self._num_completions, dtype=torch.float64))),
            "flat": self._flat.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["alignment"]
        self.held_out.first_correct = state["first_correct"]
        rank = self._data_rank
        if rank == 0:  # the counts are those of all ranks
            self.passes.load_state_dict(state["passes"])
            self._num_completions = state["num_completions"]
        self._flops_before = self.passes.total_flops
        self._flat.load_state_dict(state["flat"])
        if state["rollout"] is not None:
            saved, new = checkpoint["hyper_parameters"]["config"], self.hparams["config"]
            check_stored_rollout(saved, new, checkpoint["global_step"])
            own = self.batch_rows // num_data_ranks(self.trainer)
            rollout = map_tensors(state["rollout"], lambda rows: rows[rank * own : (rank + 1) * own])
            self.rollout = Rollout.of_state(rollout)

    @property
    def _transformer(self) -> Transformer:
        assert isinstance(self.model, Transformer)
        return self.model

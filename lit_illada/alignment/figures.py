"""Curves of an alignment run: figures of a rollout, of the held-out prompts and of the updates.

Shapes: S completions, G of each prompt.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_illada.alignment.advantages import is_mixed
from lit_illada.alignment.forms import MAX_LOG_RATIO
from lit_illada.alignment.loss import PolicyLoss
from lit_illada.alignment.reward_worker import Rewards
from lit_illada.alignment.rollout import Sample
from lit_illada.alignment.scores import Scores
from lit_illada.stats.intervals import estimate, wilson
from lit_illada.stats.tests import mcnemar, paired_interval

_MAX_LEVELS = 8  # difficulties of which the accuracy is logged each
_OF_SAMPLE = ("length", "loop_rate", "endless_rate", "entropy")


def rollout_table(samples: Sequence[Sample], rewards: Rewards) -> dict[str, Tensor]:
    """(S,) float64 by name: `reward`, `reward_<term>` (NaN where it failed), and those of `sample_table`."""
    terms = {
        f"reward_{name}": [float("nan") if value is None else value for value in values]
        for name, values in rewards.by_term.items()
    }
    columns = {"reward": rewards.total, **terms}
    return {**{name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}} | sample_table(
        samples
    )


def sample_table(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """(S,) float64 by name: length in tokens, whether it loops, whether it loops or does not end, entropy in nats."""
    rows = [(len(s.answered.token_ids), s.is_loop, s.is_endless, s.entropy) for s in samples]
    return dict(zip(_OF_SAMPLE, torch.tensor(rows, dtype=torch.float64).reshape(-1, 4).unbind(1), strict=True))


def rollout_figures(table: Mapping[str, Tensor], group_size: int) -> dict[str, float]:
    """Means over the completions of all ranks; of rewards with Student's 95 % interval over prompts."""
    figures: dict[str, float] = {}
    for name, values in table.items():
        if name.startswith("reward"):
            of_group = values.view(-1, group_size).nanmean(1)
            over_prompts = estimate(of_group[~of_group.isnan()].tolist() or [float("nan")])
            figures[name] = over_prompts.mean
            if over_prompts.low is not None and over_prompts.high is not None:
                figures |= {f"{name}_low": over_prompts.low, f"{name}_high": over_prompts.high}
            figures |= {f"failures_{name}": float(values.isnan().sum())} if values.isnan().any() else {}
        else:
            figures[name] = float(values.mean())
    mixed = is_mixed(table["reward"].view(-1, group_size))
    figures["flat_groups"] = 1 - float(mixed.double().mean())
    return {f"rollout/{name}": value for name, value in figures.items()}


def held_out_figures(
    table: Mapping[str, Tensor], first: Sequence[bool] | None, difficulty_name: str = "difficulty"
) -> dict[str, float]:
    """Accuracy with Wilson's interval, its change since `first` on the same problems, and means of the completions.

    table: `correct` may be one half, for a pair without a preference (a tie); Wilson's interval is then conservative.
    It is left out where all are ties, as before the first update, when the policy is the reference.

    Where `table` has two to eight values of `difficulty`, also the accuracy of each, such as `accuracy_depth_4`.

    first: whether each problem was solved at the start of the run; None: this is the start, or these are pairs.
    """
    correct = table["correct"].tolist()
    accuracy = sum(correct) / len(correct)
    figures = {"accuracy": accuracy, "error": 1 - accuracy}
    if any(value != 0.5 for value in correct):
        low, high = wilson(sum(correct), len(correct))
        figures |= {"accuracy_low": low, "accuracy_high": high}
    if first is not None and len(first) == len(correct):
        low, high = paired_interval(mcnemar(list(zip(first, map(bool, correct), strict=True))))
        change = (sum(correct) - sum(first)) / len(correct)
        figures |= {"accuracy_change": change, "accuracy_change_low": low, "accuracy_change_high": high}
    of_problem = ("index", "correct", "difficulty")
    figures |= {name: float(values.mean()) for name, values in table.items() if name not in of_problem}
    levels = table["difficulty"].unique().tolist() if "difficulty" in table else []
    if 1 < len(levels) <= _MAX_LEVELS:
        name = difficulty_name.replace(" ", "_")
        of_level = {level: table["correct"][table["difficulty"] == level].mean() for level in levels}
        figures |= {f"accuracy_{name}_{level:g}": float(value) for level, value in of_level.items()}
    return {f"val/{name}": value for name, value in figures.items()}


def kl_from_old(scores: Scores, old: Scores, is_scored: Tensor) -> Tensor:
    """(2,) float64, sum and count over tokens of exp(d) − 1 − d, d = score − old; the mean estimates KL(old ‖ policy).

    k3 of J. Schulman, "Approximating KL divergence", 2020, for completions that the old policy sampled.
    is_scored: (S, W) bool, tokens that count.
    """
    d_SW = (scores.token - old.token).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.stack([(d_SW.expm1() - d_SW)[is_scored].double().sum(), is_scored.double().sum()])


class UpdateCurves(Metric):
    """Loss and statistics of the updates since the last reset, over all ranks.

    compute() returns `loss`, `score` (nats per completion), `log_ratio` (score minus that of the frozen policy, in nats
    per unit of alignment.level), `clip_fraction`, `kl` (of the regulariser) and `kl_old` (from the policy of the
    rollout, nats/token); those without a count are left out.
    """

    full_state_update = False
    sums: Tensor  # (6, 2): sum and count of each

    _NAMES = ("loss", "score", "log_ratio", "clip_fraction", "kl", "kl_old")
    _STATS = ("score", "log_ratio", "clipped", "kl", "kl_old")

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(self._NAMES), 2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: PolicyLoss, kl_old: Tensor | None = None) -> None:
        """Add a micro-batch. kl_old: (2,) sum and count; None: the scores of the rollout's policy are unknown."""
        stats = loss.stats if kl_old is None else {**loss.stats, "kl_old": kl_old}
        nothing = torch.zeros(2, dtype=torch.float64, device=self.sums.device)
        own = torch.stack([loss.sum.detach().double(), loss.count.double()])
        sums = torch.stack([own, *(stats.get(name, nothing) for name in self._STATS)])
        self.sums += torch.where(sums.isfinite().all(), sums, 0.0)

    def compute(self) -> dict[str, Tensor]:
        return {name: total / count for name, (total, count) in zip(self._NAMES, self.sums, strict=True) if count > 0}

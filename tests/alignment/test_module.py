"""The module of alignment: counts over ranks whose completions differ in length."""

from types import SimpleNamespace

import torch

from lit_illada.alignment.module import AlignModule


def test_tokens_of_all_ranks_are_added_up_once_per_step():
    """Rank 0 has scored 10 tokens in the step, rank 1 has scored 30."""
    other = torch.tensor([2.0, 30.0], dtype=torch.float64)
    own = torch.tensor([4.0, 10.0], dtype=torch.float64)
    module = SimpleNamespace(_step_sums=own, tokens_seen=100, _sum_over_ranks=lambda sums: sums + other)
    assert AlignModule.global_count(module) == 6
    assert module.tokens_seen == 140
    assert module._step_sums == 0

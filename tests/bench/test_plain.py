"""The plain step computes the same loss and gradients as ours."""

import torch

from lit_illada.bench import plain
from lit_illada.config import load


def test_both_steps_have_equal_loss_and_gradients(tiny_overrides):
    ours, other, batches = plain.both(load("pretrain", tiny_overrides), 2)
    assert not batches[0].layout.is_whole_rows
    for batch in batches:
        torch.testing.assert_close(ours.backward(batch), other.backward(batch), atol=1e-5, rtol=1e-5)
    gradients = [{name: p.grad for name, p in step.model.named_parameters()} for step in (ours, other)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
    assert len(gradients[0]) == len(list(ours.model.parameters()))
    for step in (ours, other):
        step(batches[0])
    assert [len(group["params"]) for group in ours.optimizer.param_groups] == [
        len(group["params"]) for group in other.optimizer.param_groups
    ]

"""Activation checkpointing: identical gradients, less memory."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_illada.batch import Layout
from lit_illada.model.config import AttentionKernel, ModelConfig
from lit_illada.model.transformer import Transformer
from lit_illada.training.config.parallel import ActivationCheckpointing
from lit_illada.training.distributed.activation_checkpointing import checkpoint_activations

CONFIG = ModelConfig(300, 64, 176, 3, 4, 2, attention=AttentionKernel.SDPA)
KERNELS = [AttentionKernel.SDPA, AttentionKernel.MATMUL]


def step(which, kernel=AttentionKernel.SDPA):
    """Gradients, bytes saved for the backward pass, and FLOPs of the matrix products, of one step."""
    model = Transformer(replace(CONFIG, attention=kernel))
    model.init_weights(0)
    for block in model.model.layers:
        checkpoint_activations(block, which)
    ids = torch.randint(300, (4, 64), generator=torch.Generator().manual_seed(0))
    saved = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(ids, Layout.whole_rows(4, 64), None, ids).nll.mean()
        num_bytes = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
        loss.backward()
    return [p.grad for p in model.parameters()], num_bytes, counter.get_total_flops()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("which", [ActivationCheckpointing.selective, ActivationCheckpointing.full])
def test_gradients_are_bit_identical(which, kernel):
    expected, found = step(ActivationCheckpointing.none, kernel)[0], step(which, kernel)[0]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_less_memory_is_saved_and_selective_recomputes_no_matrix_product():
    (_, all_bytes, flops), (_, _, selective_flops), (_, full_bytes, full_flops) = map(step, ActivationCheckpointing)
    assert full_bytes < 0.3 * all_bytes
    assert selective_flops == flops
    # the blocks' forward products a second time: a third of theirs more
    assert full_flops > 1.2 * flops


def test_parameter_names_do_not_change():
    model = Transformer(CONFIG)
    names = list(model.state_dict())
    for block in model.model.layers:
        checkpoint_activations(block, ActivationCheckpointing.full)
    assert list(model.state_dict()) == names == [name for name, _ in model.named_parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("which", [ActivationCheckpointing.selective, ActivationCheckpointing.full])
def test_recomputed_blocks_compile(which):
    eager, compiled = Transformer(CONFIG), Transformer(CONFIG)
    ids = torch.randint(300, (4, 64), generator=torch.Generator().manual_seed(0))
    for model in (eager, compiled):
        model.init_weights(0)
        for block in model.model.layers:
            checkpoint_activations(block, which)
    for block in compiled.model.layers:
        block.compile()
    for model in (eager, compiled):
        model(ids, Layout.whole_rows(4, 64), None, ids).nll.mean().backward()
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)

"""Activation checkpointing: identical gradients, less memory."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lit_illada.batch import Layout
from lit_illada.model.config import AttentionKernel, ModelConfig
from lit_illada.model.transformer import Transformer
from lit_illada.training.config.parallel import ActivationCheckpointing
from lit_illada.training.distributed.activation_checkpointing import checkpoint_activations

CONFIG = ModelConfig(300, 64, 176, 3, 4, 2, attention=AttentionKernel.SDPA)
KERNELS = [AttentionKernel.SDPA, AttentionKernel.MATMUL]


def step(which, kernel=AttentionKernel.SDPA):
    """Gradients, and FLOPs of the matrix products, of one step."""
    model = Transformer(replace(CONFIG, attention=kernel))
    model.init_weights(0)
    for block in model.model.layers:
        checkpoint_activations(block, which)
    ids = torch.randint(300, (4, 64), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model(ids, Layout.whole_rows(4, 64), None, ids).nll.mean().backward()
    return [p.grad for p in model.parameters()], counter.get_total_flops()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("which", [ActivationCheckpointing.selective, ActivationCheckpointing.full])
def test_gradients_are_bit_identical(which, kernel):
    expected, found = step(ActivationCheckpointing.none, kernel)[0], step(which, kernel)[0]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


class Created(TorchDispatchMode):
    """Counts the bytes of those storages created by operators that are still alive."""

    def __init__(self):
        super().__init__()
        self._storages = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(made):
            if torch.is_tensor(tensor):
                self._storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return made

    def num_bytes(self):
        return sum(storage.nbytes() for storage in self._storages.values())


def bytes_between_passes(which):
    """Bytes held by the forward pass for the backward pass, in whatever way: hooks do not see those of `selective`."""
    model = Transformer(CONFIG)
    for block in model.model.layers:
        checkpoint_activations(block, which)
    ids = torch.zeros(4, 64, dtype=torch.int64)
    with Created() as created:
        loss = model(ids, Layout.whole_rows(4, 64), None, ids).nll.mean()
    num_bytes = created.num_bytes()
    loss.backward()
    return num_bytes


def test_less_memory_is_saved_and_selective_recomputes_no_matrix_product():
    all_bytes, selective_bytes, full_bytes = map(bytes_between_passes, ActivationCheckpointing)
    assert full_bytes < 0.5 * selective_bytes
    assert selective_bytes < 0.9 * all_bytes
    flops, selective_flops, full_flops = (step(which)[1] for which in ActivationCheckpointing)
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

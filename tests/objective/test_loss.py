"""Sums, counts and bins of the loss, and their independence of the micro-batch."""

from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_illada.batch import Layout, TokenBatch, TokenScores
from lit_illada.errors import UserError
from lit_illada.model import lm_head
from lit_illada.objective.autoregressive import AutoregressiveObjective
from lit_illada.objective.config import AutoregressiveObjectiveConfig, DiffusionObjectiveConfig, Normaliser
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.objective.loss import NoisyBatch
from lit_illada.objective.weighting import Elbo, Flat
from lit_illada.training.metrics import TrainingCurves
from lit_illada.training.sft_module import ResponseCurves

LENGTHS = torch.tensor([4, 8, 12, 3, 9, 12, 12, 12])
EOS = 7


def ragged_batch(world):
    """6 rows of 12 tokens; some tokens belong to a prompt, one row entirely."""
    is_maskable = torch.rand(6, 12, generator=torch.Generator().manual_seed(0)) < 0.7
    is_maskable[4] = False
    return world.make_batch(6, 12, is_maskable=is_maskable, lengths=LENGTHS)


def micro_batch(batch, rows):
    """A batch of these rows and their segments."""
    segments_of_row = LENGTHS.split([2, 1, 2, 1, 1, 1])
    lengths = torch.cat([segments_of_row[row] for row in rows])
    layout = Layout.from_lengths(lengths, 12)
    return TokenBatch(batch.input_ids[rows], batch.is_maskable[rows], batch.row_ids[rows], layout)


def run(objective, world, batch):
    noisy = objective.corrupt(batch)
    return objective.loss(world.score(noisy), noisy)


@pytest.mark.parametrize("normaliser", Normaliser)
def test_micro_batches_add_up_to_the_batch(world, normaliser):
    config = DiffusionObjectiveConfig(normaliser=normaliser)
    objective = DiffusionObjective(config, mask_token_id=world.MASK, seed=0, batch_rows=6)
    batch = ragged_batch(world)
    whole = run(objective, world, batch)
    parts = [run(objective, world, micro_batch(batch, rows)) for rows in ([0], [3, 1], [5, 2, 4])]
    assert sum(part.sum for part in parts).item() == pytest.approx(whole.sum.item(), rel=1e-6)
    assert sum(part.count for part in parts) == whole.count
    bins = parts[0].bins + parts[1].bins + parts[2].bins
    assert torch.allclose(bins.nll, whole.bins.nll)
    assert torch.equal(bins.num_masked, whole.bins.num_masked)


def test_normalisers_equal_a_loop(world):
    batch = ragged_batch(world)
    objective = DiffusionObjective(DiffusionObjectiveConfig(), mask_token_id=world.MASK, seed=0, batch_rows=6)
    noisy = objective.corrupt(batch)
    nll = noisy.spread(world.score(noisy).nll).detach()
    per_row = [float(nll[b].sum() / noisy.mask_ratio[b]) for b in range(6)]
    lengths = batch.is_maskable.sum(1).tolist()
    segments, row_of, start = [], [], 0
    for length in LENGTHS.tolist():
        segments.append(slice(start, start + length))
        row_of.append(start // 12)
        start += length
    of_segment = [
        (float(nll.flatten()[s].sum() / noisy.mask_ratio[b]), int(batch.is_maskable.flatten()[s].sum()))
        for s, b in zip(segments, row_of, strict=True)
    ]
    want = {
        Normaliser.TOKENS: (sum(per_row), sum(lengths)),
        Normaliser.MASKED: (sum(per_row), int(noisy.is_masked.sum())),
        Normaliser.SEQUENCES: (sum(s / n for s, n in zip(per_row, lengths, strict=True) if n), 5),
        Normaliser.RESPONSE: (sum(s / n for s, n in of_segment if n), sum(n > 0 for _, n in of_segment)),
    }
    for normaliser, (total, count) in want.items():
        config = DiffusionObjectiveConfig(normaliser=normaliser)
        one = DiffusionObjective(config, mask_token_id=world.MASK, seed=0, batch_rows=6)
        got = one.loss(world.score(noisy), noisy)
        assert got.sum.item() == pytest.approx(total, rel=1e-5), normaliser
        assert got.count.item() == count, normaliser


def test_a_micro_batch_masked_mean_is_another_objective(world):
    """The trap: means over one row's masked tokens are near the 1/t loss, over many rows' near the flat one."""
    batch = world.make_batch(2000, 10)
    config = DiffusionObjectiveConfig(weighting=Flat(), normaliser=Normaliser.MASKED)
    objective = DiffusionObjective(config, mask_token_id=world.MASK, seed=0, batch_rows=2000)
    noisy = objective.corrupt(batch)
    nll = noisy.spread(world.score(noisy).nll).detach().double()
    masked = noisy.is_masked.sum(1)
    has_any = masked > 0
    means_of_rows = (nll.sum(1)[has_any] / masked[has_any]).mean()
    mean_of_all = nll.sum() / masked.sum()
    elbo = DiffusionObjective(
        DiffusionObjectiveConfig(weighting=Elbo()), mask_token_id=world.MASK, seed=0, batch_rows=2000
    ).loss(world.score(noisy), noisy)
    loss = objective.loss(world.score(noisy), noisy)
    assert (loss.sum / loss.count).item() == pytest.approx(float(mean_of_all), rel=1e-4)
    assert means_of_rows.item() == pytest.approx((elbo.sum / elbo.count).item(), rel=0.05)
    assert abs(means_of_rows - mean_of_all) > 0.2


def test_bins_hold_unweighted_sums(world):
    batch = world.make_batch(50, 10)
    objective = DiffusionObjective(DiffusionObjectiveConfig(), mask_token_id=world.MASK, seed=0, batch_rows=50)
    noisy = objective.corrupt(batch)
    nll = world.score(noisy).nll
    is_correct = torch.arange(len(nll)) % 3 == 0
    bins = objective.loss(TokenScores(nll, is_correct), noisy).bins
    rows = noisy.is_masked.nonzero()[:, 0]
    for j in range(10):
        here = ((noisy.mask_ratio > j / 10) & (noisy.mask_ratio <= (j + 1) / 10))[rows]
        assert bins.nll[j].item() == pytest.approx(nll[here].sum().item(), rel=1e-5)
        assert bins.num_correct[j] == is_correct[here].sum()
        assert bins.num_masked[j] == here.sum()
    assert not bins.nll.requires_grad


def test_autoregressive_predicts_every_token_of_every_segment_from_its_own_past(world):
    batch = ragged_batch(world)
    objective = AutoregressiveObjective(AutoregressiveObjectiveConfig(), eos_token_id=EOS)
    noisy = objective.corrupt(batch, progress=0.5)
    flat, start, want = batch.input_ids.flatten().tolist(), 0, []
    for length in LENGTHS.tolist():
        want += [EOS, *flat[start : start + length - 1]]
        start += length
    assert noisy.noisy_ids.flatten().tolist() == want
    assert torch.equal(noisy.is_masked, batch.is_maskable)
    loss = objective.loss(world.score(noisy), noisy)
    assert loss.sum.item() == pytest.approx(world.score(noisy).nll.sum().item(), rel=1e-6)
    assert loss.count == batch.is_maskable.sum()


def test_autoregressive_rejects_a_masked_count_normaliser():
    with pytest.raises(UserError, match="normaliser=tokens"):
        AutoregressiveObjectiveConfig(normaliser=Normaliser.MASKED)


class Waits(TorchDispatchMode):
    """Lists the operations whose result or its shape the CPU must read from a GPU."""

    OPERATIONS = (
        "masked_select", "nonzero", "bincount", "_local_scalar_dense", "equal",
        "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
    )  # fmt: skip
    METHODS = ("tolist", "cpu", "numpy")  # read tensors of the CPU without an operation

    def __init__(self):
        super().__init__()
        self.seen = []
        self.patches = ExitStack()

    def __enter__(self):
        for name in self.METHODS:
            self.patches.enter_context(patch.object(torch.Tensor, name, self.recorded(name)))
        return super().__enter__()

    def __exit__(self, *error):
        self.patches.close()
        return super().__exit__(*error)

    def recorded(self, name):
        method = getattr(torch.Tensor, name)

        def record(tensor, *args, **kwargs):
            self.seen.append(name)
            return method(tensor, *args, **kwargs)

        return record

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation.overloadpacket.__name__
        has_boolean_index = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        has_unknown_length = name == "repeat_interleave" and kwargs.get("output_size") is None
        if has_boolean_index or has_unknown_length or name in self.OPERATIONS:
            self.seen.append(name)
        return operation(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("tolist", lambda x: x.tolist()),
        ("cpu", lambda x: x.cpu()),
        ("numpy", lambda x: x.numpy()),
        ("_local_scalar_dense", lambda x: x[0].item()),
        ("_unique2", lambda x: x.unique()),
        ("unique_dim", lambda x: x.unique(dim=0)),
        ("unique_consecutive", lambda x: x.unique_consecutive()),
        ("repeat_interleave", lambda x: x.repeat_interleave(x)),
        ("equal", lambda x: x.equal(x)),
        ("index", lambda x: x[x > 1]),
        ("nonzero", lambda x: x.nonzero()),
    ],
)
def test_an_operation_that_waits_for_the_device_is_recorded(name, read):
    x = torch.tensor([1, 2])
    with Waits() as waits:
        read(x)
        x.repeat_interleave(x, output_size=3)  # of known length
    assert name in waits.seen
    assert waits.seen.count("repeat_interleave") == (name == "repeat_interleave")
    x.tolist()
    assert waits.seen.count("tolist") == (name == "tolist")


@pytest.mark.parametrize("normaliser", Normaliser)
@pytest.mark.parametrize("changes", [{}, {"block_length": 4}, {"joint_draw": "complementary"}])
def test_a_micro_batch_waits_for_the_device_only_to_learn_the_number_of_masked_tokens(
    world, make_model, normaliser, changes, monkeypatch
):
    # as on a device
    monkeypatch.setattr(lm_head, "_is_best_on_cpu", lambda logits, targets: logits.argmax(-1) == targets)
    config = DiffusionObjectiveConfig(normaliser=normaliser, **changes)
    objective = DiffusionObjective(config, mask_token_id=world.MASK, seed=0, batch_rows=6)
    model = make_model(block_length=config.block_length)
    batch = ragged_batch(world)
    batch = replace(batch, is_response=batch.is_maskable)
    curves, responses = TrainingCurves(), ResponseCurves(EOS)
    with Waits() as waits:
        noisy = objective.corrupt(batch)
    assert len(waits.seen) == 1
    with Waits() as waits:
        scores = noisy.scored_by(model)
        loss = objective.loss(scores, noisy)
        curves.update(loss)
        responses.update(batch, noisy, scores)
        loss.sum.backward()
    assert not waits.seen
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("num_masked", [0, 5])
def test_spread_values_lie_at_the_masked_tokens_and_return_their_gradients(num_masked):
    is_masked = torch.zeros(3, 4, dtype=torch.bool)
    is_masked.view(-1)[torch.randperm(12, generator=torch.Generator().manual_seed(0))[:num_masked]] = True
    ids, one = torch.arange(12).view(3, 4), torch.ones(3, dtype=torch.float64)
    noisy = NoisyBatch(ids, Layout.whole_rows(3, 4), is_masked, ids[is_masked], is_masked, one, one)
    values, factors = torch.rand(num_masked, requires_grad=True), torch.rand(3, 4)
    spread = noisy.spread(values)
    (spread * factors).sum().backward()
    assert torch.equal(spread, torch.zeros(3, 4).masked_scatter(is_masked, values))
    assert torch.equal(values.grad, factors[is_masked])

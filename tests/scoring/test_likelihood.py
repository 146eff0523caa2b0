"""The validation metric on tiny distributions whose likelihood is known exactly."""

import dataclasses
import itertools
import math

import pytest
import torch

from lit_illada.batch import Layout, TokenBatch, TokenScores
from lit_illada.model.attention import visible_tokens
from lit_illada.objective.blocks import in_blocks
from lit_illada.scoring.likelihood import Likelihood, nll, nll_bound
from lit_illada.scoring.mask_grid import MaskGrid, RowScores, mask_batch, score_rows

MASK, EOS, V, T = 3, 4, 3, 4


def make_batch(input_ids, first_row=0, is_maskable=None):
    is_maskable = torch.ones_like(input_ids, dtype=torch.bool) if is_maskable is None else is_maskable
    rows = torch.arange(first_row, first_row + len(input_ids))
    return TokenBatch(input_ids, is_maskable, rows, Layout.whole_rows(*input_ids.shape))


class Joint:
    """A made-up distribution over V**T rows and its exact conditionals: the best model there is of it."""

    def __init__(self, seed=0):
        self.rows = torch.tensor(list(itertools.product(range(V), repeat=T)))
        chain = torch.rand(V, V, generator=torch.Generator().manual_seed(seed)) ** 2 + 0.05
        chain = chain / chain.sum(1, keepdim=True)
        logp = torch.full((len(self.rows),), -math.log(V))
        for n in range(1, T):
            logp = logp + chain[self.rows[:, n - 1], self.rows[:, n]].log()
        self.p = logp.double().exp()

    def sample(self, n):
        return self.rows[torch.multinomial(self.p, n, replacement=True, generator=torch.Generator().manual_seed(1))]

    def log_prob(self, rows):
        return self.p[(rows * V ** torch.arange(T - 1, -1, -1)).sum(1)].log()

    def marginals(self, visible_ids):
        """(T, V): p(x_i | the visible tokens), MASK standing for unknown."""
        fits = ((self.rows == visible_ids) | (visible_ids == MASK)).all(1)
        weights = self.p * fits
        return torch.stack([(weights[:, None] * (self.rows == v)).sum(0) for v in range(V)], 1) / weights.sum()

    def score(self, noisy_ids, layout, select, targets):
        rows, columns = select.nonzero(as_tuple=True)
        probability = torch.stack([self.marginals(row) for row in noisy_ids])[rows, columns]
        return TokenScores(
            -probability[torch.arange(len(targets)), targets].log().float(), probability.argmax(1) == targets
        )

    def score_in_blocks(self, ids, layout, select, targets):
        """Sees in rows [noisy | clean] what the layout shows to each noisy token."""
        rows, columns = select.nonzero(as_tuple=True)
        visible = visible_tokens(layout, False)[:, 0]
        probability = []
        for row, column in zip(rows, columns, strict=True):
            known = torch.where(visible[row, column], ids[row], MASK).view(2, T)
            probability.append(self.marginals(torch.where(known[0] == MASK, known[1], known[0]))[column])
        probability = torch.stack(probability)
        chosen = probability[torch.arange(len(targets)), targets]
        return TokenScores(-chosen.log().float(), probability.argmax(1) == targets)

    def score_causally(self, shifted_ids, layout, select, targets):
        """Sees x[:n] at place n, after the shift."""
        prefixes = [torch.cat([row[1 : n + 1], torch.full((T - n,), MASK)]) for row in shifted_ids for n in range(T)]
        probability = torch.stack([self.marginals(prefix)[i % T] for i, prefix in enumerate(prefixes)])
        chosen = probability[torch.arange(len(targets)), targets]
        return TokenScores(-chosen.log().float(), probability.argmax(1) == targets)


JOINT = Joint()


def exact_bound(score, row):
    """E over k and over all masks of k tokens of S/k."""
    total = 0.0
    for k in range(1, T + 1):
        masks = torch.zeros(math.comb(T, k), T, dtype=torch.bool)
        for i, places in enumerate(itertools.combinations(range(T), k)):
            masks[i, list(places)] = True
        total += score_rows(score, mask_batch(make_batch(row.expand(len(masks), -1)), masks, MASK)).nll.mean()
    return total / T


def exact_block_bound(score, row, block_length):
    """The mean over all masks of a block, each k equally likely, summed over the blocks; other blocks are unmasked."""
    batch, total = in_blocks(make_batch(row[None]), block_length), 0.0
    for start in range(0, T, block_length):
        places = range(start, min(T, start + block_length))
        for k in range(1, len(places) + 1):
            masks = [torch.isin(torch.arange(T), torch.tensor(chosen)) for chosen in itertools.combinations(places, k)]
            nlls = [float(score_rows(score, mask_batch(batch, mask[None], MASK)).nll) for mask in masks]
            total += sum(nlls) / len(nlls) / len(places)
    return total


@pytest.mark.parametrize("block_length", [1, 2, 3, 4])
def test_the_bound_in_blocks_of_exact_conditionals_equals_the_likelihood(block_length):
    for row in JOINT.sample(3):
        want = -JOINT.log_prob(row[None])[0].item() / T
        assert exact_block_bound(JOINT.score_in_blocks, row, block_length) == pytest.approx(want, rel=1e-5)


def test_the_grid_estimates_the_bound_in_blocks_within_its_error():
    batch = make_batch(JOINT.sample(300))
    for block_length in (2, 3):
        metric = Likelihood()
        metric.update(nll_bound(JOINT.score_in_blocks, batch, MaskGrid(4, block_length=block_length), MASK), batch)
        values = metric.compute()
        assert abs(values["nll_bound"] + JOINT.log_prob(batch.input_ids).mean() / T) < 3 * values["nll_bound_stderr"]
        assert metric.row_sums[1] == metric.document_sums[1].sum()


def test_the_bound_in_blocks_of_one_token_is_exact_in_one_draw():
    batch = make_batch(JOINT.sample(20))
    got = nll_bound(JOINT.score_in_blocks, batch, MaskGrid(1, block_length=1), MASK)
    assert torch.allclose(got.nll * T, -JOINT.log_prob(batch.input_ids), rtol=1e-5)
    causal = nll(JOINT.score_causally, batch, EOS)
    assert torch.allclose(got.nll, causal.nll, rtol=1e-5)
    assert torch.equal(got.weight, causal.weight)


def test_the_bound_in_one_block_per_row_is_that_without_blocks():
    batch = make_batch(JOINT.sample(20))
    whole = nll_bound(JOINT.score, batch, MaskGrid(3), MASK)
    for block_length in (T, 2 * T):
        got = nll_bound(JOINT.score_in_blocks, batch, MaskGrid(3, block_length=block_length), MASK)
        assert torch.allclose(got.nll, whole.nll, rtol=1e-6)
        assert torch.allclose(got.weight, whole.weight)
        assert torch.allclose(got.bins.nll, whole.bins.nll)


def test_the_bound_of_exact_conditionals_equals_the_likelihood():
    for row in JOINT.sample(5):
        want = -JOINT.log_prob(row[None])[0] / T
        assert exact_bound(JOINT.score, row).item() == pytest.approx(want.item(), rel=1e-5)


def test_the_grid_estimates_the_enumerated_bound_within_its_error():
    batch = make_batch(JOINT.sample(300))
    metric = Likelihood()
    metric.update(nll_bound(JOINT.score, batch, MaskGrid(num_draws=4, seed=0), MASK), batch)
    values = metric.compute()
    want = -JOINT.log_prob(batch.input_ids).mean() / T
    assert abs(values["nll_bound"] - want) < 3 * values["nll_bound_stderr"]
    assert values["nll_bound_stderr"] < 0.05


def independent(noisy_ids, layout, select, targets):
    """Tokens independent of each other and of their place: each mask of a row costs what its tokens do."""
    p = torch.tensor([0.7, 0.2, 0.1])
    return TokenScores(-p[targets].log(), targets == 0)


def test_the_bound_of_independent_tokens_has_its_closed_form():
    row = torch.tensor([0, 0, 1, 2])
    want = -(2 * math.log(0.7) + math.log(0.2) + math.log(0.1)) / 4
    assert exact_bound(independent, row).item() == pytest.approx(want, rel=1e-6)
    constant = make_batch(torch.ones(3, 4, dtype=torch.long))
    got = nll_bound(independent, constant, MaskGrid(3), MASK)
    assert got.nll.tolist() == pytest.approx([-math.log(0.2)] * 3, rel=1e-6)


def test_a_causal_model_is_scored_exactly_on_the_same_tokens():
    batch = make_batch(JOINT.sample(50))
    got = nll(JOINT.score_causally, batch, EOS)
    assert torch.allclose(got.nll * T, -JOINT.log_prob(batch.input_ids), rtol=1e-5)
    assert torch.equal(got.num_tokens, nll_bound(JOINT.score, batch, MaskGrid(1), MASK).num_tokens)


def test_prompts_and_empty_rows_are_not_scored():
    is_maskable = torch.tensor([[False, True, True, True], [False] * 4, [True, False, False, False]])
    batch = make_batch(torch.ones(3, 4, dtype=torch.long), is_maskable=is_maskable)
    grid = MaskGrid(num_draws=6)
    for draw in range(6):
        assert not (grid.masks(batch, draw) & ~is_maskable).any()
    metric = Likelihood()
    metric.update(nll_bound(independent, batch, grid, MASK), batch)
    assert metric.row_sums[:2].tolist() == [2, 4]
    assert metric.compute()["nll_bound"].item() == pytest.approx(-math.log(0.2), rel=1e-6)


def scores_of(nll_BT, weight_BT, batch):
    """Row scores with these cross-entropies and weights; weights add up to the row's length."""
    bins = nll_bound(independent, batch, MaskGrid(1), MASK).bins
    weighted_BT = nll_BT * weight_BT
    length_B = batch.is_maskable.sum(1)
    return RowScores(weighted_BT.sum(1) / length_B, length_B, weight_BT, weighted_BT, bins)


def test_without_documents_the_standard_error_is_over_rows():
    x = torch.rand(200, generator=torch.Generator().manual_seed(0)).double()
    batch = make_batch(torch.ones(200, 4, dtype=torch.long))
    metric = Likelihood()
    nll_BT = x[:, None].expand(-1, 4)
    metric.update(scores_of(nll_BT, torch.ones_like(nll_BT), batch), batch)
    values = metric.compute()
    assert values["num_documents"] == 200
    assert values["nll_bound"].item() == pytest.approx(x.mean().item())
    assert values["nll_bound_stderr"].item() == pytest.approx((x.std() / 200**0.5).item())


def packed_documents(num_documents, row_length, mean_length, spread, generator):
    """(batch, nll (B, T), weight (B, T)) of documents of random lengths laid end to end; tokens of a document share an
    effect, and masks are drawn as the grid does."""
    lengths = torch.randint(1, 2 * mean_length, (num_documents,), generator=generator)
    ids = torch.repeat_interleave(torch.arange(num_documents), lengths)
    rows = len(ids) // row_length
    ids = ids[: rows * row_length].reshape(rows, row_length)
    effect = 5 + spread * torch.randn(num_documents, dtype=torch.float64, generator=generator)
    nll = effect[ids] + torch.randn(ids.shape, dtype=torch.float64, generator=generator)
    batch = dataclasses.replace(make_batch(torch.ones_like(ids)), document_ids=ids)
    masks = [MaskGrid(2).masks(batch, draw) for draw in range(2)]
    weight = torch.stack([mask * (row_length / mask.sum(1, keepdim=True)).double() for mask in masks]).mean(0)
    return batch, nll, weight


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("row_length", "mean_length"), [(16, 64), (64, 16), (32, 32)])
def test_the_standard_error_equals_that_of_resampled_documents(row_length, mean_length, seed):
    generator = torch.Generator().manual_seed(seed)
    batch, nll, weight = packed_documents(150, row_length, mean_length, 1.0, generator)
    metric = Likelihood()
    metric.update(scores_of(nll, weight, batch), batch)
    values = metric.compute()

    documents = batch.document_ids.unique().tolist()
    sums = [
        (float((nll * weight)[of].sum()), float(weight[of].sum()))
        for of in (batch.document_ids == d for d in documents)
    ]
    sums = torch.tensor([pair for pair in sums if pair[1] > 0], dtype=torch.float64)
    drawn = torch.randint(len(sums), (4000, len(sums)), generator=generator)
    bootstrap = sums[drawn].sum(1)
    assert values["num_documents"] == len(sums)
    assert values["nll_bound_stderr"] == pytest.approx(float((bootstrap[:, 0] / bootstrap[:, 1]).std()), rel=0.1)


def test_the_standard_error_equals_the_deviation_over_samples_of_documents():
    bounds, clustered, by_row = [], [], []
    for seed in range(200):
        batch, nll, weight = packed_documents(60, 16, 64, 1.0, torch.Generator().manual_seed(seed))
        scores = scores_of(nll, weight, batch)
        metric, naive = Likelihood(), Likelihood()
        metric.update(scores, batch)
        naive.update(scores, dataclasses.replace(batch, document_ids=None))
        bounds.append(float(metric.compute()["nll_bound"]))
        clustered.append(float(metric.compute()["nll_bound_stderr"]))
        by_row.append(float(naive.compute()["nll_bound_stderr"]))
    spread = float(torch.tensor(bounds).std())
    assert sum(clustered) / 200 == pytest.approx(spread, rel=0.15)
    assert sum(by_row) / 200 < 0.7 * spread, "rows of one document are not independent"


def test_documents_of_one_row_do_not_add_mask_noise():
    batch, _, weight = packed_documents(100, 64, 16, 0.0, torch.Generator().manual_seed(0))
    metric = Likelihood()
    metric.update(scores_of(torch.full_like(weight, 5.0), weight, batch), batch)
    assert metric.compute()["nll_bound_stderr"] == pytest.approx(0, abs=1e-6)


def test_bits_per_byte_and_bins():
    batch = make_batch(torch.tensor([[0, 1, 2, 1]]))
    metric = Likelihood(bytes_per_token=torch.tensor([1, 3, 4, 0]))
    metric.update(score_rows(independent, mask_batch(batch, batch.is_maskable, MASK)), batch)
    values = metric.compute()
    nats = -math.log(0.7) - 2 * math.log(0.2) - math.log(0.1)
    assert values["bits_per_byte"].item() == pytest.approx(nats / math.log(2) / 11, rel=1e-6)
    assert values["cross_entropy_by_ratio"][9].item() == pytest.approx(nats / 4, rel=1e-6)
    assert values["accuracy_by_ratio"][9] == 0.25
    assert values["cross_entropy_by_ratio"][:9].isnan().all()


def test_sums_over_ranks_and_batches_equal_the_total():
    batch = make_batch(JOINT.sample(20))
    whole, parts = Likelihood(), Likelihood()
    grid = MaskGrid(2)
    whole.update(nll_bound(JOINT.score, batch, grid, MASK), batch)
    for first in (12, 0):
        rows = slice(first, first + 12)
        part = make_batch(batch.input_ids[rows], first_row=first)
        parts.update(nll_bound(JOINT.score, part, grid, MASK), part)
    for name, value in whole.compute().items():
        assert torch.allclose(parts.compute()[name], value, equal_nan=True), name


def share_of_rank(rank, store, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    batch = make_batch(JOINT.sample(20)[rank * 8 : 8 + rank * 12], first_row=rank * 8)
    metric = Likelihood()
    metric.update(nll_bound(JOINT.score, batch, MaskGrid(2), MASK), batch)
    queue.put((float(metric.compute()["nll_bound"]), float(metric.compute()["nll_bound_stderr"])))
    torch.distributed.destroy_process_group()


def test_two_processes_report_the_same_figures_as_one(tmp_path):
    batch, whole = make_batch(JOINT.sample(20)), Likelihood()
    whole.update(nll_bound(JOINT.score, batch, MaskGrid(2), MASK), batch)
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [context.Process(target=share_of_rank, args=(rank, tmp_path / "store", queue)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    seen = [queue.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()
    want = whole.compute()
    for bound, stderr in seen:
        assert bound == pytest.approx(want["nll_bound"].item(), rel=1e-9)
        assert stderr == pytest.approx(want["nll_bound_stderr"].item(), rel=1e-9)


def test_the_bound_builds_no_autograd_graph():
    weight = torch.ones((), requires_grad=True)

    def score(noisy_ids, layout, select, targets):
        return TokenScores(weight * torch.ones(len(targets)), targets == 0)

    batch = make_batch(torch.ones(2, 4, dtype=torch.long))
    assert not nll_bound(score, batch, MaskGrid(1), MASK).nll.requires_grad

"""The objective against integrals over t and sums over all masks of a tiny row."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from lit_illada.batch import Layout, TokenBatch, TokenScores
from lit_illada.errors import UserError
from lit_illada.objective import exact_k
from lit_illada.objective.config import DiffusionObjectiveConfig, JointDraw, MaskDraw, Normaliser
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.objective.exact_k import count_table
from lit_illada.objective.loss import NoisyBatch
from lit_illada.objective.mask_ratio import (
    MASK_RATIOS,
    Band,
    Beta,
    Cosine,
    Curriculum,
    Fixed,
    LogitNormal,
    Polynomial,
    Uniform,
    VarianceOptimal,
)
from lit_illada.objective.token_weight import Cart, Focal
from lit_illada.objective.weighting import WEIGHTINGS, Elbo, Flat, Linear, Sech

L = 4
TOKENS = torch.tensor([3, 1, 4, 2])
ALL_MASKS = torch.tensor(list(itertools.product([False, True], repeat=L)))
SIZES = ALL_MASKS.sum(1)


def build(world, batch_rows=8, seed=0, **config):
    return DiffusionObjective(DiffusionObjectiveConfig(**config), world.MASK, seed, batch_rows)


def noisy_of(is_masked, t, density, mask_token_id):
    """The row TOKENS under each of these masks, as rows of one batch."""
    ids = TOKENS.expand(len(is_masked), -1)
    return NoisyBatch(
        noisy_ids=ids.masked_fill(is_masked, mask_token_id),
        layout=Layout.whole_rows(*is_masked.shape),
        is_masked=is_masked,
        targets=ids[is_masked],
        is_maskable=torch.ones_like(is_masked),
        mask_ratio=t,
        density=density,
    )


def masked_sums(world):
    """S of each of the 16 masks."""
    noisy = noisy_of(ALL_MASKS, torch.ones(16).double(), torch.ones(16).double(), world.MASK)
    return noisy.spread(world.score(noisy).nll).detach().double().sum(1)


def bernoulli_probability(t):
    """(N, 16): of each mask at each ratio."""
    t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1)
    return t**SIZES * (1 - t) ** (L - SIZES)


def reference_integral(world, weighting, low, high):
    """The integral of w(t)·E[S | t] over the support, per token."""
    sums = masked_sums(world)

    def integrand(t):
        t = torch.tensor([t], dtype=torch.float64)
        return float(weighting(t) * (bernoulli_probability(t) @ sums)) / L

    return integrate.quad(integrand, low, high, limit=400, epsabs=1e-5, epsrel=1e-5)[0]


def tanh_sinh(step=0.05, reach=3.0):
    """Nodes and weights on (0, 1), dense at both ends, for integrands with a pole there."""
    x = torch.arange(-reach, reach + step / 2, step, dtype=torch.float64)
    inner = math.pi / 2 * torch.sinh(x)
    return torch.sigmoid(2 * inner), step * math.pi / 2 * torch.cosh(x) / torch.cosh(inner) ** 2 / 2


def wide(name):
    """A density of this name that importance correction allows."""
    return Band(low=0.0, high=1.0) if name == "band" else MASK_RATIOS[name]()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", [name for name, cls in MASK_RATIOS.items() if cls.has_density])
def test_the_corrected_estimate_is_unbiased(world, name, weighting):
    """E over u of E over masks of the loss, by quadrature and enumeration, is the integral of w without any p."""
    config = DiffusionObjectiveConfig(
        mask_ratio=wide(name), weighting=WEIGHTINGS[weighting](), importance_corrected=True
    )
    objective = DiffusionObjective(config, world.MASK, seed=0, batch_rows=1)
    p = objective.mask_ratio(progress=0.4)
    u, quadrature = tanh_sinh()
    t = p.quantile(u)
    probability = (bernoulli_probability(t) * quadrature[:, None]).flatten()
    noisy = noisy_of(
        ALL_MASKS.repeat(len(t), 1), t.repeat_interleave(16), p.density(t).repeat_interleave(16), world.MASK
    )
    nll = world.score(noisy).nll.detach().double()
    # The loss is linear in the cross-entropies, so each mask's probability can ride on them.
    weighted = nll * probability[noisy.is_masked.nonzero()[:, 0]]
    loss = objective.loss(TokenScores(weighted, torch.zeros(len(nll), dtype=torch.bool)), noisy)
    want = reference_integral(world, config.weighting, float(t.min()), float(t.max()))
    assert loss.sum.item() / L == pytest.approx(want, rel=5e-3)


@pytest.mark.parametrize("joint", JointDraw)
@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        (Uniform(epsilon=0.0), False),
        (Curriculum(start=0.5, end=0.5, epsilon=0.0), False),
        (Polynomial(epsilon=0.0, exponent=1.5), True),
    ],
)
def test_masks_drawn_by_corrupt_have_the_expected_loss(world, joint, p, corrected):
    """End to end, 40 000 rows: draws, masks, weights and pairs; the weight keeps the variance finite."""
    objective = build(
        world, batch_rows=40, mask_ratio=p, weighting=Linear(), joint_draw=joint, importance_corrected=corrected
    )
    rows = 40_000
    ids = TOKENS.expand(rows, -1)
    batch = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(rows), Layout.whole_rows(rows, L))
    noisy = objective.corrupt(batch)
    loss = objective.loss(world.score(noisy), noisy)
    weight = lambda t: Linear()(t) * (1 if corrected else p.density(t))  # noqa: E731
    want = reference_integral(world, weight, 0, 1)
    assert (loss.sum / loss.count).item() == pytest.approx(want, rel=0.015)


@pytest.mark.parametrize(
    ("p", "weighting"), [(Uniform(), Elbo()), (Polynomial(exponent=1.5), Flat()), (Cosine(), Linear())]
)
def test_exact_k_has_bernoullis_mean_and_never_more_variance(world, p, weighting):
    """By enumeration of the masks: over t by quadrature for Bernoulli, over the table of counts for exact-k."""
    sums = masked_sums(world)
    table = count_table(p, weighting, L, torch.device("cpu"))
    probability = torch.cat([table.cdf[:1], table.cdf.diff()])
    losses = [weight * sums[k == SIZES] for k, weight in enumerate(table.weight, start=1)]
    exact_mean, exact_square = (
        float(probability @ torch.stack([(loss**power).mean() for loss in losses])) for power in (1, 2)
    )
    u, quadrature = tanh_sinh()
    t = p.quantile(u)
    mean, square = (
        float(quadrature @ (weighting(t) ** power * (bernoulli_probability(t) @ sums**power))) for power in (1, 2)
    )
    assert exact_mean == pytest.approx(mean, rel=1e-4)
    assert exact_square - exact_mean**2 <= square - mean**2


def test_exact_k_training_reaches_the_enumerated_mean(world):
    objective = build(
        world, mask_ratio=Uniform(epsilon=0.0), mask_draw=MaskDraw.EXACT_K, joint_draw=JointDraw.KRONECKER
    )
    rows = 20_000
    ids = TOKENS.expand(rows, -1)
    batch = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(rows), Layout.whole_rows(rows, L))
    noisy = objective.corrupt(batch)
    loss = objective.loss(world.score(noisy), noisy)
    assert (loss.sum / loss.count).item() == pytest.approx(reference_integral(world, Elbo(), 0, 1), rel=3e-3)


def expected_exact_k_loss(mask_ratio, weighting, length, is_corrected, mean_of_size):
    """Σ_k P(k)·weight(k)·mean loss of masks of k tokens, with P(k) from the quantiles that the table defines."""
    table = count_table(mask_ratio, weighting, length, torch.device("cpu"))
    probability = torch.cat([table.cdf[:1], table.cdf.diff()])
    weight = table.weight / table.density if is_corrected else table.weight
    return float((probability * weight * mean_of_size).sum())


def expected_bernoulli_loss(mask_ratio, weighting, length, is_corrected, mean_of_size):
    """E over t of w(t)[/p(t)]·Σ_k Bin(k; L, t)·mean loss of masks of k tokens, by quadrature over the quantiles."""
    u, quadrature = tanh_sinh(step=0.01, reach=3.4)
    t = mask_ratio.quantile(u)
    k = np.arange(1, length + 1)
    binomial = torch.from_numpy(stats.binom.pmf(k, length, t.numpy()[:, None]))
    weight = weighting(t) / mask_ratio.density(t) if is_corrected else weighting(t)
    return float((quadrature * weight * (binomial @ mean_of_size)).sum())


@pytest.mark.parametrize("length", [1, 2, 5, 40])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", [name for name, cls in MASK_RATIOS.items() if cls.has_density])
def test_exact_k_has_bernoullis_expected_loss_for_every_weight_density_and_length(name, weighting, length):
    """The mean loss of masks of k tokens is any function of k; a steep one shows where weights fall."""
    mask_ratio, weighting = MASK_RATIOS[name](), WEIGHTINGS[weighting]()
    if isinstance(mask_ratio, VarianceOptimal):
        mask_ratio = mask_ratio.learnt(torch.rand(2, 32, generator=torch.Generator().manual_seed(0)).double())
    k = torch.arange(1, length + 1, dtype=torch.float64)
    for mean_of_size in (k, k**2 / length):
        arguments = (mask_ratio, weighting, length, False, mean_of_size)
        assert expected_exact_k_loss(*arguments) == pytest.approx(expected_bernoulli_loss(*arguments), rel=2e-3)
        if name in ("uniform", "cosine", "polynomial", "beta", "curriculum"):
            arguments = (mask_ratio, weighting, length, True, mean_of_size)
            assert expected_exact_k_loss(*arguments) == pytest.approx(expected_bernoulli_loss(*arguments), rel=1e-2)


def test_a_row_of_one_token_is_weighted_as_under_bernoulli():
    """At k/L = 1 the weights of sech, linear and gaussian are 0, and flat's is twice Bernoulli's."""
    p, cpu = Uniform(epsilon=0.0), torch.device("cpu")
    expected = {Flat(): 1 / 2, Linear(): 1 / 6, Elbo(): 1.0, Sech(): math.pi / 4}
    for weighting, mean in expected.items():
        assert count_table(p, weighting, 1, cpu).weight.item() == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("length", [1, 7, 256])
def test_exact_k_of_the_bound_is_lladas_form(length):
    table = count_table(Uniform(epsilon=0.0), Elbo(), length, torch.device("cpu"))
    k = torch.arange(1, length + 1, dtype=torch.float64)
    assert torch.allclose(table.cdf, k / length, rtol=1e-7)
    assert torch.allclose(table.weight, length / k, rtol=1e-7)
    assert torch.allclose(table.density, torch.ones_like(k), rtol=1e-6)


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")  # beta's density is a table
@pytest.mark.parametrize("is_corrected", [False, True])
@pytest.mark.parametrize("weighting", [Flat(), Linear(), Elbo()])
def test_exact_k_of_rows_of_different_lengths_reaches_the_integrals(world, weighting, is_corrected):
    """End to end: corrupt and loss on rows of 1 to 4 maskable tokens."""
    rows, p = 20_000, Beta(a=2, b=3, epsilon=0.0)
    objective = build(
        world, batch_rows=rows, mask_ratio=p, weighting=weighting, mask_draw=MaskDraw.EXACT_K,
        joint_draw=JointDraw.KRONECKER, importance_corrected=is_corrected,
    )  # fmt: skip
    for length in range(1, L + 1):
        is_maskable = (torch.arange(L) < length).expand(rows, -1)
        ids = TOKENS.expand(rows, -1)
        noisy = objective.corrupt(TokenBatch(ids, is_maskable, torch.arange(rows), Layout.whole_rows(rows, L)))
        one = TokenScores(torch.ones(len(noisy.targets)), torch.zeros(len(noisy.targets), dtype=torch.bool))
        loss = objective.loss(one, noisy).sum.item() / rows / length
        density = 1.0 if is_corrected else None
        want = integrate.quad(
            lambda t, density=density: t * float(weighting(torch.tensor([t]).double()))
            * (density or float(p.density(torch.tensor([t]).double()))), 1e-9, 1 - 1e-9, limit=200,
        )[0]  # fmt: skip
        assert loss == pytest.approx(want, rel=0.01), length


def test_the_default_correction_never_exceeds_the_weight_itself():
    """E[w | k] is a mean of w over the support, also where few ratios are drawn, so it cannot blow up."""
    for length in (5, 999, 1001, 4000):
        weight = count_table(Uniform(epsilon=1e-3), Elbo(), length, torch.device("cpu")).weight
        assert bool((weight <= 1000).all())


def test_lladas_published_loss_is_reproduced_on_the_same_mask(world):
    """p_mask = (1 − eps)·t + eps; cross_entropy[mask] / p_mask[mask], summed, over B·L."""
    batch = world.make_batch(8, 16)
    objective = build(world)
    noisy = objective.corrupt(batch)
    logits = torch.randn(8, 16, 10, generator=torch.Generator().manual_seed(3), requires_grad=True)
    is_masked, p_mask = noisy.noisy_ids == world.MASK, noisy.mask_ratio[:, None].repeat(1, 16)
    token_loss = (
        torch.nn.functional.cross_entropy(logits[is_masked], batch.input_ids[is_masked], reduction="none")
        / p_mask[is_masked]
    )
    published = token_loss.sum() / (8 * 16)

    nll = torch.nn.functional.cross_entropy(logits[noisy.is_masked], noisy.targets, reduction="none")
    loss = objective.loss(TokenScores(nll, nll < 0), noisy)
    ours = loss.sum / loss.count
    assert ours.item() == pytest.approx(published.item(), rel=1e-6)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (ours, published)]
    assert torch.allclose(*gradients, atol=1e-7)


def test_the_ratio_is_lladas(world):
    u = torch.rand(100, dtype=torch.float64)
    assert torch.allclose(build(world).mask_ratio(0.0).quantile(u), (1 - 1e-3) * u + 1e-3)


@pytest.mark.parametrize("joint", JointDraw)
@pytest.mark.parametrize("draw", MaskDraw)
def test_noise_is_the_same_for_any_split_of_the_global_batch(world, joint, draw):
    if joint is JointDraw.COMPLEMENTARY and draw is MaskDraw.EXACT_K:
        pytest.skip("refused by the config")
    objective = build(world, batch_rows=8, mask_ratio=Uniform(epsilon=0.0), mask_draw=draw, joint_draw=joint)
    batch = world.make_batch(16, 10)
    whole = objective.corrupt(batch)

    def rows(ids):
        layout = Layout.whole_rows(len(ids), 10)
        return objective.corrupt(TokenBatch(batch.input_ids[ids], batch.is_maskable[ids], batch.row_ids[ids], layout))

    copies = 2 if joint is JointDraw.COMPLEMENTARY else 1
    for split in ([[0, 1, 2, 3], [4, 5], list(range(6, 16))], [[row] for row in range(15, -1, -1)]):
        for ids in split:
            part, here = (
                rows(ids),
                torch.tensor(ids).repeat(copies) + torch.arange(copies).repeat_interleave(len(ids)) * 16,
            )
            assert torch.equal(part.is_masked, whole.is_masked[here])
            assert torch.equal(part.mask_ratio, whole.mask_ratio[here])
    other_seed = build(world, seed=1, batch_rows=8).corrupt(batch)
    assert not torch.equal(other_seed.is_masked, whole.is_masked[:16])


def test_complementary_pairs_cover_every_maskable_token_once(world):
    is_maskable = torch.rand(6, 10, generator=torch.Generator().manual_seed(0)) < 0.6
    batch = world.make_batch(6, 10, is_maskable=is_maskable)
    noisy = build(world, mask_ratio=Uniform(epsilon=0.0), joint_draw=JointDraw.COMPLEMENTARY).corrupt(batch)
    first, second = noisy.is_masked.chunk(2)
    assert torch.equal(first ^ second, is_maskable)
    assert noisy.noisy_ids.shape == (12, 10)
    assert len(noisy.layout.cu_seqlens) == 13


@pytest.fixture
def tables(monkeypatch):
    """Lengths of the tables of counts that are computed."""
    lengths, compute = [], exact_k._binomial

    def computed(length, t_N):
        lengths.append(length)
        return compute(length, t_N)

    exact_k._tables.cache_clear()
    exact_k._corrected_target.cache_clear()
    monkeypatch.setattr(exact_k, "_binomial", computed)
    yield lengths
    exact_k._tables.cache_clear()


def test_rows_of_many_lengths_need_one_table_per_length(world, tables):
    """Fine-tuning: more lengths than 256, each again in every pass over the data."""
    objective = build(world, batch_rows=300, mask_draw=MaskDraw.EXACT_K)
    is_maskable = torch.arange(300) < torch.arange(1, 301)[:, None]
    for _ in range(2):
        objective.corrupt(world.make_batch(300, 300, is_maskable=is_maskable))
    assert tables == list(range(1, 301))


def test_a_curriculum_needs_one_table_per_step(world, tables):
    objective = build(world, mask_ratio=Curriculum(), mask_draw=MaskDraw.EXACT_K)
    for progress in (0.0, 0.25, 0.5):
        for _ in range(3):
            objective.corrupt(world.make_batch(8, 6), progress)
    assert tables == [6] * 3


@pytest.mark.parametrize("normaliser", Normaliser)
@pytest.mark.parametrize("token_weight", [Cart(), Focal()])
def test_rows_without_maskable_tokens_give_0_and_finite_gradients(world, normaliser, token_weight):
    batch = world.make_batch(3, 6, is_maskable=torch.zeros(3, 6, dtype=torch.bool))
    for draw in MaskDraw:
        objective = build(world, normaliser=normaliser, token_weight=token_weight, mask_draw=draw)
        noisy = objective.corrupt(batch)
        parameter = torch.ones(3, requires_grad=True)
        scores = TokenScores(parameter.sum() * torch.zeros(0), torch.zeros(0, dtype=torch.bool))
        loss = objective.loss(scores, noisy)
        loss.sum.backward()
        assert loss.sum == 0
        assert loss.count == 0
        assert torch.equal(parameter.grad, torch.zeros(3))
        assert torch.equal(noisy.noisy_ids, batch.input_ids)


def test_bfloat16_scores_are_added_in_float32(world):
    noisy = build(world).corrupt(world.make_batch(64, 64))
    nll = world.score(noisy).nll.detach().bfloat16().requires_grad_()
    loss = build(world).loss(TokenScores(nll, nll < 0), noisy)
    exact = build(world).loss(TokenScores(nll.detach().float(), nll < 0), noisy)
    assert loss.sum.dtype == torch.float32
    assert loss.sum == exact.sum
    loss.sum.backward()
    assert bool(nll.grad.isfinite().all())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_complement_of_a_full_mask_gives_a_finite_loss(world, weighting):
    """A ratio may round to 1; its complement is 0, where most weights are infinite and no token is masked."""
    objective = build(
        world,
        batch_rows=40,
        mask_ratio=LogitNormal(epsilon=0.0, std=100.0),
        weighting=WEIGHTINGS[weighting](),
        joint_draw=JointDraw.COMPLEMENTARY,
    )
    noisy = objective.corrupt(world.make_batch(40, 6))
    assert (noisy.mask_ratio == 0).any()
    scores = world.score(noisy)
    loss = objective.loss(scores, noisy)
    assert loss.sum.isfinite()
    assert bool(torch.autograd.grad(loss.sum, scores.nll)[0].isfinite().all())


def test_a_curriculum_follows_the_progress(world):
    objective = build(world, mask_ratio=Curriculum(start=0.1, end=0.9, std=0.05))
    batch = world.make_batch(200, 4)
    means = [objective.corrupt(batch, progress).mask_ratio.mean().item() for progress in (0.0, 1.0)]
    assert means == pytest.approx([0.1, 0.9], abs=0.02)


class TestVarianceOptimal:
    CONFIG = {"mask_ratio": VarianceOptimal(num_bins=4, floor=0.1, decay=0.5), "importance_corrected": True}  # noqa: RUF012

    def train(self, world, objective, rows, reduce=lambda x: x):
        ids = TOKENS.expand(rows, -1)
        batch = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(rows), Layout.whole_rows(rows, L))
        noisy = objective.corrupt(batch)
        loss = objective.loss(world.score(noisy), noisy)
        objective.end_step(reduce)
        return loss

    def test_the_density_learns_the_root_of_the_second_moment(self, world):
        objective = build(world, mask_draw=MaskDraw.EXACT_K, **self.CONFIG)
        self.train(world, objective, 8000)
        sums = masked_sums(world)
        root = np.array([float(((L / k) * sums[k == SIZES]).square().mean()) ** 0.5 for k in range(1, L + 1)])
        # k/L falls on the cells' right borders: cell j holds k = j + 1
        masses = objective.mask_ratio(0.0).masses.numpy()
        assert masses == pytest.approx(0.9 * root / root.sum() + 0.025, rel=0.03)

    def test_the_learnt_density_lowers_the_variance_and_preserves_the_mean(self, world):
        objective = build(world, **self.CONFIG)
        before = objective.mask_ratio(0.0)
        self.train(world, objective, 8000)
        after = objective.mask_ratio(0.0)
        sums = masked_sums(world)
        t = torch.linspace(1e-3, 1, 40_001, dtype=torch.float64)
        mean = bernoulli_probability(t) @ sums / t
        square = bernoulli_probability(t) @ sums**2 / t**2
        squares = [torch.trapezoid(square / p.density(t), t) for p in (before, after)]
        assert squares[1] < squares[0]
        want = torch.trapezoid(mean, t) / L
        got = self.train(world, objective, 60_000)
        assert (got.sum / got.count).item() == pytest.approx(float(want), rel=0.03)

    def test_the_learnt_density_is_restored_from_a_checkpoint(self, world):
        objective, other = build(world, **self.CONFIG), build(world, **self.CONFIG)
        self.train(world, objective, 100)
        other.load_state_dict(objective.state_dict())
        assert torch.equal(other.mask_ratio(0.0).masses, objective.mask_ratio(0.0).masses)

    def test_the_learnt_density_follows_moments_that_are_loaded_in_place(self, world):
        objective, other = build(world, **self.CONFIG), build(world, **self.CONFIG)
        self.train(world, other, 100)
        before = objective.mask_ratio(0.0)
        objective.moments.copy_(other.moments)
        assert torch.equal(objective.mask_ratio(0.0).masses, other.mask_ratio(0.0).masses)
        assert not torch.equal(objective.mask_ratio(0.0).masses, before.masses)

    def test_the_micro_batches_of_a_step_share_the_tables_of_counts(self, world, tables):
        objective = build(world, mask_draw=MaskDraw.EXACT_K, **self.CONFIG)
        for _ in range(3):
            for _ in range(4):
                objective.corrupt(world.make_batch(8, 5))
            self.train(world, objective, 8)
        assert tables == [5, 5, 4, 4] + [5, 4] * 2  # the first two of each length serve the correction too

    def test_all_ranks_learn_the_same_density(self, world):
        objective = build(world, **self.CONFIG)
        self.train(world, objective, 100, reduce=lambda seen: 3 * seen)
        once = build(world, **self.CONFIG)
        self.train(world, once, 100)
        assert torch.allclose(objective.moments, 3 * once.moments)

    def test_casting_the_module_leaves_the_moments_in_float64(self, world):
        objective = build(world, **self.CONFIG)
        self.train(world, objective, 100)
        before = objective.moments.clone()
        assert torch.equal(objective.to(torch.bfloat16).moments, before)

    def test_a_non_finite_step_does_not_change_the_moments(self, world):
        objective = build(world, **self.CONFIG)
        noisy = objective.corrupt(world.make_batch(8, 4))
        nll = torch.full((len(noisy.targets),), math.nan)
        objective.loss(TokenScores(nll, nll > 0), noisy)
        objective.end_step(lambda x: x)
        assert objective.moments.sum() == 0

    def test_evaluation_does_not_change_the_moments(self, world):
        objective = build(world, **self.CONFIG).eval()
        self.train(world, objective, 100)
        assert objective.moments.sum() == 0


def test_other_objectives_have_no_state(world):
    objective = build(world)
    objective.end_step(lambda x: x)
    assert objective.state_dict() == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mask_ratio": Fixed(), "importance_corrected": True}, "point mass"),
        (
            {"mask_ratio": Band(), "importance_corrected": True},
            r"'band' never draws ratios outside \[0.3, 0.8\], so the corrected objective would exclude them",
        ),
        ({"mask_ratio": Uniform(epsilon=0.1), "importance_corrected": True}, r"outside \[0.1, 1\]"),
        ({"mask_ratio": VarianceOptimal()}, "importance_corrected=true"),
        ({"joint_draw": JointDraw.COMPLEMENTARY}, "epsilon=0"),
        ({"joint_draw": JointDraw.COMPLEMENTARY, "mask_ratio": Cosine(epsilon=0.0)}, "not symmetric"),
        (
            {"joint_draw": JointDraw.COMPLEMENTARY, "mask_ratio": Curriculum(epsilon=0.0, start=0.5, end=0.9)},
            "throughout the run",
        ),
        (
            {"joint_draw": JointDraw.COMPLEMENTARY, "mask_ratio": Uniform(epsilon=0.0), "mask_draw": MaskDraw.EXACT_K},
            "mask_draw=bernoulli",
        ),
    ],
)
def test_combinations_that_change_the_objective_are_rejected(config, message):
    with pytest.raises(UserError, match=message) as refused:
        DiffusionObjectiveConfig(**config)
    assert "\n" not in str(refused.value)


def test_symmetric_and_corrected_pairs_are_allowed():
    DiffusionObjectiveConfig(joint_draw=JointDraw.COMPLEMENTARY, mask_ratio=Band(low=0.2, high=0.8))
    still = Curriculum(epsilon=0.0, start=0.5, end=0.5)
    DiffusionObjectiveConfig(joint_draw=JointDraw.COMPLEMENTARY, mask_ratio=still)
    DiffusionObjectiveConfig(
        joint_draw=JointDraw.COMPLEMENTARY, mask_ratio=Cosine(epsilon=0.0), importance_corrected=True
    )

import pytest
import torch
from scipy import stats

from lit_illada.objective.noise import Purpose, golden_steps, random_bits, to_unit_interval, uniform

ROWS, POSITIONS = torch.arange(512), torch.arange(512)


def splitmix64(state, steps):
    """The published generator, in Python's integers."""
    modulus = 2**64
    for _ in range(steps):
        state = (state + 0x9E3779B97F4A7C15) % modulus
    bits = state
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % modulus
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % modulus
    return bits ^ (bits >> 31)


def test_a_row_is_a_splitmix64_stream():
    state = splitmix64(splitmix64(splitmix64(-7 % 2**64, 1), Purpose.MASK), 12)
    want = [(splitmix64(state, n + 1) >> 12) + 0.5 for n in range(5)]
    got = uniform(-7, Purpose.MASK, torch.tensor([11]), torch.arange(5))
    assert (got[0] * 2**52).tolist() == want


def test_numbers_are_inside_the_open_interval():
    ends = to_unit_interval(torch.tensor([0, -1]))
    assert 0 < ends[0] < 1e-15
    assert 1 - 1e-15 < ends[1] < 1


@pytest.mark.parametrize("seed", [0, 1, -5, 2**63 - 1, 2**70])
def test_numbers_are_uniform(seed):
    u = uniform(seed, Purpose.MASK, ROWS, POSITIONS).flatten()
    counts = torch.histc(u.float(), 64, 0, 1)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("low_bits", [False, True])
def test_neighbouring_numbers_are_independent(low_bits):
    """Pairs of neighbouring rows, positions, seeds and purposes fill a 16 x 16 table evenly."""
    u = uniform(3, Purpose.MASK, ROWS, POSITIONS)
    pairs = {
        "positions": (u[:, :-1], u[:, 1:]),
        "rows": (u[:-1], u[1:]),
        "diagonal": (u[:-1, 1:], u[1:, :-1]),
        "seeds": (u, uniform(4, Purpose.MASK, ROWS, POSITIONS)),
        "purposes": (u, uniform(3, Purpose.MASK_RATIO, ROWS, POSITIONS)),
        "row ratios": (u[:, 0], uniform(3, Purpose.MASK_RATIO, ROWS)),
    }
    for name, (a, b) in pairs.items():
        if low_bits:
            a, b = (a * 2**20) % 1, (b * 2**20) % 1
        cells = 16 if a.numel() > 10_000 else 4
        cell = (a * cells).long() * cells + (b * cells).long()
        counts = torch.bincount(cell.flatten(), minlength=cells**2)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4, name


def test_a_number_depends_on_its_key_and_position_only():
    whole = uniform(3, Purpose.MASK, ROWS, POSITIONS)
    shuffled = torch.randperm(512, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform(3, Purpose.MASK, ROWS[shuffled], POSITIONS[shuffled]), whole[shuffled][:, shuffled])


def test_different_keys_and_positions_give_different_numbers():
    bits = torch.cat([random_bits(seed, purpose, torch.arange(20_000)) for seed in (0, 1) for purpose in Purpose])
    assert len(bits.unique()) == len(bits)


def test_golden_steps_are_exact_for_huge_row_ids():
    step = 10**12
    want = (step * 0x9E3779B97F4A7C15 % 2**64) / 2**64
    assert golden_steps(torch.tensor(0), torch.tensor(step)).item() == pytest.approx(want, abs=1e-12)


@pytest.mark.gpu
def test_numbers_are_equal_on_every_device():
    on_cuda = uniform(3, Purpose.MASK, ROWS.cuda(), POSITIONS.cuda())
    assert torch.equal(on_cuda.cpu(), uniform(3, Purpose.MASK, ROWS, POSITIONS))

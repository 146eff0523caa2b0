import pytest
import torch

from lit_illada.generation.draws import Draws
from lit_illada.generation.proposals import nucleus, propose

NONE = torch.tensor([], dtype=torch.long)
CPU = torch.device("cpu")


def propose_rows(logits, temperature, top_p=1.0, seed=0, uncertain=NONE):
    """A row of one masked token for each row of logits."""
    is_masked = torch.ones(len(logits), 1, dtype=torch.bool)
    draws = Draws(seed, range(len(logits)), CPU).of(range(len(logits)))
    return propose(
        logits.double(), is_masked, draws, temperature=temperature, top_p=top_p, uncertain_token_ids=uncertain
    )


def test_gumbel_noise_samples_the_softmax_of_the_tempered_logits():
    logits = torch.tensor([-torch.inf, 3.0, 1.0, -1.0]).expand(20_000, 4)
    proposals = propose_rows(logits, 2.0)
    frequencies = proposals.token_ids.flatten().bincount(minlength=4) / 20_000
    expected = torch.tensor([-torch.inf, 1.5, 0.5, -0.5]).softmax(-1)
    torch.testing.assert_close(frequencies, expected, atol=0.015, rtol=0)
    noiseless = logits[0].double().softmax(-1)
    torch.testing.assert_close(proposals.confidence[:, 0], noiseless[proposals.token_ids[:, 0]])


def test_top_p_retains_the_smallest_sufficient_set_of_tokens():
    probs = torch.tensor([[0.15, 0.5, 0.3, 0.05]])
    nuclei = [nucleus(probs.log(), 1.0, top_p)[0].isfinite().tolist() for top_p in (0.4, 0.5, 0.51, 0.8, 0.9, 1.0)]
    assert nuclei == [
        [False, True, False, False],
        [False, True, False, False],
        [False, True, True, False],
        [False, True, True, False],
        [True, True, True, False],
        [True, True, True, True],
    ]
    hot = propose_rows(probs.log().expand(2000, 4), 1.0, top_p=0.8)
    assert set(hot.token_ids.flatten().tolist()) == {1, 2}


def test_uncertain_tokens_are_proposed_without_confidence():
    logits = torch.tensor([[5.0, 1.0, 0.0], [0.0, 5.0, 1.0]])
    proposals = propose_rows(logits, 0.0, uncertain=torch.tensor([0]))
    assert proposals.token_ids.tolist() == [[0], [1]]
    assert proposals.confidence[0] == 0
    assert proposals.confidence[1].item() == pytest.approx(logits[1, 1:].softmax(-1)[0].item())
    assert proposals.margin[0] < 0 < proposals.margin[1]
    assert proposals.entropy[0] > proposals.entropy[1]


def test_a_row_draws_by_its_number_and_row_0_like_a_plain_generator():
    both = Draws(7, range(2), CPU).of([0, 1]).each([2, 3], 4)
    assert both[:2].equal(torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7)))
    assert both[2:].equal(Draws(7, [1], CPU).of([0]).each([3], 4))
    assert not both[:2].equal(both[2:4])

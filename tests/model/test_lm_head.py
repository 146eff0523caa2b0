import pytest
import torch
import torch.nn.functional as F

from lit_illada.bench.loss import measure_way
from lit_illada.model import lm_head
from lit_illada.model.lm_head import default_chunk_size, stores_logits, token_scores


def problem(num_tokens=37, width=16, vocabulary=53, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator).mul(0.2).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (num_tokens,), generator=generator)
    return hidden, weight, targets, torch.rand(num_tokens, generator=generator)


def plain(hidden, weight, targets):
    logits = hidden.float() @ weight.float().T
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets


@pytest.mark.parametrize("chunk_size", [1, 7, 53])
def test_scores_and_gradients_equal_plain_cross_entropy_whatever_the_slices(chunk_size):
    hidden, weight, targets, upstream = problem()
    scores = token_scores(hidden, weight, targets, chunk_size)
    nll, is_correct = plain(hidden, weight, targets)
    torch.testing.assert_close(scores.nll, nll, atol=2e-6, rtol=2e-6)
    assert scores.is_correct.equal(is_correct)
    grads = torch.autograd.grad((scores.nll * upstream).sum(), (hidden, weight))
    expected = torch.autograd.grad((nll * upstream).sum(), (hidden, weight))
    torch.testing.assert_close(grads, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("chunk_size", [7, 53])
def test_bfloat16_inputs_are_scored_in_float32(chunk_size):
    hidden, weight, targets, upstream = problem(dtype=torch.bfloat16)
    scores = token_scores(hidden, weight, targets, chunk_size)
    nll, _ = plain(hidden, weight, targets)
    assert scores.nll.dtype is torch.float32
    torch.testing.assert_close(scores.nll, nll, atol=5e-2, rtol=1e-2)
    grads = torch.autograd.grad((scores.nll * upstream).sum(), (hidden, weight))
    expected = torch.autograd.grad((nll * upstream).sum(), (hidden, weight))
    assert {g.dtype for g in grads} == {torch.bfloat16}
    torch.testing.assert_close(grads, expected, atol=1e-1, rtol=5e-2)


def test_slices_and_the_plain_path_agree_under_autocast():
    hidden, weight, targets, _ = problem()
    with torch.autocast("cpu", torch.bfloat16):
        sliced, whole = (token_scores(hidden, weight, targets, size) for size in (7, 53))
    torch.testing.assert_close(sliced.nll, whole.nll, atol=1e-5, rtol=1e-5)
    sliced.nll.sum().backward()
    assert weight.grad.dtype is torch.float32


@pytest.mark.parametrize("chunk_size", [7, 53])
def test_the_gradient_is_the_derivative(chunk_size):
    hidden, weight, targets, _ = problem(num_tokens=5, width=3, vocabulary=11, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: token_scores(h, w, targets, chunk_size).nll, (hidden, weight))


@pytest.mark.parametrize("chunk_size", [7, 53])
def test_no_selected_token_gives_no_scores_and_zero_gradients(chunk_size):
    hidden, weight, targets, _ = problem(num_tokens=0)
    scores = token_scores(hidden, weight, targets, chunk_size)
    assert scores.nll.shape == scores.is_correct.shape == (0,)
    scores.nll.sum().backward()
    assert weight.grad.eq(0).all()
    assert hidden.grad.shape == (0, 16)


def test_large_logits_give_finite_scores():
    hidden, weight, targets, _ = problem()
    scores = token_scores(hidden * 1000, weight, targets, 7)
    scores.nll.sum().backward()
    assert scores.nll.isfinite().all()
    assert weight.grad.isfinite().all()


def test_memory_does_not_grow_with_the_logits():
    """Logits of 1024 × 40 000 take 78 MiB in bfloat16; the plain computation holds several of them."""
    chunked, plain_way = (measure_way(way, 1024, 40_000, 16) for way in ("chunked", "plain"))
    assert plain_way["peak_gb"] > 0.4
    assert chunked["peak_gb"] < plain_way["peak_gb"] / 3
    assert chunked["nll"] == pytest.approx(plain_way["nll"], abs=1e-2)


@pytest.mark.parametrize("rows", [1, 5, 37])
def test_stored_logits_give_equal_scores_and_gradients_whatever_the_slices_of_tokens(monkeypatch, rows):
    monkeypatch.setattr(lm_head, "CPU_ROWS_BYTES", 4 * 53 * rows)
    hidden, weight, targets, upstream = problem(dtype=torch.bfloat16)
    grads = []
    for chunk_size in (None, 53, 19):
        scores = token_scores(hidden, weight, targets, chunk_size)
        grads.append(torch.autograd.grad((scores.nll * upstream).sum(), (hidden, weight)))
        torch.testing.assert_close(scores.nll, plain(hidden, weight, targets)[0], atol=5e-2, rtol=1e-2)
    assert all(torch.equal(ours, whole) for ours, whole in zip(grads[0], grads[1], strict=True))
    torch.testing.assert_close(grads[0], grads[2], atol=2e-2, rtol=2e-2)


def test_only_few_logits_are_stored_and_slices_of_the_vocabulary_are_even():
    assert stores_logits(4096, 4096, 4, "cpu")
    assert not stores_logits(4096, 32_768, 2, "cpu")
    assert not stores_logits(8192, 155_136, 2, "cuda")
    assert default_chunk_size(700, 256, "cpu", 4096) == 2048
    assert default_chunk_size(8192, 4096, "cpu", 155_136) == 4083


def test_the_first_of_equal_logits_is_the_best():
    logits = torch.tensor([[1.0, 3.0, 3.0], [3.0, 1.0, 3.0], [2.0, 2.0, 2.0], [0.0, 1.0, 2.0]])
    weight = torch.eye(3)
    for target in range(3):
        scores = token_scores(logits, weight, torch.full((4,), target))
        assert scores.is_correct.tolist() == (logits.argmax(-1) == target).tolist()

"""Rows of a few tokens, and a function in place of the model whose cross-entropy depends on the entire noisy row."""

import pytest
import torch

from lit_illada.batch import Layout, TokenBatch, TokenScores

MASK = 9


def make_batch(num_rows, length, first_row=0, is_maskable=None, lengths=None):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(0, MASK, (num_rows, length), generator=generator)
    if is_maskable is None:
        is_maskable = torch.ones(num_rows, length, dtype=torch.bool)
    layout = Layout.whole_rows(num_rows, length) if lengths is None else Layout.from_lengths(lengths, length)
    return TokenBatch(input_ids, is_maskable, torch.arange(first_row, first_row + num_rows), layout)


def context_nll(noisy):
    """(M,) synthetic cross-entropies that grow with the position and the number of masks; all differ."""
    rows, columns = noisy.is_masked.nonzero(as_tuple=True)
    num_masked = noisy.is_masked.sum(1)[rows]
    visible_sum = noisy.noisy_ids.masked_fill(noisy.is_masked, 0).sum(1)[rows]
    return 0.3 + 0.2 * columns + 0.4 * num_masked + 0.05 * visible_sum


def score(noisy, nll=None):
    nll = context_nll(noisy) if nll is None else nll
    return TokenScores(nll.float().requires_grad_(), torch.zeros(len(nll), dtype=torch.bool))


@pytest.fixture
def world():
    """The functions above, as a fixture, because tests cannot import conftest."""
    return type("World", (), {"MASK": MASK, "make_batch": staticmethod(make_batch), "score": staticmethod(score)})

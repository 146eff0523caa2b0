"""The fixed masks: even over k, and functions of seed, row and draw alone."""

import dataclasses

import torch

from lit_illada.batch import Layout, TokenBatch
from lit_illada.scoring.mask_grid import MaskGrid


def make_batch(num_rows, num_tokens, first_row=0):
    ids = torch.zeros(num_rows, num_tokens, dtype=torch.long)
    rows = torch.arange(first_row, first_row + num_rows)
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), rows, Layout.whole_rows(num_rows, num_tokens))


def test_the_grid_is_even_over_k():
    batch = make_batch(40, 10)
    grid = MaskGrid(num_draws=5, seed=3)
    counts = torch.stack([grid.masks(batch, draw).sum(1) for draw in range(5)], 1)
    for draw in range(5):
        assert set(counts[:, draw].tolist()) == {2 * draw + 1, 2 * draw + 2}
    histogram = torch.bincount(counts.flatten(), minlength=11)[1:]
    assert histogram.min() >= 17
    assert histogram.max() <= 23


def test_masks_depend_on_draw_and_seed_and_not_on_the_batch():
    batch = make_batch(12, 30)
    later = make_batch(5, 30, first_row=7)
    grid = MaskGrid(num_draws=2, seed=3)
    assert torch.equal(grid.masks(batch, 1)[7:], grid.masks(later, 1))
    assert not torch.equal(grid.masks(batch, 0), grid.masks(batch, 1))
    assert not torch.equal(grid.masks(batch, 1), MaskGrid(num_draws=2, seed=4).masks(batch, 1))


def test_a_grid_in_blocks_is_even_over_k_in_every_block():
    batch = make_batch(40, 10)
    grid = MaskGrid(num_draws=5, seed=3, block_length=5)
    counts = torch.stack([grid.masks(batch, draw).view(40, 2, 5).sum(2) for draw in range(5)])
    for block in range(2):
        histogram = torch.bincount(counts[:, :, block].flatten(), minlength=6)
        assert histogram[0] == 0
        assert (histogram[1:] - 40).abs().max() <= 2
    assert MaskGrid(3, block_length=4).masks_of_row(5, 10).shape == (3, 10)
    one_row = replace_row_ids(batch, 5)
    for draw in range(5):
        assert grid.masks_of_row(5, 10)[draw].equal(grid.masks(one_row, draw)[0])


def replace_row_ids(batch, row_id):
    return dataclasses.replace(batch, row_ids=torch.full_like(batch.row_ids, row_id))

"""Batches of held-out prompts, the lengths of prompts, and figures of held-out problems."""

import pytest
import torch

from lit_illada.alignment.datamodule import AlignDataModule
from lit_illada.alignment.held_out import HeldOut
from lit_illada.alignment.prompts import Prompt, Prompts, check_lengths
from lit_illada.errors import UserError


def batches(prompts, micro_batch_rows):
    module = AlignDataModule(
        Prompts(train=prompts, held_out=prompts), None, seed=0, group_size=4, updates=1, batch_rows=8,
        micro_batch_rows=micro_batch_rows, total_steps=1, rollout_rows=5,
    )  # fmt: skip
    return [batch.index for batch in module.val_dataloader()]


def test_held_out_problems_are_sampled_by_rollout_rows():
    assert batches([Prompt([1], "alpha", "problem 1")] * 7, 2) == [[0, 1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("micro_batch_rows", "expected"), [(4, [[0, 1], [2, 3], [4, 5], [6]]), (2, [[n] for n in range(7)])]
)
def test_a_forward_pass_of_held_out_pairs_has_micro_batch_rows_completions(micro_batch_rows, expected):
    assert batches([Prompt([1], "alpha", "pairs.jsonl:1", answers=([2], [3]))] * 7, micro_batch_rows) == expected


def test_an_overlong_pair_is_named_by_its_line():
    pairs = [Prompt([1] * 5, "alpha", "pairs.jsonl:1", answers=([2], [3])) for _ in range(2)]
    check_lengths(pairs, 100, 6)  # a pair's completions are its answers
    overlong = Prompt([1] * 5, "alpha", "pairs.jsonl:3", answers=([2], [3, 4]))
    with pytest.raises(UserError, match=r"pairs\.jsonl:3: the prompt has 5 tokens and the completion up to 2"):
        check_lengths([*pairs, overlong], 100, 6)


def test_a_change_that_cannot_be_computed_is_reported_once(caplog):
    held_out = HeldOut([], None, object(), "difficulty")
    for num in (3, 4, 4):
        held_out.begin()
        columns = {"index": range(num), "correct": [1] * num, "difficulty": [0] * num}
        held_out.add_table({name: torch.tensor([*values], dtype=torch.float64) for name, values in columns.items()})
        assert "val/accuracy_change" not in held_out.figures(lambda rows: rows)
    (record,) = caplog.records
    assert "began with 3 held-out problems and has 4 now" in record.getMessage()

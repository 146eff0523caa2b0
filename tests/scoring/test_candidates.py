"""Texts become prompts and answers, windows, and rows of one length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.scoring.candidates import Candidate, Score, batched_groups, encode_pair, padded_batch, rolling_windows

TOKENIZER = Tokenizer.train(["alpha beta gamma. alpha: beta? gamma delta"] * 4, vocab_size=300)
PAD = 99


@given(st.text(alphabet="alphbet gmd.:?é", max_size=20), st.text(alphabet="alphbet gmd.:?é", max_size=20))
def test_prompt_and_answer_concatenate_to_the_text(prompt, answer):
    prompt_ids, answer_ids = encode_pair(TOKENIZER.encode, prompt, answer)
    assert TOKENIZER.decode(prompt_ids + answer_ids) == prompt + answer
    assert prompt_ids == TOKENIZER.encode(prompt.rstrip())


def test_trailing_spaces_of_the_prompt_move_to_the_answer():
    one, other = (encode_pair(TOKENIZER.encode, *pair) for pair in (("alpha: ", "beta"), ("alpha:", " beta")))
    assert one == other
    assert one[0] + one[1] == TOKENIZER.encode("alpha: beta")


def test_a_token_merge_across_the_split_leaves_the_prompt_unchanged():
    assert len(TOKENIZER.encode("alpha")) == 1
    assert encode_pair(TOKENIZER.encode, "alp", "ha") == (TOKENIZER.encode("alp"), TOKENIZER.encode("ha"))


@given(st.integers(0, 50), st.integers(1, 12), st.integers(0, 11))
def test_windows_score_every_token_once_after_its_context(length, window_length, context_length):
    ids = list(range(length))
    if context_length >= window_length:
        with pytest.raises(UserError, match="no tokens would be left"):
            rolling_windows(ids, window_length, context_length)
        return
    windows = rolling_windows(ids, window_length, context_length)
    assert [i for window in windows for i in window.answer_ids] == ids
    for window in windows:
        assert len(window) <= window_length
        first = window.answer_ids[0]
        assert window.prompt_ids == ids[max(0, first - context_length) : first]
    assert all(len(window) == window_length for window in windows[:-1])


def test_only_choices_of_one_question_share_their_masks():
    choices = [Candidate.answering([1, 2], answer) for answer in ([3], [4, 5])]
    assert choices[0].row_id == choices[1].row_id != Candidate.answering([1, 3], [3]).row_id
    assert Candidate.continuing([], [1, 2]).row_id != Candidate.continuing([], [1, 3]).row_id


def test_a_padded_row_has_one_segment_of_padding():
    rows = [Candidate.answering([1, 2], [3]), Candidate.answering([], [4]), Candidate.answering([5], [6, 7])]
    batch = padded_batch(rows, PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, PAD, PAD], [5, 6, 7]]
    assert batch.is_maskable.tolist() == [[False, False, True], [True, False, False], [False, True, True]]
    assert batch.layout.cu_seqlens.tolist() == [0, 3, 4, 6, 9]
    assert batch.layout.position_ids.tolist() == [[0, 1, 2], [0, 0, 1], [0, 1, 2]]
    assert padded_batch(rows[::2], PAD).layout.is_whole_rows


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=4), max_size=12))
def test_batches_contain_every_group_once_within_the_limit(sizes):
    groups = [[Candidate.answering([0] * p, [0] * a) for p, a in group] for group in sizes]
    batches = list(batched_groups(groups, 60))
    assert sorted(number for batch in batches for number in batch) == list(range(len(groups)))
    for batch in batches:
        rows = [len(one) for number in batch for one in groups[number]]
        assert len(batch) == 1 or len(rows) * max(rows) <= 60


def test_summed_scores_add_their_variances():
    assert Score.sum([Score(-3.0, 0.3, 2), Score(-1.0, 0.4, 5)]) == Score(-4.0, 0.5, 7)


def test_padding_changes_no_logits(real):
    model = real()
    rows = [Candidate.answering([5, 6], [3, 9, 4]), Candidate.answering([], [8, 2])]
    batch = padded_batch(rows, 0)
    together = model.logits(batch.input_ids, batch.layout, batch.is_maskable)
    alone = [padded_batch([row], 0) for row in rows]
    apart = torch.cat([model.logits(one.input_ids, one.layout, one.is_maskable) for one in alone])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)

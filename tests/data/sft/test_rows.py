"""Rows of examples against slow references that build them token by token.

Shapes: B rows, T tokens a row.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_illada.data.sft.config import Packed, Padded, PadTo
from lit_illada.data.sft.rows import EncodedExamples, ExampleRows, build_stream
from lit_illada.data.shortening import NoShortening, SplitRow, TruncateRow
from lit_illada.objective.config import Normaliser
from lit_illada.objective.loss import NoisyBatch, normalise
from lit_illada.runtime.counter_rng import permutation

EOS = 0
PART = st.lists(st.integers(1, 99), min_size=1, max_size=9)
PAIRS = st.lists(st.tuples(PART, PART), min_size=1, max_size=12)
T = 20


def stream(config, pairs, batch_rows=4, seed=3):
    examples = EncodedExamples.of(pairs)
    return build_stream(config, examples, row_length=T, batch_rows=batch_rows, eos_token_id=EOS, seed=seed)


def shuffled(pairs, epoch, seed=3):
    return [pairs[d] for d in permutation(len(pairs), seed, epoch, 1).tolist()]


def flat_rows(rows):
    return [list(zip(*(part[b].tolist() for part in rows[:4]), strict=True)) for b in range(len(rows.tokens))]


def reference_packed(pairs, epoch, is_prompt_maskable, isolate):
    """(token, is_start, is_maskable, is_response) of every token of an epoch."""
    flat = []
    for prompt, response in shuffled(pairs, epoch):
        for i, token in enumerate(prompt + response):
            is_response = i >= len(prompt)
            flat.append((token, isolate and i == 0, is_prompt_maskable or is_response, is_response))
    first_pad = len(flat)
    while len(flat) % T:
        flat.append((EOS, len(flat) == first_pad, False, False))
    return [
        [(token, s or t == 0, *rest) for t, (token, s, *rest) in enumerate(flat[i : i + T])]
        for i in range(0, len(flat), T)
    ]


@settings(max_examples=20)
@given(PAIRS, st.booleans(), st.booleans())
def test_packed_rows_are_concatenated_examples(pairs, is_prompt_maskable, isolate):
    packed = stream(Packed(is_prompt_maskable, isolate, NoShortening()), pairs)
    n = packed.rows_per_epoch
    for epoch in range(3):
        rows = packed.rows(np.arange(epoch * n, (epoch + 1) * n))
        assert flat_rows(rows) == reference_packed(pairs, epoch, is_prompt_maskable, isolate)
    backwards = packed.rows(np.arange(3 * n)[::-1])
    assert flat_rows(backwards)[::-1] == flat_rows(packed.rows(np.arange(3 * n)))


def reference_padded(config, pairs, row_ids, batch_rows):
    n = len(pairs)

    def pair_of(g):
        return shuffled(pairs, g // n)[g % n]

    rows = []
    for g in row_ids:
        step = g // batch_rows
        width = max(len(p) + len(r) for p, r in map(pair_of, range(step * batch_rows, (step + 1) * batch_rows)))
        width = T if config.pad_to is PadTo.ROW else width
        prompt, response = pair_of(g)
        counted = config.is_padding_maskable
        row = [(token, i == 0, config.is_prompt_maskable, False) for i, token in enumerate(prompt)]
        row += [(token, False, True, True) for token in response]
        row += [(EOS, i == 0 and not counted, counted, False) for i in range(width - len(row))]
        rows.append(row)
    return rows


@settings(max_examples=25)
@given(PAIRS, st.booleans(), st.booleans(), st.sampled_from(PadTo), st.integers(1, 5))
def test_padded_rows_are_one_example_and_eos(pairs, is_prompt_maskable, is_padding_maskable, pad_to, batch_rows):
    config = Padded(is_prompt_maskable, is_padding_maskable, pad_to)
    padded = stream(config, pairs, batch_rows)
    assert padded.rows_per_epoch == len(pairs)
    for step in range(2 * len(pairs) // batch_rows + 1):
        row_ids = range(step * batch_rows, (step + 1) * batch_rows)
        expected = reference_padded(config, pairs, row_ids, batch_rows)
        assert flat_rows(padded.rows(np.array(row_ids))) == expected
        for b, g in enumerate(row_ids):  # a micro-batch of one: as wide as the whole step
            assert flat_rows(padded.rows(np.array([g]))) == [expected[b]]


@pytest.mark.parametrize("shortening", [SplitRow(0.5), TruncateRow(0.5)])
@pytest.mark.parametrize("kind", [Packed, Padded])
def test_shortening_of_rows_equals_that_of_pretraining(kind, shortening):
    pairs = [([5, 6, 7], [8, 9]) for _ in range(40)]
    plain = stream(kind(shortening=NoShortening()), pairs)
    row_ids = np.arange(2 * plain.rows_per_epoch)
    expected = plain.rows(row_ids)
    shortening.apply(expected.is_start, expected.is_maskable, row_ids, 3)
    shortened = stream(kind(shortening=shortening), pairs)
    assert flat_rows(shortened.rows(row_ids)) == flat_rows(expected)
    assert flat_rows(shortened.rows(row_ids)) == flat_rows(expected)  # the cached rows are unchanged
    assert flat_rows(expected) != flat_rows(plain.rows(row_ids))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_visible_prefix_reveals_response_up_to_a_random_position(share):
    pairs = [([5, 6], [8, 9, 10, 11]) for _ in range(40)]
    row_ids = np.arange(4000)
    plain, given = (stream(Padded(visible_prefix=value), pairs).rows(row_ids) for value in (0.0, share))
    assert flat_rows(given)[0][0][0] == 5
    assert (given.tokens == plain.tokens).all()
    assert (given.is_response == plain.is_response).all()
    firsts = given.is_maskable.argmax(1) - 2  # tokens of the response that are given
    assert (given.is_maskable == (plain.is_maskable & (np.arange(6) >= 2 + firsts[:, None]))).all()
    expected = [1 - share + share / 4, *[share / 4] * 3]  # a prefix of 0 to 3 tokens, all alike
    assert np.bincount(firsts, minlength=4) / len(row_ids) == pytest.approx(expected, abs=0.03)


def counts_of(config, pairs, normaliser):
    """(what each token's loss is divided by, the count) of one step's batch."""
    batch = ExampleRows(stream(config, pairs, batch_rows=len(pairs)))[list(range(len(pairs)))]
    noisy = NoisyBatch(
        noisy_ids=batch.input_ids,
        layout=batch.layout,
        is_masked=batch.is_maskable,
        targets=batch.input_ids[batch.is_maskable],
        is_maskable=batch.is_maskable,
        mask_ratio=batch.row_ids.double(),
        density=batch.row_ids.double(),
    )
    factor, count = normalise(normaliser, noisy)
    return batch, factor.expand_as(batch.is_maskable), float(count)


PAIRS_OF_TWO = [([1, 2, 3], [4, EOS]), ([1], [5, 6, 7, 8, EOS])]


def test_maskable_padding_counts_in_response_length_of_llada_normaliser():
    batch, factor, count = counts_of(Padded(), PAIRS_OF_TWO, Normaliser.RESPONSE)
    assert count == 2
    assert batch.layout.is_whole_rows
    for b in range(2):  # LLaDA's guidelines: the answer's length counts the padded EOS
        prompt = 3 if 4 in batch.input_ids[b] else 1
        answer_length = batch.input_ids.shape[1] - prompt
        np.testing.assert_allclose(factor[b, prompt:].numpy(), 1 / answer_length)
        assert batch.is_maskable[b].tolist() == [False] * prompt + [True] * answer_length


def test_unmaskable_padding_changes_no_response_length_and_is_a_separate_segment():
    batch, factor, count = counts_of(Padded(is_padding_maskable=False), PAIRS_OF_TWO, Normaliser.RESPONSE)
    assert count == 2
    b = next(b for b in range(2) if 4 in batch.input_ids[b])
    assert batch.is_maskable[b].tolist() == [False] * 3 + [True] * 2 + [False]
    np.testing.assert_allclose(factor[b, 3:5].numpy(), 1 / 2)
    segments = batch.layout.segment_ids()
    assert segments[b, 5] != segments[b, 4]
    assert int(batch.is_maskable.sum()) == 2 + 5


def test_packed_examples_have_equal_weight_under_response_normaliser():
    pairs = [([1, 2, 3], [4, EOS]), ([1], [5, 6, 7, 8, EOS]), ([1, 2], [3, EOS])]
    config = Packed(is_prompt_maskable=False, shortening=NoShortening())
    batch = ExampleRows(stream(config, pairs))[[0]]
    noisy = NoisyBatch(
        noisy_ids=batch.input_ids, layout=batch.layout, is_masked=batch.is_maskable,
        targets=batch.input_ids[batch.is_maskable], is_maskable=batch.is_maskable,
        mask_ratio=batch.row_ids.double(), density=batch.row_ids.double(),
    )  # fmt: skip
    factor, count = normalise(Normaliser.RESPONSE, noisy)
    assert count == 3
    weight = (factor * batch.is_maskable)[0]
    segments = batch.layout.segment_ids()[0]
    for segment in segments[batch.is_maskable[0]].unique():
        assert float(weight[segments == segment].sum()) == pytest.approx(1)


@given(PAIRS)
def test_encoded_examples_contain_every_token_with_its_part(pairs):
    examples = EncodedExamples.of(pairs)
    assert len(examples) == len(pairs)
    for (prompt, response), start, length in zip(pairs, examples.starts, examples.lengths, strict=True):
        here = slice(start, start + length)
        assert examples.tokens[here].tolist() == prompt + response
        assert examples.is_response[here].tolist() == [False] * len(prompt) + [True] * len(response)


def test_digest_depends_on_tokens_and_parts():
    digests = {
        EncodedExamples.of(pairs).digest()
        for pairs in ([([1, 2], [3])], [([1], [2, 3])], [([1, 2], [4])], [([1], [2]), ([1], [2])])
    }
    assert len(digests) == 4

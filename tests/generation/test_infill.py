"""Infilling against a slow loop over whole texts, against continuation, and its refusals."""

from dataclasses import replace

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.errors import UserError
from lit_illada.generation.cache import CACHES
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.infill import Gap, infill, parse_gaps
from lit_illada.generation.loop_control.early_exit import EARLY_EXITS

MASK, STOP, VOCABULARY = 0, 1, 23
CONFIG = GenerationConfig(block_length=8, num_steps=8)
BEFORE, MIDDLE, AFTER = [5, 9, 17, 3], [8, 8, 20], [11, 4, 6, 15, 2]


def fill(model, parts, config=CONFIG, stops=(STOP,), **options):
    return infill(model, parts, config, mask_token_id=MASK, stop_token_ids=stops, **options)


def one_by_one(model, parts, block_length):
    """Fill gaps of fixed length token by token: in each block the most confident masked position first, STOP forbidden.

    Source: LLaDA, arXiv 2502.09992, algorithm 5, with one token per step.
    """
    texts = [[MASK] * part.most if isinstance(part, Gap) else part for part in parts]
    flat = [token for text in texts for token in text]
    column = 0
    for part, text in zip(parts, texts, strict=True):
        for first in range(column, column + len(text), block_length) if isinstance(part, Gap) else ():
            block = range(first, min(first + block_length, column + len(text)))
            for _ in block:
                with torch.no_grad():
                    logits = model(torch.tensor([flat]), Layout.whole_rows(1, len(flat)))[0]
                logits[:, [MASK, STOP]] = -torch.inf
                top = logits.softmax(-1).max(-1)
                best = max((c for c in block if flat[c] == MASK), key=lambda c: top.values[c].item())
                flat[best] = int(top.indices[best])
        column += len(text)
    return flat


@pytest.mark.parametrize("block_length", [2, 8])
@pytest.mark.parametrize(
    "parts",
    [
        [BEFORE, Gap(5, 5), AFTER],
        [BEFORE, Gap(3, 3), MIDDLE, Gap(4, 4), AFTER],
        [Gap(2, 2), AFTER],
        [BEFORE, Gap(6, 6)],
        [Gap(1, 1), MIDDLE, Gap(1, 1)],
    ],
)
def test_gaps_are_filled_as_by_a_slow_loop(model, parts, block_length):
    filled = fill(model, parts, replace(CONFIG, block_length=block_length, num_steps=block_length))
    assert [token for text in filled.parts for token in text] == one_by_one(model, parts, block_length)
    assert filled.num_forwards == sum(part.most for part in parts if isinstance(part, Gap))


def test_a_gap_at_the_end_equals_a_continuation_on_a_fixed_canvas(model, write):
    config = replace(CONFIG, canvas=Canvas.fixed, max_new_tokens=12, min_new_tokens=12, block_length=6, num_steps=3)
    continued = write([torch.tensor(BEFORE)], config, stop_token_ids=[STOP])
    assert fill(model, [BEFORE, Gap(12, 12)], config).parts[1] == continued.token_ids[0].tolist()


def test_a_model_that_predicts_the_next_token_fills_gaps(tiny_model, write):
    model = tiny_model(predicts_next=True)
    config = replace(CONFIG, canvas=Canvas.fixed, max_new_tokens=6, min_new_tokens=6)
    continued = write([torch.tensor(BEFORE)], config, logits_fn=model, stop_token_ids=[STOP], lookback=1)
    assert fill(model, [BEFORE, Gap(6, 6)], config).parts[1] == continued.token_ids[0].tolist()
    with pytest.raises(UserError, match="begin the text before the first gap"):
        fill(model, [Gap(2, 2), AFTER])


def test_the_text_after_a_gap_changes_what_fills_it(model):
    first, second = (fill(model, [BEFORE, Gap(6, 6), after]).parts[1] for after in (AFTER, AFTER[::-1]))
    assert first != second


def test_a_gap_of_variable_length_ends_before_its_first_stop_token(model):
    fixed = fill(model, [BEFORE, Gap(8, 0), AFTER], stops=())  # nothing stops: all 8 tokens
    (_, tokens, _) = fixed.parts
    stop = tokens[3]
    first = tokens.index(stop)
    cut = fill(model, [BEFORE, Gap(8, 0), AFTER], stops=(stop,))
    assert cut.parts == [BEFORE, tokens[:first], AFTER]
    longer = fill(model, [BEFORE, Gap(8, first + 1), AFTER], stops=(stop,))
    assert len(longer.parts[1]) > first
    assert stop not in fill(model, [BEFORE, Gap(8, 8), AFTER], stops=(stop,)).parts[1]


def test_a_shortened_gap_is_given_text_for_the_next_one(model):
    tokens = fill(model, [BEFORE, Gap(4, 0), MIDDLE, Gap(3, 3), AFTER], stops=()).parts[1]
    filled = fill(model, [BEFORE, Gap(4, 0), MIDDLE, Gap(3, 3), AFTER], stops=(tokens[2],))
    kept = tokens[: tokens.index(tokens[2])]
    again = fill(model, [BEFORE + kept + MIDDLE, Gap(3, 3), AFTER], stops=(tokens[2],))
    assert filled.parts[3] == again.parts[1]


def test_random_fillings_depend_on_the_seed_alone(model):
    config = replace(CONFIG, temperature=1.0, seed=3)
    parts = [BEFORE, Gap(8, 8), AFTER]
    assert fill(model, parts, config).parts == fill(model, parts, config).parts
    assert fill(model, parts, config).parts != fill(model, parts, replace(config, seed=4)).parts


@pytest.mark.parametrize("cache", sorted(CACHES))
def test_gaps_are_filled_with_every_cache(model, cache):
    filled = fill(
        model, [BEFORE, Gap(6, 6), AFTER], replace(CONFIG, block_length=3, num_steps=3, cache=CACHES[cache]())
    )
    assert len(filled.parts[1]) == 6
    assert MASK not in filled.parts[1]


@pytest.mark.parametrize("cache", sorted(set(CACHES) - {"none"}))
@pytest.mark.parametrize("parts", [[BEFORE, Gap(6, 6), AFTER], [BEFORE, Gap(4, 0), MIDDLE, Gap(7, 7), AFTER]])
def test_a_cache_that_is_never_outdated_changes_no_filling(tiny_model, model, parts, cache):
    """Refreshed in every step; or of a model of one layer, whose keys and values depend on their own column alone."""
    config = replace(CONFIG, block_length=3, num_steps=3)
    cached = replace(config, cache=CACHES[cache](refresh_every_steps=1))
    assert fill(model, parts, cached).parts == fill(model, parts, config).parts
    shallow, cached = tiny_model(num_hidden_layers=1), replace(config, cache=CACHES[cache]())
    assert fill(shallow, parts, cached).parts == fill(shallow, parts, config).parts


def test_steps_are_reported_with_the_canvas(model):
    seen = []
    fill(model, [BEFORE, Gap(4, 4), AFTER], on_commit=lambda commit: seen.append(commit.token_ids.clone()))
    assert len(seen) == 4
    assert all(ids[0, -5:].tolist() == AFTER for ids in seen)
    assert [int((ids == MASK).sum()) for ids in seen] == [3, 2, 1, 0]


def test_marks_are_parsed():
    def encode(text):
        return [ord(character) for character in text]

    assert parse_gaps("a<fill:12>b<fill:2-4>", encode) == [[97], Gap(12, 12), [98], Gap(4, 2)]
    assert parse_gaps("<fill:1><fill:0-1>", encode) == [Gap(1, 1), Gap(1, 0)]
    assert parse_gaps("<fillet> <fill:1>", encode)[0] == encode("<fillet> ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no mark", "no gap in 'no mark': mark one by <fill:12>"),
        ("a <fill> b", "<fill> is not a gap: write <fill:12>"),
        ("a <fill:x> b", "<fill:x> is not a gap"),
        ("a <fill:-3> b", "<fill:-3> is not a gap"),
        ("a <fill:3.5> b", "<fill:3.5> is not a gap"),
        ("a <fill:0> b", "<fill:0>: the size must be 1 or more"),
        ("a <fill:4-2> b", "<fill:4-2>: the size must be 1 or more"),
    ],
)
def test_wrong_marks_are_named(text, message):
    with pytest.raises(UserError) as error:
        parse_gaps(text, list)
    assert message in str(error.value)


def test_unsuitable_models_and_settings_are_refused(model, tiny_model):
    with pytest.raises(UserError, match="the model is causal"):
        fill(tiny_model(is_causal=True), [BEFORE, Gap(2, 2)])
    with pytest.raises(UserError, match="trained in blocks of 4 tokens"):
        fill(tiny_model(block_length=4), [BEFORE, Gap(2, 2)])
    with pytest.raises(UserError, match="4 tokens and its gaps 61, together more than the 64 positions"):
        fill(model, [BEFORE, Gap(30, 30), Gap(31, 0)])
    with pytest.raises(UserError, match="guidance_scale is 1"):
        fill(model, [BEFORE, Gap(2, 2)], replace(CONFIG, guidance_scale=1.0))
    with pytest.raises(UserError, match="set generation/early_exit=none"):
        fill(model, [BEFORE, Gap(2, 2)], replace(CONFIG, early_exit=EARLY_EXITS["settled"]()))

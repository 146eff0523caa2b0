"""Loops and lengths of generated answers."""

import pytest

from lit_illada.evaluation.loop_rates import ended_at, loop_fields, loop_rates


def row(tokens, *, is_finished, stop_text="<|eos|>"):
    """A row whose trace commits one token per step."""
    ids = [sorted(set(tokens)).index(token) for token in tokens]
    trace = {"token_ids": ids, "tokens": tokens, "steps": list(range(len(ids))), "blocks": [0] * len(ids)}
    content = [token for token in tokens if token != stop_text]
    counts = {"num_tokens": len(content), "num_forwards": 1.0, "is_finished": is_finished}
    return {**trace, **counts, "text": "".join(content), "stop_text": stop_text}


@pytest.mark.parametrize("stop_text", ["<|eos|>", "<|end|>", "<｜end▁of▁sentence｜>"])
def test_end_of_text_tokens_after_an_answer_are_no_loop_whatever_their_text(stop_text):
    answer = row(["5", ".", *[stop_text] * 40], is_finished=True, stop_text=stop_text)
    assert loop_fields(answer, has_answer=True) == {"loop_kinds": [], "is_loop": False, "onset": None, "wasted": 0}


def test_an_answer_ends_at_its_stop_text_and_what_follows_is_not_judged():
    invented = ["\n", "Question", ":", " How", " many", "?"] * 8
    whole = row(["The", " answer", " is", " 5", ".", *invented], is_finished=False)
    whole |= loop_fields(whole, has_answer=True)
    assert loop_rates([whole])["endless"] == 1
    ended = ended_at(whole, ["\nQuestion:"])
    ended |= loop_fields(ended, has_answer=True)
    assert ended["text"] == "The answer is 5."
    assert ended["tokens"] == ["The", " answer", " is", " 5", "."]
    assert {len(ended[name]) for name in ("token_ids", "steps", "blocks")} == {5}
    rates = loop_rates([ended])
    assert (rates["looped"], rates["endless"], rates["unfinished"], rates["mean_tokens"]) == (0, 0, 0, 5)
    assert ended_at(whole, ["no such text"]) is whole


def test_a_token_that_holds_the_end_of_the_answer_and_of_the_stop_text_is_left_out():
    ended = ended_at(row(["7", "5.\nQuest", "ion:", " x"], is_finished=False), ["\nQuestion:"])
    assert (ended["tokens"], ended["text"]) == (["7"], "75.")

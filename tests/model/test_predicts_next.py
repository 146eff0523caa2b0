"""Shifted predictions as in Dream: logits of a position are computed at the previous one, within its segment."""

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.errors import UserError
from lit_illada.model.kv_cache import KeyValueCache


def test_shifted_logits_equal_the_plain_models_one_position_earlier_within_documents(make_model, packed):
    ids, layout, documents = packed
    plain, shifted = make_model(), make_model(predicts_next=True)
    expected = []
    for document in documents:
        separate = plain(document[None], Layout.whole_rows(1, len(document)))[0]
        expected.append(torch.cat((separate[:1], separate[:-1])))
    torch.testing.assert_close(shifted(ids, layout).flatten(0, 1), torch.cat(expected), atol=5e-6, rtol=1e-5)


def test_selected_rows_and_scores_are_shifted_alike(make_model, packed):
    ids, layout, _ = packed
    model = make_model(predicts_next=True)
    select = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.4
    logits = model(ids, layout)[select]
    torch.testing.assert_close(model(ids, layout, select), logits)
    torch.testing.assert_close(
        model(ids, layout, select, ids[select]).nll,
        torch.nn.functional.cross_entropy(logits, ids[select], reduction="none"),
    )
    whole = Layout.whole_rows(3, 12)
    torch.testing.assert_close(model(ids, whole, select), model(ids, whole)[select])


def test_a_causal_model_cannot_be_shifted_twice(make_model):
    with pytest.raises(UserError, match=r"model\.predicts_next and model\.is_causal are both true"):
        make_model(predicts_next=True, is_causal=True)


@torch.no_grad()
def test_a_window_over_a_fresh_cache_equals_the_full_pass_after_its_first_column(make_model):
    model, layout = make_model(predicts_next=True), Layout.whole_rows(2, 12)
    ids = torch.randint(1, 9, (2, 12), generator=torch.Generator().manual_seed(4))
    cache = KeyValueCache()
    whole = model(ids, layout, cache=cache, start=0)
    torch.testing.assert_close(model(ids[:, 5:9], layout, cache=cache, start=5)[:, 1:], whole[:, 6:9])

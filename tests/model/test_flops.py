import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_illada.batch import Layout
from lit_illada.model.config import AttentionKernel
from lit_illada.model.flops import forward_flops, training_flops


def test_forward_flops_are_those_torch_counts(make_model):
    model = make_model(attention=AttentionKernel.MATMUL)
    layout, ids = Layout.whole_rows(2, 12), torch.zeros(2, 12, dtype=torch.long)
    select = torch.arange(24).view(2, 12) % 2 == 0
    with FlopCounterMode(display=False) as counter:
        model(ids, layout, select)
    assert forward_flops(model.config, layout, 12) == counter.get_total_flops()


def test_documents_apart_cost_less_and_attention_counts_in_full_even_if_causal(tiny, packed):
    _, layout, documents = packed
    apart, whole = (forward_flops(tiny, borders, 0) for borders in (layout, Layout.whole_rows(3, 12)))
    pairs_saved = 3 * 12**2 - sum(len(document) ** 2 for document in documents)
    assert whole - apart == 4 * tiny.hidden_size * tiny.num_hidden_layers * pairs_saved
    assert training_flops(tiny, layout, 0) == 3 * apart

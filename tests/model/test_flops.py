from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_illada.batch import Layout
from lit_illada.model.attention import visible_tokens
from lit_illada.model.config import AttentionKernel, ModelConfig
from lit_illada.model.flops import forward_flops, training_flops
from lit_illada.objective.blocks import divide


def test_forward_flops_equal_torchs_count(make_model):
    model = make_model(attention=AttentionKernel.MATMUL)
    layout, ids = Layout.whole_rows(2, 12), torch.zeros(2, 12, dtype=torch.long)
    select = torch.arange(24).view(2, 12) % 2 == 0
    with FlopCounterMode(display=False) as counter:
        model(ids, layout, select)
    assert forward_flops(model.config, layout, 12) == counter.get_total_flops()


def test_isolated_documents_cost_fewer_flops(tiny, packed):
    _, layout, documents = packed
    apart, whole = (forward_flops(tiny, borders, 0) for borders in (layout, Layout.whole_rows(3, 12)))
    pairs_saved = 3 * 12**2 - sum(len(document) ** 2 for document in documents)
    assert whole - apart == 4 * tiny.hidden_size * tiny.num_hidden_layers * pairs_saved
    assert training_flops(tiny, layout, 0) == 3 * apart


# width 4, MLP 6, one layer, 2 heads of 2 and one key-value head, vocabulary 10: a token needs
# q 4·4 + k, v 2·4·2 + o 4·4 + MLP 3·4·6 = 120 multiplications, one of the LM head 4·10
SMALL = ModelConfig(10, 4, 6, 1, 2, 1)
SEGMENTS = Layout.from_lengths(torch.tensor([3, 2, 5]), 5)  # 10 tokens; 9 + 4 + 25 = 38 pairs


def test_flops_of_a_batch_equal_a_hand_count():
    # queries times keys and weights times values: 2 · 4 multiplications a pair
    assert forward_flops(SMALL, SEGMENTS, 7) == 2 * (120 * 10 + 2 * 4 * 38 + 4 * 10 * 7) == 3568
    assert training_flops(SMALL, SEGMENTS, 7) == 3 * 3568


def test_causal_attention_counts_the_pairs_that_a_causal_mask_leaves():
    causal = replace(SMALL, is_causal=True)
    pairs = sum(1 for length in (3, 2, 5) for query in range(length) for key in range(length) if key <= query)
    assert pairs == 6 + 3 + 15
    assert forward_flops(causal, SEGMENTS, 7) == 2 * (120 * 10 + 2 * 4 * 24 + 4 * 10 * 7) == 3344


def test_copied_rows_count_twice_and_their_head_once():
    twice = SEGMENTS.repeat(2)
    assert training_flops(SMALL, SEGMENTS, 10, copies=2) == training_flops(SMALL, twice, 10) == 3 * 2 * 3408
    # adapters: the forward pass and the gradients of activations, attention's three passes, 6 for each of 5 parameters
    assert training_flops(SMALL, SEGMENTS, 10, 5, copies=2) == training_flops(SMALL, twice, 10, 5)
    assert training_flops(SMALL, twice, 10, 5) == 2 * 2 * (2400 + 400) + 3 * 2 * 608 + 6 * 5 * 20


def test_training_in_blocks_counts_the_visible_pairs_of_doubled_rows():
    """Exactly, where the documents are whole blocks; otherwise at most 1/8 of a squared block too many per document."""
    layout = Layout.from_lengths(torch.tensor([4, 8, 12]), 12)
    blocks = divide(layout, torch.ones(2, 12, dtype=torch.bool), 4)
    doubled = replace(layout, blocks=blocks).with_clean_copy()
    pairs = int(visible_tokens(doubled, False).sum())
    config = replace(SMALL, block_length=4)
    assert training_flops(config, layout, 7) == 3 * 2 * (120 * 48 + 2 * 4 * pairs + 4 * 10 * 7)
    assert training_flops(replace(SMALL, block_length=64), layout, 0) == 2 * training_flops(SMALL, layout, 0)
    assert forward_flops(replace(SMALL, block_length=1), layout, 3) == forward_flops(
        replace(SMALL, is_causal=True), layout, 3
    )

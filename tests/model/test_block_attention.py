"""Block-causal attention against loops over pairs of tokens, and rows [noisy | clean] against rows of their own."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from lit_illada.batch import Layout
from lit_illada.errors import UserError
from lit_illada.model.attention import Attention, flex_mask, visible_tokens
from lit_illada.model.config import AttentionKernel, ModelConfig
from lit_illada.model.kernel_choice import SEGMENT_KERNELS, choose_masked_kernel
from lit_illada.objective.blocks import divide
from lit_illada.objective.loss import NoisyBatch

MASK = 0


def in_blocks(layout, block_length):
    blocks = divide(layout, torch.ones_like(layout.position_ids, dtype=torch.bool), block_length)
    return replace(layout, blocks=blocks)


def slow_visible(layout):
    """The rule of BD3-LM for each pair of the T tokens of a row and of their copies, by segments of one copy."""
    T = layout.blocks.shape[1]
    segments, blocks = layout.segment_ids().tolist(), layout.blocks.tolist()
    seen = torch.zeros(len(blocks), 1, 2 * T, 2 * T, dtype=torch.bool)
    for row in range(len(blocks)):
        for q in range(2 * T):
            for k in range(2 * T):
                if segments[row][q % T] != segments[row][k % T]:
                    continue
                query, key = blocks[row][q % T], blocks[row][k % T]
                if q < T:
                    seen[row, 0, q, k] = query == key if k < T else key < query
                else:
                    seen[row, 0, q, k] = k >= T and key <= query
    return seen


@pytest.mark.parametrize("block_length", [1, 3, 5, 12])
def test_the_mask_follows_the_rule_for_each_pair_of_tokens(packed, block_length):
    layout = in_blocks(packed[1], block_length)
    seen, doubled = slow_visible(layout), layout.with_clean_copy()
    assert visible_tokens(doubled, False).equal(seen)
    assert visible_tokens(layout, False).equal(seen[:, :, 12:, 12:])
    assert visible_tokens(doubled, False, slice(7, 15)).equal(seen[:, :, 7:15])


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_mask_function_of_flex_attention_is_the_same(packed, is_causal):
    for layout in (packed[1], in_blocks(packed[1], 3), in_blocks(packed[1], 3).with_clean_copy()):
        T = layout.position_ids.shape[1]
        mask = create_mask(flex_mask(layout, is_causal), 3, 1, T, T, device="cpu")
        assert mask.equal(visible_tokens(layout, is_causal))


def noisy_of(ids, layout):
    is_masked = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    one = torch.ones_like(ids, dtype=torch.float64)
    noisy_ids = ids.masked_fill(is_masked, MASK)
    return NoisyBatch(noisy_ids, layout, is_masked, ids[is_masked], torch.ones_like(is_masked), one, one)


@pytest.mark.parametrize("attention", [AttentionKernel.SDPA, AttentionKernel.MATMUL])
@pytest.mark.parametrize("predicts_next", [False, True])
@pytest.mark.parametrize("block_length", [1, 3, 12])
@torch.no_grad()
def test_a_doubled_row_scores_each_block_as_a_row_that_ends_with_it(
    make_model, packed, block_length, predicts_next, attention
):
    """As generation sees it: the clean text so far and one noisy block, document by document."""
    ids, layout, documents = packed
    model = make_model(block_length=block_length, predicts_next=predicts_next, attention=attention)
    noisy = noisy_of(ids, in_blocks(layout, block_length))
    expected = []
    noisy_documents = noisy.noisy_ids.flatten().split([len(document) for document in documents])
    for clean, dirty in zip(documents, noisy_documents, strict=True):
        for start in range(0, len(clean), block_length):
            row = torch.cat([clean[:start], dirty[start : start + block_length]])[None]
            scored = model(row, in_blocks(Layout.whole_rows(1, row.shape[1]), block_length))[0, start:]
            part = slice(start, start + block_length)
            expected.append(torch.nn.functional.cross_entropy(scored, clean[part], reduction="none"))
    got = noisy.scored_by(model).nll
    torch.testing.assert_close(got, torch.cat(expected)[noisy.is_masked.flatten()], atol=5e-6, rtol=1e-5)


@torch.no_grad()
def test_blocks_of_one_token_with_shifted_predictions_are_the_causal_model(make_model, packed):
    ids, layout, _ = packed
    causal, blockwise = make_model(is_causal=True), make_model(block_length=1, predicts_next=True)
    noisy = replace(noisy_of(ids, in_blocks(layout, 1)), is_masked=torch.ones_like(ids).bool(), targets=ids.flatten())
    got = noisy.scored_by(blockwise).nll.view(3, 12)
    logits = causal(ids, layout).roll(1, dims=1)
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(3, 12)
    has_context = layout.position_ids > 0  # the first token of a document is predicted from its own position
    torch.testing.assert_close(got[has_context], want[has_context], atol=5e-6, rtol=1e-5)


@torch.no_grad()
def test_one_block_per_document_is_full_diffusion(make_model, packed):
    ids, layout, _ = packed
    noisy = noisy_of(ids, in_blocks(layout, 12))
    plain = replace(noisy, layout=layout)
    torch.testing.assert_close(
        noisy.scored_by(make_model(block_length=12)).nll, plain.scored_by(make_model()).nll, atol=5e-6, rtol=1e-5
    )


def test_gradients_flow_through_both_copies(make_model, packed):
    ids, layout, _ = packed
    model = make_model(block_length=3)
    noisy_of(ids, in_blocks(layout, 3)).scored_by(model).nll.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_segment_kernels_are_rejected_and_cuda_runs_flex_attention_in_training():
    for kernel in SEGMENT_KERNELS:
        with pytest.raises(
            UserError, match=f"model.attention is {kernel}, which has no mask for objective.block_length"
        ):
            choose_masked_kernel(kernel, "cuda", torch.bfloat16, True, True)
    choose = (AttentionKernel.AUTO, "cuda", torch.bfloat16, True)
    assert choose_masked_kernel(*choose, True) is AttentionKernel.FLEX
    assert choose_masked_kernel(*choose, False) is AttentionKernel.SDPA
    assert choose_masked_kernel(AttentionKernel.AUTO, "cpu", torch.float32, True, True) is AttentionKernel.SDPA
    with pytest.raises(UserError, match="needs a CUDA device"):
        choose_masked_kernel(AttentionKernel.FLEX, "cpu", torch.float32, True, True)


def test_causal_attention_and_blocks_exclude_each_other():
    with pytest.raises(UserError, match=r"model\.is_causal is true and objective\.block_length is 4.*is_causal=false"):
        ModelConfig(is_causal=True, block_length=4)


@pytest.mark.gpu
@pytest.mark.parametrize("is_doubled", [False, True])
def test_flex_attention_equals_sdpa_on_cuda(packed, is_doubled):
    layout = in_blocks(Layout.from_lengths(torch.tensor([100, 156, 256]), 256), 16)
    layout = (layout.with_clean_copy() if is_doubled else layout).to("cuda")
    T = layout.position_ids.shape[1]
    outcomes = []
    for kernel in (AttentionKernel.FLEX, AttentionKernel.SDPA):
        generator = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(2, T, n, 64, generator=generator).to("cuda", torch.bfloat16).requires_grad_() for n in (4, 2, 2)
        )
        attention = Attention.plan(AttentionKernel.SDPA, layout, False, q.device, q.dtype, 64)
        if kernel is AttentionKernel.FLEX:
            attention = Attention.plan(kernel, layout, False, q.device, q.dtype, 64)
        out = attention.attend(q, k, v)
        out.float().square().sum().backward()
        outcomes.append((out, q.grad, k.grad, v.grad))
    torch.testing.assert_close(*outcomes, atol=3e-2, rtol=3e-2)

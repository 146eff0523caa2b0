import logging
import sys
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_illada.batch import Layout
from lit_illada.errors import UserError
from lit_illada.model import kernels
from lit_illada.model.attention import Attention
from lit_illada.model.config import AttentionKernel
from lit_illada.model.kernel_choice import LONGEST_MATMUL_ROW, SEGMENT_KERNELS, _why_not, choose_kernel
from lit_illada.model.kernels import _flash, _flash_4, _varlen

HERE = [AttentionKernel.MATMUL, AttentionKernel.SDPA]
CPU = torch.device("cpu")


def heads(num_heads, rows=3, length=12, dim=8, seed=0, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, num_heads, dim, generator=generator).to(device, dtype).requires_grad_()


def plain_attention(q, k, v, layout, is_causal):
    """Document by document, head by head, in float64."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.detach().double().flatten(0, 1) for x in (q, k, v))
    out = torch.zeros_like(q)
    borders = layout.cu_seqlens.tolist()
    for start, end in pairwise(borders):
        for head in range(q.shape[1]):
            scores = q[start:end, head] @ k[start:end, head // group].T / q.shape[-1] ** 0.5
            if is_causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            out[start:end, head] = scores.softmax(-1) @ v[start:end, head // group]
    return out.view(layout.position_ids.shape + out.shape[1:])


@pytest.mark.parametrize("kernel", HERE)
@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_every_kernel_equals_plain_attention_document_by_document(
    kernel, num_key_value_heads, is_causal, is_packed, packed
):
    layout = packed[1] if is_packed else Layout.whole_rows(3, 12)
    q, k, v = heads(4), heads(num_key_value_heads, seed=1), heads(num_key_value_heads, seed=2)
    attention = Attention.plan(kernel, layout, is_causal, CPU, torch.float32, 8)
    torch.testing.assert_close(
        attention.attend(q, k, v).double(), plain_attention(q, k, v, layout, is_causal), atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize("is_causal", [False, True])
def test_kernels_agree_in_their_gradients(is_causal, packed):
    grads = []
    for kernel in HERE:
        q, k, v = heads(4), heads(2, seed=1), heads(2, seed=2)
        Attention.plan(kernel, packed[1], is_causal, CPU, torch.float32, 8).attend(q, k, v).square().sum().backward()
        grads.append((q.grad, k.grad, v.grad))
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("is_causal", [False, True])
def test_repeated_key_value_heads_give_the_same_attention_and_gradients(
    num_key_value_heads, is_causal, packed, monkeypatch
):
    attention, results = Attention.plan(AttentionKernel.SDPA, packed[1], is_causal, CPU, torch.float32, 8), []
    for takes_groups in (True, False):
        monkeypatch.setattr(kernels, "sdpa_takes_groups", lambda *_, answer=takes_groups: answer)
        q, k, v = heads(4), heads(num_key_value_heads, seed=1), heads(num_key_value_heads, seed=2)
        out = attention.attend(q, k, v)
        out.square().sum().backward()
        results.append((out, q.grad, k.grad, v.grad))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("device", "dtype", "has_mask", "num_passed"),
    [
        ("cuda", torch.bfloat16, False, 2),
        ("cuda", torch.bfloat16, True, 4),
        ("cuda", torch.float32, False, 4),
        ("cuda", torch.float32, True, 4),
        ("cpu", torch.float32, True, 2),
    ],
)
def test_grouped_heads_are_repeated_where_no_kernel_of_sdpa_on_cuda_takes_them(
    device, dtype, has_mask, num_passed, monkeypatch
):
    passed = []

    def attend(q, k, v, mask, *, is_causal, enable_gqa):
        passed.append((k.shape[1], v.shape[1], enable_gqa))
        return q

    monkeypatch.setattr(kernels.F, "scaled_dot_product_attention", attend)
    with FakeTensorMode():
        q, k = (torch.empty(3, 12, num_heads, 8, device=device, dtype=dtype) for num_heads in (4, 2))
        mask = torch.empty(3, 1, 12, 12, device=device, dtype=torch.bool) if has_mask else None
        kernels.sdpa(q, k, k, mask, False)
    assert passed == [(num_passed, num_passed, num_passed == 2)]


def test_matmul_in_bfloat16_is_close_to_float32(packed):
    q, k, v = heads(4), heads(2, seed=1), heads(2, seed=2)
    exact = plain_attention(q, k, v, packed[1], False)
    attention = Attention.plan(AttentionKernel.MATMUL, packed[1], False, CPU, torch.bfloat16, 8)
    out = attention.attend(*(x.bfloat16() for x in (q, k, v)))
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.double(), exact, atol=3e-2, rtol=3e-2)


def test_a_batch_of_unpacked_rows_has_no_mask(packed):
    for kernel in HERE:
        assert Attention.plan(kernel, Layout.whole_rows(3, 12), False, CPU, torch.float32, 8).mask is None
        assert Attention.plan(kernel, packed[1], False, CPU, torch.float32, 8).mask.shape == (3, 1, 12, 12)


def test_auto_selects_the_measured_fastest_kernel_on_a_cpu():
    auto = AttentionKernel.AUTO
    assert choose_kernel(auto, "cpu", torch.bfloat16, is_short=True) is AttentionKernel.MATMUL
    assert choose_kernel(auto, "cpu", torch.bfloat16, is_short=False) is AttentionKernel.SDPA
    assert choose_kernel(auto, "cpu", torch.float32, is_short=True) is AttentionKernel.SDPA


def test_auto_selects_a_variable_length_kernel_on_cuda_in_half_precision_only():
    auto = AttentionKernel.AUTO
    chosen = choose_kernel(auto, "cuda", torch.bfloat16, is_short=False)
    assert chosen in SEGMENT_KERNELS
    assert choose_kernel(auto, "cuda", torch.float32, is_short=False) is AttentionKernel.SDPA


def test_the_log_states_the_kernel_and_the_reason(caplog):
    choose_kernel.cache_clear()
    with caplog.at_level(logging.INFO):
        choose_kernel(AttentionKernel.AUTO, "cuda", torch.float32, is_short=False)
    assert "attention runs on sdpa" in caplog.text
    assert "varlen computes in bfloat16 or float16" in caplog.text
    assert str(LONGEST_MATMUL_ROW) in caplog.text


def installed(monkeypatch, *packages):
    def version(package):
        if package not in packages:
            raise PackageNotFoundError(package)
        return "1.0"

    choose_kernel.cache_clear()
    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("packages", "capability", "fastest"),
    [
        ((), (9, 0), "varlen"),
        ((), (7, 0), "sdpa"),
        (("flash-attn",), (8, 0), "flash"),
        (("flash-attn-4",), (9, 0), "flash4"),
        (("flash-attn-4",), (10, 0), "flash4"),
        (("flash-attn-4",), (8, 0), "varlen"),
        (("flash-attn", "flash-attn-4"), (9, 0), "varlen"),
    ],
)
def test_auto_depends_on_packages_and_gpu_and_logs_the_reason(monkeypatch, caplog, packages, capability, fastest):
    installed(monkeypatch, *packages)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    with caplog.at_level(logging.INFO):
        assert choose_kernel(AttentionKernel.AUTO, "cuda", torch.bfloat16, is_short=False) == fastest
    assert f"attention runs on {fastest} (cuda" in caplog.text
    if capability < (9, 0) and "flash-attn-4" in packages:
        assert "flash4 needs a GPU of compute capability 9.0, but this one has 8.0" in caplog.text
    choose_kernel.cache_clear()


def test_both_flash_packages_installed_together_are_rejected_with_a_fix(monkeypatch):
    installed(monkeypatch, "flash-attn", "flash-attn-4")
    assert "pip uninstall flash-attn-4" in _why_not(AttentionKernel.FLASH, "cuda", torch.bfloat16)
    with pytest.raises(UserError, match=r"model.attention is flash4, which conflicts with .*uninstall"):
        choose_kernel(AttentionKernel.FLASH4, "cuda", torch.bfloat16, is_short=False)
    choose_kernel.cache_clear()


@pytest.mark.parametrize(
    ("head_dim", "package", "fastest", "reason"),
    [
        (128, "flash-attn-4", "flash4", ""),
        (96, "flash-attn-4", "flash4", ""),
        (80, "flash-attn-4", "varlen", "flash4 supports a head size of 64, 96 or 128, but the model has 80"),
        (20, None, "sdpa", "varlen supports a head size of a multiple of 8, at most 256, but the model has 20"),
        (320, None, "sdpa", "varlen supports a head size of a multiple of 8, at most 256, but the model has 320"),
        (20, "flash-attn", "flash", ""),
        (320, "flash-attn", "sdpa", "flash supports a head size of at most 256, but the model has 320"),
    ],
)
def test_auto_depends_on_the_head_width_and_logs_the_reason(monkeypatch, caplog, head_dim, package, fastest, reason):
    installed(monkeypatch, *([package] if package else []))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with caplog.at_level(logging.INFO):
        chosen = choose_kernel(AttentionKernel.AUTO, "cuda", torch.bfloat16, is_short=False, head_dim=head_dim)
    choose_kernel.cache_clear()
    assert chosen == fastest
    assert reason in caplog.text


def test_a_kernel_that_does_not_support_the_head_width_is_rejected(monkeypatch):
    installed(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(UserError, match=r"is varlen, which supports a head size of .* has 20: choose sdpa"):
        choose_kernel(AttentionKernel.VARLEN, "cuda", torch.bfloat16, is_short=False, head_dim=20)


@pytest.mark.parametrize("kernel", SEGMENT_KERNELS)
def test_an_unavailable_kernel_is_rejected_and_not_replaced(kernel, packed):
    with pytest.raises(UserError, match=f"model.attention is {kernel}, which needs .* choose sdpa"):
        Attention.plan(kernel, packed[1], False, CPU, torch.bfloat16, 8)


def varlen_of_torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    assert query.shape[1] == key.shape[1]
    return on_flat_tokens(query, key, value, cu_seq_q, max_q, window_size == (-1, 0))


def varlen_of_torch_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False
):
    assert enable_gqa or query.shape[1] == key.shape[1]
    return on_flat_tokens(query, key, value, cu_seq_q, max_q, window_size == (-1, 0))


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=False):
    return on_flat_tokens(q, k, v, cu_seqlens_q, max_seqlen_q, causal)


def flash_attn_4_varlen_func(
    q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, causal=False
):
    assert cu_seqlens_k is not None
    assert max_seqlen_k == max_seqlen_q
    return on_flat_tokens(q, k, v, cu_seqlens_q, max_seqlen_q, causal), None


def flash_attn_4_varlen_func_alone(q, k, v, **options):
    return flash_attn_4_varlen_func(q, k, v, **options)[0]


def on_flat_tokens(q, k, v, cu_seqlens, max_seqlen, is_causal):
    layout = Layout(torch.zeros(1, len(q)), cu_seqlens, max_seqlen, num_pairs=0)
    return plain_attention(q[None], k[None], v[None], layout, is_causal)[0]


@pytest.mark.parametrize(
    ("module", "name", "fake", "make"),
    [
        ("torch.nn.attention.varlen", "varlen_attn", varlen_of_torch_2_11, _varlen),
        ("torch.nn.attention.varlen", "varlen_attn", varlen_of_torch_2_13, _varlen),
        ("flash_attn", "flash_attn_varlen_func", flash_attn_varlen_func, _flash),
        ("flash_attn.cute", "flash_attn_varlen_func", flash_attn_4_varlen_func, _flash_4),
        ("flash_attn.cute", "flash_attn_varlen_func", flash_attn_4_varlen_func_alone, _flash_4),
    ],
    ids=["torch 2.11", "torch 2.13", "flash-attn 2", "flash-attn 4", "flash-attn 4, output only"],
)
@pytest.mark.parametrize("num_key_value_heads", [2, 4])
@pytest.mark.parametrize("is_causal", [False, True])
def test_cuda_kernels_are_called_according_to_their_signatures(
    monkeypatch, module, name, fake, make, num_key_value_heads, is_causal, packed
):
    """Stubs with the real signatures, since these kernels need CUDA."""
    monkeypatch.setitem(sys.modules, module.partition(".")[0], sys.modules.get(module.partition(".")[0], torch))
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: fake}))
    q, k, v = heads(4), heads(num_key_value_heads, seed=1), heads(num_key_value_heads, seed=2)
    layout = packed[1]
    attention = Attention(AttentionKernel.VARLEN, is_causal, None, layout.cu_seqlens, layout.max_seqlen, make())
    assert attention.attend(q, k, v).equal(plain_attention(q, k, v, layout, is_causal))


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", SEGMENT_KERNELS)
@pytest.mark.parametrize("num_key_value_heads", [2, 4])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("is_packed", [False, True])
def test_cuda_kernels_equal_sdpa_in_float32(kernel, num_key_value_heads, is_causal, dim, is_packed):
    """Output and gradients, over documents longer and shorter than a kernel's tile."""
    cuda = torch.device("cuda")
    if problem := _why_not(kernel, "cuda", torch.bfloat16, dim):
        pytest.skip(f"{kernel} {problem}")
    lengths = torch.tensor([1, 300, 211, 7, 505, 512]) if is_packed else torch.tensor([512, 512, 512])
    layout = Layout.from_lengths(lengths, 512).to(cuda)
    results = []
    for chosen, dtype in ((AttentionKernel.SDPA, torch.float32), (kernel, torch.bfloat16)):
        q, k, v = (
            heads(n, 3, 512, dim, seed, torch.bfloat16, cuda).detach().to(dtype).requires_grad_()
            for seed, n in enumerate((4, num_key_value_heads, num_key_value_heads))
        )
        out = Attention.plan(chosen, layout, is_causal, cuda, dtype, dim).attend(q, k, v)
        out.float().square().sum().backward()
        results.append([x.float() for x in (out, q.grad, k.grad, v.grad)])
    torch.testing.assert_close(*results, atol=4e-2, rtol=4e-2)

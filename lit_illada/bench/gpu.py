"""GPU benchmarks: attention kernels, training steps up to 8 B parameters, LM head with loss, and generation.

A dry run executes the same code at tiny sizes on a CPU, to test it without a GPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_illada.batch import Layout
from lit_illada.bench.figure import attempted, did_not_run, figure, peak_bytes, seconds
from lit_illada.bench.step import GPU_GROUPS, measure_groups
from lit_illada.bench.training_step import Case, documents, fill
from lit_illada.errors import UserError
from lit_illada.generation.cache import DualCache, NoCache
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.generate import generate
from lit_illada.model.attention import Attention
from lit_illada.model.config import AttentionKernel
from lit_illada.model.fused_loss import fused_kernel
from lit_illada.model.lm_head import default_chunk_size, token_scores
from lit_illada.model.transformer import Transformer
from lit_illada.training.config.parallel import ActivationCheckpointing
from lit_illada.training.config.trainer import Precision

# relative to the norm of the reference; rounding to bfloat16 alone gives a few thousandths
_LARGEST_ERROR = 0.02
_GOALS = {"1b": 0.5, "illada_8b": 0.45}  # model FLOP utilisation by model


@dataclass(frozen=True)
class _Sizes:
    """Sizes of all GPU benchmarks."""

    groups: Sequence[Sequence[Case]]
    """Training steps; the cases of a group alternate."""
    rows: int
    """Rows in the attention benchmark, as the next four fields."""
    row_length: int
    num_heads: int
    num_key_value_heads: int
    head_dims: tuple[int, ...]
    head: tuple[int, int, int]
    """Selected tokens, hidden size and vocabulary size of the LM head benchmark."""
    generating: Case
    """Model and prompts (rows) of the generation benchmark."""
    prompt_length: int
    """Tokens per prompt."""
    max_new_tokens: int
    """Generated tokens per prompt."""
    repeats: int
    steps: int
    """Training steps per repeat."""


_FULL = _Sizes(GPU_GROUPS, 2, 8192, 32, 8, (64, 128), (4096, 4096, 155_136), Case("1b", 8, 2048), 512, 128, 5, 3)
_DRY = _Sizes(
    [
        [Case("pico", 2, 64), Case("pico", 2, 64, AttentionKernel.SDPA, Precision.float32)],
        [Case("pico", 2, 64, recomputation=ActivationCheckpointing.selective, optimizer="adamw8bit")],
        [Case("pico", 1, 64, recomputation=ActivationCheckpointing.full, optimizer="muon")],
    ],
    2, 64, 4, 2, (16,), (32, 16, 500), Case("pico", 2, 64), 8, 8, 1, 1,
)  # fmt: skip


def measure(*, is_dry_run: bool = False, profile: Path | None = None) -> dict[str, Any]:
    """Figures of all GPU benchmarks. Goals: 50 % MFU for 1 B and 45 % for 8 B parameters, at row length 8192.

    Raises UserError without a GPU, unless it is a dry run.
    """
    if not is_dry_run and not torch.cuda.is_available():
        raise UserError(
            "the benchmark 'gpu' needs a CUDA device, and torch finds none: use --dry-run to execute the same code at "
            "tiny sizes on the CPU"
        )
    device, sizes = (torch.device("cpu"), _DRY) if is_dry_run else (torch.device("cuda"), _FULL)
    return {
        "attention": attempted(lambda: attention(sizes, device)),
        "step": measure_groups(sizes.groups, device, repeats=sizes.repeats, steps=sizes.steps, profile=profile),
        "head": attempted(lambda: head(sizes, device)),
        "generation": attempted(lambda: generation(sizes, device)),
        "mfu_goals": dict(_GOALS),
    }


def attention(sizes: _Sizes, device: torch.device) -> dict[str, Any]:
    """Relative error and time of each attention kernel, by head dimension, layout and causality.

    largest_error: the largest of output and gradients, relative to the norm of the reference: SDPA with a dense mask in
    float32 on the same bfloat16 inputs. forward_backward_ms: milliseconds; kernels alternate.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = [length for _ in range(sizes.rows) for length in documents(sizes.row_length, generator)]
    layouts = {
        "packed": Layout.from_lengths(torch.tensor(lengths), sizes.row_length).to(device),
        "whole rows": Layout.whole_rows(sizes.rows, sizes.row_length, device),
    }
    figures: dict[str, Any] = {}
    for head_dim in sizes.head_dims:
        heads = (sizes.num_heads, sizes.num_key_value_heads, sizes.num_key_value_heads)
        inputs = [
            torch.randn(sizes.rows, sizes.row_length, n, head_dim, generator=generator).to(device, torch.bfloat16)
            for n in heads
        ]
        for kind, layout in layouts.items():
            for is_causal in (False, True):
                case = f"{head_dim} {kind}{' causal' if is_causal else ''}"
                figures[case] = _kernels(inputs, layout, is_causal, sizes.repeats)
    return figures


def _kernels(inputs: Sequence[Tensor], layout: Layout, is_causal: bool, repeats: int) -> dict[str, Any]:
    device = inputs[0].device
    exact = _outcome(inputs, AttentionKernel.SDPA, layout, is_causal, torch.float32)
    figures: dict[str, Any] = {}
    runs: dict[str, Callable[[], object]] = {}
    for kernel in AttentionKernel:
        if kernel is AttentionKernel.AUTO or (kernel is AttentionKernel.MATMUL and device.type == "cuda"):
            continue
        try:
            outcome = _outcome(inputs, kernel, layout, is_causal, torch.bfloat16)
        except Exception as error:
            figures[kernel.value] = did_not_run(error)
            continue
        error_of = [
            float((one.float() - other).norm() / other.norm()) for one, other in zip(outcome, exact, strict=True)
        ]
        figures[kernel.value] = {"largest_error": max(error_of), "is_right": max(error_of) < _LARGEST_ERROR}
        runs[kernel.value] = lambda kernel=kernel: _outcome(inputs, kernel, layout, is_causal, torch.bfloat16)  # type: ignore[misc]
    rounds = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(repeats)]
    for name in runs:
        figures[name]["forward_backward_ms"] = figure([one[name] * 1e3 for one in rounds])
    return figures


def _outcome(
    inputs: Sequence[Tensor], kernel: AttentionKernel, layout: Layout, is_causal: bool, dtype: torch.dtype
) -> list[Tensor]:
    """Output and the gradients of queries, keys and values."""
    q, k, v = (tensor.detach().to(dtype).requires_grad_() for tensor in inputs)
    out = Attention.plan(kernel, layout, is_causal, q.device, dtype, q.shape[-1]).attend(q, k, v)
    # not the plain sum, whose gradient for queries and keys consists of rounding errors
    out.float().square().sum().backward()
    return [tensor.detach().float() for tensor in (out, q.grad, k.grad, v.grad) if tensor is not None]


def head(sizes: _Sizes, device: torch.device) -> dict[str, Any]:
    """Milliseconds and peak GB of LM head and cross-entropy, forward and backward: chunked against Liger's kernel."""
    M, D, V = sizes.head
    hidden, weight = (
        torch.randn(rows, D, dtype=torch.bfloat16, device=device).mul_(D**-0.25).requires_grad_() for rows in (M, V)
    )
    targets = torch.randint(V, (M,), device=device)
    chunk_size = default_chunk_size(M, D, device.type, V)
    ways: dict[str, Callable[[], Tensor]] = {"chunked": lambda: token_scores(hidden, weight, targets, chunk_size).nll}
    figures: dict[str, Any] = {"chunked": {}}
    if (kernel := fused_kernel(hidden, weight)) is not None:
        ways["liger"] = lambda: kernel(hidden, weight, targets)[0]
        figures["liger"] = {}
    else:
        figures["liger"] = {"did_not_run": "Liger's kernel is not installed, not on CUDA, or failed its check"}

    def run(way: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(way().sum(), (hidden, weight))

    for name, way in ways.items():
        if (peak := peak_bytes(device, run(way))) is not None:
            figures[name]["peak_gb"] = peak / 1e9
    rounds = [{name: seconds(run(way), device) for name, way in ways.items()} for _ in range(sizes.repeats)]
    for name in ways:
        figures[name]["forward_backward_ms"] = figure([one[name] * 1e3 for one in rounds])
    return figures


def generation(sizes: _Sizes, device: torch.device) -> dict[str, Any]:
    """Tokens/s of a batch, one token per row and step, without cache and with the dual cache, and their ratio.

    The weights are random, as the speed does not depend on the text.
    """
    config = sizes.generating.config()
    with torch.device(device):
        model = Transformer(config)
    fill(model)
    model.eval()
    mask_token_id = config.known_vocab_size - 1
    generator = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(mask_token_id, (sizes.prompt_length,), generator=generator).to(device)
        for _ in range(sizes.generating.num_rows)
    ]
    new = sizes.max_new_tokens
    plain = GenerationConfig(max_new_tokens=new, block_length=min(32, new), num_steps=min(32, new), cache=NoCache())
    ways = {"without_cache": plain, "double_cache": replace(plain, cache=DualCache())}

    def write(way: GenerationConfig) -> Callable[[], object]:
        def run() -> None:
            with torch.autocast(device.type, torch.bfloat16):
                generate(
                    model,
                    prompts,
                    way,
                    mask_token_id=mask_token_id,
                    stop_token_ids=[],
                    max_position_embeddings=config.max_position_embeddings,
                )

        return run

    # warm-up
    for way in ways.values():
        write(way)()
    rounds = [{name: seconds(write(way), device) for name, way in ways.items()} for _ in range(sizes.repeats)]
    num_tokens = len(prompts) * new
    rates = {f"{name}_tokens_per_s": figure([num_tokens / one[name] for one in rounds]) for name in ways}
    return {**rates, "ratio": figure([one["without_cache"] / one["double_cache"] for one in rounds])}

"""Speed and accuracy of generation with a small model that is trained for the benchmark.

Compares threshold decoding and dual cache with one token per step, and 32 prompts in a batch with single prompts. The
model is first trained for about a minute on texts in which each symbol is followed by its successor in a fixed random
cycle, so that answers are known and accuracy is measured. Compared cases alternate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_illada.batch import Layout
from lit_illada.bench.figure import attempted, figure, seconds
from lit_illada.bench.precision import require_bfloat16
from lit_illada.generation.cache import DualCache
from lit_illada.generation.commit_rules import Threshold
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.generate import generate
from lit_illada.model.config import ModelConfig
from lit_illada.model.transformer import Transformer

_NUM_SYMBOLS = 32
_MASK = _NUM_SYMBOLS  # id of the mask token
_PLAIN = GenerationConfig(max_new_tokens=64, block_length=32, num_steps=32)
_FAST = replace(_PLAIN, commit_rule=Threshold(0.9), cache=DualCache())


@dataclass(frozen=True, eq=False)
class _Circle:
    """A cyclic order of the symbols. Each text starts at a random symbol and follows it."""

    order: Tensor
    """(symbols,), the symbols in their order."""

    @classmethod
    def shuffled(cls, generator: torch.Generator) -> "_Circle":
        return cls(torch.randperm(_NUM_SYMBOLS, generator=generator))

    def texts(self, num_rows: int, length: int, generator: torch.Generator) -> Tensor:
        starts = torch.randint(_NUM_SYMBOLS, (num_rows, 1), generator=generator)
        return self.order[(starts + torch.arange(length)) % _NUM_SYMBOLS]


def measure(repeats: int = 5, num_prompts: int = 32, training_steps: int = 200) -> dict[str, Any]:
    """Tokens/s, accuracy, fraction of tokens equal to plain decoding, and ratios of tokens/s within a repeat.

    Goals: threshold decoding with dual cache at least 5 times plain decoding, with an accuracy lower by at most one
    percentage point; 32 prompts in a batch at least 4 times single prompts.
    """
    generator = torch.Generator().manual_seed(0)
    circle = _Circle.shuffled(generator)
    model = _train(circle, training_steps, generator)
    # different lengths, so that a batch is padded
    lengths = [8 + index % 16 for index in range(num_prompts)]
    texts = [circle.texts(1, length + _PLAIN.max_new_tokens, generator)[0] for length in lengths]
    prompts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
    answers = torch.stack([text[length:] for text, length in zip(texts, lengths, strict=True)])
    few = prompts[:4]
    plain, fast = _one_by_one(model, few, _PLAIN), _one_by_one(model, few, _FAST)
    return {
        "threshold_dual_cache": {
            "plain_accuracy": _fraction(plain == answers[:4]),
            "fast_accuracy": _fraction(fast == answers[:4]),
            "agreement": _fraction(plain == fast),
            **_alternate(
                repeats,
                {
                    "fast": lambda: _one_by_one(model, few, _FAST),
                    "plain": lambda: _one_by_one(model, few, _PLAIN),
                },
                len(few) * _PLAIN.max_new_tokens,
            ),
        },
        "batch_float32": _batch(model, prompts, repeats),
        "batch_bfloat16": attempted(lambda: _in_bfloat16(lambda: _batch(model, prompts, repeats))),
    }


def _batch(model: Transformer, prompts: Sequence[Tensor], repeats: int) -> dict[str, Any]:
    """Tokens/s of all prompts in a batch and of single prompts.

    In float32 the block of one row can saturate a core, so that a batch gains little; in bfloat16, which some
    processors multiply much faster, a single row is mostly overhead.
    """
    return {
        "agreement": _fraction(_together(model, prompts, _FAST) == _one_by_one(model, prompts, _FAST)),
        **_alternate(
            repeats,
            {
                "together": lambda: _together(model, prompts, _FAST),
                "one_by_one": lambda: _one_by_one(model, prompts, _FAST),
            },
            len(prompts) * _FAST.max_new_tokens,
        ),
    }


def _in_bfloat16(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    require_bfloat16(torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        return run()


def _train(circle: _Circle, num_steps: int, generator: torch.Generator) -> Transformer:
    """Trains a masked-diffusion model on the cycle: uniform mask ratio, mean loss over masked tokens."""
    model = Transformer(ModelConfig(_NUM_SYMBOLS + 1, 128, 352, 4, 4, 2))
    model.init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20)
    length = 24 + _PLAIN.max_new_tokens
    layout = Layout.whole_rows(16, length)
    for _ in range(num_steps):
        input_ids = circle.texts(16, length, generator)
        is_masked = torch.rand(input_ids.shape, generator=generator) < torch.rand(16, 1, generator=generator)
        model(input_ids.masked_fill(is_masked, _MASK), layout, is_masked, input_ids[is_masked]).nll.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        warm_up.step()
    return model.eval()


def _together(model: Transformer, prompts: Sequence[Tensor], config: GenerationConfig) -> Tensor:
    positions = model.config.max_position_embeddings
    written = generate(
        model, prompts, config, mask_token_id=_MASK, stop_token_ids=[], max_position_embeddings=positions
    )
    return written.token_ids


def _one_by_one(model: Transformer, prompts: Sequence[Tensor], config: GenerationConfig) -> Tensor:
    return torch.cat([_together(model, [prompt], config) for prompt in prompts])


def _alternate(repeats: int, ways: dict[str, Any], num_tokens: int) -> dict[str, Any]:
    """Tokens/s of two ways that alternate, and the ratio of the first to the second within a repeat."""
    runs = [{name: seconds(way) for name, way in ways.items()} for _ in range(repeats)]
    first, second = ways
    rates = {f"{name}_tokens_per_s": figure([num_tokens / run[name] for run in runs]) for name in ways}
    return {**rates, "ratio": figure([run[second] / run[first] for run in runs])}


def _fraction(is_right: Tensor) -> float:
    return is_right.double().mean().item()

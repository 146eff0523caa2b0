"""Speed and quality of a diffusion model's ways of decoding, beside an autoregressive twin with its key-value cache.

Without a run, the models of sweeps/loop_base are compared: the same transformer, fine-tuned on the same problems with
either objective. Ways of decoding, each in batches of 1, 8 and 32 prompts:

    plain                    one token per denoising step
    threshold 0.9, 0.7, 0.5  all tokens with at least this confidence per step (Fast-dLLM, arXiv 2505.22618)
    …, cached                the same with cached keys and values outside the block (dual cache)
    autoregressive           the twin, token by token
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lit_illada.bench.decoding import Way, Written, clock_of
from lit_illada.bench.figure import figure
from lit_illada.bench.questions import Questions, read_questions
from lit_illada.checkpoints.hf import load_model
from lit_illada.checkpoints.open import Checkpoint, open_checkpoint
from lit_illada.errors import UserError
from lit_illada.generation.cache import DualCache, NoCache
from lit_illada.generation.commit_rules import Even, LowConfidence, Threshold
from lit_illada.generation.config import GenerationConfig
from lit_illada.model.config import num_parameters
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.training.config.trainer import Precision

BATCHES = (1, 8, 32)
TWIN = "autoregressive"
THRESHOLDS = (0.9, 0.7, 0.5)
_BATCHES_TIMED = {1: 8, 8: 2, 32: 1}  # by the size of a batch: more of the small ones, whose times vary more


def measure(
    run: Path | None = None,
    twin: Path | None = None,
    num_prompts: int = 32,
    repeats: int = 5,
    new_tokens: int | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, Any]:
    """Tokens/s, time to the first token, forward passes per token and quality of each way, and ratios of tokens/s.

    Quality is exact match for a fine-tuned run; for a pretrained or adapted one the bound (exact for the twin) in
    nats/token, and the likelihood of the texts under the twin. Everything runs in the precision and blocks of the run;
    ways alternate, and ratios are taken within a repeat.

    Args:
        run: a diffusion run; None: that of sweeps/loop_base, with its twin.
        twin: an autoregressive checkpoint with the same tokenizer; None with a run: no twin.
        new_tokens: tokens per text; None: as in the run's config.

    Raises:
        UserError: a folder without a suitable run, a twin that does not match, or data without questions.
    """
    if run is None:
        run, twin = (sweeps_dir() / "loop_base" / name for name in ("diffusion", TWIN))
    checkpoint = open_checkpoint(run)
    other = None if twin is None else _matching(open_checkpoint(twin), checkpoint)
    if checkpoint.model.is_causal:
        raise UserError(f"{run}: an autoregressive model; give it as --twin, and a diffusion run as --checkpoint")
    questions = read_questions(run, checkpoint, num_prompts)
    ways = _ways(questions, checkpoint, other, new_tokens, thresholds)
    figures = _judged_models(questions, ways)
    rates: dict[tuple[str, int], list[float]] = {}
    for batch in BATCHES:
        timed = questions.prompts if batch == max(BATCHES) else questions.prompts[: batch * _BATCHES_TIMED[batch]]
        for way in ways.values():  # a warm-up
            way.write(timed[:1], 1)
        rounds = [{name: way.write(timed, batch) for name, way in ways.items()} for _ in range(repeats)]
        for name in ways:
            ones = [done[name] for done in rounds]
            rates[name, batch] = [one.tokens_per_s for one in ones]
            figures[name][f"batch_{batch}"] = _cell(ones)
        if len(timed) == len(questions.prompts):
            judge = partial(questions.judge_texts, twin=None if other is None else ways[TWIN].model)
            figures |= {name: {**figures[name], **judge(written.texts)} for name, written in rounds[0].items()}
    return {"setting": _setting(ways, questions), **figures, "ratios": _ratios(rates, list(ways))}


def _matching(twin: Checkpoint, checkpoint: Checkpoint) -> Checkpoint:
    """The twin. Raises UserError for one that is no autoregressive model of the same tokenizer."""
    if not twin.model.is_causal:
        raise UserError(f"--twin {twin.path}: a diffusion model; give an autoregressive run")
    if twin.tokenizer.sha256 != checkpoint.tokenizer.sha256:
        raise UserError(f"--twin {twin.path}: its tokenizer is not that of {checkpoint.path}")
    return twin


def _ways(
    questions: Questions,
    checkpoint: Checkpoint,
    twin: Checkpoint | None,
    new_tokens: int | None,
    thresholds: Sequence[float],
) -> dict[str, Way]:
    accelerator, precision = questions.config.trainer.hardware()

    def way(one: Checkpoint, generation: GenerationConfig) -> Way:
        model = load_model(one.model, one.tensors, accelerator.device, torch.float32).eval()
        return Way(model, one.tokenizer, generation, precision is Precision.bf16_mixed)

    length = new_tokens or questions.generation.max_new_tokens
    for one in (checkpoint, twin):
        if one is not None:
            _check_length(one, max(map(len, questions.prompts)), length)
    settings = replace(
        questions.generation,
        max_new_tokens=length,
        block_length=min(questions.generation.block_length, length),
        num_steps=None,
        tokens_per_step=1,
        # of the ways, whatever the run uses at its validations
        commit_rule=LowConfidence(),
        commit_schedule=Even(),
        cache=NoCache(),
    )
    plain = way(checkpoint, settings)
    rules = {"plain": settings, **{f"threshold {t:g}": replace(settings, commit_rule=Threshold(t)) for t in thresholds}}
    caches = {f"{name}, cached": replace(rule, cache=DualCache()) for name, rule in rules.items()}
    ways = {name: replace(plain, generation=generation) for name, generation in (rules | caches).items()}
    if twin is not None:
        ways[TWIN] = way(twin, GenerationConfig(max_new_tokens=length))
    return ways


def _check_length(one: Checkpoint, prompt_tokens: int, new_tokens: int) -> None:
    """Raises UserError for texts that do not fit in a model, before anything is measured."""
    allowed = one.model.max_position_embeddings
    if prompt_tokens + new_tokens > allowed:
        left = allowed - prompt_tokens
        remedy = f"set --new-tokens to at most {left}" if left > 0 else "give a model with more positions"
        raise UserError(
            f"{one.path}: prompts of up to {prompt_tokens} tokens and {new_tokens} new ones are more than the "
            f"{allowed} positions of the model: {remedy}"
        )


def _judged_models(questions: Questions, ways: Mapping[str, Way]) -> dict[str, Any]:
    """Figures by way that depend on the model only."""
    plain = questions.judge_model(ways["plain"].model, ways["plain"].tokenizer)
    figures = {name: dict(plain) for name in ways}
    if TWIN in ways:
        figures[TWIN] = questions.judge_model(ways[TWIN].model, ways[TWIN].tokenizer)
    return figures


def _cell(ones: Sequence[Written]) -> dict[str, Any]:
    """Figures of a way in batches of one size, over the repeats."""
    return {
        "tokens_per_s": figure([one.tokens_per_s for one in ones]),
        "first_token_ms": figure([1e3 * one.first_token_s for one in ones]),
        "forwards_per_token": ones[0].forwards_per_token,
    }


def _setting(ways: Mapping[str, Way], questions: Questions) -> dict[str, Any]:
    """What the ratios depend on."""
    way = ways["plain"]
    lengths = [len(prompt) for prompt in questions.prompts]
    return {
        "parameters": num_parameters(way.model.config),
        "prompts": len(lengths),
        "prompt_tokens": sum(lengths) / len(lengths),
        "new_tokens": way.generation.max_new_tokens,
        "block_length": way.model.config.block_length or way.generation.block_length,
        "precision": "bfloat16" if way.is_bf16 else str(way.model.lm_head_weight.dtype).removeprefix("torch."),
        "device": way.model.lm_head_weight.device.type,
        "threads": torch.get_num_threads(),
        "clock": clock_of(way.model.lm_head_weight.device)[1],
    }


def _ratios(rates: Mapping[tuple[str, int], Sequence[float]], names: Sequence[str]) -> dict[str, Any]:
    """Ratios of tokens/s: ways to plain and to the twin in equal batches, and batches to single prompts."""

    def ratio(first: tuple[str, int], second: tuple[str, int]) -> dict[str, float]:
        return figure([one / other for one, other in zip(rates[first], rates[second], strict=True)])

    ways = {
        f"{name} / {reference}, batch {n}": ratio((name, n), (reference, n))
        for reference in ("plain", TWIN)
        for name in names
        for n in BATCHES
        if reference in names and name not in (reference, TWIN)
    }
    single = {f"{name}, batch {n} / 1": ratio((name, n), (name, 1)) for name in names for n in BATCHES[1:]}
    return ways | single

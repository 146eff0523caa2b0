"""Infilling: fills the gaps of a text, given what stands on both sides.

A text with gaps is written `prefix <fill:12> suffix`: 12 new tokens; `<fill:2-12>` are 2 to 12. All gaps are masked on
one canvas with the text and filled from left to right, each in blocks like a continuation. A causal model reads only
what stands before a gap and is refused.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lit_illada.errors import UserError
from lit_illada.generation.canvas import Commit
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.draws import Draws
from lit_illada.generation.logit_controls import default_controls
from lit_illada.generation.reader import Reader
from lit_illada.generation.sampler import Sampler
from lit_illada.model.transformer import Transformer

_MARK = re.compile(r"<fill\b[^>\n]*>")
_PLAIN = GenerationConfig()
_SIZES = re.compile(r"<fill:(?:(?P<least>\d{1,6})-)?(?P<most>\d{1,6})>")


@dataclass(frozen=True)
class Gap:
    """New tokens between two pieces of text."""

    most: int
    """Tokens masked for it."""
    least: int
    """Tokens before which no stop token is allowed; equal to `most`: the length is fixed."""


Part = list[int] | Gap
"""Token ids of given text, or a gap."""


@dataclass(frozen=True)
class Infilling:
    """A text whose gaps are filled."""

    parts: list[list[int]]
    """Token ids of every part; of a gap without the stop token that ended it."""
    num_forwards: int
    """Forward passes of the model."""


def parse_gaps(text: str, encode: Callable[[str], list[int]]) -> list[Part]:
    """The parts of a text with marks `<fill:12>` or `<fill:2-12>`; the pieces between marks are encoded one by one.

    Raises UserError for a text without a mark, and for a mark without a size, of size 0 or with its limits reversed.
    """
    parts: list[Part] = []
    end = 0
    for mark in _MARK.finditer(text):
        parts += [encode(text[end : mark.start()]), _gap(mark[0])]
        end = mark.end()
    if not parts:
        raise UserError(f"no gap in {text[:60]!r}: mark one by <fill:12>, or by <fill:2-12> for 2 to 12 tokens")
    return [part for part in [*parts, encode(text[end:])] if part]


def _gap(mark: str) -> Gap:
    sizes = _SIZES.fullmatch(mark)
    if sizes is None:
        raise UserError(f"{mark} is not a gap: write <fill:12> for 12 tokens, or <fill:2-12> for 2 to 12")
    most = int(sizes["most"])
    least = most if sizes["least"] is None else int(sizes["least"])
    if most < 1 or least > most:
        raise UserError(f"{mark}: the size must be 1 or more, and the smaller limit comes first, as in <fill:2-12>")
    return Gap(most, least)


@torch.no_grad()
def infill(
    model: Transformer,
    parts: Sequence[Part],
    config: GenerationConfig,
    *,
    mask_token_id: int,
    stop_token_ids: Sequence[int],
    on_commit: Callable[[Commit], None] | None = None,
) -> Infilling:
    """Fill every gap, from left to right; a filled gap is given text for the next.

    `canvas`, `max_new_tokens` and `min_new_tokens` of the config are not used. A gap of variable length ends before its
    first stop token, and the text after it moves up.

    Args:
        on_commit: called after every denoising step, with the gap's first column as the prompt's length.

    Raises UserError for a causal model, a text of more tokens than the model has positions, a gap at the start of the
    text of a model that predicts the next token, and settings that only a continuation has: guidance and loop control.
    """
    _check(model, parts, config)
    device = model.lm_head_weight.device
    stops = torch.tensor(list(stop_token_ids), dtype=torch.int64, device=device)
    draws = Draws(config.seed, [0], device)
    texts = [part if isinstance(part, list) else [mask_token_id] * part.most for part in parts]
    num_forwards = 0
    was_training = model.training
    model.eval()
    for number, gap in enumerate(parts):
        if not isinstance(gap, Gap):
            continue
        start = sum(map(len, texts[:number]))
        canvas_1T = torch.tensor([[token for text in texts for token in text]], device=device)
        reader = Reader(
            model,
            config.cache,
            [0],
            prompt_length=start,
            guidance_scale=0.0,
            mask_token_id=mask_token_id,
            lookback=int(model.config.predicts_next),
        )
        controls = default_controls(gap.least, mask_token_id, stops)
        sampler = Sampler(config, reader, draws, controls, start, mask_token_id, stops)
        texts[number] = _fill(sampler, canvas_1T, gap, on_commit)
        num_forwards += reader.num_forwards
    model.train(was_training)
    return Infilling(texts, num_forwards)


def _fill(sampler: Sampler, canvas_1T: torch.Tensor, gap: Gap, on_commit: Callable[[Commit], None] | None) -> list[int]:
    """Denoise a gap in place, block by block, until a block contains a stop token. Returns its tokens before that."""
    start, size = sampler.prompt_length, sampler.config.block_length
    for number, first in enumerate(range(0, gap.most, size)):
        block = slice(start + first, start + min(first + size, gap.most))
        is_due_1L = torch.ones_like(canvas_1T[:, block], dtype=torch.bool)
        for step in sampler.denoise(canvas_1T, block, is_due_1L):
            if on_commit is not None:
                on_commit(step.commit(number, block, canvas_1T, start))
        is_stop_L = torch.isin(canvas_1T[0, block], sampler.stop_token_ids)
        if is_stop_L.any():
            return canvas_1T[0, start : block.start + int(is_stop_L.int().argmax())].tolist()
    return canvas_1T[0, start : start + gap.most].tolist()


def _check(model: Transformer, parts: Sequence[Part], config: GenerationConfig) -> None:
    if model.config.is_causal:
        raise UserError("the model is causal and reads only what stands before a gap: fill gaps with a diffusion model")
    if model.config.block_length is not None:
        raise UserError(
            f"the model was trained in blocks of {model.config.block_length} tokens and does not read the text after "
            "a gap: fill gaps with a model trained with objective.block_length=null"
        )
    sizes = [part.most if isinstance(part, Gap) else len(part) for part in parts]
    allowed = model.config.max_position_embeddings
    if sum(sizes) > allowed:
        num_new = sum(part.most for part in parts if isinstance(part, Gap))
        raise UserError(
            f"the text has {sum(sizes) - num_new} tokens and its gaps {num_new}, together more than the {allowed} "
            "positions of the model: shorten one of them"
        )
    if model.config.predicts_next and isinstance(parts[0], Gap):
        raise UserError(
            "the model predicts each token from the position before it: begin the text before the first gap"
        )
    if config.guidance_scale:
        raise UserError(f"generation.guidance_scale is {config.guidance_scale}: guidance is for prompts, set it to 0")
    for name in ("thinking_stop", "repetition", "on_loop", "early_exit"):
        if getattr(config, name) != getattr(_PLAIN, name):
            raise UserError(f"generation.{name} changes continuations, not gaps: set generation/{name}=none")

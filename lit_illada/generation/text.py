"""Text generation with a model and its tokenizer.

The Python interface, the `generate` command, validation samples and evaluation all generate through `complete_batch`,
and fill gaps through `infill_text`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from lit_illada.data.tokenizer import Tokenizer
from lit_illada.generation.autoregressive import generate_autoregressive
from lit_illada.generation.canvas import Commit, Generation
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.generate import generate
from lit_illada.generation.infill import infill, parse_gaps
from lit_illada.generation.logit_controls import TokenKinds
from lit_illada.model.transformer import Transformer


class LanguageModel(NamedTuple):
    """A model and its tokenizer."""

    model: Transformer
    tokenizer: Tokenizer


def complete_batch(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    row_numbers: Sequence[int] | None = None,
    on_commit: Callable[[Commit], None] | None = None,
) -> Generation:
    """Generate a continuation of each prompt: token by token with a causal model, else block by block. A model trained
    in blocks determines their length.

    A row's continuation depends on its prompt, the config and its row number only, not on the other rows.

    Args:
        prompts: token ids of each prompt, of any lengths.
        row_numbers: seed the random draws of each row; None numbers the rows from 0.
        on_commit: called after every step that commits tokens.
    """
    device = model.lm_head_weight.device
    ids = [torch.tensor(prompt, dtype=torch.int64, device=device) for prompt in prompts]
    write = generate
    if model.config.is_causal:
        # the tokenizer has one special token for both ends of a document
        write = partial(generate_autoregressive, bos_token_id=tokenizer.eos_token_id)
    else:
        # where position i predicts token i + 1, the first generated token needs one position before it
        write = partial(generate, lookback=int(model.config.predicts_next), block_length=model.config.block_length)
    was_training = model.training
    model.eval()
    generation = write(
        model,
        ids,
        config,
        mask_token_id=tokenizer.mask_token_id,
        stop_token_ids=[tokenizer.eos_token_id],
        max_position_embeddings=model.config.max_position_embeddings,
        kinds=_token_kinds(tokenizer, config),
        row_numbers=row_numbers,
        on_commit=on_commit,
    )
    model.train(was_training)
    return generation


def infill_text(
    model: Transformer,
    tokenizer: Tokenizer,
    text: str,
    config: GenerationConfig,
    *,
    on_commit: Callable[[Commit], None] | None = None,
) -> list[str]:
    """Fill the gaps of a text such as `prefix <fill:12> suffix`.

    Returns the pieces of the filled text, given and new ones, whose concatenation is the whole. Raises UserError for a
    text without a gap or with a wrong mark, and for a causal model.
    """
    parts = parse_gaps(text, tokenizer.encode)
    infilling = infill(
        model,
        parts,
        config,
        mask_token_id=tokenizer.mask_token_id,
        stop_token_ids=[tokenizer.eos_token_id],
        on_commit=on_commit,
    )
    return tokenizer.decode_parts(infilling.parts)


def _token_kinds(tokenizer: Tokenizer, config: GenerationConfig) -> TokenKinds:
    # listing the wordless tokens decodes the whole vocabulary, so only the rule that needs them pays for it
    return TokenKinds(
        tokenizer.think_open_token_id,
        tokenizer.think_close_token_id,
        tokenizer.wordless_ids if config.repetition.is_on else (),
    )

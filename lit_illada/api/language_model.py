"""Text in, text out: a checkpoint with its tokenizer generates text and bounds the likelihood of text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch

from lit_illada import build
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.generation.config import GenerationConfig
from lit_illada.model.transformer import Transformer
from lit_illada.schema import from_tree, to_tree
from lit_illada.scoring.candidates import Score
from lit_illada.scoring.config import ScoringConfig
from lit_illada.training.module import PretrainModule


class LanguageModel(NamedTuple):
    """A model and its tokenizer."""

    model: Transformer
    tokenizer: Tokenizer


Source = str | Path | LanguageModel | PretrainModule
"""A run folder (its newest checkpoint), a converted folder, a `.ckpt`, a loaded checkpoint or a trained module."""


@dataclass(frozen=True)
class TextBound:
    """How likely a text is under a model.

    For a diffusion model an estimate of an upper bound on −log p (LLaDA, arXiv 2502.09992, equation 6), for a causal
    model −log p itself.
    """

    nll: float  # nats/token
    stderr: float  # nats/token, standard error over the drawn masks; 0 for a causal model
    bits_per_byte: float
    num_tokens: int
    num_bytes: int  # of the text in UTF-8


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> LanguageModel:
    """The model, in evaluation mode on `device`, and its tokenizer.

    path: a run folder (its newest checkpoint), a converted folder or one checkpoint. Raises UserError for a path
    without a checkpoint, and for a damaged one.
    """
    return LanguageModel(*build.load_checkpoint(path, device))


@overload
def generate(checkpoint: Source, prompt: str, config: GenerationConfig | None = None, **settings: Any) -> str: ...
@overload
def generate(
    checkpoint: Source, prompt: Sequence[str], config: GenerationConfig | None = None, **settings: Any
) -> list[str]: ...
def generate(
    checkpoint: Source, prompt: str | Sequence[str], config: GenerationConfig | None = None, **settings: Any
) -> str | list[str]:
    """The continuation of a prompt, or of each of several, without the prompt and the stop token.

    Deterministic: the config carries the seed. config: None is the default GenerationConfig. settings: fields of it to
    change, such as max_new_tokens=64 or temperature=0.7. Raises UserError for settings that do not exist or contradict
    each other, and for a prompt that the model has no positions for.
    """
    model, tokenizer = _opened(checkpoint)
    options = from_tree(GenerationConfig, {**to_tree(config or GenerationConfig()), **settings}, "generation.")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    ids = [tokenizer.encode(text) for text in prompts]
    texts = [tokenizer.decode(written) for written in build.complete_batch(model, tokenizer, ids, options).texts()]
    return texts[0] if isinstance(prompt, str) else texts


def nll_bound(checkpoint: Source, text: str, num_draws: int = 128, seed: int = 0) -> TextBound:
    """How likely a text is: a Monte-Carlo bound on −log p for a diffusion model, the exact value for a causal one.

    num_draws: masks drawn for each window of the text. seed: of these masks. A text longer than the model's positions
    is scored in windows that follow each other. Raises UserError for an empty text.
    """
    model, tokenizer = _opened(checkpoint)
    scorer = build.build_scorer(model, tokenizer, ScoringConfig(num_draws=num_draws, seed=seed))
    was_training = model.training
    model.eval()
    scores = scorer.scores([[window] for window in scorer.windows(text)], scorer.rules[0])
    model.train(was_training)
    whole, num_bytes = Score.sum([score for (score,) in scores]), len(text.encode())
    return TextBound(
        nll=-whole.value / whole.num_tokens,
        stderr=whole.stderr / whole.num_tokens,
        bits_per_byte=-whole.value / (math.log(2) * num_bytes),
        num_tokens=whole.num_tokens,
        num_bytes=num_bytes,
    )


def _opened(checkpoint: Source) -> LanguageModel:
    if isinstance(checkpoint, LanguageModel):
        return checkpoint
    if isinstance(checkpoint, str | Path):
        return load_checkpoint(checkpoint)
    if not isinstance(checkpoint, PretrainModule):
        raise UserError(
            f"a checkpoint is a path, what load_checkpoint returns, or a module; got a {type(checkpoint).__name__}"
        )
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    assert isinstance(model, Transformer)
    assert isinstance(tokenizer, Tokenizer)
    return LanguageModel(model, tokenizer)

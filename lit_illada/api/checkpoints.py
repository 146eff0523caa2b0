"""Python interface to checkpoints: generate text, fill gaps, bound a likelihood, rebuild the LightningModule."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch

from lit_illada import build
from lit_illada.checkpoints.open import checkpoint_file, load_checkpoint, open_checkpoint
from lit_illada.checkpoints.start import check_fits
from lit_illada.config import PretrainConfig, SFTConfig
from lit_illada.data.row_datamodule import RowDataModule
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.text import LanguageModel, complete_batch, infill_text
from lit_illada.model.transformer import Transformer
from lit_illada.schema import from_tree, to_tree
from lit_illada.scoring.candidates import Score
from lit_illada.scoring.config import ScoringConfig
from lit_illada.scoring.scorer import build_scorer
from lit_illada.training.checkpointing.portable import load_model_state
from lit_illada.training.config.parallel import ParallelConfig
from lit_illada.training.module import PretrainModule
from lit_illada.training.run_module import RunModule

Source = str | Path | LanguageModel | PretrainModule
"""A run folder (its newest checkpoint), a converted folder, a `.ckpt`, a loaded checkpoint or a trained module."""


@overload
def generate(checkpoint: Source, prompt: str, config: GenerationConfig | None = None, **settings: Any) -> str: ...
@overload
def generate(
    checkpoint: Source, prompt: Sequence[str], config: GenerationConfig | None = None, **settings: Any
) -> list[str]: ...
def generate(
    checkpoint: Source, prompt: str | Sequence[str], config: GenerationConfig | None = None, **settings: Any
) -> str | list[str]:
    """Generate the continuation of one prompt or of several, without the prompt and the stop token.

    Deterministic: the config holds the seed.

    Args:
        config: None is the default GenerationConfig.
        settings: fields of the config to change, such as max_new_tokens=64 or temperature=0.7.

    Raises:
        UserError: for unknown or contradictory settings, and for a prompt longer than the model's positions.
    """
    model, tokenizer = _loaded(checkpoint)
    options = from_tree(GenerationConfig, {**to_tree(config or GenerationConfig()), **settings}, "generation.")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        return []
    generation = complete_batch(model, tokenizer, [tokenizer.encode(text) for text in prompts], options)
    texts = [tokenizer.decode(token_ids) for token_ids in generation.texts()]
    return texts[0] if isinstance(prompt, str) else texts


def infill(checkpoint: Source, text: str, config: GenerationConfig | None = None, **settings: Any) -> str:
    """Fill the gaps of a text, marked by `<fill:12>` (12 tokens) or `<fill:2-12>` (2 to 12), given both sides.

    Returns the whole text. Deterministic: the config holds the seed.

    Args:
        config: None is the default GenerationConfig; its canvas and numbers of new tokens are not used.
        settings: fields of the config to change, such as temperature=0.7.

    Raises:
        UserError: for a causal model, a text without a gap, a wrong mark, unknown or contradictory settings, and a text
            longer than the model's positions.
    """
    model, tokenizer = _loaded(checkpoint)
    options = from_tree(GenerationConfig, {**to_tree(config or GenerationConfig()), **settings}, "generation.")
    return "".join(infill_text(model, tokenizer, text, options))


@dataclass(frozen=True)
class TextBound:
    """Likelihood of a text under a model.

    For a diffusion model a Monte-Carlo estimate of an upper bound on −log p, as in LLaDA's likelihood evaluation (arXiv
    2502.09992); for a causal model −log p itself.
    """

    nll: float  # nats/token
    stderr: float  # nats/token, standard error over the drawn masks; 0 for a causal model
    bits_per_byte: float
    num_tokens: int
    num_bytes: int  # of the text in UTF-8


def nll_bound(checkpoint: Source, text: str, num_draws: int = 128, seed: int = 0) -> TextBound:
    """Bound −log p of a text by Monte Carlo (diffusion model), or compute it exactly (causal model).

    A text longer than the model's positions is scored in consecutive windows. Raises UserError for an empty text.

    Args:
        num_draws: masks drawn for each window of the text.
        seed: of the masks.
    """
    model, tokenizer = _loaded(checkpoint)
    scorer = build_scorer(model, tokenizer, ScoringConfig(num_draws=num_draws, seed=seed))
    was_training = model.training
    model.eval()
    scores = scorer.scores([[window] for window in scorer.windows(text)], scorer.rules[0])
    model.train(was_training)
    total, num_bytes = Score.sum([score for (score,) in scores]), len(text.encode())
    return TextBound(
        nll=-total.value / total.num_tokens,
        stderr=total.stderr / total.num_tokens,
        bits_per_byte=-total.value / (math.log(2) * num_bytes),
        num_tokens=total.num_tokens,
        num_bytes=num_bytes,
    )


def build_module(config: PretrainConfig | SFTConfig, datamodule: RowDataModule) -> PretrainModule:
    """Build the LightningModule of a config, with the weights of `init_from` or random ones.

    Prepares the data set if necessary, because its tokenizer determines the vocabulary size. Raises UserError where
    the model does not fit the tokenizer.
    """
    datamodule.prepare_data()
    tokenizer = datamodule.tokenizer
    if isinstance(config, PretrainConfig):
        config = config.resolve(tokenizer.vocab_size)
    weights = {}
    if config.init_from is not None:
        opened = open_checkpoint(Path(config.init_from))
        check_fits(opened, config.model, tokenizer)
        weights = dict(opened.tensors)
    return build.build_module(config, tokenizer, datamodule.unigram_cross_entropy(), weights)


def load_module(path: str | Path, map_location: Any = None) -> PretrainModule:
    """Rebuild the LightningModule of a training run, unsharded on one device, from one of its checkpoints.

    Args:
        path: a `.ckpt` (file or folder) of any Trainer, or a run folder (its newest checkpoint).
        map_location: a device; None is the CPU.

    Raises:
        UserError: for a missing or damaged checkpoint, and for a converted folder, which holds weights only.
    """
    file = checkpoint_file(Path(path))
    opened = open_checkpoint(file)
    if opened.state is None:
        raise UserError(f"{path} holds weights only, without a training run: use lit_illada.load_checkpoint")
    tree = opened.state["hyper_parameters"]["config"]
    if "alignment" in tree:
        raise UserError(f"{path} is of an alignment run: load its model with lit_illada.load_checkpoint")
    config = from_tree(SFTConfig, tree) if "sft_data" in tree else from_tree(PretrainConfig, tree)
    # the module is not sharded, however many devices trained it
    trainer = dataclasses.replace(config.trainer, devices=1, num_nodes=1, parallel=ParallelConfig())
    config = dataclasses.replace(config, trainer=trainer)
    module = build.build_module(config, opened.tokenizer, math.nan, weights=None)
    load_model_state(module, opened.state["state_dict"])
    return module if map_location is None else module.to(torch.device(map_location))


# makes Lightning's load_from_checkpoint work; the training package cannot import the configs
RunModule._load = load_module


def _loaded(checkpoint: Source) -> LanguageModel:
    if isinstance(checkpoint, LanguageModel):
        return checkpoint
    if isinstance(checkpoint, str | Path):
        return load_checkpoint(checkpoint, dtype=torch.float32)  # on the CPU, where few multiply bfloat16 fast
    if not isinstance(checkpoint, PretrainModule):
        raise UserError(
            f"a checkpoint is a path, the result of load_checkpoint, or a module; got a {type(checkpoint).__name__}"
        )
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    assert isinstance(model, Transformer)
    assert isinstance(tokenizer, Tokenizer)
    return LanguageModel(model, tokenizer)

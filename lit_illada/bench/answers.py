"""Speed and accuracy of a fine-tuned diffusion model on held-out problems, beside an autoregressive twin.

Without a run, the models of sweeps/loop_base are compared: the same transformer, fine-tuned on the same problems with
either objective. Ways of decoding, each in batches of 1, 8 and 32 prompts:

    plain           one token per denoising step
    fast            threshold decoding with dual cache
    autoregressive  the twin, token by token with a key-value cache
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lit_illada import build
from lit_illada.bench.figure import figure, now
from lit_illada.checkpoints.hf import load_model
from lit_illada.checkpoints.open import Checkpoint, load_sft, open_checkpoint
from lit_illada.config import SFTConfig, load_file
from lit_illada.data.sft_datamodule import Difficulty
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.generation.cache import DualCache
from lit_illada.generation.canvas import Commit
from lit_illada.generation.commit_rules import Threshold
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.text import complete_batch
from lit_illada.model.transformer import Transformer
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.runtime.yaml_files import read_yaml
from lit_illada.training.config.trainer import Precision

BATCHES = (1, 8, 32)
_BATCHES_TIMED = 8  # batches of single prompts that are timed; more would only take longer
_MAX_DEPTH = 3  # of the problems for loop_base, most of which both of its models solve


@dataclass(frozen=True, eq=False)
class Way:
    """A model with a way of decoding."""

    model: Transformer
    tokenizer: Tokenizer
    generation: GenerationConfig
    is_bf16: bool

    def write(self, prompts: Sequence[Sequence[int]], batch_prompts: int) -> "Written":
        """Continues the prompts in batches of `batch_prompts` and measures it."""
        device = self.model.lm_head_weight.device
        texts, num_tokens, num_forwards, first_s = [], 0, 0, 0.0
        started_at = now(device)
        for first in range(0, len(prompts), batch_prompts):
            batch = prompts[first : first + batch_prompts]
            stopwatch = _FirstToken(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.is_bf16):
                generation = complete_batch(
                    self.model, self.tokenizer, batch, self.generation,
                    row_numbers=range(first, first + len(batch)), on_commit=stopwatch,
                )  # fmt: skip
            texts += generation.texts()
            # the EOS of a stopped response is a generated token
            num_tokens += int(generation.num_tokens.sum() + generation.is_stopped.sum())
            num_forwards += generation.num_forwards
            first_s += stopwatch.elapsed_s * len(batch)
        return Written(texts, num_tokens, num_forwards, now(device) - started_at, first_s / len(prompts))


@dataclass(frozen=True)
class Written:
    """The continuations of all prompts."""

    texts: list[list[int]]
    num_tokens: int
    num_forwards: int
    elapsed_s: float
    first_token_s: float
    """Mean over the prompts, from the start of their batch until the first token of all its texts is final."""


def measure(
    run: Path | None = None, twin: Path | None = None, num_prompts: int = 32, repeats: int = 5
) -> dict[str, Any]:
    """Tokens/s, seconds to the first token, forwards per prompt and exact match of each way, and ratios of tokens/s.

    run: a fine-tuned diffusion run; None: those of sweeps/loop_base, with their twin. twin: an autoregressive run
    fine-tuned alike; None with a run: no twin. Everything runs in the precision and blocks of the run; ways alternate,
    and ratios are taken within a repeat. Goals: fast at least 5 times plain, with an accuracy lower by at most one
    percentage point; a batch of 32 at least 4 times single prompts.
    Raises UserError for a folder without a fine-tuned run, or a run whose data have no reference answers.
    """
    if run is None:
        run, twin = (sweeps_dir() / "loop_base" / name for name in ("diffusion", "autoregressive"))
    config, checkpoint = _opened(run)
    ways = _ways(config, checkpoint, None if twin is None else open_checkpoint(twin))
    datamodule = build.build_sft_datamodule(config, checkpoint.tokenizer)
    if Difficulty.EASY not in datamodule.difficulties:
        raise UserError(f"{run} was fine-tuned on data without reference answers: choose a run fine-tuned on problems")
    examples = datamodule.evaluation_examples(Difficulty.EASY, num_prompts)
    prompts = [example.prompt_ids for example in examples]
    figures: dict[str, Any] = {"threads": torch.get_num_threads()}
    written = {name: way.write(prompts, len(prompts)) for name, way in ways.items()}  # also a warm-up
    for name, one in written.items():
        right = [datamodule.is_right(example, ids) for example, ids in zip(examples, one.texts, strict=True)]
        figures[name] = {"exact_match": sum(right) / len(right)}
    rates: dict[tuple[str, int], list[float]] = {}
    for batch in BATCHES:
        timed = prompts[: batch * _BATCHES_TIMED]
        rounds = [{name: way.write(timed, batch) for name, way in ways.items()} for _ in range(repeats)]
        for name in ways:
            ones = [done[name] for done in rounds]
            rates[name, batch] = [one.num_tokens / one.elapsed_s for one in ones]
            figures[name][f"batch_{batch}"] = {
                "tokens_per_s": figure(rates[name, batch]),
                "first_token_ms": figure([1e3 * one.first_token_s for one in ones]),
                "forwards_per_prompt": ones[0].num_forwards / len(timed),
            }
    return {**figures, "ratios": _ratios(rates, list(ways))}


class _FirstToken:
    """Measures the seconds until the first token of every row has been committed."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.started_at, self.elapsed_s = device, now(device), 0.0
        self._is_written: torch.Tensor | None = None

    def __call__(self, commit: Commit) -> None:
        if self.elapsed_s:
            return
        is_now = commit.is_committed[:, commit.prompt_length]
        self._is_written = is_now if self._is_written is None else self._is_written | is_now
        if self._is_written.all():
            self.elapsed_s = now(self.device) - self.started_at


def _opened(run: Path) -> tuple[SFTConfig, Checkpoint]:
    """The config and checkpoint of a fine-tuned run, or of a converted folder of sweeps/loop_base."""
    if run.parent != sweeps_dir() / "loop_base":
        return load_file("sft", RunFolder.open(run).config), open_checkpoint(run)
    overrides = read_yaml(sweeps_dir() / "scale" / "loops.yaml")["overrides"]["sft"]
    return load_sft(run, [*overrides, f"sft_data.source.easy.max_depth={_MAX_DEPTH}"])


def _ways(config: SFTConfig, checkpoint: Checkpoint, twin: Checkpoint | None) -> dict[str, Way]:
    accelerator, precision = config.trainer.hardware()

    def way(one: Checkpoint, generation: GenerationConfig) -> Way:
        model = load_model(one.model, one.tensors, accelerator.device).eval()
        return Way(model, one.tokenizer, generation, precision is Precision.bf16_mixed)

    plain = way(checkpoint, replace(config.evaluation.generation, num_steps=None, tokens_per_step=1))
    fast = replace(plain, generation=replace(plain.generation, commit_rule=Threshold(0.9), cache=DualCache()))
    ways = {"plain": plain, "fast": fast}
    if twin is None:
        return ways
    if not twin.model.is_causal:
        raise UserError(f"--twin {twin.path}: a diffusion model; give an autoregressive run")
    if twin.tokenizer.sha256 != checkpoint.tokenizer.sha256:
        raise UserError(f"--twin {twin.path}: its tokenizer is not that of {checkpoint.path}")
    return {**ways, "autoregressive": way(twin, GenerationConfig(max_new_tokens=plain.generation.max_new_tokens))}


def _ratios(rates: Mapping[tuple[str, int], Sequence[float]], names: Sequence[str]) -> dict[str, Any]:
    """Ratios of tokens/s of the ways in equal batches, and of batches to single prompts, within a repeat."""

    def ratio(first: tuple[str, int], second: tuple[str, int]) -> dict[str, float]:
        return figure([one / other for one, other in zip(rates[first], rates[second], strict=True)])

    pairs = [("fast", "plain"), *((name, "autoregressive") for name in names[:2] if len(names) > 2)]
    ways = {f"{a}_over_{b}_batch_{n}": ratio((a, n), (b, n)) for a, b in pairs for n in BATCHES}
    single = {f"{name}_batch_{n}_over_1": ratio((name, n), (name, 1)) for name in names for n in BATCHES[1:]}
    return ways | single

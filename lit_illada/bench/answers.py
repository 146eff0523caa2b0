"""Speed and accuracy of a fine-tuned run on its held-out problems.

Compares one token per step with threshold decoding and dual cache, and 32 prompts in a batch with single prompts.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lit_illada import build
from lit_illada.bench.figure import figure, seconds
from lit_illada.checkpoints.hf import load_model
from lit_illada.checkpoints.open import open_checkpoint
from lit_illada.config import SFTConfig, load_file
from lit_illada.data.sft_datamodule import Difficulty
from lit_illada.errors import UserError
from lit_illada.evaluation.writer import Writer, Written
from lit_illada.generation.cache import DualCache
from lit_illada.generation.commit_rules import Threshold
from lit_illada.run_folder import RunFolder
from lit_illada.training.config.trainer import Precision


def measure(run: Path, num_prompts: int = 32, repeats: int = 5) -> dict[str, Any]:
    """Tokens/s and accuracy of each way of decoding, and ratios of tokens/s, in the precision and blocks of the run.

    `plain` commits one token per step. Ways alternate within a repeat, and each ratio is taken within a repeat. Goals:
    threshold decoding with dual cache at least 5 times plain decoding, both with single prompts and with an accuracy
    lower by at most one percentage point; a batch at least 4 times single prompts.
    Raises UserError for a folder without a fine-tuned run, or a run whose data have no reference answers.
    """
    config: SFTConfig = load_file("sft", RunFolder.open(run).config)
    accelerator, precision = config.trainer.hardware()
    checkpoint = open_checkpoint(run)
    model = load_model(checkpoint.model, checkpoint.tensors, accelerator.device).eval()
    datamodule = build.build_sft_datamodule(config, checkpoint.tokenizer)
    if Difficulty.EASY not in datamodule.difficulties:
        raise UserError(f"{run} was fine-tuned on data without reference answers: choose a run fine-tuned on problems")
    examples = datamodule.evaluation_examples(Difficulty.EASY, num_prompts)
    prompts = [example.prompt_ids for example in examples]
    plain = replace(config.evaluation.generation, num_steps=None, tokens_per_step=1)
    writer = Writer(model, checkpoint.tokenizer, plain, num_prompts, precision is Precision.bf16_mixed)
    single = replace(writer, batch_prompts=1)
    fast = replace(plain, commit_rule=Threshold(0.9), cache=DualCache())
    ways = {
        "plain": single,
        "threshold_dual_cache": replace(single, generation=fast),
        "plain_together": writer,
        "threshold_dual_cache_together": replace(writer, generation=fast),
    }
    answers = {name: list(way.write(prompts)) for name, way in ways.items()}

    def accuracy(written: list[Written]) -> float:
        right = [datamodule.is_right(one, text.token_ids) for one, text in zip(examples, written, strict=True)]
        return sum(right) / len(right)

    def rate(name: str) -> Callable[[], Any]:
        return lambda: list(ways[name].write(prompts))

    runs = [{name: seconds(rate(name), accelerator.device) for name in ways} for _ in range(repeats)]
    # the EOS of a stopped response is a generated token
    num_tokens = {name: sum(len(one.token_ids) + one.is_stopped for one in answers[name]) for name in ways}
    speeds = {
        name: {
            "tokens_per_s": figure([num_tokens[name] / run[name] for run in runs]),
            "accuracy": accuracy(answers[name]),
        }
        for name in ways
    }

    def ratio(first: str, second: str) -> dict[str, float]:
        return figure([num_tokens[first] / run[first] / (num_tokens[second] / run[second]) for run in runs])

    return {
        "threads": torch.get_num_threads(),
        **speeds,
        "fast_over_plain": ratio("threshold_dual_cache", "plain"),
        "together_over_one_by_one": ratio("plain_together", "plain"),
        "fast_together_over_one_by_one": ratio("threshold_dual_cache_together", "threshold_dual_cache"),
    }

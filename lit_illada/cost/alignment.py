"""Forward passes and FLOPs of an alignment run, estimated from its resolved config.

A pass is one completion in one forward pass. The passes of a rollout depend on where completions end, so estimates are
for a number of blocks. Shapes: L tokens of a completion.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from lit_illada.alignment.completions import Completions
from lit_illada.alignment.passes import UPDATE
from lit_illada.batch import Layout
from lit_illada.config import AlignConfig
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.model.config import ModelConfig
from lit_illada.model.flops import forward_flops, training_flops
from lit_illada.model.lora import num_adapter_parameters
from lit_illada.schema import from_tree

TYPICAL_PROMPT = 64  # tokens, where the prompts are not known


@dataclass(frozen=True)
class CompletionPasses:
    """Forward passes of one completion in a rollout and the updates on it."""

    rollout: int
    scoring: int
    """Of the rollout policy and the reference."""
    update: int
    """Of all updates together."""
    views: int
    """Of one scoring."""

    @property
    def total(self) -> int:
        """Of all phases."""
        return self.rollout + self.scoring + self.update

    def by_phase(self) -> dict[str, int]:
        """By the names of the phases."""
        return {"rollout": self.rollout, "scoring": self.scoring, UPDATE: self.update}


def step_forwards(tree: dict[str, Any]) -> tuple[float, float]:
    """As `step_passes`, from the resolved config of a run."""
    return step_passes(align_config(tree))


def step_passes(config: AlignConfig) -> tuple[float, float]:
    """Fewest and most forward passes of an optimizer step, over all devices: completions that end in their first token,
    and completions that fill their canvas."""
    per_step = config.prompts_per_step * config.alignment.group_size / config.alignment.updates
    fewest, most = completion_passes(config, is_short=True), completion_passes(config)
    return fewest.total * per_step, most.total * per_step


def align_step_flops(config: AlignConfig, model: ModelConfig, prompt_length: int = TYPICAL_PROMPT) -> dict[str, float]:
    """FLOPs of an optimizer step by phase, with its part of the rollout, for completions that fill their canvas."""
    passes, new = completion_passes(config), config.generation.max_new_tokens
    completions = config.prompts_per_step * config.alignment.group_size / config.alignment.updates
    layout = Layout.whole_rows(1, min(prompt_length + new, model.max_position_embeddings))
    block = min(config.generation.block_length, new)
    selected = max(1, new // passes.views)
    adapters = num_adapter_parameters(model, config.lora)
    of_pass = {
        "rollout": forward_flops(model, layout, block),
        "scoring": forward_flops(model, layout, selected),
        UPDATE: training_flops(model, layout, selected, adapters),
    }
    return {phase: completions * number * of_pass[phase] for phase, number in passes.by_phase().items()}


def rollout_bytes(config: AlignConfig, model: ModelConfig, length: int, compute_bytes: int) -> int:
    """Memory of generation beside the weights: one layer's activations of all columns, float32 logits of a block with
    the noise and the probabilities of the proposals.

    length: tokens of a prompt with its longest completion.
    """
    rows = 0 if config.preferences is not None else config.rollout_rows
    layer = compute_bytes * (4 * model.hidden_size + 3 * model.intermediate_size) + 4 * model.hidden_size
    block = min(config.generation.block_length, config.generation.max_new_tokens)
    return rows * (length * layer + 3 * 4 * block * model.known_vocab_size)


def completion_passes(config: AlignConfig, *, is_short: bool = False) -> CompletionPasses:
    """Forward passes of a completion that fills its canvas, or of one that ends in its first token.

    Its advantage is not 0: without a regulariser the updates leave other completions out.
    """
    generation, alignment = config.generation, config.alignment
    steps = _steps(generation, is_short and generation.canvas is Canvas.append)
    completion = _completion(steps, is_short)
    views = alignment.estimator.num_views(completion)
    scorings = alignment.num_scorings()
    rollout = len(set(steps)) * (2 if generation.guidance_scale else 1)
    return CompletionPasses(
        rollout=0 if config.preferences is not None else rollout,
        scoring=views * (scorings["old"] + scorings["ref"]),
        update=views * scorings["policy"],
        views=views,
    )


def align_config(tree: dict[str, Any]) -> AlignConfig:
    """The config of a composed tree; batch_rows and micro_batch_rows need not be resolved."""
    return _read_config(json.dumps(tree, sort_keys=True))


@cache  # the runs of a sweep differ in little but their seeds
def _read_config(text: str) -> AlignConfig:
    config: AlignConfig = from_tree(AlignConfig, json.loads(text))
    return config.resolve()


def _steps(generation: GenerationConfig, is_one_block: bool) -> list[int]:
    """Step that commits each token of a canvas, counted over the blocks."""
    steps: list[int] = []
    num_tokens = generation.block_length if is_one_block else generation.max_new_tokens
    while len(steps) < min(num_tokens, generation.max_new_tokens):
        length = min(generation.block_length, generation.max_new_tokens - len(steps))
        num, first = min(generation.steps_for(length), length), (steps[-1] + 1 if steps else 0)
        steps += [first + index * num // length for index in range(length)]
    return steps


def _completion(steps: list[int], is_short: bool) -> Completions:
    completion = Completions.of_texts([[0]], [[0] * len(steps)], [0], 0)
    if is_short:
        is_first = completion.is_canvas & (completion.is_canvas.cumsum(1) == 1)
        completion = replace(completion, is_scored=is_first)
    return replace(completion, steps=torch.tensor([[0, *steps]]))

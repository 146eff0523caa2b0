"""Rollouts: completions that the policy samples, judged, and what the updates on them need.

A completion's tokens depend on the weights, its prompt, the run's seed and its number, which counts the completions of
the whole run; so neither the micro-batch nor the number of ranks nor a resume changes them. Shapes: S completions,
G of each prompt, W tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from lit_illada.alignment.completions import Completions
from lit_illada.alignment.prompts import Prompt
from lit_illada.alignment.rewards import Answered
from lit_illada.alignment.scores import Scores
from lit_illada.data.sft.chat_template import ChatTemplate
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.generation.canvas import Generation
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.text import complete_batch
from lit_illada.generation.trace import Recorder, Trace
from lit_illada.loops.config import LoopConfig
from lit_illada.loops.detect.findings import Known, detect_tokens
from lit_illada.model.transformer import Transformer


@dataclass(frozen=True)
class Sample:
    """A sampled completion."""

    prompt: Prompt
    trace: Trace
    answered: Answered
    """As rewards see it."""
    is_loop: bool

    @property
    def is_endless(self) -> bool:
        """Whether the completion loops or does not end within its budget."""
        return self.is_loop or not self.answered.is_finished

    @property
    def entropy(self) -> float:
        """Mean entropy of the model's distribution when it committed the tokens, nats."""
        num = max(1, len(self.answered.token_ids))
        return sum(self.trace.entropy[:num]) / num


class RolloutSampler:
    """Samples completions with the run's own sampler."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, generation: GenerationConfig, *, batch_rows: int, seed: int
    ) -> None:
        """batch_rows: completions generated at once. seed: of the run."""
        self.tokenizer = tokenizer
        self.template = template
        self.generation = replace(generation, seed=(generation.seed + seed) % 2**32)
        self.batch_rows = batch_rows

    def sample(self, model: Transformer, prompts: Sequence[Prompt], numbers: Sequence[int]) -> list[Sample]:
        """Completions in the order of the prompts. numbers: number of each completion, which selects its noise."""
        samples: list[Sample] = []
        for start in range(0, len(prompts), self.batch_rows):
            part = slice(start, start + self.batch_rows)
            recorder = Recorder(len(prompts[part]))
            ids = [prompt.ids for prompt in prompts[part]]
            generation = complete_batch(
                model, self.tokenizer, ids, self.generation, row_numbers=numbers[part], on_commit=recorder
            )
            samples += self._samples(prompts[part], generation, recorder.traces())
        return samples

    def completions(self, samples: Sequence[Sample], numbers: Sequence[int], score_after_eos: bool) -> Completions:
        """The samples as estimators score them."""
        return Completions.of_rollout(
            [sample.prompt.ids for sample in samples],
            [sample.trace for sample in samples],
            numbers,
            stop_token_ids=[self.tokenizer.eos_token_id],
            pad_token_id=self.tokenizer.eos_token_id,
            is_appended=self.generation.canvas is Canvas.append,
            is_remasked=bool(self.generation.remasking),
            score_after_eos=score_after_eos,
        )

    def _samples(self, prompts: Sequence[Prompt], generation: Generation, traces: Sequence[Trace]) -> list[Sample]:
        rows = zip(prompts, generation.texts(), generation.is_stopped.tolist(), traces, strict=True)
        return [self._sample(*row) for row in rows]

    def _sample(self, prompt: Prompt, ids: list[int], is_finished: bool, trace: Trace) -> Sample:
        most = self.generation.max_new_tokens
        tokens = self.tokenizer.token_texts(ids)
        findings = detect_tokens(ids, tokens, LoopConfig(), Known(is_finished=is_finished, num_canvas=most))
        answered = Answered(
            problem=prompt.problem,
            text=self.tokenizer.decode(ids),
            answer=self.template.read(ids).answer,
            token_ids=ids,
            is_finished=is_finished,
            max_new_tokens=most,
            tokens=tokens,
        )
        return Sample(prompt, trace, answered, findings.is_loop)


@dataclass(eq=False)
class Rollout:
    """Completions to update on, and what was computed of them before the first update."""

    completions: Completions
    advantage: Tensor
    """(S,) float64."""
    is_counted: Tensor
    """(S,) bool, completions that the normaliser counts."""
    old: dict[int, Scores] = field(default_factory=dict)
    """Scores under the policy of the rollout, by update; under common masks those of update 0."""
    ref: dict[int, Scores] = field(default_factory=dict)
    """Scores under the reference, likewise."""
    scored: list[Scores] = field(default_factory=list)
    """Scores of the first update's micro-batches so far, which are those of the policy of the rollout."""

    @classmethod
    def of_pairs(cls, prompts: Sequence[Prompt], numbers: Sequence[int], eos_token_id: int) -> "Rollout":
        """The two answers of each prompt's pair, the chosen one with advantage 1, the other with −1."""
        answers = [answer for prompt in prompts for answer in prompt.pair]
        repeated = [prompt.ids for prompt in prompts for _ in range(2)]
        advantage = torch.tensor([1.0, -1.0] * len(prompts), dtype=torch.float64)
        completions = Completions.of_texts(repeated, answers, numbers, eos_token_id)
        return cls(completions, advantage, torch.ones(len(advantage), dtype=torch.bool))

    def keep(self, scores: Scores) -> None:
        """Keep the scores of the first update's next micro-batch as those of the rollout's policy."""
        self.scored.append(scores)
        if sum(part.by_draw.shape[1] for part in self.scored) == len(self.completions):
            self.old[0], self.scored = Scores.join(self.scored), []

    def to(self, device: torch.device) -> "Rollout":
        """The rollout on another device."""
        return Rollout(
            self.completions.to(device),
            self.advantage.to(device),
            self.is_counted.to(device),
            {number: scores.to(device) for number, scores in self.old.items()},
            {number: scores.to(device) for number, scores in self.ref.items()},
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain dicts and tensors with the completions in dimension 0."""
        tensors = {each.name: getattr(self.completions, each.name) for each in fields(self.completions)}
        return {
            "completions": {name: value for name, value in tensors.items() if value is not None},
            "advantage": self.advantage,
            "is_counted": self.is_counted,
            "old": {number: _state(scores) for number, scores in self.old.items()},
            "ref": {number: _state(scores) for number, scores in self.ref.items()},
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Rollout":
        """The inverse of `state_dict`."""
        old, ref = ({number: _scores(each) for number, each in state[name].items()} for name in ("old", "ref"))
        return cls(Completions(**state["completions"]), state["advantage"], state["is_counted"], old, ref)


def map_tensors(state: dict[Any, Any], change: Callable[[Tensor], Tensor]) -> dict[Any, Any]:
    """The nested dicts with every tensor changed."""
    changed: dict[Any, Any] = {}
    for name, value in state.items():
        if isinstance(value, dict):
            changed[name] = map_tensors(value, change)
        else:
            changed[name] = change(value) if isinstance(value, Tensor) else value
    return changed


def _state(scores: Scores) -> dict[str, Any]:
    state = {"by_draw": scores.by_draw.transpose(0, 1).contiguous()}
    return state if scores.upper is None else {**state, "upper": scores.upper}


def _scores(state: dict[str, Any]) -> Scores:
    return Scores(state["by_draw"].transpose(0, 1), state.get("upper"))

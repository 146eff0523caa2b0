"""Completions to score: prompts with their continuations, where and when the rollout committed each token.

Estimators work on one sequence per row, right-padded; `model_rows` turns a masked state into the model's input. Noise
is keyed by the number of a completion and the position in its row, so neither the order of rows nor the micro-batch
changes a mask. Shapes: S sequences, W tokens per sequence (prompt, completion and padding), M selected tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from lit_illada.alignment.views import View
from lit_illada.batch import Layout, Movable
from lit_illada.generation.trace import Trace


@dataclass(frozen=True, eq=False)
class Completions(Movable):
    """A batch of completions."""

    token_ids: Tensor
    """(S, W) int64: prompt, completion, padding."""
    is_prompt: Tensor
    """(S, W) bool."""
    is_canvas: Tensor
    """(S, W) bool, tokens that the rollout wrote, including those after a stop token."""
    is_scored: Tensor
    """(S, W) bool, tokens of the canvas that scores count."""
    ids: Tensor
    """(S,) int64, number of each completion over the whole run; selects its reward and its place in its group."""
    noise_ids: Tensor
    """(S,) int64, key of each completion's masks: `ids`, or the number of its group if a group shares masks."""
    steps: Tensor | None = None
    """(S, W) int64, rollout step that committed each token of the canvas, counted per sequence from 0 without gaps;
    None: unknown, or ambiguous because the rollout may mask tokens again."""
    blocks: Tensor | None = None
    """(S, W) int64, block of each token of the canvas; the rollout did not see later blocks. None: it saw them all."""

    log_confidence: Tensor | None = None
    """(S, W) float64, log of the model's probability of each token of the canvas when it was committed."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_scored(self) -> Tensor:
        """(S,) int64, scored tokens of each sequence."""
        return self.is_scored.sum(1)

    def select(self, index: Tensor) -> "Completions":
        """The sequences at `index`, (N,) int64, without the columns that are padding in all of them."""
        part = self._map(lambda value: value[index])
        width = int((part.is_prompt | part.is_canvas).sum(1).max())
        return part._map(lambda value: value[:, :width] if value.dim() == 2 else value)

    @classmethod
    def of_texts(
        cls, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], ids: Sequence[int], pad_token_id: int
    ) -> "Completions":
        """Completions without a rollout, such as preference pairs; all tokens of the answers are scored.

        Args:
            prompts, answers: token ids of each completion's prompt and continuation.
            ids: number of each completion over the whole run, the key of its masks too.
            pad_token_id: fills the rows up to the longest.
        """
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        width = max(map(len, rows))
        token_ids = torch.tensor([row + [pad_token_id] * (width - len(row)) for row in rows], dtype=torch.int64)
        column_W = torch.arange(width)
        prompt_S1 = torch.tensor([[len(prompt)] for prompt in prompts])
        is_prompt = column_W < prompt_S1
        is_canvas = (column_W < torch.tensor([[len(row)] for row in rows])) & ~is_prompt
        ids_S = torch.tensor(ids, dtype=torch.int64)
        return cls(token_ids, is_prompt, is_canvas, is_canvas, ids_S, ids_S)

    @classmethod
    def of_rollout(
        cls,
        prompts: Sequence[Sequence[int]],
        traces: Sequence[Trace],
        ids: Sequence[int],
        *,
        stop_token_ids: Sequence[int],
        pad_token_id: int,
        is_appended: bool,
        is_remasked: bool = False,
        score_after_eos: bool = False,
    ) -> "Completions":
        """Completions of a generation, one trace each.

        Args:
            prompts, ids, pad_token_id: as for `of_texts`.
            stop_token_ids: tokens that end a completion.
            is_appended: whether blocks were appended one at a time, so that the model saw no later block.
            is_remasked: whether the sampler may mask committed tokens again; `steps` is then None.
            score_after_eos: whether the tokens after the first stop token count; if not they stay in the row, as in the
                rollout, and masks other than the rollout's always cover them (d1 and SPG score them so).
        """
        completions = cls.of_texts(prompts, [trace.token_ids for trace in traces], ids, pad_token_id)
        if not score_after_eos:
            is_stop = torch.isin(completions.token_ids, torch.tensor(stop_token_ids)) & completions.is_canvas
            is_after_stop = (is_stop.cumsum(1) - is_stop.long()) > 0
            completions = replace(completions, is_scored=completions.is_canvas & ~is_after_stop)
        # by the settings, not by what these traces contain: ranks gather `steps`, so all of them have it or none
        assert is_remasked or all(count == 1 for trace in traces for count in trace.num_commits)
        steps = None if is_remasked else completions._spread([_without_gaps(trace.steps) for trace in traces])
        blocks = completions._spread([trace.blocks for trace in traces]) if is_appended else None
        confidence = torch.tensor([value for trace in traces for value in trace.confidence], dtype=torch.float64)
        log_confidence = torch.zeros(completions.token_ids.shape, dtype=torch.float64)
        log_confidence = log_confidence.masked_scatter(completions.is_canvas, confidence.log())
        return replace(completions, steps=steps, blocks=blocks, log_confidence=log_confidence)

    def sharing_noise(self, group_size: int) -> "Completions":
        """The same completions with masks that the members of a group share: `ids` count group after group."""
        return replace(self, noise_ids=self.ids // group_size)

    def _spread(self, values: Sequence[Sequence[int]]) -> Tensor:
        """(S, W) int64: the values at the canvas, 0 elsewhere."""
        flat = torch.tensor(list(chain.from_iterable(values)), dtype=torch.int64)
        return torch.zeros_like(self.token_ids).masked_scatter(self.is_canvas, flat)


def _without_gaps(steps: Sequence[int]) -> list[int]:
    """The steps of one sequence, renumbered: a rollout counts the steps of all rows together."""
    number = {step: index for index, step in enumerate(sorted(set(steps)))}
    return [number[step] for step in steps]


@dataclass(frozen=True, eq=False)
class ModelRows:
    """Input of the model for a view, one sequence per row."""

    noisy_ids: Tensor
    """(S, W) int64."""
    layout: Layout
    targets: Tensor
    """(M,) int64, tokens at the view's `is_selected`, row-major."""


def model_rows(completions: Completions, view: View, mask_token_id: int) -> ModelRows:
    """The view as input of the model. A sequence is one segment, or two where a part of it is invisible; padding is
    another."""
    is_token = completions.is_prompt | completions.is_canvas
    is_visible = is_token
    if view.last_block is not None and completions.blocks is not None:
        is_visible = is_token & ~(completions.is_canvas & (completions.blocks > view.last_block[:, None]))
    num_rows, num_columns = is_token.shape
    length_S, visible_S = is_token.sum(1), is_visible.sum(1)
    segments_S3 = torch.stack([visible_S, length_S - visible_S, num_columns - length_S], 1)
    segments = segments_S3[segments_S3 > 0]
    layout = Layout.from_lengths(segments, num_columns)
    if len(segments) == num_rows:
        layout = Layout.whole_rows(num_rows, num_columns, is_token.device)
    noisy_ids = completions.token_ids.masked_fill(view.is_masked | ~is_token, mask_token_id)
    return ModelRows(noisy_ids, layout, completions.token_ids[view.is_selected])

"""Counts the forward passes and FLOPs of a model by phase of alignment: rollout, scoring, update, held_out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_illada.batch import Layout
from lit_illada.model.config import ModelConfig
from lit_illada.model.flops import forward_flops, training_flops

UPDATE = "update"
TRAINING = ("rollout", "scoring", UPDATE)
HELD_OUT = "held_out"


class Passes:
    """Rows and FLOPs of the forward passes of a model, by phase; the update's FLOPs include the backward pass.

    A row is one completion in one forward pass, so rows / completions is the number of passes of a completion.
    """

    def __init__(self, model: nn.Module, config: ModelConfig, num_adapters: int | None) -> None:
        """num_adapters: parameters of the adapters where only those are trained; None: all weights are."""
        self._config = config
        self._num_adapters = num_adapters
        self._phase: str | None = None
        self.rows: dict[str, int] = {}
        self.flops: dict[str, float] = {}
        self.num_tokens = 0
        model.register_forward_pre_hook(self._observe, with_kwargs=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the passes within the block under this name."""
        self._phase, before = name, self._phase
        try:
            yield
        finally:
            self._phase = before

    @property
    def total_flops(self) -> float:
        """FLOPs of training: all phases but the evaluation of held-out prompts."""
        return sum(self.flops.get(phase, 0.0) for phase in TRAINING)

    def training_rows(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, int]:
        """Rows of all ranks in the phases of training. Collective."""
        rows = torch.tensor([self.rows.get(phase, 0) for phase in TRAINING], dtype=torch.float64)
        return dict(zip(TRAINING, map(int, sum_over_ranks(rows).tolist()), strict=True))

    def state_dict(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Counts of all ranks. Collective."""
        phases = (*TRAINING, HELD_OUT)
        counts = [[self.rows.get(phase, 0), self.flops.get(phase, 0.0)] for phase in phases]
        sums = sum_over_ranks(torch.tensor([*counts, [self.num_tokens, 0.0]], dtype=torch.float64)).tolist()
        return {
            "rows": {phase: int(rows) for phase, (rows, _) in zip(phases, sums, strict=False)},
            "flops": {phase: flops for phase, (_, flops) in zip(phases, sums, strict=False)},
            "num_tokens": int(sums[-1][0]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts of all ranks; only one rank does, and the others start at 0."""
        self.rows, self.flops, self.num_tokens = dict(state["rows"]), dict(state["flops"]), state["num_tokens"]

    def _observe(self, _: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        if self._phase is None:
            return
        input_ids, layout, select = args[:3]
        targets = args[3] if len(args) > 3 else None
        num_selected = targets.numel() if targets is not None else int(select.sum())
        phase = self._phase
        self.rows[phase] = self.rows.get(phase, 0) + len(input_ids)
        self.flops[phase] = self.flops.get(phase, 0.0) + self._flops(layout, num_selected, input_ids.numel())
        self.num_tokens += input_ids.numel() if phase == UPDATE else 0

    def _flops(self, layout: Layout, num_selected: int, num_tokens: int) -> float:
        if self._phase == UPDATE:
            return training_flops(self._config, layout, num_selected, self._num_adapters)
        head = forward_flops(self._config, layout, num_selected) - forward_flops(self._config, layout, 0)
        # with a cache only a window of the columns is computed
        fraction = num_tokens / layout.position_ids.numel()
        return fraction * forward_flops(self._config, layout, 0) + head

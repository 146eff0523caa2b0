"""Profile of a training step: a Chrome trace, a table by part of the model and a table by operator.

A backward operation is attributed to the part of its forward operation, which has the same autograd sequence number.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from lit_illada.batch import TokenBatch
from lit_illada.bench.training_step import TrainingStep
from lit_illada.model.transformer import Block, Transformer

_NUM_OPERATORS = 25
_STEP_PARTS = ("data", "corruption", "objective", "clip", "optimizer")
_MODEL_PARTS = ("embedding", "norms", "attention", "mlp", "rotation and residuals", "head and cross-entropy")
_REST = "other"


def profile_step(step: TrainingStep, batch: TokenBatch, folder: Path, name: str) -> dict[str, float]:
    """Seconds of one step by part, on the device of the step, longest first.

    Writes NAME.json, a Chrome trace, and NAME.txt, the tables, to `folder`. The profiled step is the second one, since
    the first compiles and fills caches.
    """
    assert isinstance(step.model, Transformer)
    # warm-up
    step(batch)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if step.device.type == "cuda" else [])]
    with parts_recorded(step.model), profile(activities=activities, acc_events=True) as profiler:
        step(batch)
        if step.device.type == "cuda":
            torch.cuda.synchronize()
    by_part = seconds_by_part(list(profiler.events()), is_on_cuda=step.device.type == "cuda")
    total = sum(by_part.values())
    lines = [f"{part:<24} {spent * 1e3:10.2f} ms {spent / total:7.1%}" for part, spent in by_part.items()]
    key = "self_device_time_total" if step.device.type == "cuda" else "self_cpu_time_total"
    operators = profiler.key_averages().table(sort_by=key, row_limit=_NUM_OPERATORS, max_name_column_width=60)
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / f"{name}.json"))
    table = "\n".join([f"one step, {total * 1e3:.1f} ms", *lines, "", operators])
    (folder / f"{name}.txt").write_text(table, encoding="utf-8")
    return by_part


def seconds_by_part(events: list[FunctionEvent], is_on_cuda: bool = False) -> dict[str, float]:
    """Sum of the self time of the events of each part, in seconds, longest first."""
    spent: dict[str, float] = defaultdict(float)
    for event, part in zip(events, parts_of(events), strict=True):
        spent[part] += 1e-6 * (event.self_device_time_total if is_on_cuda else event.self_cpu_time_total)
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def parts_of(events: list[FunctionEvent]) -> list[str]:
    """The innermost part that encloses each event, or the forward operation of a backward event."""
    names = {*_STEP_PARTS, *_MODEL_PARTS}
    part_of_forward: dict[int, str] = {}
    for event in events:
        if event.sequence_nr >= 0 and not event.name.startswith("autograd::") and (part := _around(event, names)):
            part_of_forward.setdefault(event.sequence_nr, part)
    return [_around(event, names) or _of_backward(event, part_of_forward) or _REST for event in events]


def _around(event: FunctionEvent, names: set[str]) -> str | None:
    ancestor: Any = event
    while ancestor is not None:
        if ancestor.name in names:
            return ancestor.name
        ancestor = ancestor.cpu_parent
    return None


def _of_backward(event: FunctionEvent, part_of_forward: dict[int, str]) -> str | None:
    ancestor: Any = event
    while ancestor is not None:
        if ancestor.name.startswith("autograd::") and ancestor.sequence_nr in part_of_forward:
            return part_of_forward[ancestor.sequence_nr]
        ancestor = ancestor.cpu_parent
    return None


@contextmanager
def parts_recorded(model: Transformer) -> Iterator[None]:
    """Context in which a profile records each part of the model under its name."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    norms = [norm for block in blocks for norm in (block.input_layernorm, block.post_attention_layernorm)]
    # an event belongs to the innermost part, so what is left for the whole model is its LM head
    modules_of: dict[str, Sequence[nn.Module]] = {
        "embedding": [model.model.embed_tokens],
        "attention": [block.self_attn for block in blocks],
        "mlp": [block.mlp for block in blocks],
        "norms": [*norms, model.model.norm],
        "rotation and residuals": [model.model],
        "head and cross-entropy": [model],
    }
    open_ranges: list[Any] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            open_ranges.append(record_function(name))
            open_ranges[-1].__enter__()

        return hook

    def leave(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    handles = []
    for name, modules in modules_of.items():
        for module in modules:
            handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

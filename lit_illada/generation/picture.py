"""Pictures of traces: positions along the x axis, denoising steps downwards; grey while a position is masked."""

import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure

from lit_illada.errors import UserError, unknown
from lit_illada.generation.trace import Trace

_MAX_LABELS = 72  # token labels that fit below the picture


def draw_to(path: Path) -> Callable[[Trace, str, Sequence[str]], None]:
    """Returns a function that draws a trace, with title and token texts, into the file. Raises UserError early for an
    unsupported file format or a missing folder."""
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in formats:
        raise unknown("file format of a picture", path.suffix, (f".{name}" for name in formats))
    if not path.parent.is_dir():
        raise UserError(f"{path}: no folder {path.parent}")
    return lambda trace, title, tokens: draw_trace(trace, path, title=title, tokens=tokens)


def draw_trace(trace: Trace, path: Path, *, title: str, tokens: Sequence[str] = ()) -> None:
    """Writes the picture of a trace in the format of the file suffix. tokens: text of each token, for labels."""
    positions = range(len(trace.steps))
    is_labelled = len(tokens) == len(positions) <= _MAX_LABELS
    figure = Figure(figsize=(11, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    figure.suptitle(textwrap.fill(title, 130), x=0.01, ha="left", fontsize=9)

    above.bar(positions, [step + 0.5 for step in trace.steps], width=1.0, bottom=-0.5, color="0.9", label="masked")
    dots = above.scatter(
        positions,
        trace.steps,
        c=trace.confidence,
        s=max(4.0, min(60.0, 6000 / max(1, len(positions)))),
        marker="s",
        cmap="viridis",
        vmin=0,
        vmax=1,
        label="committed",
    )
    rewritten = [position for position in positions if trace.num_commits[position] > 1]
    if rewritten:
        steps = [trace.steps[position] for position in rewritten]
        above.scatter(rewritten, steps, s=80, facecolors="none", edgecolors="tab:red", label="after a remasking")
    for left, right in pairwise(positions):
        if trace.blocks[left] != trace.blocks[right]:
            for axes in (above, below):
                axes.axvline(left + 0.5, color="0.6", linewidth=0.6)
    above.set_ylim(max(trace.steps, default=0) + 0.5, -0.5)
    above.set_ylabel("denoising step")
    above.legend(loc="lower left", fontsize=8)
    figure.colorbar(dots, ax=above, label="confidence when committed", pad=0.01)

    below.bar(positions, trace.entropy, width=1.0, color="tab:orange")
    below.set_ylabel("entropy, nats")
    below.set_xlabel("new token")
    below.set_xlim(-0.5, max(len(positions), 1) - 0.5)
    if is_labelled:
        # matplotlib reads a dollar sign as the start of a formula; a space would be invisible
        labels = [repr(token)[1:-1].replace("$", r"\$").replace(" ", "·") for token in tokens]
        below.set_xticks(positions, labels, rotation=90, fontsize=7, family="monospace")
    figure.savefig(path, dpi=150)

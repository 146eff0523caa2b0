"""What does a trace look like? Places along the text, time downwards: a place is grey while it is masked."""

import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure

from lit_illada.errors import UserError, unknown
from lit_illada.generation.trace import Trace

_LONGEST_LABELLED = 72  # tokens whose texts still fit below the picture


def draw_to(path: Path) -> Callable[[Trace, str, Sequence[str]], None]:
    """Draws a trace under a title into the file. Raises UserError where no picture can be written there."""
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in formats:
        raise unknown("ending of a picture", path.suffix, (f".{name}" for name in formats))
    if not path.parent.is_dir():
        raise UserError(f"{path}: no folder {path.parent}")
    return lambda trace, title, tokens: draw_trace(trace, path, title=title, tokens=tokens)


def draw_trace(trace: Trace, path: Path, *, title: str, tokens: Sequence[str] = ()) -> None:
    """Write the picture of a trace; the file's ending says in which format. tokens: the text of each token."""
    places = range(len(trace.steps))
    is_labelled = len(tokens) == len(places) <= _LONGEST_LABELLED
    figure = Figure(figsize=(11, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    figure.suptitle(textwrap.fill(title, 130), x=0.01, ha="left", fontsize=9)

    above.bar(places, [step + 0.5 for step in trace.steps], width=1.0, bottom=-0.5, color="0.9", label="masked")
    dots = above.scatter(
        places,
        trace.steps,
        c=trace.confidence,
        s=max(4.0, min(60.0, 6000 / max(1, len(places)))),
        marker="s",
        cmap="viridis",
        vmin=0,
        vmax=1,
        label="committed",
    )
    rewritten = [place for place in places if trace.num_commits[place] > 1]
    if rewritten:
        steps = [trace.steps[place] for place in rewritten]
        above.scatter(rewritten, steps, s=80, facecolors="none", edgecolors="tab:red", label="after a remasking")
    for left, right in pairwise(places):
        if trace.blocks[left] != trace.blocks[right]:
            for axes in (above, below):
                axes.axvline(left + 0.5, color="0.6", linewidth=0.6)
    above.set_ylim(max(trace.steps, default=0) + 0.5, -0.5)
    above.set_ylabel("denoising step")
    above.legend(loc="lower left", fontsize=8)
    figure.colorbar(dots, ax=above, label="confidence when committed", pad=0.01)

    below.bar(places, trace.entropy, width=1.0, color="tab:orange")
    below.set_ylabel("entropy, nats")
    below.set_xlabel("new token")
    below.set_xlim(-0.5, max(len(places), 1) - 0.5)
    if is_labelled:
        # a dollar sign would begin a formula, and a space would not be seen
        labels = [repr(token)[1:-1].replace("$", r"\$").replace(" ", "·") for token in tokens]
        below.set_xticks(places, labels, rotation=90, fontsize=7, family="monospace")
    figure.savefig(path, dpi=150)

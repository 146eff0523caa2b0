"""Is a model's chained arithmetic, of `lit_illada.data.reasoning`, still written as it was taught?

A re-check counts for self-correction only where it stands among steps; a model that has lost the thread writes noise,
which may hold the words too.
"""

import re

from lit_illada.data.reasoning import RECHECK
from lit_illada.loops.ending import THINK_END

_QUESTION = re.compile(r"(?:[a-w]=[-+*x\d]+\n)+x mod \d+\?")
_LINE = re.compile(r"[a-w]=\d+(?:[-+*]\d+)*=\d+|" + re.escape(RECHECK))
_THINK_OPEN = re.compile(r"\s*<\|?think\|?>")


def share_well_formed(prompt: str | None, text: str) -> float | None:
    """Of a thought's lines, the share of whole steps and re-checks; of a thought that was cut off, the last line counts
    as it stands. None where the prompt is no chained arithmetic, or the thought holds no line."""
    if prompt is None or not _QUESTION.fullmatch(prompt.strip()):
        return None
    end, begin = THINK_END.search(text), _THINK_OPEN.match(text)
    thought = text[begin.end() if begin else 0 : end.start() if end else len(text)]
    lines = [line.strip() for line in thought.splitlines() if line.strip()]
    return sum(_LINE.fullmatch(line) is not None for line in lines) / len(lines) if lines else None

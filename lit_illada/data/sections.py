"""Sections of source files: a corpus of a few hundred files becomes thousands of documents of similar length.

The split into training and validation is by document, so a corpus of few long files has few validation documents and a
validation metric with a large standard error.
"""

import zlib
from collections.abc import Iterator

_SECTION_CHARACTERS = 400  # a section may end after so many; some sections are up to four times as long
_LINES_COMPARED = 3
_MAX_SEEN_FRACTION = 0.5  # fraction of a section's line triples that earlier sections may contain

# stored in the manifest, so that a data set made with other values is refused; add an entry when the rule changes
SECTION_SETTINGS = {
    "section_characters": _SECTION_CHARACTERS,
    "compared_lines": _LINES_COMPARED,
    "max_seen_fraction": _MAX_SEEN_FRACTION,
}


def sections(text: str) -> Iterator[tuple[int, str]]:
    """Yields (number of the first line, text) of each section; concatenated, they are the text.

    A section ends before an unindented line that follows a blank one, once it has _SECTION_CHARACTERS; with twice as
    many before any line that follows a blank one, with four times as many before any line.
    """
    lines: list[str] = []
    first, size, follows_blank = 1, 0, False
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if _ends_before(line, size, follows_blank):
            yield first, "".join(lines)
            lines, first, size = [], number, 0
        lines.append(line)
        size += len(line)
        follows_blank = not line.strip()
    if lines:
        yield first, "".join(lines)


def _ends_before(line: str, size: int, follows_blank: bool) -> bool:
    if size >= 4 * _SECTION_CHARACTERS:
        return True
    if not follows_blank or not line.strip():
        return False
    return size >= (2 if line[0].isspace() else 1) * _SECTION_CHARACTERS


class NearDuplicates:
    """Recognises sections that mostly repeat earlier ones, so that validation text is not a copy of training text.

    A section is a near-duplicate when more than half of its runs of three consecutive lines (without indentation and
    blank lines) occur in sections accepted before. Deterministic for a given order of sections.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def accepts(self, text: str) -> bool:
        """Whether the section is new; if so, later ones are compared with it too."""
        runs = line_runs(text)
        if len(runs & self._seen) > _MAX_SEEN_FRACTION * len(runs):
            return False
        self._seen |= runs
        return True


def line_runs(text: str) -> set[int]:
    """Hashes of all runs of three consecutive lines; of all lines if there are fewer."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    starts = range(max(1, len(lines) - _LINES_COMPARED + 1))
    return {zlib.crc32("\n".join(lines[start : start + _LINES_COMPARED]).encode()) for start in starts}

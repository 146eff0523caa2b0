"""Rich console that shows every string as it is: no markup, no emoji codes, no terminal escapes.

Strings such as `[red]` or `[link=…]` in names and texts would otherwise be executed as markup. Style comes from
`style=` arguments and from `rich.text.Text`. Parts of rich that parse markup themselves, such as spinners and the
columns of progress bars, need a Text or `markup=False`.
"""

from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.text import Span, Text

from lit_illada.runtime.terminal import is_unsafe, printable


class Console(RichConsole):
    """Console for everything the package prints in tables, bars or colour.

    stderr: print on standard error. The other arguments are rich's.
    """

    def __init__(self, *, stderr: bool = False, **arguments: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, **arguments)

    def render_str(self, text: str, **arguments: Any) -> Text:
        """Convert a string, as rich does for printed strings, cells, headings and titles, to escaped text."""
        return super().render_str(printable(text, keeps_lines=True), **arguments)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Any:
        """Yield the segments of a renderable; unsafe characters of a Text are escaped before it is wrapped."""
        safe = _escaped(renderable) if isinstance(renderable, Text) else renderable
        yield from super().render(safe, options)


def _escaped(text: Text) -> Text:
    """Return the text with unsafe characters escaped in the style that they had."""
    unsafe = [index for index, character in enumerate(text.plain) if is_unsafe(character)]
    if not unsafe:
        return text
    result = text.blank_copy()
    for piece in text.divide(sorted({edge for index in unsafe for edge in (index, index + 1)} - {0, len(text)})):
        if len(piece) == 1 and is_unsafe(piece.plain):
            escape = printable(piece.plain)
            spans = [Span(0, len(escape), span.style) for span in piece.spans]
            piece = Text(escape, style=piece.style, spans=spans)
        result.append_text(piece)
    return result

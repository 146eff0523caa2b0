"""The console prints strings literally and escapes terminal control characters."""

import io

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from lit_illada.runtime.console import Console

HOSTILE = "[red]x[/red] [/] :smile: \x1b]0;title\x07\u202e"
SHOWN = "[red]x[/red] [/] :smile: \\x1b]0;title\\x07\\u202e"


def printed(*renderables, **arguments):
    file = io.StringIO()
    Console(file=file, width=80, **arguments).print(*renderables)
    return file.getvalue()


def table_of(text):
    table = Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    return table


@pytest.mark.parametrize("renderable", [HOSTILE, table_of(HOSTILE)], ids=["string", "table"])
def test_markup_and_escapes_of_strings_are_printed_literally(renderable):
    output = printed(renderable)
    assert SHOWN in output
    assert output.replace("\n", "").isprintable()


def test_a_table_stays_aligned_when_cells_are_escaped():
    lines = printed(table_of("a\x1b[31mb")).splitlines()
    assert len({len(line) for line in lines[1:-1]}) == 1


def test_escaping_a_text_preserves_its_style():
    text = Text.assemble("a", ("b\x1b[2Jc", "bold"), "\x9b5n\nd")
    assert printed(text) == "ab\\x1b[2Jc\\x9b5n\nd\n"
    coloured = printed(text, force_terminal=True, color_system="standard")
    assert "\x1b[1mb\x1b[0m\x1b[1m\\x1b\x1b[0m\x1b[1m[2Jc\x1b[0m" in coloured
    assert "\x1b[2J" not in coloured


def test_an_escaped_text_is_wrapped_at_the_width():
    assert all(len(line) <= 80 for line in printed(Text("\x1b" * 100)).splitlines())


def test_a_progress_bar_description_is_not_parsed_as_markup():
    file = io.StringIO()
    console = Console(file=file, width=120)
    with Progress(TextColumn("{task.description}", style="bold", markup=False), console=console) as bar:
        bar.add_task("[red]x[/red] [/] :smile: \x1b[2J", total=1)
    assert "[red]x[/red] [/] :smile:" in file.getvalue()
    assert "\x1b[2J" not in file.getvalue()

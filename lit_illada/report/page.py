"""Report pages: one HTML file each that loads nothing from elsewhere.

A page extends base.html.j2. Its style sheet and script follow base.css and base.js, which hold what all pages share.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lit_illada.report.palette import series_css

_BASE = Path(__file__).parent / "page"


def render_page(folder: Path, content: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]]) -> str:
    """HTML of the page whose report.html.j2, style.css and script.js lie in a folder.

    Args:
        folder: the page's own template, style sheet and script.
        content: variables of the template. A missing one raises `jinja2.UndefinedError`.
        filters: Jinja filters of the template.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, _BASE]), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= filters
    style = "\n".join([_read(_BASE / "base.css"), series_css(), _read(folder / "style.css")])
    script = "\n".join([_read(_BASE / "base.js"), _read(folder / "script.js")])
    return environment.get_template("report.html.j2").render(**content, style=Markup(style), script=Markup(script))


def script_json(tree: Any) -> Markup:
    """JSON for a script element: no text in it, such as an arm's name, can close the element."""
    text = json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
    # U+2028 and U+2029 end lines in JavaScript, but not in JSON
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")

"""The loops page in a browser: charts, text browser, heat map, small screens, dark mode."""

import json

import pytest
from chromium import EXECUTABLE, Browser
from click.testing import CliRunner

from lit_illada.cli import main

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on the path")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loops")
    tokens = [f" w{index}" for index in range(30)] + [" we", " go", " on", " and"] * 12
    trace = {"tokens": tokens, "token_ids": [sum(t.encode()) for t in tokens], "steps": list(range(len(tokens)))}
    rows = [
        {"text": "".join(tokens), "task": "a", "is_right": False, "confidence": [0.5] * len(tokens), **trace},
        {"text": "A text without any loop.", "task": "b", "is_right": True},
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = CliRunner().invoke(main, ["loops", "analyze", str(folder / "rows.jsonl"), "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    return (folder / "out" / "report.html").as_uri()


def test_the_script_runs_without_messages_and_shows_the_looping_text(browser, url):
    browser.show(url, "document.querySelector('#text mark')?.textContent")
    assert browser.run("document.querySelectorAll('#text mark').length") >= 12
    assert browser.run("document.querySelectorAll('figure svg.chart .fill').length") > 0
    assert browser.run("!document.getElementById('heat').hidden")
    browser.run("document.querySelector('[data-mode=confidence]').click()")
    assert browser.run("document.querySelector('[data-mode=confidence]').getAttribute('aria-pressed')") == "true"
    assert browser.messages == []


@pytest.mark.parametrize(("width", "is_dark"), [(390, False), (390, True), (1200, True)])
def test_the_loops_page_fits_a_phone_and_follows_dark_mode(browser, url, width, is_dark):
    browser.show(url, "document.querySelector('#text mark')?.textContent")
    browser.look(width, 844, is_dark=is_dark)
    browser.wait_for(f"document.documentElement.scrollWidth <= {width}")
    paper = browser.run("getComputedStyle(document.documentElement).backgroundColor")
    assert paper == ("rgb(20, 23, 26)" if is_dark else "rgb(251, 250, 248)")
    assert browser.messages == []

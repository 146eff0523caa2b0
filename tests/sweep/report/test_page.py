"""The report page in a browser: plots, sorting, hidden arms, axes, provenance and layout."""

import re

import pytest
from chromium import EXECUTABLE, Browser

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on the path")
DRAWN = "document.documentElement?.dataset.drawn"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, reported_sweep):
    """The page with all plots drawn."""
    browser.show((reported_sweep.report / "index.html").as_uri(), DRAWN)
    return browser


def arms(page):
    return page.run(
        "[...document.querySelectorAll('table')[0].tBodies[0].rows].map(r => r.cells[0].textContent.trim())"
    )


def test_every_plot_is_drawn_without_console_messages_or_requests(page):
    drawn = page.run(
        "[...document.querySelectorAll('.plot')].map(p => [p.id, p.querySelectorAll('svg .plot, svg .trace').length])"
    )
    assert len(drawn) == 5
    assert all(count for _, count in drawn), drawn
    assert page.messages == []
    assert [url for url in page.requested if not url.startswith(("file:", "data:"))] == []


def test_headings_sort_both_ways_and_set_aria_sort(page):
    press = "document.querySelectorAll('table')[0].tHead.rows[0].cells[3].querySelector('button').click()"
    page.run(press)
    assert arms(page) == ["band", "uniform", "cosine", "fixed 1.0"]
    assert (
        page.run("document.querySelectorAll('table')[0].tHead.rows[0].cells[3].getAttribute('aria-sort')")
        == "ascending"
    )
    page.run(press)
    assert arms(page) == ["fixed 1.0", "cosine", "uniform", "band"]
    page.run("document.querySelectorAll('table')[0].tHead.rows[0].cells[5].querySelector('button').click()")
    assert arms(page)[-1] == "uniform"  # without a difference: last


def test_arm_can_be_hidden_and_shown_in_every_plot(page):
    traces = "[...document.querySelectorAll('.plot')].flatMap(p => p.data).filter(t => t.meta.arm === 'cosine')"
    visible = f"{traces}.every(t => t.visible)"
    assert page.run(visible) is True
    page.run("document.querySelector('[data-arm=cosine]').click()")
    assert page.run("document.querySelector('[data-arm=cosine]').getAttribute('aria-pressed')") == "false"
    assert page.run(visible) is False
    page.run("document.querySelector('[data-all]').click()")
    assert page.run(visible) is True


def test_hidden_arm_leaves_no_empty_row(page):
    plot = "document.querySelector('[id^=seeds]')"
    rows = f"[...{plot}.querySelectorAll('.ytick')].map(tick => tick.textContent.trim())"
    height = f"{plot}.getBoundingClientRect().height"
    before, height_before = page.run(rows), page.run(height)
    assert set(before) == {"band", "uniform", "cosine", "fixed 1.0"}
    page.run("document.querySelector('[data-arm=cosine]').click()")
    page.wait_for(f"{rows}.length === 3")
    assert page.run(rows) == [arm for arm in before if arm != "cosine"]
    page.wait_for(f"{height} === {height_before} - 34")
    page.run("document.querySelector('[data-all]').click()")
    page.wait_for(f"{rows}.length === 4 && {height} === {height_before}")


def contrast(colour, other):
    """Ratio of two CSS colours (WCAG 2)."""

    def luminance(text):
        red, green, blue = (float(part) / 255 for part in re.findall(r"[\d.]+", text)[:3])
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(colour), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("is_dark", [False, True])
def test_hover_text_is_readable(page, is_dark):
    page.look(1200, 900, is_dark=is_dark)
    page.wait_for(f"document.querySelector('.plot').layout.font.color === '{'#e6e8ec' if is_dark else '#1b1e24'}'")
    for plot in ("seeds", "course"):
        selector = f"document.querySelector('[id^={plot}]')"
        for curve in range(page.run(f"{selector}.data.length")):
            if page.run(f"{selector}.data[{curve}].hoverinfo === 'skip' || !{selector}.data[{curve}].x.length"):
                continue
            page.run(f"Plotly.Fx.hover({selector}, [{{curveNumber: {curve}, pointNumber: 0}}])")
            page.wait_for(f"!!{selector}.querySelector('.hoverlayer .hovertext')")
            label = page.run(
                f"(() => {{ const box = {selector}.querySelector('.hoverlayer .hovertext');"
                "const paper = getComputedStyle(box.querySelector('path')).fill;"
                "return [...box.querySelectorAll('text')].filter(t => t.textContent.trim())"
                ".map(t => [t.textContent, getComputedStyle(t).fill, paper, t.classList.contains('name')]) })()"
            )
            for text, ink, paper, is_name in label:
                around = "rgb(20, 22, 26)" if is_dark else "rgb(255, 255, 255)"
                assert contrast(ink, around if is_name else paper) >= 4.5, (plot, curve, text, ink, paper)


def test_scrollable_tables_show_a_hint(page):
    page.look(390, 844)
    boxes = "[...document.querySelectorAll('main > section .scroll')].filter(box => box.clientWidth)"
    page.wait_for(f"{boxes}.every(box => box.scrollWidth > box.clientWidth + 1 === box.classList.contains('more'))")
    assert page.run(f"{boxes}.filter(box => box.classList.contains('more')).length") >= 2
    fits = "box.scrollWidth <= box.clientWidth + 1"
    assert page.run(f"{boxes}.every(box => box.previousElementSibling.hidden === ({fits}))")
    page.run(f"{boxes}[0].scrollLeft = 1e5")
    page.wait_for(f"!{boxes}[0].classList.contains('more')")
    page.look(1200, 900)
    page.wait_for(f"{boxes}.some(box => box.previousElementSibling.hidden)")


def test_axis_of_the_curves_can_be_changed(page):
    title = "document.querySelector('[id^=course]').layout.xaxis.title.text"
    assert page.run(title) == "training tokens"
    page.run("document.querySelectorAll('[data-plot^=course]')[1].click()")
    page.wait_for(f"{title} === 'training FLOPs'")
    assert page.run("Math.max(...document.querySelector('[id^=course]').data[1].x)") == pytest.approx(3e12)


def test_number_shows_its_provenance(page):
    page.run("document.querySelector('tbody .number').click()")
    shown = page.wait_for("document.querySelector('.source:popover-open')?.innerText")
    for words in ("pretrain-band-s0", "c0ffeec0", "abababab", "step=00000060.ckpt"):
        assert words in shown


@pytest.mark.parametrize(("width", "is_dark"), [(390, False), (390, True), (1200, True)])
def test_page_fits_a_phone_and_follows_the_colour_scheme(width, is_dark, page):
    page.look(width, 844, is_dark=is_dark)
    page.wait_for(f"document.documentElement.scrollWidth <= {width}")
    paper = page.run("getComputedStyle(document.documentElement).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (not is_dark)
    page.wait_for(f"document.querySelector('.plot').layout.font.color === '{'#e6e8ec' if is_dark else '#1b1e24'}'")
    assert page.messages == []

"""The page in a headless Chromium without a network, on wide and narrow windows (slow)."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.report.browser import CHROMIUM, Browser
from tests.report.conftest import HOSTILE, Pages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
TABLE = "document.querySelector('table.classes')"


@pytest.fixture
def browser(pages: Pages) -> Iterator[Browser]:
    with Browser() as browser:
        browser.open(pages.page)
        yield browser


def heads(browser: Browser, column: int) -> str:
    return browser.run(f"{TABLE}.tHead.rows[0].cells[{column}].getAttribute('aria-sort')")


def column(browser: Browser, number: int) -> list[str]:
    """Returns what a column of the table of classes shows, from the top."""
    return browser.run(
        f"[...{TABLE}.tBodies[0].rows].map((row) => row.cells[{number}].textContent.trim())"
    )


def click(browser: Browser, number: int) -> None:
    browser.click(f"{TABLE}.tHead.rows[0].cells[{number}].querySelector('button')")


def test_the_page_is_quiet_complete_and_asks_for_nothing(browser: Browser, pages: Pages) -> None:
    assert browser.complaints == []
    asked = [address for address in browser.requests if not address.startswith("data:")]
    assert asked == [pages.page.as_uri()]
    assert browser.run("typeof window.owned") == "undefined"
    assert browser.run("document.title") == "fine, <i>coarse – flaxres report"
    widths = browser.run("[...document.images].map((image) => image.naturalWidth)")
    assert len(widths) > 3
    assert min(widths) > 0
    assert browser.run("document.querySelectorAll('figure svg').length") == 6 + 2
    shown = browser.run(
        "[...document.querySelectorAll('.confusion tbody th')].map((head) => head.textContent)"
    )
    assert shown[:4] == sorted(HOSTILE)


def test_tables_sort_by_click(browser: Browser) -> None:
    """Figures with the largest first, words by the alphabet, cells without a value last."""
    click(browser, 1)
    sizes = [int(value) for value in column(browser, 1)]
    assert sizes == sorted(sizes, reverse=True) == [6, 5, 4, 3]
    assert heads(browser, 1) == "descending"
    click(browser, 1)
    assert column(browser, 1) == ["3", "4", "5", "6"]
    assert heads(browser, 1) == "ascending"
    click(browser, 0)
    assert column(browser, 0) != sorted(HOSTILE, key=len)
    assert column(browser, 0) == browser.run(
        f"{json.dumps(HOSTILE)}.sort((a, b) => a.localeCompare(b, undefined, {{numeric: true}}))"
    )
    assert heads(browser, 1) is None
    click(browser, 5)
    for _ in range(2):
        click(browser, 3)  # precision: of classes that are never predicted, there is none
        values = column(browser, 3)
        assert values.index("–") == len([value for value in values if value != "–"])
    click(browser, 1)
    browser.run(f"{TABLE}.tHead.rows[0].cells[1].querySelector('button').focus()")
    for kind in ("keyDown", "keyUp"):
        browser(
            "Input.dispatchKeyEvent",
            type=kind,
            key="Enter",
            code="Enter",
            text="\r",
            windowsVirtualKeyCode=13,
        )
    assert column(browser, 1) == ["3", "4", "5", "6"]
    assert browser.complaints == []


def test_the_matrix_tells_what_the_mouse_is_on(browser: Browser, pages: Pages) -> None:
    rows = "document.querySelector('.confusion tbody').rows"
    names = sorted(HOSTILE)
    for i in range(4):
        for j in range(4):
            browser.move(f"{rows}[{i}].cells[{j + 1}]")
            told = browser.run("document.getElementById('told-1').textContent")
            count = int(browser.run(f"{rows}[{i}].cells[{j + 1}].textContent") or 0)
            images = 3 + HOSTILE.index(names[i])
            share = f"{100 * count / images:.1f}%"
            assert (
                told == f"{names[i]} predicted as {names[j]}: {count} of {images} images ({share})"
            )
            assert browser.run("document.querySelectorAll('.confusion td.at').length") == 1
    assert browser.complaints == []


def test_a_telephone_shows_all_of_it(pages: Pages) -> None:
    with Browser(390, 844, touch=True) as browser:
        browser.open(pages.page)
        assert browser.run("document.documentElement.scrollWidth") <= 390
        browser.tap("document.querySelector('.confusion tbody').rows[1].cells[2]")
        told = browser.run("document.getElementById('told-1').textContent")
        assert re.fullmatch(r".* predicted as .*: \d+ of \d+ images \(.*%\)", told)
        small = browser.run(
            "[...document.querySelectorAll('figure svg')].map((svg) => svg.clientWidth)"
        )
        assert min(small) > 250
        assert browser.complaints == []


def luminance(colour: str) -> float:
    """Returns the relative luminance of `rgb(r, g, b)`: WCAG 2.2."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read(browser: Browser, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser("Emulation.setEmulatedMedia", features=[feature])
    style = "getComputedStyle({}).{}"
    section, text = "document.querySelector('section')", "document.querySelector('figure svg text')"
    paper = luminance(browser.run(style.format(section, "backgroundColor")))
    assert (paper < 0.1) == (scheme == "dark")
    for element, name in (
        (section, "color"),
        ("document.querySelector('.soft')", "color"),
        (text, "fill"),
    ):
        ink = luminance(browser.run(style.format(element, name)))
        contrast = (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05)
        assert contrast > 4.5, (element, contrast)  # WCAG 2.2, level AA


def test_it_prints(browser: Browser) -> None:
    """In black on white, also from a dark screen, with everything unfolded."""
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = false; })")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser("Emulation.setEmulatedMedia", media="print", features=features)
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('.tall')).maxHeight") == "none"
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("document.querySelectorAll('details:not([open])').length") == 0
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("document.querySelectorAll('details[open]').length") == 0
    printed = browser.pdf()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") >= 2
    assert browser.complaints == []

"""The report in a real browser: it opens without errors, sorts its tables, says what the objects say, and asks for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser, missing
from report_case import EVIL, report_text, selector

from ope.display import number

pytest.importorskip("matplotlib", reason="the plot extra is not installed")

if (reason := missing()) is not None:
    pytest.skip(reason, allow_module_level=True)

ROWS = "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))"
STATE = "return document.querySelector(arguments[0]).closest('th').getAttribute('aria-sort')"
WIDTHS = "return [document.documentElement.scrollWidth, window.innerWidth]"
INK = "return getComputedStyle(document.querySelector('figure svg [style*=\"fill: currentColor\"]')).fill"
BUTTON = "#table-candidates thead th:nth-child({}) button"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "a report #1.html"
    file.write_text(report_text(), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def opened(path: Path) -> Iterator[Browser]:
    with browser() as page:
        page.emulate()
        page.open(path)
        yield page


def test_it_opens_without_errors_and_asks_for_nothing(opened: Browser, path: Path) -> None:
    assert opened.log("browser") == []
    assert opened.requests() == [path.as_uri()]
    assert opened.script("return document.title") == f"River {EVIL}"


def test_its_text_is_what_the_objects_say(opened: Browser) -> None:
    fitted = selector()
    words = " ".join(str(opened.script("return document.body.innerText")).split())
    assert " ".join(fitted.decision_.split()) in words
    assert EVIL in words
    shown = {(row[0], row[1]): row[2] for row in opened.script(ROWS, "#table-results")}
    assert shown == {
        (row["candidate"], row["estimator"]): number(row["value"]) for row in fitted.results_.to_dict("records")
    }


def test_headers_sort_by_numbers_and_words(opened: Browser) -> None:
    fitted = selector()
    values = fitted.results_.query("estimator == @fitted.primary_").set_index("candidate")["value"].sort_values()
    button = BUTTON.format(2)
    opened.click(button)
    assert [row[0] for row in opened.script(ROWS, "#table-candidates")] == list(values.index[::-1])
    assert opened.script(STATE, button) == "descending"
    opened.click(button)
    assert [row[0] for row in opened.script(ROWS, "#table-candidates")] == list(values.index)
    assert opened.script(STATE, button) == "ascending"
    opened.click(BUTTON.format(1))
    names = [row[0] for row in opened.script(ROWS, "#table-candidates")]
    assert names == sorted(names, key=str.lower)
    assert opened.script(STATE, button) is None
    assert opened.log("browser") == []


@pytest.mark.parametrize(("scheme", "media"), [("light", "screen"), ("dark", "screen"), ("dark", "print")])
def test_ink_and_paper_differ_on_screen_and_paper(opened: Browser, scheme: str, media: str) -> None:
    opened.emulate(scheme, media)
    ink, paper = (
        opened.script(f"return getComputedStyle(document.body).{key}") for key in ("color", "backgroundColor")
    )
    bright = {"light": (False, True), "dark": (True, False)}["light" if media == "print" else scheme]
    assert (_is_bright(ink), _is_bright(paper)) == bright
    assert _is_bright(opened.script(INK)) == bright[0]


@pytest.mark.parametrize(("width", "media"), [(1200, "screen"), (390, "screen"), (794, "print")])
def test_the_page_fits_its_width(opened: Browser, width: int, media: str) -> None:
    opened.emulate("light", media, width)
    found, window = opened.script(WIDTHS)
    assert found <= window == width


def _is_bright(colour: str) -> bool:
    red, green, blue = (int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
    return red + green + blue > 3 * 128

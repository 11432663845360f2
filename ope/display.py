"""What results look like to people: the one number format, verdict colours and marks, and small HTML that escapes by construction."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ope.verdict import Level

TABLE = "border-collapse:collapse;color:inherit;font-size:90%;margin:0.3em 0"
CAPTION = "caption-side:top;text-align:left;font-weight:bold;padding:0.2em 0.6em"
# Half-transparent lines and inherited text colours are readable on light and on dark pages.
CELL = "text-align:left;vertical-align:top;padding:0.15em 0.6em;border-top:1px solid rgba(128,128,128,0.35)"
HEAD = f"{CELL};font-weight:normal;white-space:nowrap;opacity:0.75"
NUMERIC = f"{CELL};text-align:right;font-variant-numeric:tabular-nums"


@dataclass(frozen=True, slots=True)
class VerdictLook:
    """How a verdict is shown: a colour of Okabe and Ito, a mark in words, a marker in pictures; never the colour alone."""

    colour: str
    symbol: str
    marker: str


LOOKS = {
    Level.VALID: VerdictLook("#009E73", "✓", "o"),
    Level.CAUTION: VerdictLook("#E69F00", "▲", "^"),
    Level.REFUSE: VerdictLook("#D55E00", "✕", "X"),
}


class Markup(str):
    """Text that is HTML already.

    Examples
    --------
    >>> escape(Markup("<b>")), escape("<b>")
    ('<b>', '&lt;b&gt;')
    """

    __slots__ = ()


def escape(text: object) -> Markup:
    """Return text as HTML; what is `Markup` already stays as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """Return an element; children and attributes are escaped, attributes of None are left out.

    A trailing underscore of an attribute's name is dropped, others become hyphens.

    Examples
    --------
    >>> tag("p", "1 < 2, ", tag("b", "always"), class_="note", aria_label=None)
    '<p class="note">1 &lt; 2, <b>always</b></p>'
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{shown}>{''.join(map(escape, children))}</{name}>")


def number(value: Any) -> str:
    """Return a number with four significant digits; anything else as it prints.

    Examples
    --------
    >>> number(0.123456), number(12), number(float("nan"))
    ('0.1235', '12', 'nan')
    """
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)


def between(low: float, high: float) -> str:
    """Return an interval in words.

    Examples
    --------
    >>> between(0.25, 1.0)
    '0.25 to 1'
    """
    return f"{number(low)} to {number(high)}"


def badge(level: Level) -> Markup:
    """Return a verdict's word in a frame of its colour, with its mark.

    Examples
    --------
    >>> "VALID" in badge(Level.VALID)
    True
    """
    look = LOOKS[level]
    style = (
        f"border:1px solid {look.colour};border-left-width:0.5em;border-radius:0.3em;padding:0 0.4em;white-space:nowrap"
    )
    return tag("span", f"{look.symbol} {level.name}", style=style)


def facts_table(title: str, facts: Iterable[tuple[str, object]]) -> Markup:
    """Return a small table of names and values.

    Examples
    --------
    >>> "<caption" in facts_table("A log", [("episodes", 12)])
    True
    """
    rows = [tag("tr", tag("th", name, scope="row", style=HEAD), tag("td", value, style=CELL)) for name, value in facts]
    return tag("table", tag("caption", title, style=CAPTION), tag("tbody", *rows), style=TABLE)


def html_table(header: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> Markup:
    """Return a table; floats are formatted by `number` and stand on the right, as numbers do.

    Parameters
    ----------
    header : sequence of str
    rows : iterable of sequences
        The first cell names its row.
    title : str, optional

    Examples
    --------
    >>> html_table(["policy", "value"], [["<b>", 0.5]]).count("&lt;b&gt;")
    1
    """
    top = tag("thead", tag("tr", *(tag("th", name, scope="col", style=CELL) for name in header)))
    body = tag("tbody", *(tag("tr", *map(_cell, range(len(row)), row)) for row in rows))
    caption = Markup("") if title is None else tag("caption", title, style=CAPTION)
    return tag("table", caption, top, body, style=TABLE)


def _cell(position: int, value: object) -> Markup:
    if position == 0:
        return tag("th", value, scope="row", style=f"{CELL};font-weight:normal")
    numeric = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return tag("td", number(value), style=NUMERIC) if numeric else tag("td", value, style=CELL)


def bullets(sentences: Iterable[object]) -> Markup:
    """Return sentences as a list, nothing for none.

    Examples
    --------
    >>> bullets([]), bullets(["a"])
    ('', '<ul><li>a</li></ul>')
    """
    items = [tag("li", sentence) for sentence in sentences]
    return tag("ul", *items) if items else Markup("")

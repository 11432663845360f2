"""Building blocks of the page: sortable tables, verdict badges, sections. Everything escapes by construction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ope.display import LOOKS, Markup, number, tag
from ope.verdict import Level

NUMERIC = ("number", "p")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Parameters
    ----------
    name : str
        In the header.
    kind : {"number", "p", "text", "words"}
        How cells are set: numbers on the right and sorted as such, p-values with two digits, text as it is, words as wide as
        sentences need.
    """

    name: str
    kind: str = "number"


def badge(level: Level | str) -> Markup:
    """Return a verdict as a mark, its word and a frame of its colour."""
    level = Level[level] if isinstance(level, str) else level
    return tag("span", f"{LOOKS[level].symbol} {level.name}", class_=f"badge {level.name}")


def section(key: str, title: str, *children: object) -> Markup:
    """Return a section with a heading to link to."""
    return tag("section", tag("h2", title), *children, id=key)


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[object]],
    caption: str,
    *,
    key: str | None = None,
    chosen: str | None = None,
    sortable: bool = False,
) -> Markup:
    """Return a table.

    Parameters
    ----------
    columns : sequence of Column
    rows : iterable of sequences
        The first cell names its row.
    caption : str
    key : str, optional
        Its identifier in the page.
    chosen : str, optional
        The row of this name is marked.
    sortable : bool
        Whether its headers are buttons.
    """
    head = [_head(column, sortable) for column in columns]
    body = [_row(columns, row, chosen) for row in rows]
    inner = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
        id=key,
        class_="sortable" if sortable else None,
    )
    return tag("div", inner, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _head(column: Column, sortable: bool) -> Markup:
    text = tag("button", column.name, type="button") if sortable else column.name
    return tag("th", text, scope="col", class_="number" if column.kind in NUMERIC else None)


def _row(columns: Sequence[Column], row: Sequence[object], chosen: str | None) -> Markup:
    first = tag("th", row[0], scope="row")
    cells = [_cell(column, value) for column, value in zip(columns[1:], row[1:], strict=True)]
    return tag("tr", first, *cells, class_="chosen" if chosen is not None and row[0] == chosen else None)


def _cell(column: Column, value: object) -> Markup:
    if column.kind not in NUMERIC:
        return tag("td", value, class_="words" if column.kind == "words" else None)
    if isinstance(value, (int, float, np.number)):
        missing = bool(np.isnan(value))
        # The sorting script reads the full precision; people read the library's one format.
        return tag(
            "td",
            "–" if missing else f"{value:.2g}" if column.kind == "p" else number(value),
            class_="number",
            data_sort="nan" if missing else repr(float(value)),
        )
    return tag("td", value, class_="number", data_sort="nan")


def facts(pairs: Iterable[tuple[str, object]], caption: str) -> Markup:
    """Return a table of names and values."""
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in pairs]
    return tag("div", tag("table", tag("caption", caption), tag("tbody", *rows)), class_="scroll")


def cards(pairs: Iterable[tuple[str, object, object]]) -> Markup:
    """Return the few numbers that matter: what it is, the number, words below it."""
    items = [
        tag("div", tag("dt", name), tag("dd", value, class_="figure"), tag("dd", words, class_="soft"))
        for name, value, words in pairs
    ]
    return tag("dl", *items, class_="cards")


def first_candidates(selector: Any, limit: int) -> list[str]:
    """Return as many candidates as there is room for: the choice, the best by the criterion, then in the given order."""
    first = [name for name in (selector.best_name_, *selector.top_) if name is not None]
    return list(dict.fromkeys([*first, *next(iter(selector.estimates_.values()))]))[:limit]

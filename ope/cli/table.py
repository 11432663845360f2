"""Estimates as plain text: a row per candidate and estimator, and the reasons of verdicts below, each once."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from ope.estimate import Estimates

WIDTH = 110
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def results_text(
    results: pd.DataFrame, estimates: Mapping[str, Estimates], level: float, decisive: tuple[str | None, str | None]
) -> str:
    """Return the results of a `PolicySelector` as text of at most 110 columns.

    Parameters
    ----------
    results : DataFrame
        Its ``results_``.
    estimates : mapping of str to Estimates
        Its ``estimates_``, which hold the reasons one by one.
    level : float
        Of the intervals.
    decisive : tuple of str or None
        The chosen candidate and the estimator that decided; their row is marked.
    """
    candidates = list(dict.fromkeys(results["candidate"]))
    order = results["candidate"].map(candidates.index).sort_values(kind="stable").index
    notes = _Notes(estimates)
    digits = decimals(results["value"])
    rows = []
    previous = None
    for row in results.loc[order].to_dict("records"):
        pair = (str(row["candidate"]), str(row["estimator"]))
        name = "" if pair[0] == previous else pair[0]
        previous = pair[0]
        error = row["std_error"] if np.isfinite(row["value"]) else np.nan
        numbers = (number(row["value"], digits), number(error, digits))
        shown = (*numbers, interval(row["low"], row["high"], digits), str(row["verdict"]), notes.of(*pair))
        rows.append((">" if pair == decisive else "", name, pair[1], *shown))
    header = ("", "candidate", "estimator", "value", "std. error", f"{level:.0%} interval", "verdict", "why")
    return "\n".join([columns_text(header, rows, right=(3, 4)), *notes.lines()])


def columns_text(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return rows of words as aligned columns under a ruled header.

    Examples
    --------
    >>> print(columns_text(["name", "value"], [["a", "1.50"], ["long", "12.25"]], right=[1]))
    name  value
    -----------
    a      1.50
    long  12.25
    """
    table = [list(header), *map(list, rows)]
    widths = [max(len(row[j]) for row in table) for j in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            f"{cell:>{w}}" if j in right else f"{cell:<{w}}"
            for j, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(table[0]), "-" * (sum(widths) + 2 * len(widths) - 2), *map(line, table[1:])])


def decimals(values: Iterable[float]) -> int:
    """Return how many decimals show about four digits of a typical value.

    Examples
    --------
    >>> decimals([21.8, 23.4, float("nan")]), decimals([0.09, 0.5, 0.12])
    (2, 4)
    """
    sizes = np.abs(np.array([value for value in values if np.isfinite(value) and value != 0]))
    return int(np.clip(3 - np.floor(np.log10(np.median(sizes))), 0, 8)) if len(sizes) else 3


def number(value: float, digits: int) -> str:
    """Return a number with fixed decimals, a huge one with an exponent, a missing one as a dash.

    Examples
    --------
    >>> number(1.23456, 2), number(-1.5e9, 2), number(float("nan"), 2)
    ('1.23', '-1.5e+09', '-')
    """
    if np.isnan(value):
        return "-"
    return f"{value:.3g}" if abs(value) >= 1e6 else f"{value:.{digits}f}"


def interval(low: float, high: float, digits: int) -> str:
    """Return an interval in brackets, or a dash where there is none.

    Examples
    --------
    >>> interval(-0.5, 1.25, 2), interval(float("nan"), float("nan"), 2)
    ('[-0.50, 1.25]', '-')
    """
    return "-" if np.isnan(low) or np.isnan(high) else f"[{number(low, digits)}, {number(high, digits)}]"


class _Notes:
    """Reasons of verdicts; those that differ in their numbers only share a note, which quotes the first."""

    def __init__(self, estimates: Mapping[str, Estimates]) -> None:
        self.estimates = estimates
        self.quotes: dict[str, str] = {}

    def of(self, candidate: str, estimator: str) -> str:
        """Return the numbers of a row's notes."""
        reasons = self.estimates[estimator][candidate].verdict.reasons
        marks = [self._mark(reason, f"{estimator} of {candidate}") for reason in reasons]
        return " ".join(map(str, marks))

    def _mark(self, reason: str, row: str) -> int:
        key = NUMBER.sub("#", reason)
        self.quotes.setdefault(key, f"{reason} ({row})")
        return list(self.quotes).index(key) + 1

    def lines(self) -> list[str]:
        """Return the notes as wrapped lines."""
        out = []
        for i, quote in enumerate(self.quotes.values(), start=1):
            out += ["", *textwrap.wrap(f"{i}. {quote}", WIDTH, subsequent_indent="   ")]
        return out

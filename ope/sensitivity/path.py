"""`SensitivityPath`: an estimate along one assumption, with its bands, in words, as text and as HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from ope import display
from ope.verdict import Level

SHOWN = ("parameter", "value", "low", "high", "difference", "difference_low", "difference_high", "verdict")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SensitivityPath:
    """How an estimate moves along one assumption.

    Parameters
    ----------
    parameter : str
        What varies: "clip", "gamma", "horizon" or "odds_ratio".
    frame : DataFrame
        A row per setting, in rising order: `parameter` (the setting), `value`, `std_error`, `low`, `high` (band of the value),
        `difference`, `difference_low`, `difference_high` (to the `reference`, with its band), `verdict`, `reasons`. Paths of
        "odds_ratio" have `bound_low` and `bound_high`, the estimated bounds that the band surrounds, and `difference_low` is
        that of the least value. All bands are pointwise: each holds at its own setting.
    level : float
        Of the bands.
    estimator, policy : str
    reference : str
        What the differences are to, in words; "" where there are none.
    conclusion : str
        What the path says, what it means and what to do.
    flip_odds_ratio : float or None
        Least odds ratio at which the candidate no longer beats the baseline by the band; 1 if it does not even without
        confounding, infinite if no confounding that was tried changes it, None for other paths and where a value is refused.
    flip_odds_ratio_point : float or None
        The same by the estimated bound, sampling error left out.
    notes : tuple of str
        Assumptions, in words.

    Examples
    --------
    >>> frame = pd.DataFrame({"parameter": [1.0], "value": [0.5], "low": [0.4], "high": [0.6], "verdict": ["VALID"]})
    >>> path = SensitivityPath("clip", frame, 0.95, "WeightedIS", "bold", "", "The value does not depend on clip.")
    >>> path
    SensitivityPath(clip, WeightedIS of bold, 1 setting)
    >>> print(path.summary())
    WeightedIS of bold along clip: The value does not depend on clip.
       clip  value    low   high  verdict
          1    0.5    0.4    0.6    VALID
    Bands hold at each setting by itself with 95 % confidence.
    """

    parameter: str
    frame: pd.DataFrame
    level: float
    estimator: str
    policy: str
    reference: str
    conclusion: str
    flip_odds_ratio: float | None = None
    flip_odds_ratio_point: float | None = None
    notes: tuple[str, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """Return a copy of the frame."""
        return self.frame.copy()

    def summary(self) -> str:
        """Return conclusion, table and assumptions as text."""
        header, rows = self._table()
        cells = [header, *([display.number(cell) for cell in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.rjust(width + 1) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([f"{self._title()}: {self.conclusion}", *lines, *self._sentences()])

    def _title(self) -> str:
        return f"{self.estimator} of {self.policy} along {self._name()}"

    def _name(self) -> str:
        return self.parameter.replace("_", " ")

    def _table(self) -> tuple[list[str], list[list[Any]]]:
        columns = [name for name in SHOWN if name in self.frame]
        header = [self._name() if name == "parameter" else name.replace("_", " ") for name in columns]
        return header, [[row[name] for name in columns] for row in self.frame.to_dict("records")]

    def _sentences(self) -> list[str]:
        bands = f"Bands hold at each setting by itself with {100 * self.level:.4g} % confidence."
        against = [f"Differences are to {self.reference}."] if self.reference else []
        return [bands, *against, *self.notes, *self._reasons()]

    def _reasons(self) -> list[str]:
        where: dict[str, list[str]] = {}
        for row in self.frame.to_dict("records"):
            if row.get("reasons"):
                where.setdefault(f"{row['verdict']}: {row['reasons']}", []).append(display.number(row["parameter"]))
        return [
            f"At {'every setting' if len(settings) == len(self.frame) else f'{self._name()} ' + ', '.join(settings)}, {reason}"
            for reason, settings in where.items()
        ]

    def __repr__(self) -> str:
        settings = f"{len(self.frame)} setting{'' if len(self.frame) == 1 else 's'}"
        return f"SensitivityPath({self.parameter}, {self.estimator} of {self.policy}, {settings})"

    def _repr_html_(self) -> str:
        header, rows = self._table()
        last = header.index("verdict")
        marked = [[*row[:last], display.badge(Level[row[last]]), *row[last + 1 :]] for row in rows]
        table = display.html_table(header, marked, self._title())
        return str(display.tag("p", self.conclusion)) + str(table) + str(display.bullets(self._sentences()))

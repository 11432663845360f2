"""The report: one HTML file about a decision, for a person who was not there.

It needs no network: pictures are inline SVG, style and script are in the file, and a content security policy forbids every
request. The pictures need the `plot` extra: ``pip install 'ope-learn[plot]'``.
"""

from __future__ import annotations

import base64
import hashlib
import os
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

from sklearn.utils.validation import check_is_fitted

import ope
from ope.display import Markup, tag
from ope.files import replace_file
from ope.report import _sections as sections
from ope.report._parts import section

__all__ = ["report_html", "write_report"]

TITLE = "Which policy to deploy"


def write_report(
    selector: Any, path: str | os.PathLike[str], *, title: str | None = None, sensitivity: Any = None
) -> Path:
    """Write the report of a fitted selector as one self-contained HTML file.

    Parameters
    ----------
    selector : PolicySelector
        Fitted.
    path : path-like
        In a folder that exists; an existing file is replaced as a whole.
    title : str, optional
        Default: "Which policy to deploy".
    sensitivity : SensitivityPath or mapping of str to SensitivityPath, optional
        From `ope.sensitivity`, shown among the pictures with what they conclude.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    NotFittedError
        If the selector is not fitted.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from ope import LoggedDataset, PolicySelector
    >>> from ope.estimators import WeightedIS
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((200, 1)), [0, 1] * 100, [1.0, 0.0] * 100, lengths=[1] * 200, ends="terminal", behavior_prob=[0.5] * 200
    ... )
    >>> candidates = {"cautious": TabularPolicy([[0.4, 0.6]]), "bold": TabularPolicy([[0.7, 0.3]])}
    >>> selector = PolicySelector([WeightedIS(gamma=1.0)]).fit(log, candidates)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_report(selector, Path(folder) / "report.html")
    ...     "Deploy “bold”" in path.read_text(encoding="utf-8")
    True
    """
    page = report_html(selector, title=title, sensitivity=sensitivity)
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"write_report: `path` must lie in a folder that exists, got {str(path)!r}; make the folder.")
    replace_file(target, page.encode("utf-8"))
    return target


def report_html(selector: Any, *, title: str | None = None, sensitivity: Any = None) -> str:
    """Return the report as HTML text; the parameters are those of `write_report`.

    Parameters
    ----------
    selector : PolicySelector
    title : str, optional
    sensitivity : SensitivityPath or mapping of str to SensitivityPath, optional
    """
    check_is_fitted(selector, "results_")
    parts = _parts(selector, sensitivity)
    title = TITLE if title is None else title
    links = [tag("li", tag("a", words, href=f"#{key}")) for key, words in CONTENTS]
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("nav", tag("ul", *links), aria_label="Contents")),
        tag("main", *parts),
        tag("footer", f"Written by ope {ope.__version__} on {now}."),
        _script(),
    )
    return f"<!DOCTYPE html>\n{tag('html', _head(title), body, lang='en')}\n"


CONTENTS = (
    ("decision", "Decision"),
    ("about", "What this is"),
    ("gates", "Difference to the current policy"),
    ("candidates", "Candidates"),
    ("pictures", "Pictures"),
    ("data", "The data"),
    ("diagnostics", "Diagnostics"),
    ("methods", "Methods"),
    ("versions", "Versions"),
)


def _parts(selector: Any, sensitivity: Any) -> list[Markup]:
    from ope.report._figures import figures

    return [
        sections.decision(selector),
        sections.about(selector),
        sections.gates(selector),
        sections.candidates(selector),
        section("pictures", "Pictures", tag("div", *figures(selector, sensitivity), class_="figures")),
        sections.data(selector),
        sections.diagnostics(selector),
        sections.methods(selector),
        sections.provenance(selector),
    ]


def _head(title: str) -> Markup:
    # Only this script runs and nothing is fetched, whatever the names of policies and columns hold.
    digest = base64.b64encode(hashlib.sha256(_asset("table.js").encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<link rel="icon" href="data:,">'),
        tag("title", title),
        tag("style", Markup(_asset("style.css"))),
    )


def _script() -> Markup:
    return tag("script", Markup(_asset("table.js")))


def _asset(name: str) -> str:
    return files("ope.report").joinpath(name).read_text(encoding="utf-8")

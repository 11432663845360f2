"""The report: its text is what the objects say, everything is escaped, nothing is fetched."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_case import EVIL, GAMMA, candidates, report_text, river_log, selector

pytest.importorskip("matplotlib", reason="the plot extra is not installed")

from sklearn.exceptions import NotFittedError

from ope import PolicySelector, citation
from ope.display import number
from ope.estimators import WeightedIS
from ope.policy import Policy
from ope.report import report_html, write_report
from ope.sensitivity import SensitivityPath

VOID = {"meta", "link"}


class Page(HTMLParser):
    """Tags, texts and tables of a page; complains about elements that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows = self.tables[attributes.get("id") or f"unnamed{len(self.tables)}"] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.texts.append(data)
        if ("td" in self.open or "th" in self.open) and self._rows:
            self._rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


class Broken(Policy):
    """A policy that cannot be asked."""

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"logged_prob", "all_probs"})

    def predict_proba(self, states: Any) -> Any:  # noqa: ARG002
        raise RuntimeError("the model file is gone")


@pytest.fixture(scope="module")
def source() -> str:
    return report_text()


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_the_decision_comes_first(page: Page) -> None:
    fitted: Any = selector()
    assert fitted.deploy_
    words = page.text
    assert words.index(f"Deploy “{fitted.deployed_name_}”") < words.rindex("What this is")
    assert " ".join(fitted.decision_.split()) in words
    for value in (fitted.corrected_.value, fitted.baseline_.value, fitted.gates_.loc[fitted.best_name_, "difference"]):
        assert number(float(value)) in words[: words.rindex("What this is")]


def test_tables_are_those_of_the_selector(page: Page) -> None:
    fitted: Any = selector()
    shown = {(row[0], row[1]): row for row in page.tables["table-results"][1:]}
    for row in fitted.results_.to_dict("records"):
        cells = shown[row["candidate"], row["estimator"]]
        expected = [
            number(row[key]) if np.isfinite(row[key]) else "–"
            for key in ("value", "std_error", "low", "high", "lower_bound")
        ]
        assert cells[2:7] == expected
        assert cells[7].endswith(row["verdict"])
    gates = {row[0]: row for row in page.tables["table-gates"][1:]}
    for name, row in fitted.gates_.iterrows():
        assert gates[str(name)][1:4] == [
            number(row[key]) if np.isfinite(row[key]) else "–" for key in ("difference", "std_error", "lower_bound")
        ]
        assert gates[str(name)][6] == ("✓ yes" if row["passes"] else "✕ no")
        assert gates[str(name)][7] == row["reason"]
    deciding = {row[0]: row for row in page.tables["table-candidates"][1:]}
    for name, row in fitted.simultaneous_.iterrows():
        assert deciding[str(name)][5:7] == [
            number(row[key]) if np.isfinite(row[key]) else "–" for key in ("low", "high")
        ]
        assert deciding[str(name)][9] == ("yes" if name in fitted.best_set_ else "no")
    for name, row in fitted.ranks_.iterrows():
        assert deciding[str(name)][7:9] == [
            number(row["rank"]),
            f"{number(float(row['low']))} to {number(float(row['high']))}",
        ]


def test_every_reason_is_there_with_its_verdict(page: Page) -> None:
    reasons = [
        reason
        for estimates in selector().estimates_.values()
        for estimate in estimates.values()
        for reason in estimate.verdict.reasons
    ]
    assert reasons
    assert all(" ".join(reason.split()) in page.text for reason in reasons)


def test_the_data_are_described(page: Page) -> None:
    log = river_log()
    assert f"episodes {log.n_episodes}, transitions {log.n_transitions}" in page.text
    assert log.data_id in page.text
    counts = np.bincount(log.actions)
    assert page.tables["table-actions"][1:] == [
        [str(a), str(n), f"{n / counts.sum():.1%}"] for a, n in enumerate(counts)
    ]


def test_methods_versions_and_seeds(page: Page, source: str) -> None:
    assert "WeightedIS(gamma=1.0)" in page.text
    assert "Eligibility Traces for Off-Policy Policy Evaluation" in page.text
    for entry in re.findall(r"@\w+\{(\w+),", citation(selector())):
        assert f"{{{entry}," in source
    assert f"numpy {np.__version__}" in page.text.replace("numpy" + np.__version__, f"numpy {np.__version__}")
    assert "seed of DoublyRobust" in page.text


def test_names_are_text_and_never_markup(page: Page, source: str) -> None:
    assert source.count("<script>") == 1
    assert "alert('x')" not in source
    assert EVIL in page.text
    assert page.text.startswith(f"River {EVIL}")
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{}]


def test_nothing_is_fetched(page: Page, source: str) -> None:
    for tag, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "srcset", "action", "data"):
            address = attributes.get(key)
            if address is not None and not (tag == "a" and address.startswith("https://")):
                assert address.startswith(("#", "data:")), (tag, address)
    assert "@import" not in source
    assert re.findall(r"url\((?!#)", source) == []
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")


def test_it_is_accessible(page: Page) -> None:
    tags = page.tags
    assert next(attributes for tag, attributes in tags if tag == "html")["lang"] == "en"
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in tags if tag == "th")
    pictures = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(pictures) == 6
    assert all(attributes["role"] == "img" and len(str(attributes["aria-label"])) > 40 for attributes in pictures)
    assert sum(tag == "caption" for tag, _ in tags) == sum(tag == "table" for tag, _ in tags)
    assert [tag for tag, _ in tags if tag == "h1"] == ["h1"]
    names = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(names) == len(set(names))
    targets = [str(a["href"])[1:] for tag, a in tags if tag == "a" and str(a["href"]).startswith("#")]
    assert set(targets) <= set(names)


def test_pictures_take_the_ink_of_the_page(source: str) -> None:
    assert "#010203" not in source
    assert "currentColor" in source
    assert "#000000" not in source.split("<main>")[1].split("</main>")[0]


@pytest.fixture(scope="module")
def undecided() -> PolicySelector:
    return PolicySelector([WeightedIS(gamma=GAMMA)]).fit(river_log(), {"broken": Broken()})


def test_the_file_appears_whole(tmp_path: Path, undecided: PolicySelector) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    undecided.report(path, title="From the selector")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "<title>From the selector</title>" in text
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="must lie in a folder that exists"):
        write_report(undecided, tmp_path / "no" / "report.html")


def test_when_nothing_can_be_chosen_the_report_says_why(undecided: PolicySelector) -> None:
    page = Page(report_html(undecided))
    assert "Keep the logged policy" in page.text
    assert "the model file is gone" in page.text
    assert "table-candidates" not in page.tables
    assert all(tag != "svg" for tag, _ in page.tags)


def test_one_candidate_without_a_baseline_and_its_sensitivity() -> None:
    frame = pd.DataFrame(
        {"parameter": [1.0, 2.0], "value": [0.5, 0.5], "low": [0.4, 0.3], "high": [0.6, 0.7], "verdict": ["VALID"] * 2}
    )
    words = "No confounding that was tried changes <it>."
    path = SensitivityPath("odds_ratio", frame, 0.95, "WeightedIS", "upstream", "", words)
    fitted = PolicySelector([WeightedIS(gamma=GAMMA)], baseline=None).fit(river_log(), {"today": candidates()["today"]})
    page = Page(report_html(fitted, sensitivity={"upstream": path}))
    assert "Deploy “today”" in page.text
    assert "No baseline was given" in page.text
    assert f"Sensitivity to odds ratio: upstream. {words}" in page.text
    assert page.text.startswith("Which policy to deploy")


def test_an_unfitted_selector_is_refused() -> None:
    with pytest.raises(NotFittedError):
        report_html(PolicySelector([WeightedIS(gamma=GAMMA)]))

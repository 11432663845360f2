"""Numbers, verdicts and HTML as people see them; citations."""

from __future__ import annotations

import inspect
import re

import pytest
from report_case import EVIL, candidates, river_log, selector

import ope.estimators
import ope.inference
from ope import Estimates, Level, citation
from ope.citations import CITED, STATEMENTS, library, references
from ope.display import LOOKS, badge, html_table, number, tag
from ope.estimators import DoublyRobust, FittedQEvaluation, WeightedIS
from ope.inference.methods import IntervalMethod


@pytest.fixture(scope="module")
def estimates() -> Estimates:
    result: Estimates = WeightedIS(gamma=1.0).fit(river_log(), candidates()).estimate()
    return result


def test_summary_repr_and_html_of_an_estimate_say_the_same(estimates: Estimates) -> None:
    estimate = estimates["upstream"]
    low, high = estimate.confidence_interval()
    text, page = estimate.summary(), estimate._repr_html_()
    for said in (number(estimate.value), number(estimate.std_error), f"{number(low)} to {number(high)}", "VALID"):
        assert said in text
        assert said in page
    assert number(estimate.value) in repr(estimate)
    assert LOOKS[Level.VALID].symbol in page


def test_html_of_estimates_has_a_row_and_a_badge_each(estimates: Estimates) -> None:
    page = estimates._repr_html_()
    assert page.count("<tr>") == 1 + len(estimates)
    for name, estimate in estimates.items():
        assert tag("th", name)[4:-5] in page
        assert number(estimate.value) in page
        assert badge(estimate.verdict.level) in page
        assert all(tag("i", reason)[3:-4] in page for reason in estimate.verdict.reasons)
    assert "<script>" not in page
    assert EVIL in estimates.summary()
    assert Estimates({})._repr_html_() == "<pre>Estimates()</pre>"


def test_verdicts_differ_in_more_than_colour() -> None:
    for key in ("colour", "symbol", "marker"):
        assert len({getattr(look, key) for look in LOOKS.values()}) == len(Level)


def test_html_is_escaped_by_construction() -> None:
    assert tag("p", EVIL, title=EVIL).count("<") == 2
    table = html_table([EVIL, "a", "b"], [[EVIL, 0.123456, True]], EVIL)
    assert "<script>" not in table
    assert "0.1235" in table
    assert "True" in table


# -------------------------------------------------------------------- citations


def test_every_estimator_and_interval_is_cited() -> None:
    methods = {
        name
        for name in ope.inference.__all__
        if inspect.isclass(getattr(ope.inference, name))
        and issubclass(getattr(ope.inference, name), IntervalMethod)
        and name != "IntervalMethod"
    }
    assert set(ope.estimators.__all__) | methods <= set(CITED)
    for name in ope.estimators.__all__:
        assert citation(name).startswith("@"), name


def test_the_library_is_whole_and_in_use() -> None:
    used = {key for keys in CITED.values() for key in keys}
    assert used == set(library())
    for key, entry in library().items():
        assert {"author", "title", "year"} <= set(entry.fields), key
        assert entry.bibtex.count("{") == entry.bibtex.count("}"), key
        assert re.search(r"\d{4}", entry.fields["year"]), key
        assert re.search(r"[{}\\$]", str(entry)) is None, key
        assert entry.bibtex.endswith("\n}"), key


def test_citations_agree_with_the_docstrings() -> None:
    """The first author and the year of each reference of an estimator's docstring is among its citations, and the reverse."""
    for name in ope.estimators.__all__:
        text = inspect.getdoc(getattr(ope.estimators, name)) or ""
        if "References\n" not in text:
            continue
        part = text.split("References\n")[1].split("\nExamples\n")[0]
        said = set(re.findall(r"^(?:\.\. \[\d\] )?([A-Z]\w+)\b[^()]*\((\d{4})\)", part, flags=re.MULTILINE))
        cited = {(str(work).split(",")[0].split(" ")[0], work.fields["year"]) for work in references(name)}
        assert said == cited, name


def test_citation_reads_objects_names_and_nested_estimators() -> None:
    nested = DoublyRobust(gamma=1.0, q=FittedQEvaluation())
    assert "ernst2005tree" in citation(nested)
    assert citation(nested).count("@inproceedings{thomas2016data,") == 1
    assert citation("normal") == citation("Normal") == citation(ope.inference.Normal())
    assert citation("none") == citation() == ""

    class Own(WeightedIS):
        pass

    assert citation(Own(gamma=1.0)) == citation(WeightedIS)
    with pytest.raises(ValueError, match="citation: `used` must be methods of this library"):
        citation("Wizardry")


def test_a_selector_cites_what_it_used() -> None:
    fitted = selector()
    text = citation(fitted)
    for keys in (
        CITED["WeightedIS"],
        STATEMENTS["best_set"],
        STATEMENTS["winners_curse"],
        STATEMENTS[fitted.gate_adjust],
    ):
        assert all(f"{{{key}," in text for key in keys)
    assert references(fitted)[0].link is None
    assert all(str(work.link).startswith("https://") for work in references("best_set"))

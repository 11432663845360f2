"""`citation`: the references of the methods that were used, as BibTeX. The entries are in ``references.bib`` beside this file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

OWNER = "citation"

ESTIMATORS: Mapping[str, tuple[str, ...]] = {
    "AverageRewardLSTDQ": ("tsitsiklis1999average", "liao2021off", "zhang2021average"),
    "BellmanCalibrated": ("laan2025semiparametric", "laan2025bellman"),
    "COPTD": ("hallak2017consistent", "gelada2019off"),
    "CoinDICE": ("dai2020coindice", "owen2001empirical"),
    "ControlVariateIS": ("owen2000safe", "thomas2016data"),
    "DefaultEstimator": ("lagoudakis2003least", "owen2000safe", "hao2021bootstrapping"),
    "DICE": ("yang2020regularized", "nachum2019dualdice", "zhang2020gendice", "nachum2019algaedice"),
    "DoubleReinforcementLearning": (
        "kallus2020double",
        "kallus2022efficiently",
        "liu2018breaking",
        "newey2018crossfitting",
        "mehrabi2024weak",
    ),
    "DoublyRobust": ("jiang2016doubly", "thomas2016data"),
    "EfficientDoublyRobust": ("kallus2019intrinsically", "tan2010bounded"),
    "FittedQEvaluation": (
        "ernst2005tree",
        "hao2021bootstrapping",
        "munos2016safe",
        "farajtabar2018more",
        "voloshin2021empirical",
    ),
    "GivenQ": ("jiang2016doubly", "mandyam2025perry"),
    "SimulatorQ": ("mandyam2025perry", "jiang2016doubly"),
    "GradientDICE": ("zhang2020gradientdice",),
    "ImportanceSampling": ("precup2000eligibility",),
    "IncrementalIS": ("guo2017using", "su2020adaptive"),
    "KernelIS": ("kallus2018policy", "calonico2018effect"),
    "LSTD": ("bradtke1996linear", "yu2010convergence"),
    "LepskiEstimator": ("su2020adaptive", "lepski1997optimal", "mehrabi2024weak"),
    "LinearGaussianModel": ("bradtke1993reinforcement",),
    "LSTDQ": ("lagoudakis2003least", "munos2016safe", "precup2000eligibility", "harutyunyan2016qlambda"),
    "MAGIC": ("thomas2016data",),
    "MarginalizedIS": ("uehara2020minimax", "xie2019towards"),
    "MinimaxQLearning": ("uehara2020minimax",),
    "MinimaxWeightLearning": ("uehara2020minimax",),
    "ModelBased": ("mannor2007bias", "jiang2016doubly"),
    "ModelEnsemble": ("chua2018deep", "zhang2021autoregressive", "seitzer2022pitfalls"),
    "NeuralFittedQEvaluation": ("kallus2020double", "hao2021bootstrapping", "yue2023understanding"),
    "PerDecisionIS": ("precup2000eligibility",),
    "StackedQ": ("lagoudakis2003least", "breiman1996stacked"),
    "StateMarginalIS": ("liu2018breaking", "xie2019towards"),
    "TrajectoryIS": ("precup2000eligibility",),
    "WeightedIS": ("precup2000eligibility",),
}
INTERVALS: Mapping[str, tuple[str, ...]] = {
    "AdjustedT": ("johnson1978modified", "hampel1974influence"),
    "Anderson": ("anderson1969confidence", "massart1990tight"),
    "Auto": (),  # the method that it picks is cited
    "BayesianBootstrap": ("rubin1981bayesian",),
    "Betting": ("waudbysmith2024estimating",),
    "BettingSequence": ("waudbysmith2024estimating",),
    "Bootstrap": ("efron1987better", "hesterberg2015teachers"),
    "EmpiricalBernstein": ("maurer2009empirical",),
    "EmpiricalBernsteinSequence": ("waudbysmith2024estimating",),
    "EmpiricalLikelihood": ("owen1990empirical", "diciccio1991empirical"),
    "Hoeffding": ("hoeffding1963probability",),
    "Normal": ("hampel1974influence",),
    "ReflectedBetting": ("waudbysmith2024estimating", "waudbysmith2024anytime"),
    "StudentizedBootstrap": ("efron1993introduction",),
    "TruncatedBound": ("thomas2015high",),
}
STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "simultaneous": ("chernozhukov2013gaussian", "hothorn2008simultaneous"),
    "holm": ("holm1979simple", "strassburger2008compatible"),
    "max_t": ("chernozhukov2013gaussian", "hothorn2008simultaneous"),
    "romano_wolf": ("romano2005exact",),
    "best_set": ("hsu1984constrained",),
    "ranks": ("mogstad2024inference",),
    "winners_curse": ("andrews2024inference",),
    "pareto_k": ("vehtari2024pareto",),
    "return_distribution": ("chandak2021universal",),
}
CITED = {**ESTIMATORS, **INTERVALS, **STATEMENTS}
# Accents that occur in references.bib.
PLAIN = {r"{\'e}": "é", r"{\'a}": "á", r"$\lambda$": "λ", "--": "–"}


@dataclass(frozen=True, slots=True)
class Reference:
    """A work that is cited.

    Parameters
    ----------
    key : str
    bibtex : str
        The whole entry.
    fields : mapping of str to str
    """

    key: str
    bibtex: str
    fields: Mapping[str, str]

    @property
    def link(self) -> str | None:
        """Address of the DOI or arXiv entry, where there is one."""
        if "doi" in self.fields:
            return f"https://doi.org/{self.fields['doi']}"
        return f"https://arxiv.org/abs/{self.fields['eprint']}" if "eprint" in self.fields else None

    def __str__(self) -> str:
        names = [_person(name) for name in self.fields["author"].split(" and ")]
        author = ", ".join(names) if len(names) <= 3 else f"{names[0]} et al."
        places = ("journal", "booktitle", "publisher", "institution")
        place = next((self.fields[key] for key in places if key in self.fields), "arXiv")
        volume = f" {self.fields['volume']}" if "volume" in self.fields else ""
        return _plain(f"{author} ({self.fields['year']}). {self.fields['title']}. {place}{volume}.")


def citation(*used: Any) -> str:
    r"""Return the BibTeX entries of the methods that were used, each once.

    Parameters
    ----------
    *used : object, class or str
        Estimators (with those nested in them), estimates, interval methods, a fitted `PolicySelector`, or names: those of
        classes, of interval methods, or one of the statements about many values, e.g. "holm" or "best_set".

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If a name is unknown.

    Examples
    --------
    >>> from ope.estimators import PerDecisionIS
    >>> print(citation(PerDecisionIS(gamma=1.0)).splitlines()[0])
    @inproceedings{precup2000eligibility,
    >>> citation("WeightedIS", "Normal").count("\n@")
    1
    """
    return "\n\n".join(reference.bibtex for reference in references(*used))


def is_cited(name: str) -> bool:
    """Return whether `citation` knows this name.

    Examples
    --------
    >>> is_cited("bca"), is_cited("Wizardry")
    (True, False)
    """
    return name == "none" or name in CITED or _method_class(name) in CITED


def references(*used: Any) -> list[Reference]:
    """Return the works behind the methods that were used, each once, in the order of use.

    Parameters
    ----------
    *used : object, class or str
        As for `citation`.

    Examples
    --------
    >>> print(references("holm")[0])
    Holm (1979). A Simple Sequentially Rejective Multiple Test Procedure. Scandinavian Journal of Statistics 6.
    """
    names = dict.fromkeys(name for thing in used for name in _names(thing))
    keys = dict.fromkeys(key for name in names for key in _keys(name))
    return [library()[key] for key in keys]


@cache
def library() -> Mapping[str, Reference]:
    """Return all entries of ``references.bib`` by key."""
    text = files("ope").joinpath("references.bib").read_text(encoding="utf-8")
    entries = (_parse(entry.strip()) for entry in re.split(r"^(?=@)", text, flags=re.MULTILINE) if entry.strip())
    return {entry.key: entry for entry in entries}


def _parse(bibtex: str) -> Reference:
    head = re.match(r"@\w+\{(\w+),\n", bibtex)
    assert head is not None, bibtex
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", bibtex, flags=re.MULTILINE))
    return Reference(head[1], bibtex, fields)


def _names(thing: Any) -> Iterator[str]:
    if isinstance(thing, str):
        yield thing
    elif isinstance(thing, type):
        yield from _class_name(thing)
    elif hasattr(thing, "primary_"):
        yield from _selector_names(thing)
    elif hasattr(thing, "influence") and hasattr(thing, "estimator"):
        yield thing.estimator
    elif isinstance(thing, Mapping):
        yield from (name for item in thing.values() for name in _names(item))
    else:
        yield from _class_name(type(thing))
        yield from _nested(thing)


def _class_name(cls: type) -> Iterator[str]:
    # A user's own subclass rests on what it extends.
    found = next((parent.__name__ for parent in cls.__mro__ if parent.__name__ in CITED), None)
    yield found or cls.__name__


def _nested(thing: Any) -> Iterator[str]:
    if not hasattr(thing, "get_params"):
        return
    for value in thing.get_params(deep=False).values():
        if not isinstance(value, type) and any(parent.__name__ in ESTIMATORS for parent in type(value).__mro__):
            yield from _names(value)


def _selector_names(selector: Any) -> Iterator[str]:
    for estimator in selector.settings_.estimators.values():
        yield from _names(estimator)
    if selector.primary_ is not None:
        yield from ("simultaneous", selector.settings_.gate_adjust, "best_set", "ranks", "winners_curse")


def _keys(name: str) -> Iterable[str]:
    if name == "none":
        return ()
    if name in CITED:
        return CITED[name]
    if (method := _method_class(name)) in CITED:
        return CITED[method]
    raise ValueError(
        f"{OWNER}: `used` must be methods of this library, or their names, got {name!r}; see ope.estimators, ope.inference, or one of "
        f"{', '.join(STATEMENTS)}."
    )


def _method_class(name: str) -> str:
    from ope.inference import resolve_method

    try:
        # "auto: bca" is what an interval says that `Auto` picked.
        return type(resolve_method(name.removeprefix("auto: "))).__name__
    except ValueError:  # those that need a range have no object of this name
        return name.title().replace("_", "")


def _person(name: str) -> str:
    return name.split(",")[0]


def _plain(text: str) -> str:
    for tex, plain in PLAIN.items():
        text = text.replace(tex, plain)
    return text.replace("{", "").replace("}", "")

"""`select_checkpoint`: choose among the policies that one training run passed through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ope.dataset import LoggedDataset, check_log
from ope.display import Markup, html_table, tag
from ope.estimate import estimate_row
from ope.estimator import OTHER_IDS, OffPolicyEstimator
from ope.policy import Policy, PolicyLearner, overlap
from ope.search.training import named_estimators, new_selector, stages
from ope.selection import PolicySelector

OWNER = "select_checkpoint"
SHOWN = ("n_updates", "estimator", "value", "std_error", "low", "high", "lower_bound", "verdict")


@dataclass(frozen=True, eq=False, repr=False)
class CheckpointSelection:
    """What `select_checkpoint` found.

    Attributes
    ----------
    selection_ : PolicySelector
        Fitted, with the checkpoints as candidates: gates, simultaneous bounds, the set of the best, the report.
    checkpoints_ : dict of int to Policy
        Every policy valued, by the updates behind it.
    curve_ : DataFrame
        The learning curve, ready to plot: a row per checkpoint and estimator, with value, standard error, interval, lower
        bound and verdict.
    best_n_updates_ : int or None
        Updates behind the chosen checkpoint.

    Examples
    --------
    See `select_checkpoint`.
    """

    selection_: PolicySelector
    checkpoints_: dict[int, Policy]
    curve_: pd.DataFrame
    best_n_updates_: int | None

    @property
    def best_policy_(self) -> Policy | None:
        """The chosen checkpoint."""
        return None if self.best_n_updates_ is None else self.checkpoints_[self.best_n_updates_]

    @property
    def decision_(self) -> str:
        """The choice and its reason, in words."""
        if self.best_n_updates_ is None:
            return self.selection_._no_choice("selection_.results_")
        return str(self.selection_.decision_)

    def summary(self) -> str:
        """Return the decision and the learning curve as text."""
        table = self.curve_[[*SHOWN]].to_string(index=False, float_format=lambda value: f"{value:.4g}")
        return f"{self.decision_}\n\n{table}"

    def __repr__(self) -> str:
        return f"CheckpointSelection({len(self.checkpoints_)} checkpoints, best: {self.best_n_updates_})"

    def _repr_html_(self) -> str:
        rows = self.curve_[[*SHOWN]].itertuples(index=False)
        return Markup(tag("p", self.decision_) + html_table(SHOWN, rows))


def select_checkpoint(
    learner: PolicyLearner,
    data: LoggedDataset,
    estimators: Sequence[OffPolicyEstimator] | Mapping[str, OffPolicyEstimator],
    *,
    criterion: str = "lower_bound",
    selection: Mapping[str, Any] | None = None,
    n_jobs: int | None = None,
    progress: bool = False,
) -> CheckpointSelection:
    """Value all checkpoints of a fitted learner on episodes it has not seen, and choose one.

    Parameters
    ----------
    learner : PolicyLearner
        Fitted, with `checkpoints_`; its last policy is one of the candidates.
    data : LoggedDataset
        Episodes that the learner was not fitted to.
    estimators : sequence or mapping of OffPolicyEstimator
        As in `PolicySelector`.
    criterion : str
        As in `PolicySelector`.
    selection : mapping, optional
        More parameters of `PolicySelector`: baseline, margin, level, ...
    n_jobs : int or None
        Estimators fitted side by side.
    progress : bool
        Show a bar.

    Returns
    -------
    CheckpointSelection

    Raises
    ------
    ValueError, TypeError
        If the learner has no checkpoints, or has seen these episodes (unless `selection` says ``allow_overlap=True``).

    Notes
    -----
    Checkpoints of one run are alike, so that their paired differences are known much better than their values. The value
    of the chosen one is over-estimated by the choice; `selection_` corrects it where the selector does.

    Examples
    --------
    >>> import numpy as np
    >>> from ope.estimators import WeightedIS
    >>> from ope.policies import BCQ
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((400, 1)), [0, 1] * 200, [0.0, 1.0] * 200, lengths=[1] * 400, ends="terminal", behavior_prob=[0.5] * 400
    ... )
    >>> train, test = log.split(test_size=0.5, random_state=0)
    >>> learner = BCQ(hidden=(4,), n_updates=60, learning_rate=0.01, checkpoints=3, random_state=0).fit(train)
    >>> found = select_checkpoint(learner, test, [WeightedIS(gamma=1.0)])
    >>> list(found.checkpoints_), found.curve_["estimator"].unique().tolist()
    ([20, 40, 60], ['WeightedIS'])
    """
    check_log(OWNER, data)
    named = named_estimators(OWNER, estimators)
    checkpoints = _checkpoints(learner)
    names = {_name(n_updates): n_updates for n_updates in checkpoints}
    taken = ("estimators", "criterion", "n_jobs", "progress")
    selector = new_selector(OWNER, named, data, criterion, selection, list(names), taken)
    _check_overlap(learner, data, selector.allow_overlap)
    selector.set_params(n_jobs=n_jobs, progress=progress).fit(
        data, {name: checkpoints[n_updates] for name, n_updates in names.items()}
    )
    best = selector.best_name_
    return CheckpointSelection(
        selection_=selector,
        checkpoints_=checkpoints,
        curve_=_curve(selector, names),
        best_n_updates_=None if best is None else names[best],
    )


def _name(n_updates: int) -> str:
    return f"update {n_updates}"


def _curve(selector: PolicySelector, names: Mapping[str, int]) -> pd.DataFrame:
    rows = [
        {"n_updates": names[name], "estimator": key, **estimate_row(estimate, selector.level)}
        for key, estimates in selector.estimates_.items()
        for name, estimate in estimates.items()
        if name in names
    ]
    return pd.DataFrame(rows)


def _checkpoints(learner: Any) -> dict[int, Policy]:
    if not isinstance(learner, PolicyLearner):
        raise TypeError(
            f"{OWNER}: `learner` must be a fitted PolicyLearner, got {type(learner).__name__}; choose among other policies "
            "with PolicySelector."
        )
    if not getattr(learner, "checkpoints_", None):
        raise ValueError(
            f"{OWNER}: `learner` must have kept checkpoints, got none; set its checkpoints= to how many to keep, e.g. 10, and "
            "call fit; a saved file keeps none."
        )
    return {int(n_updates): policy for n_updates, policy in stages(learner).items() if n_updates is not None}


def _check_overlap(learner: PolicyLearner, data: LoggedDataset, allowed: bool) -> None:
    shared = overlap(learner, data)
    if shared and not allowed:
        raise ValueError(
            f"{OWNER}: `data` must hold episodes that the learner has not seen, got {shared} of {data.n_episodes} from its "
            "training: their luck would choose the checkpoint. Split the log with data.split, or use PolicySearch, which "
            f"splits it itself{OTHER_IDS}."
        )

"""Pictures of results, as functions that return matplotlib axes. They need the `plot` extra: ``pip install 'ope-learn[plot]'``.

Without `ax=` a function makes a new pyplot figure of one column's width, as scikit-learn's displays do, so that notebooks and
``plt.show()`` show it; with `ax=` it draws there and touches no other state. `plot_history` makes a panel for each quantity, in a
wider figure or in the place of `ax`. Colours are those of Okabe and Ito; verdicts
differ in colour and marker.
"""

from ope.plotting._axes import require_matplotlib as require_matplotlib
from ope.plotting.comparison import plot_differences
from ope.plotting.history import plot_history
from ope.plotting.paths import plot_sensitivity
from ope.plotting.returns import plot_returns
from ope.plotting.values import plot_agreement, plot_estimates
from ope.plotting.weights import plot_calibration, plot_ess, plot_weights

__all__ = [
    "plot_agreement",
    "plot_calibration",
    "plot_differences",
    "plot_ess",
    "plot_estimates",
    "plot_history",
    "plot_returns",
    "plot_sensitivity",
    "plot_weights",
]

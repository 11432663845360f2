"""The command line's arguments. Nothing heavy is imported here, so that help and mistakes are answered at once."""

from __future__ import annotations

import argparse

from ope import __version__

EXIT_CODES = "Exit code: 0 a candidate was chosen, 1 none could be, 2 wrong arguments or data."

EVALUATE = """\
Value candidate policies from a log and choose one.

LOG is a Parquet file (or a folder of them) or a CSV file with a row per step. A candidate is NAME=SOURCE, where
SOURCE is a policy file written by `save` (policy.safetensors), a column that holds the candidate's probability of the
logged action, or columns with the probability of every action, separated by commas, in the order of the sorted labels.
"""

ESTIMATORS_HELP = (
    "estimators of ope.estimators, with settings where wanted, e.g. WeightedIS 'DoublyRobust(weighted=True)'; put first "
    "the one you trust most (default: WeightedIS DoublyRobust LSTDQ; without propensities LSTDQ alone)"
)

BASELINE_HELP = "what must be beaten: logged (the policy that made the log), a candidate, or none (default: logged)"


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m ope``; the namespace that it gives has a `command`."""
    top = argparse.ArgumentParser(prog="ope", description="Off-policy evaluation and offline policy selection.")
    top.add_argument("--version", action="version", version=f"ope {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="{demo,evaluate}")
    _demo(commands.add_parser("demo", help="choose a policy from a log, then check the choice against the truth"))
    evaluate = commands.add_parser(
        "evaluate",
        help="value candidate policies from a log and choose one",
        description=EVALUATE,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _log(evaluate.add_argument_group("the log"))
    _propensities(evaluate.add_argument_group("propensities of the logged actions").add_mutually_exclusive_group())
    _ends(evaluate.add_argument_group("how episodes end"))
    _question(evaluate.add_argument_group("the question"))
    _output(evaluate.add_argument_group("output"))
    return top


def _demo(demo: argparse.ArgumentParser) -> None:
    demo.add_argument("--fast", action="store_true", help="a smaller log and shorter training")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random (default: 0)")
    demo.add_argument("--output", metavar="DIR", help="keep log, policies and results in this folder")
    _traceback(demo)


def _log(group: argparse._ArgumentGroup) -> None:
    group.add_argument("log", metavar="LOG", help="file of the log: .parquet, .csv, .csv.gz")
    group.add_argument("--episode", required=True, metavar="COL", help="identifier of the episode")
    group.add_argument("--time", required=True, metavar="COL", help="time within the episode")
    group.add_argument("--states", required=True, nargs="+", metavar="COL", help="state before the action")
    group.add_argument("--action", required=True, nargs="+", metavar="COL", help="action; several if continuous")
    group.add_argument("--reward", required=True, metavar="COL")
    group.add_argument("--actions", nargs="+", metavar="LABEL", help="all actions, if some were never logged")
    group.add_argument("--action-mask", nargs="+", metavar="COL", help="whether each action was available")


def _propensities(group: argparse._MutuallyExclusiveGroup) -> None:
    group.add_argument("--behavior-prob", metavar="COL", help="probability (density) of the logged action")
    group.add_argument("--behavior-log-prob", metavar="COL", help="its logarithm")
    group.add_argument("--estimate-behavior", action="store_true", help="estimate it by logistic (linear) regression")


def _ends(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--terminated", metavar="COL", help="true in the last row of episodes that ended for good")
    group.add_argument("--truncated", metavar="COL", help="true in the last row of episodes whose recording stopped")
    group.add_argument("--next-states", nargs="+", metavar="COL", help="state after the step")
    group.add_argument("--final-row", choices=("state_only", "drop"), help="what the last row of an episode holds")
    group.add_argument("--horizon", type=int, metavar="N", help="steps of the problem, if no episode reached them")


def _question(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--gamma", required=True, type=float, metavar="G", help="discount factor in [0, 1]")
    group.add_argument("--candidate", required=True, action="append", metavar="NAME=SOURCE", help="repeatable")
    group.add_argument("--estimators", nargs="+", metavar="E", help=ESTIMATORS_HELP)
    group.add_argument("--criterion", choices=("lower_bound", "simultaneous", "value"), default="lower_bound")
    group.add_argument("--baseline", default="logged", metavar="NAME", help=BASELINE_HELP)
    group.add_argument("--margin", type=float, default=0.0, metavar="X", help="how much worse it may be (default: 0)")
    group.add_argument("--level", type=float, default=0.95, metavar="P", help="confidence level (default: 0.95)")
    group.add_argument("--reward-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="bounds of any reward")
    group.add_argument("--allow-overlap", action="store_true", help="value candidates that learned from this log")


def _output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output", metavar="FILE", help="write the results, with all diagnostics, as .csv or .parquet")
    group.add_argument("--report", metavar="FILE", help="write a report for people as one .html file")
    group.add_argument("--jobs", type=processes, metavar="N", help="processes (default: 1)")
    _traceback(group)


def processes(text: str) -> int:
    """Return a number of processes, or raise an error of argparse.

    Examples
    --------
    >>> processes("2")
    2
    """
    number = int(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be at least 1, or -1 for all cores, got 0")
    return number


def _traceback(group: argparse._ActionsContainer) -> None:
    group.add_argument("--traceback", action="store_true", help="show where in the code an error came from")

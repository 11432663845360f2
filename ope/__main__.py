"""The command line: ``python -m ope``, or ``ope`` where it is installed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ope.cli.arguments import parser

INTERRUPTED = 130
MISTAKE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Default: the arguments of the process.
    """
    arguments = parser().parse_args(argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, e.g. `head`, has gone; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return MISTAKE
    except (ValueError, TypeError, OSError, ImportError) as error:
        if arguments.traceback:
            raise
        print(f"ope {arguments.command}: error: {error}", file=sys.stderr)
        return MISTAKE


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "demo":
        from ope.cli.demo import demo

        return demo(arguments)
    from ope.cli.evaluate import evaluate

    return evaluate(arguments)


if __name__ == "__main__":
    sys.exit(main())

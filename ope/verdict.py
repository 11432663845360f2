"""`Verdict`: whether a number can be used, and the sentences that say why not. Built by estimators, shown with every interval."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Level(enum.IntEnum):
    """How far a number can be trusted.

    Examples
    --------
    >>> max(Level.VALID, Level.CAUTION).name
    'CAUTION'
    """

    VALID = 0
    CAUTION = 1
    REFUSE = 2


@dataclass(frozen=True)
class Verdict:
    """A level and its reasons.

    Parameters
    ----------
    level : Level
    reasons : tuple of str
        Each a sentence: what is wrong, what it means for the number, what to do.

    Examples
    --------
    >>> verdict = Verdict.of([(Level.CAUTION, "Few episodes carry the estimate.")])
    >>> verdict.level.name, verdict.reasons
    ('CAUTION', ('Few episodes carry the estimate.',))
    >>> print(Verdict())
    VALID
    """

    level: Level = Level.VALID
    reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, findings: Iterable[tuple[Level, str] | None]) -> Verdict:
        """Combine findings: the worst level, and every reason, the worst first. None stands for nothing found."""
        found = sorted((finding for finding in findings if finding is not None), key=lambda finding: -finding[0])
        reasons = tuple(dict.fromkeys(reason for _, reason in found))
        return cls(max((level for level, _ in found), default=Level.VALID), reasons)

    @classmethod
    def worst(cls, verdicts: Iterable[Verdict]) -> Verdict:
        """Combine verdicts: the worst level and all reasons."""
        ordered = sorted(verdicts, key=lambda verdict: -verdict.level)
        reasons = tuple(dict.fromkeys(reason for verdict in ordered for reason in verdict.reasons))
        return cls(ordered[0].level if ordered else Level.VALID, reasons)

    def __str__(self) -> str:
        return "\n".join([self.level.name, *(f"- {reason}" for reason in self.reasons)])

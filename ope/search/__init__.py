"""Choosing learners, their settings and their checkpoints by off-policy evaluation on episodes they have not seen."""

from ope.search.checkpoints import CheckpointSelection, select_checkpoint
from ope.search.cross_fit import CrossFitSelection, cross_fit_select
from ope.search.policy_search import PolicySearch

__all__ = ["CheckpointSelection", "CrossFitSelection", "PolicySearch", "cross_fit_select", "select_checkpoint"]

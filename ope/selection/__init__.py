"""`PolicySelector`: values candidates with several estimators and names the one to deploy, or says why none."""

from ope.selection.selector import PolicySelector

__all__ = ["PolicySelector"]

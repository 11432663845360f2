"""How far an answer moves when what was assumed moves: clipping, gamma, the horizon, unobserved confounding."""

from ope.sensitivity.confounding import confounding_path
from ope.sensitivity.path import SensitivityPath
from ope.sensitivity.refits import clip_path, gamma_path, horizon_path

__all__ = ["SensitivityPath", "clip_path", "confounding_path", "gamma_path", "horizon_path"]

"""Logs and true values from Gymnasium environments with discrete actions, many episodes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ope.dataset import LoggedDataset
from ope.policies.discrete import draw
from ope.policy import Policy, RandomState, generator
from ope.problems.base import Tape
from ope.schema import ColumnNames, End
from ope.validation import BoolArray, FloatArray

REMEDY = 'install it with: pip install "ope-learn[demo]"'

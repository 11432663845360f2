"""Pieces that the losses of several learners share."""

from __future__ import annotations

import math

import torch


def masked_log_softmax(logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return log probabilities over the last axis; masked actions get -inf.

    Parameters
    ----------
    logits : Tensor of shape (..., n_actions)
    mask : Tensor of shape (..., n_actions), bool, or None
        Available actions, one at least in every row.

    Returns
    -------
    Tensor of shape (..., n_actions)

    Examples
    --------
    >>> masked_log_softmax(torch.zeros(3), torch.tensor([True, True, False])).exp()
    tensor([0.5000, 0.5000, 0.0000])
    """
    return torch.log_softmax(logits if mask is None else logits.masked_fill(~mask, -math.inf), dim=-1)

"""Distances between the action distributions of two policies, estimated from samples of both."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# What None stands for as the width of a kernel.
SIGMAS = {"laplacian": 10.0, "gaussian": 20.0}


@dataclass(frozen=True)
class Kernel:
    """k(x, y) = exp(-|x - y|_1 / (2 sigma)), or exp(-|x - y|_2^2 / (2 sigma)) of the Gaussian kernel.

    Parameters
    ----------
    name : {"laplacian", "gaussian"}
    sigma : float

    Examples
    --------
    >>> x, y = torch.zeros(2), torch.ones(2)
    >>> Kernel("laplacian", 1.0)(x, y), Kernel("gaussian", 2.0)(x, 2 * y)
    (tensor(0.3679), tensor(0.1353))
    """

    name: str
    sigma: float

    @classmethod
    def of(cls, name: str, sigma: float | None) -> Kernel:
        """Return a kernel; the width None is 10 for the Laplacian, 20 for the Gaussian one."""
        return cls(name, SIGMAS[name] if sigma is None else float(sigma))

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Evaluate on points (..., k) and (..., k) that broadcast."""
        difference = x - y
        distance = difference.abs() if self.name == "laplacian" else difference.square()
        return torch.exp(distance.sum(dim=-1) / (-2.0 * self.sigma))


def squared_mmd(x: torch.Tensor, y: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """Return mean k(x, x') - 2 mean k(x, y) + mean k(y, y'), each sample paired with itself too: never negative.

    Parameters
    ----------
    x : Tensor of shape (K, n, B, k)
        n samples in each of B states.
    y : Tensor of shape (K, m, B, k)
    kernel : Kernel

    Returns
    -------
    Tensor of shape (K, B)

    Examples
    --------
    >>> x, y = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    >>> squared_mmd(x, y, Kernel("laplacian", 1.0))
    tensor([[1.2642]])
    """

    def mean(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return kernel(one.unsqueeze(2), other.unsqueeze(1)).mean(dim=(1, 2))

    return mean(x, x) - 2.0 * mean(x, y) + mean(y, y)

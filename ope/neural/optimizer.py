"""Adam on flat parameters: one fused kernel for all layers of all models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.optim.adamw import adamw

from ope.neural.networks import FlatParameters
from ope.neural.perceptron import gradients_written_to

FUSED_DEVICES = ("cpu", "cuda")
# Where steps may be captured in graphs, and the learning rate lies in memory that a graph reads.
CAPTURED_DEVICES = ("cuda",)
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class _Group:
    """Models of equal settings: views of their parameters, gradients and moments, a tensor a network."""

    rows: slice
    parameters: list[torch.Tensor]
    gradients: list[torch.Tensor]
    exp_avg: list[torch.Tensor]
    exp_avg_sq: list[torch.Tensor]
    steps: list[torch.Tensor]
    first_rate: float
    rate: float | torch.Tensor
    decay: float


class FlatAdam:
    """Adam with decoupled weight decay (AdamW), whose settings may differ between models.

    Parameters
    ----------
    parameters : sequence of FlatParameters
        Of one or several networks of the same K models.
    learning_rate, weight_decay : sequence of K floats
    epsilon : float

    Notes
    -----
    Models with equal settings are one tensor to torch, others a parameter group each. Weight decay 0 is plain Adam
    (Kingma & Ba, 2015); decoupled decay is Loshchilov & Hutter, 2019.

    Examples
    --------
    >>> parameters = FlatParameters({"weight": (2, 2)}, n_models=2)
    >>> optimizer = FlatAdam([parameters], [0.1, 0.2], [0.0, 0.0])
    >>> optimizer.minimize(parameters.views["weight"].sum())
    >>> [round(float(value), 3) for value in parameters.flat[:, 0]]
    [-0.1, -0.2]
    """

    def __init__(
        self,
        parameters: Sequence[FlatParameters],
        learning_rate: Sequence[float],
        weight_decay: Sequence[float],
        epsilon: float = 1e-8,
    ) -> None:
        self._wanted = [view for block in parameters for view in block.views.values()]
        self._gradients = [torch.zeros_like(block.flat) for block in parameters]
        self._targets = [
            view for block, flat in zip(parameters, self._gradients, strict=True) for view in block.split(flat).values()
        ]
        self._places = {view.data_ptr(): target for view, target in zip(self._wanted, self._targets, strict=True)}
        self._moments = {name: [torch.zeros_like(block.flat) for block in parameters] for name in MOMENTS}
        settings = list(zip(learning_rate, weight_decay, strict=True))
        equal = len(set(settings)) == 1
        rows = [slice(None)] if equal else [slice(k, k + 1) for k in range(len(settings))]
        flats = [block.flat.detach() for block in parameters]
        self._groups = [self._group(flats, row, *pair) for row, pair in zip(rows, settings, strict=False)]
        self._epsilon, device_type = epsilon, flats[0].device.type
        self._fused, self._capturable = device_type in FUSED_DEVICES, device_type in CAPTURED_DEVICES

    def _group(self, flats: Sequence[torch.Tensor], rows: slice, rate: float, decay: float) -> _Group:
        device = flats[0].device
        exp_avg, exp_avg_sq = ([flat[rows] for flat in self._moments[name]] for name in MOMENTS)
        return _Group(
            rows=rows,
            parameters=[flat[rows] for flat in flats],
            gradients=[flat[rows] for flat in self._gradients],
            exp_avg=exp_avg,
            exp_avg_sq=exp_avg_sq,
            steps=[torch.zeros((), dtype=torch.float32, device=flat.device) for flat in flats],
            first_rate=rate,
            rate=torch.full((), rate, device=device) if device.type in CAPTURED_DEVICES else rate,
            decay=decay,
        )

    def minimize(self, loss: torch.Tensor) -> None:
        """Take one step down the gradient of a scalar; no other parameters than these are differentiated.

        The gradient of a sum of K losses, each of its own model, is the K gradients.
        """
        with gradients_written_to(self._places):
            found: Sequence[torch.Tensor | None] = torch.autograd.grad(loss, self._wanted, allow_unused=True)
        for target, gradient in zip(self._targets, found, strict=True):
            if gradient is None:
                target.zero_()
            elif gradient.data_ptr() != target.data_ptr():
                target.copy_(gradient)
        self.step()

    @property
    def gradients(self) -> list[torch.Tensor]:
        """The gradient of each network, (K, P), for those who write it themselves and call `step`."""
        return self._gradients

    def step(self) -> None:
        """Take one step down what is in `gradients`."""
        for group in self._groups:
            adamw(
                group.parameters,
                group.gradients,
                group.exp_avg,
                group.exp_avg_sq,
                max_exp_avg_sqs=[],
                state_steps=group.steps,
                fused=self._fused,
                capturable=self._capturable,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=group.rate,
                weight_decay=group.decay,
                eps=self._epsilon,
                maximize=False,
            )

    def scale_rate(self, factor: float) -> None:
        """Set every learning rate to `factor` times what it was at the start."""
        for group in self._groups:
            if isinstance(group.rate, torch.Tensor):
                group.rate.fill_(factor * group.first_rate)
            else:
                group.rate = factor * group.first_rate

    def state(self) -> dict[str, torch.Tensor]:
        """Return moments and step counts of each network, with a leading model axis."""
        result: dict[str, torch.Tensor] = {}
        for i, flat in enumerate(self._gradients):
            result |= {f"{i}/{name}": moments[i].clone() for name, moments in self._moments.items()}
            counts = [group.steps[i].expand(len(flat[group.rows])) for group in self._groups]
            result[f"{i}/step"] = torch.cat(counts)
        return result

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from what `state` returned."""
        for i, flat in enumerate(self._gradients):
            # Members of an ensemble lie within the row of their model there, in rows of their own here.
            for name, moments in self._moments.items():
                moments[i].copy_(state[f"{i}/{name}"].reshape(flat.shape))
            counts = state[f"{i}/step"].reshape(-1)
            for group in self._groups:
                group.steps[i].fill_(float(counts[group.rows][0]))

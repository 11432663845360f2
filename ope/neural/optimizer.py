"""Adam on flat parameters: one fused kernel for all layers of all models."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ope.neural.networks import FlatParameters

FUSED_DEVICES = ("cpu", "cuda")
MOMENTS = ("exp_avg", "exp_avg_sq")


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
        settings = list(zip(learning_rate, weight_decay, strict=True))
        rows = [slice(None)] if len(set(settings)) == 1 else [slice(k, k + 1) for k in range(len(settings))]
        # A leaf is what torch sees of one network: all models, or one where their settings differ.
        self._leaves = [[self._leaf(block.flat, i, row) for row in rows] for i, block in enumerate(parameters)]
        groups = [
            {"params": list(leaves), "lr": lr, "weight_decay": decay}
            for leaves, (lr, decay) in zip(zip(*self._leaves, strict=True), settings, strict=False)
        ]
        self._adam = torch.optim.AdamW(groups, eps=epsilon, fused=parameters[0].flat.device.type in FUSED_DEVICES)
        self._rates = [rate for rate, _ in settings[: len(groups)]]
        for leaf in (leaf for leaves in self._leaves for leaf in leaves):
            step = torch.zeros((), dtype=torch.float32, device=leaf.device)
            self._adam.state[leaf] = {"step": step, **{name: torch.zeros_like(leaf) for name in MOMENTS}}

    def _leaf(self, flat: torch.Tensor, network: int, row: slice) -> torch.Tensor:
        leaf = flat[row].detach()
        leaf.grad = self._gradients[network][row]
        return leaf

    def minimize(self, loss: torch.Tensor) -> None:
        """Take one step down the gradient of a scalar; no other parameters than these are differentiated.

        The gradient of a sum of K losses, each of its own model, is the K gradients.
        """
        found: Sequence[torch.Tensor | None] = torch.autograd.grad(loss, self._wanted, allow_unused=True)
        for target, gradient in zip(self._targets, found, strict=True):
            if gradient is None:
                target.zero_()
            else:
                target.copy_(gradient)
        self._adam.step()

    @property
    def gradients(self) -> list[torch.Tensor]:
        """The gradient of each network, (K, P), for those who write it themselves and call `step`."""
        return self._gradients

    def step(self) -> None:
        """Take one step down what is in `gradients`."""
        self._adam.step()

    def scale_rate(self, factor: float) -> None:
        """Set every learning rate to `factor` times what it was at the start."""
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate

    def state(self) -> dict[str, torch.Tensor]:
        """Return moments and step counts of each network, with a leading model axis."""
        result: dict[str, torch.Tensor] = {}
        for i, leaves in enumerate(self._leaves):
            states = [self._adam.state[leaf] for leaf in leaves]
            result |= {f"{i}/{name}": torch.cat([state[name] for state in states]) for name in MOMENTS}
            counts = [state["step"].expand(len(leaf)) for leaf, state in zip(leaves, states, strict=True)]
            result[f"{i}/step"] = torch.cat(counts)
        return result

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from what `state` returned."""
        for i, leaves in enumerate(self._leaves):
            row = 0
            # Members of an ensemble lie within the row of their model there, in rows of their own here.
            counts = state[f"{i}/step"].reshape(-1)
            moments = {name: state[f"{i}/{name}"].reshape(len(counts), -1) for name in MOMENTS}
            for leaf in leaves:
                for name, values in moments.items():
                    self._adam.state[leaf][name].copy_(values[row : row + len(leaf)])
                self._adam.state[leaf]["step"].fill_(float(counts[row]))
                row += len(leaf)

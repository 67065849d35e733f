"""Optimizers of end-to-end training: orthogonalized momentum for weights, Adam for everything else.

Orthogonalized momentum is Muon (Jordan et al. 2024; Liu et al., *Muon is Scalable for LLM Training*, 2025):
the momentum of a weight matrix is replaced by the nearest orthogonal matrix, so that all its directions move
equally. ``torch.optim.Muon`` takes matrices only, and computes in bfloat16, which most processors emulate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MATRICES = "matrices"  # key of a parameter group: number of matrices, one for each channel group of a layer
ADAM_SHARE = 0.25  # usual root mean square of Adam's steps, as a share of the learning rate
MOMENTUM = 0.9
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the iteration, of the Muon reference
ITERATIONS = 5
TINY = 1e-12


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return nearly orthogonal matrices with the singular vectors of the given ones.

    Args:
        matrices: ``[b, n, m]``.

    Returns:
        Matrices ``[b, n, m]`` whose singular values are between about 0.7 and 1.2; zero stays zero.
    """
    first, second, third = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp_min(TINY)[:, None, None]
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = first * x + (second * gram + third * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class OrthogonalMomentum(torch.optim.Optimizer):
    """Steps along the orthogonalized momentum, with the root mean square that Adam's steps usually have."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        """Prepare the optimizer.

        Args:
            groups: parameter groups with ``params``, ``lr`` and ``matrices``. A parameter ``[o, ...]`` is
                read as that number of matrices ``[o / matrices, i]``.
        """
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; there is no closure."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                ahead = momentum.lerp(parameter.grad, 1 - MOMENTUM)  # Nesterov's
                direction = orthogonalized(
                    ahead.reshape(group[MATRICES], len(parameter) // group[MATRICES], -1)
                )
                size = direction.norm().clamp_min(TINY) / math.sqrt(direction.numel())
                parameter.sub_(direction.reshape(parameter.shape) * (ADAM_SHARE * group["lr"] / size))


class TrainingOptimizer:
    """Both optimizers as one."""

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        """Prepare the optimizers.

        Args:
            groups: parameter groups with ``params`` and ``full_rate``. Those with ``matrices`` get
                orthogonalized momentum.
        """
        groups = [{**group, "lr": group["full_rate"]} for group in groups]
        matrices = [group for group in groups if MATRICES in group]
        others = [group for group in groups if MATRICES not in group]
        self._all: list[torch.optim.Optimizer] = []
        if matrices:
            self._all.append(OrthogonalMomentum(matrices))
        if others:
            self._all.append(torch.optim.Adam(others, betas=(0.9, 0.99)))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters of all groups."""
        return [p for one in self._all for group in one.param_groups for p in group["params"]]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for one in self._all:
            one.zero_grad()

    def step(self, share: float) -> None:
        """Take one step.

        Args:
            share: of the full learning rates.
        """
        for one in self._all:
            for group in one.param_groups:
                group["lr"] = group["full_rate"] * share
            one.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return everything that later steps depend on."""
        return [one.state_dict() for one in self._all]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue from `state_dict`."""
        for one, state in zip(self._all, states, strict=True):
            one.load_state_dict(state)

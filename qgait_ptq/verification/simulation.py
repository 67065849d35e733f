"""The simulation that a file is compared with, and what rounding errors of float32 can change in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qgait_ptq.graph.conversion import float64_by_default, in_double
from qgait_ptq.placement.quantized_layers import activation_quantizers

DRAWS = 16  # rounding errors that are tried for a batch at which the file differs

# Largest rounding error of a value, relative to the largest value of its tensor. Runtimes multiply exact sums
# by a scale, and add residuals, in float32: a few roundings of 2⁻²⁴ each.
ROUNDING_ERROR = 2.0**-22


@dataclass(frozen=True)
class Simulation:
    """The simulation, exact and with rounding errors.

    Attributes:
        exact: simulation in float64, because integer kernels sum exactly.
        rounded: function that yields results of the simulation with other rounding errors of float32. One
            value that lies on the border of a rounding step and falls to its other side changes thousands of
            later values in a deep network, so two correct ways of rounding can end far apart. These results
            are computed only for batches at which a file differs.
    """

    exact: Callable[[Tensor], Tensor]
    rounded: Callable[[Tensor], Iterator[Tensor]]

    @classmethod
    def of(cls, quantized: fx.GraphModule, device: torch.device | None = None) -> Simulation:
        """Make it from a graph with quantizers. Batches are moved to the device."""
        double = in_double(quantized)

        def rounded(batch: Tensor) -> Iterator[Tensor]:
            yield quantized(batch.to(device))
            for draw in range(1, DRAWS):
                with float64_by_default():
                    result = _Rounded(double.graph_module, draw).run(batch.to(device).double())
                yield result.float()

        return cls(lambda batch: double(batch.to(device).double()).float(), rounded)


class _Rounded(fx.Interpreter):
    """Interpreter that adds rounding errors to the values before each quantizer of an activation."""

    def __init__(self, graph_module: fx.GraphModule, seed: int) -> None:
        super().__init__(graph_module)
        self._rounding = set(activation_quantizers(graph_module))
        self._generator = torch.Generator().manual_seed(seed)

    def call_module(self, target: fx.node.Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in self._rounding:
            args = (self._with_error(args[0]), *args[1:])
        return super().call_module(target, args, kwargs)

    def _with_error(self, values: Tensor) -> Tensor:
        if not values.numel():
            return values
        # Drawn on the CPU, so that each device has the same errors.
        errors = torch.rand(values.shape, generator=self._generator, dtype=values.dtype).mul_(2).sub_(1)
        return values + ROUNDING_ERROR * values.abs().amax() * errors.to(values.device)

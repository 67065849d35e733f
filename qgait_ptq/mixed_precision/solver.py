"""The widths with the least damage within a budget: an integer program, solved exactly.

Each group takes one of its widths (binary variables), the damages of groups add up, and so do the bytes of
weights. Bit operations are products of two widths: for each layer a variable for each pair of widths says
that both were taken, which is linear. HiGHS (`scipy.optimize.milp`) proves its solution the best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from qgait_ptq.errors import MissingExtraError
from qgait_ptq.mixed_precision.costs import SILHOUETTE_BITS, CostModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

Damages = Sequence[Mapping[int, float]]
FRONT_POINTS = 16
TOLERANCE = 2e-6  # of rows; twice that of HiGHS


class Resource(StrEnum):
    """What is limited."""

    SIZE = "size"  # bytes of the file
    BIT_OPERATIONS = "bops"


@dataclass(frozen=True)
class Allocation:
    """A width for each group.

    Attributes:
        widths: bits of each group.
        damage: predicted: the sum over groups.
        file_bytes: of the file, rounded up a little.
        bit_operations: of the recorded example.
    """

    widths: tuple[int, ...]
    damage: float
    file_bytes: int
    bit_operations: int

    def cost(self, resource: Resource) -> int:
        """Of one kind."""
        return self.file_bytes if resource is Resource.SIZE else self.bit_operations


@dataclass
class _Program:
    """An integer program being written: minimise ``objective · x``, rows between bounds, x in [0, 1]."""

    objective: list[float] = field(default_factory=list)
    integer: list[int] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def variable(self, objective: float, integer: bool) -> int:
        """Add one; gives its position."""
        self.objective.append(objective)
        self.integer.append(int(integer))
        return len(self.objective) - 1

    def require(self, terms: Mapping[int, float], low: float, high: float) -> None:
        """Add a row."""
        self.rows.append((dict(terms), low, high))

    def solve(self) -> NDArray[np.float64] | None:
        """Values of the variables; None where no values keep all rows."""
        from scipy import optimize, sparse

        matrix = sparse.lil_matrix((len(self.rows), len(self.objective)))
        for number, (terms, _, _) in enumerate(self.rows):
            for position, factor in terms.items():
                matrix[number, position] = factor
        bounds = [np.array(side) for side in list(zip(*self.rows, strict=True))[1:]]
        scale = max(self.objective) or 1.0  # tolerances of the solver are absolute
        result: Any = optimize.milp(
            np.array(self.objective) / scale,
            integrality=np.array(self.integer),
            bounds=optimize.Bounds(0, 1),
            constraints=optimize.LinearConstraint(matrix.tocsr(), *bounds),
            options={"mip_rel_gap": 0.0},
        )
        return None if result.x is None else np.asarray(result.x)


def check_solver() -> None:
    """Find out before the work whether there is a solver.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    if find_spec("scipy") is None:
        raise MissingExtraError("choosing widths", "mixed-precision")


def allocate(damages: Damages, costs: CostModel, resource: Resource, limit: float) -> Allocation | None:
    """The widths with the least damage whose cost is within a limit.

    Args:
        damages: for each group, width → damage; the widths that it may take.
        costs: of the network.
        resource: what is limited.
        limit: bytes of the file, or bit operations.

    Returns:
        None where even the cheapest widths cost more.
    """
    limit = math.floor(limit)
    found = _allocate(damages, costs, resource, limit)
    if found is not None and found.cost(resource) > limit:  # by the solver's tolerance, a millionth
        found = _allocate(damages, costs, resource, math.floor(limit * (1 - TOLERANCE)))
    return found


def _allocate(damages: Damages, costs: CostModel, resource: Resource, limit: int) -> Allocation | None:
    program = _Program()
    chosen = [
        {bits: program.variable(damage, integer=True) for bits, damage in options.items()}
        for options in damages
    ]
    for options in chosen:
        program.require(dict.fromkeys(options.values(), 1.0), 1, 1)
    if resource is Resource.SIZE:
        room = limit - costs.fixed_bytes
        groups = sorted({layer.weights for layer in costs.layers})
        terms = {
            position: costs.weight_bytes(group, bits) / max(abs(room), 1)
            for group in groups
            for bits, position in chosen[group].items()
        }
        program.require(terms, -np.inf, float(np.sign(room)))
    else:
        program.require(_pair_terms(program, chosen, costs, limit), -np.inf, 1)
    values = program.solve()
    if values is None:
        return None
    widths = tuple(max(options, key=lambda bits: values[options[bits]]) for options in chosen)
    return describe(widths, damages, costs)


def _pair_terms(
    program: _Program, chosen: Sequence[Mapping[int, int]], costs: CostModel, limit: float
) -> dict[int, float]:
    """Add the variables for pairs of widths; gives each one's share of the limit."""
    terms: dict[int, float] = {}
    for layer in costs.layers:
        weights = chosen[layer.weights]
        if layer.activations is None:
            for bits, position in weights.items():
                cost = costs.bit_operations(layer, bits, SILHOUETTE_BITS) / limit
                terms[position] = terms.get(position, 0.0) + cost
            continue
        activations = chosen[layer.activations]
        pairs = {(w, a): program.variable(0.0, integer=False) for w in weights for a in activations}
        for w, position in weights.items():
            row = {pair: 1.0 for (w_, _), pair in pairs.items() if w_ == w}
            program.require({**row, position: -1.0}, 0, 0)
        for a, position in activations.items():
            row = {pair: 1.0 for (_, a_), pair in pairs.items() if a_ == a}
            program.require({**row, position: -1.0}, 0, 0)
        for (w, a), pair in pairs.items():
            terms[pair] = costs.bit_operations(layer, w, a) / limit
    return terms


def describe(widths: Sequence[int], damages: Damages, costs: CostModel) -> Allocation:
    """Widths with what they cost and damage."""
    damage = sum(options[bits] for options, bits in zip(damages, widths, strict=True))
    return Allocation(tuple(widths), damage, costs.file_bytes(widths), costs.total_bit_operations(widths))


def smallest_cost(damages: Damages, costs: CostModel, resource: Resource) -> int:
    """What the cheapest widths cost."""
    return describe([min(options) for options in damages], damages, costs).cost(resource)


def pareto_front(damages: Damages, costs: CostModel, resource: Resource) -> list[Allocation]:
    """Allocations from the cheapest to the best, each with the least damage at its cost."""
    low = smallest_cost(damages, costs, resource)
    high = describe([max(options) for options in damages], damages, costs).cost(resource)
    found: dict[tuple[int, ...], Allocation] = {}
    for limit in np.linspace(low, high, FRONT_POINTS):
        allocation = allocate(damages, costs, resource, float(np.ceil(limit)))
        if allocation is not None:
            found[allocation.widths] = allocation
    return sorted(found.values(), key=lambda allocation: allocation.cost(resource))

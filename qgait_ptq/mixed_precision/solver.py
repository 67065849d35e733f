"""The widths with the least damage within a budget: an integer program, solved exactly.

Binary variables select one width for each group. Damages of groups add up, and so do the bytes of weights.
Bit operations are products of two widths. They become linear with one variable for each layer and pair of
widths, which is 1 if both are selected. HiGHS (`scipy.optimize.milp`) proves that its solution is optimal.
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
from qgait_ptq.mixed_precision.costs import CostModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

Damages = Sequence[Mapping[int, float]]
FRONT_POINTS = 16
TOLERANCE = 2e-6  # relative tolerance of a row; twice that of HiGHS


class Resource(StrEnum):
    """Resource that a budget limits."""

    SIZE = "size"  # bytes of the file
    BIT_OPERATIONS = "bops"


@dataclass(frozen=True)
class Allocation:
    """A width for each group.

    Attributes:
        widths: bits of each group.
        damage: predicted damage, the sum over groups.
        file_bytes: bytes of the file, slightly overestimated.
        bit_operations: bit operations on the recorded example.
    """

    widths: tuple[int, ...]
    damage: float
    file_bytes: int
    bit_operations: int

    def cost(self, resource: Resource) -> int:
        """Return the cost in one resource."""
        return self.file_bytes if resource is Resource.SIZE else self.bit_operations


@dataclass
class _Program:
    """An integer program: minimise ``objective · x`` with bounded rows and x in [0, 1]."""

    objective: list[float] = field(default_factory=list)
    integer: list[int] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def variable(self, objective: float, integer: bool) -> int:
        """Add a variable and return its position."""
        self.objective.append(objective)
        self.integer.append(int(integer))
        return len(self.objective) - 1

    def require(self, terms: Mapping[int, float], low: float, high: float) -> None:
        """Add a row."""
        self.rows.append((dict(terms), low, high))

    def solve(self) -> NDArray[np.float64] | None:
        """Return the values of the variables; None if the program is infeasible."""
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
    """Check that the solver is installed.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    if find_spec("scipy") is None:
        raise MissingExtraError("choosing widths", "mixed-precision")


def allocate(damages: Damages, costs: CostModel, resource: Resource, limit: float) -> Allocation | None:
    """Return the widths with the least damage whose cost is within a limit.

    Args:
        damages: damage by admissible width, for each group.
        costs: cost model of the network.
        resource: resource that is limited.
        limit: bytes of the file, or bit operations.

    Returns:
        The allocation, or None if the cheapest widths exceed the limit.
    """
    limit = math.floor(limit)
    cheapest = _cheapest(damages, costs, resource)
    if cheapest.cost(resource) > limit:
        return None
    allocation = _allocate(damages, costs, resource, limit)
    if allocation is None or allocation.cost(resource) > limit:  # by the solver's tolerance
        allocation = _allocate(damages, costs, resource, math.floor(limit * (1 - TOLERANCE)))
    if allocation is None or allocation.cost(resource) > limit:  # the limit is too close to the cheapest
        allocation = cheapest
    return _widen(allocation, damages, costs, resource, limit)


def _widen(
    allocation: Allocation, damages: Damages, costs: CostModel, resource: Resource, limit: int
) -> Allocation:
    """Change one width at a time while damage falls within the limit, most damage saved per cost first.

    The solver has a tolerance, which hides layers of few operations. Costs are compared exactly here.
    """

    def gain(other: Allocation) -> float:
        saved = allocation.damage - other.damage
        return saved / max(other.cost(resource) - allocation.cost(resource), 1)

    while True:
        others = [
            describe((*allocation.widths[:group], bits, *allocation.widths[group + 1 :]), damages, costs)
            for group, options in enumerate(damages)
            for bits, damage in options.items()
            if damage < options[allocation.widths[group]]
        ]
        better = [o for o in others if o.cost(resource) <= limit and o.damage < allocation.damage]
        if not better:
            return allocation
        allocation = max(better, key=gain)


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
    """Add the variables for pairs of widths and return their shares of the limit."""
    terms: dict[int, float] = {}
    for layer in costs.layers:
        weights = chosen[layer.weights]
        if layer.activations is None:
            for bits, position in weights.items():
                cost = costs.bit_operations(layer, bits, layer.fixed_bits) / limit
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
    """Return the allocation of widths, with their damage and costs."""
    damage = sum(options[bits] for options, bits in zip(damages, widths, strict=True))
    return Allocation(tuple(widths), damage, costs.file_bytes(widths), costs.total_bit_operations(widths))


def smallest_cost(damages: Damages, costs: CostModel, resource: Resource) -> int:
    """Return the cost of the cheapest widths."""
    return _cheapest(damages, costs, resource).cost(resource)


def _cheapest(damages: Damages, costs: CostModel, resource: Resource) -> Allocation:
    by_size = resource is Resource.SIZE
    widths = costs.smallest_widths(damages) if by_size else [min(options) for options in damages]
    return describe(widths, damages, costs)


def pareto_front(damages: Damages, costs: CostModel, resource: Resource) -> list[Allocation]:
    """Return allocations from the cheapest to the best, each with the least damage at its cost."""
    low = smallest_cost(damages, costs, resource)
    high = describe([max(options) for options in damages], damages, costs).cost(resource)
    front: dict[tuple[int, ...], Allocation] = {}
    for limit in np.linspace(low, high, FRONT_POINTS):
        allocation = allocate(damages, costs, resource, float(np.ceil(limit)))
        if allocation is not None:
            front[allocation.widths] = allocation
    return sorted(front.values(), key=lambda allocation: allocation.cost(resource))

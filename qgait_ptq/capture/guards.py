"""Sizes at which a captured graph may no longer compute what the network does.

torch.export follows one branch of ``if s < 3`` and records a guard, ``s >= 3``. The graph is right where all
guards hold. Elsewhere it may still be right, so both sides of each guard are compared with the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import sympy  # type: ignore[import-untyped]
import torch
from torch.export import ExportedProgram

LARGEST_SIZE = 1024  # guards beyond it are believed, not tried
TRIED_SEGMENTS = 8  # on either side of the capture
STATE_TRIED = 2  # times, after which segments of the same guards are believed
# Functions of torch's symbolic sizes, on numbers.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Mod": lambda a, b: a % b,
    "PythonMod": lambda a, b: a % b,
    "FloorDiv": lambda a, b: a // b,
    "CleanDiv": lambda a, b: a // b,
    "CeilDiv": lambda a, b: -(-a // b),
    "Max": max,
    "Min": min,
    "PowByNatural": lambda a, b: a**b,
    "TruncToInt": int,
    "FloatTrueDiv": lambda a, b: a / b,
    "IntTrueDiv": lambda a, b: a / b,
    "ToFloat": float,
}


class Segment(NamedTuple):
    """A stretch of sizes over which the same guards hold.

    Attributes:
        first: smallest size.
        last: largest size.
        state: which guards hold.
    """

    first: int
    last: int
    state: tuple[bool, ...]


class SizeGuards:
    """The guards of a captured network on the size of one axis of its input."""

    def __init__(self, program: ExportedProgram, axis: int) -> None:
        """Read the guards of a program.

        Args:
            program: from torch.export, with automatic dynamic shapes.
            axis: axis of the program's input.
        """
        self._guards: list[Callable[[int], bool]] = []
        self._conditions: list[Any] = []
        value = next(node.meta["val"] for node in program.graph.nodes if _is_input(node, program))
        size = value.shape[axis]
        if isinstance(size, int):
            return
        symbol, shape_env = size.node.expr, size.node.shape_env
        hints = {name: hint for name, hint in _hints(value).items() if name != symbol}
        for guard in shape_env.guards:
            expression = guard.expr.subs(hints)
            if expression.free_symbols == {symbol}:
                self._guards.append(as_function(expression, symbol))
                self._conditions.append(guard.expr)

    def state(self, size: int) -> tuple[bool, ...]:
        """Return which guards hold at a size."""
        return tuple(holds(guard, size) for guard in self._guards)

    def violated(self, size: int) -> list[Any]:
        """Return the conditions, as torch's expressions, that do not hold at a size."""
        return [
            condition
            for condition, is_met in zip(self._conditions, self.state(size), strict=True)
            if not is_met
        ]

    def changes(self, captured: int) -> list[int]:
        """Return the sizes around a captured one at which other guards hold, nearest first."""
        segments = self.segments()
        above = [one.first for one in segments if one.first > captured][:TRIED_SEGMENTS]
        below = [one.last for one in segments if one.last < captured][-TRIED_SEGMENTS:]
        return sorted(above + below, key=lambda size: abs(size - captured))

    def segments(self) -> list[Segment]:
        """Return the stretches of sizes from 1 to `LARGEST_SIZE` over which the same guards hold."""
        segments: list[Segment] = []
        for size in range(1, LARGEST_SIZE + 1):
            state = self.state(size)
            if segments and state == segments[-1].state:
                segments[-1] = segments[-1]._replace(last=size)
            else:
                segments.append(Segment(size, size, state))
        return segments


def agreeing_sizes(
    segments: Sequence[Segment], captured: int, agrees: Callable[[int], bool]
) -> tuple[int, int | None]:
    """Return the smallest and the largest size at which a graph computes what the network does.

    Args:
        segments: stretches of sizes over which the same guards hold.
        captured: size at which the graph was captured.
        agrees: whether graph and network compute the same at a size.

    Returns:
        The ends of the stretch around `captured`; None as the largest where no guard limits it.
    """
    own = next(index for index, one in enumerate(segments) if one.first <= captured <= one.last)
    low = high = own
    tried = Counter({segments[own].state: STATE_TRIED})

    def is_right(index: int, steps: int) -> bool:
        """Return whether a segment agrees; guards that alternate with the size have many short ones."""
        segment = segments[index]
        if tried[segment.state] >= STATE_TRIED:
            return True
        right = steps <= TRIED_SEGMENTS and _agrees(segment, agrees)
        tried[segment.state] += right
        return right

    while high + 1 < len(segments) and is_right(high + 1, high + 1 - own):
        high += 1
    while low > 0 and is_right(low - 1, own - low + 1):
        low -= 1
    largest = segments[high].last
    return segments[low].first, None if largest >= LARGEST_SIZE else largest


def _agrees(segment: Segment, agrees: Callable[[int], bool]) -> bool:
    """Return whether graph and network agree at both ends of a stretch, and at some sizes between."""
    first, last, _ = segment
    sizes = {first, first + 1, 2 * first + 1, last}
    return all(agrees(size) for size in sorted(sizes) if first <= size <= last and size < LARGEST_SIZE)


def holds(guard: Callable[[int], bool], size: int) -> bool:
    """Return whether a guard holds at a size; not where it has no value, as in a division by zero."""
    try:
        return bool(guard(size))
    except (ArithmeticError, TypeError):  # sympy's "undefined" has no truth value
        return False


def as_function(expression: Any, symbol: Any) -> Callable[[int], bool]:
    """Return a guard as a function of a size."""
    try:
        function: Callable[[int], bool] = sympy.lambdify(symbol, expression, [FUNCTIONS, "math"])
        function(LARGEST_SIZE)
    except Exception:  # a function that is not in the table: slower, but it must not be overlooked
        return lambda size: bool(expression.subs(symbol, size))
    return function


def _is_input(node: torch.fx.Node, program: ExportedProgram) -> bool:
    return node.op == "placeholder" and node.name in program.graph_signature.user_inputs


def _hints(value: torch.Tensor) -> dict[Any, int]:
    """Return the sizes at which symbols were captured."""
    sizes: list[Any] = [size for size in value.shape if not isinstance(size, int)]
    return {size.node.expr: size.node.hint for size in sizes}

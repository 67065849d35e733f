"""Where a network decides by its batch size or frame count while torch.export captures it.

torch.export records a condition whenever code turns a free size into a number or compares it. It keeps no
line of the user's code for a condition inside an operator. So each call of an operator is watched, and new
conditions belong to the call in which they appear.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qgait_ptq.capture.guards import SizeGuards
from qgait_ptq.graph.code_places import CodePlace, find_caller, innermost


@dataclass(frozen=True)
class Decision:
    """A condition on sizes, and the code that needs it.

    Attributes:
        condition: condition as torch's symbolic expression.
        operator: name of the called operator; empty for plain Python code.
        place: line of the user's code; None if it is not known.
    """

    condition: Any
    operator: str
    place: CodePlace | None

    def describe(self) -> str:
        """Return operator and line, such as ``hann_window at net.py:12``; empty if neither is known."""
        name = self.operator or ("the code" if self.place else "")
        return f"{name} at {self.place.file}:{self.place.line}" if self.place else name

    def fixes(self, size: int) -> bool:
        """Return whether the condition makes a free size equal to a number."""
        condition = self.condition
        return isinstance(condition, sympy.Eq) and any(
            side.is_Symbol and other == size
            for side, other in ((condition.lhs, condition.rhs), (condition.rhs, condition.lhs))
        )


class DecisionRecorder(TorchFunctionMode):
    """Context in which the decisions of a network under capture are recorded.

    Attributes:
        decisions: decisions in the order in which they appear.
    """

    def __init__(self) -> None:
        super().__init__()
        self.decisions: list[Decision] = []
        self._environment: Any = None  # torch's record of symbolic sizes

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function, and record its decisions and those of the code before it."""
        self._find_environment((*args, *(kwargs or {}).values()))
        self._record("")
        try:
            return func(*args, **(kwargs or {}))
        finally:
            name = str(getattr(func, "__name__", ""))
            self._record("" if name.startswith("_") else name)

    def __exit__(self, *error: object) -> None:
        """Record the decisions after the last call."""
        super().__exit__(*error)
        self._record("", after_the_network=True)

    def _find_environment(self, arguments: Iterable[Any]) -> None:
        for tensor in (one for one in arguments if self._environment is None and isinstance(one, Tensor)):
            self._environment = getattr(getattr(tensor, "fake_mode", None), "shape_env", None)

    def _record(self, operator: str, after_the_network: bool = False) -> None:
        for guard in getattr(self._environment, "guards", ())[len(self.decisions) :]:
            place = None if operator else _code_place(guard)
            if place is None and not after_the_network:
                place = find_caller()
            self.decisions.append(Decision(guard.expr, operator, place))


def _code_place(guard: Any) -> CodePlace | None:
    """Return the line of the user's code that torch recorded for a condition; None if it is torch's own."""
    location = getattr(getattr(guard, "sloc", None), "framework_loc", None)
    return innermost([location]) if isinstance(location, traceback.FrameSummary) else None


def cause_of_constant(decisions: Iterable[Decision], size: int) -> str:
    """Return what turned a free size into a number; empty if it is not known.

    Args:
        decisions: decisions of the capture.
        size: size of the axis in the example, which no other free axis has.
    """
    found = (decision.describe() for decision in decisions if decision.fixes(size))
    return next((f"{text} turns it into a constant" for text in found if text), "")


def cause_of_limit(decisions: Iterable[Decision], guards: SizeGuards, sizes: Iterable[int]) -> str:
    """Return what decides differently at some sizes than in the capture; empty if nothing is known to.

    Args:
        decisions: decisions of the capture.
        guards: conditions on the axis.
        sizes: sizes at which the graph is wrong.
    """
    by_condition = {decision.condition: decision.describe() for decision in reversed(list(decisions))}
    violated = (by_condition.get(condition, "") for size in sizes for condition in guards.violated(size))
    return next((f"{text} decides by it" for text in violated if text), "")

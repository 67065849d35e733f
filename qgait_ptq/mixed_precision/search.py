"""Candidate widths in order of their cost, and the search for the first good one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qgait_ptq.mixed_precision.groups import Kind, WidthGroup
from qgait_ptq.mixed_precision.solver import Damages


@dataclass(frozen=True)
class Candidate:
    """Widths to be evaluated.

    Attributes:
        widths: bits of each group.
        in_float: module paths of layers that are not quantized.
    """

    widths: tuple[int, ...]
    in_float: tuple[str, ...] = ()


def first_good(candidates: Sequence[Candidate], good: Callable[[Candidate], bool]) -> int | None:
    """Return the position of the first good candidate. All candidates after a good one must be good.

    Each evaluation is a calibration, so the search doubles its stride and then bisects the last one.

    Args:
        candidates: candidates from cheap to expensive.
        good: predicate that evaluates a candidate.

    Returns:
        The position, or None if the last candidate is not good.
    """
    bad, position, stride = -1, 0, 1
    while position < len(candidates) and not good(candidates[position]):
        bad, position, stride = position, position + stride, 2 * stride
        if bad < len(candidates) - 1:
            position = min(position, len(candidates) - 1)
    if position >= len(candidates):
        return None
    while position - bad > 1:
        middle = (bad + position) // 2
        if good(candidates[middle]):
            position = middle
        else:
            bad = middle
    return position


def raise_widths(start: Sequence[int], groups: Sequence[WidthGroup], damages: Damages) -> list[Candidate]:
    """Return candidates of rising widths, followed by candidates with layers in float.

    Each step widens the group whose damage falls most. When all groups have their largest width, layers are
    float_damages in float, those with the most damage first, until one quantized layer remains.

    Args:
        start: bits of each group.
        groups: groups of the network.
        damages: damage by width, for each group.

    Returns:
        The candidates; the first has the widths `start`.
    """
    candidates = [Candidate(tuple(start))]
    while (wider := _wider(candidates[-1].widths, damages)) is not None:
        candidates.append(Candidate(wider))
    widest = candidates[-1].widths
    float_damages: dict[str, float] = {}
    for group, options, bits in zip(groups, damages, widest, strict=True):
        for name in group.layers if group.kind is Kind.WEIGHTS else group.layers[:1]:
            float_damages[name] = float_damages.get(name, 0.0) + options[bits]
    worst_first = sorted(float_damages, key=lambda name: -float_damages[name])
    return candidates + [
        Candidate(widest, tuple(worst_first[:count])) for count in range(1, len(worst_first))
    ]


def _wider(widths: Sequence[int], damages: Damages) -> tuple[int, ...] | None:
    """Widen the group of the largest gain by one step; return None if all are at their widest."""
    gains = []
    for group, (bits, options) in enumerate(zip(widths, damages, strict=True)):
        wider = min((other for other in options if other > bits), default=None)
        if wider is not None:
            now = options.get(bits, max(options.values()))
            gains.append((now - options[wider], group, wider))
    if not gains:
        return None
    _, group, bits = max(gains, key=lambda gain: gain[0])
    return (*widths[:group], bits, *widths[group + 1 :])

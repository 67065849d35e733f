"""Candidates in the order of their cost, and the first one that is good enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qgait_ptq.mixed_precision.groups import Kind, WidthGroup
from qgait_ptq.mixed_precision.solver import Damages


@dataclass(frozen=True)
class Candidate:
    """Widths that may be good enough.

    Attributes:
        widths: bits of each group.
        in_float: module paths of layers that are not quantized.
    """

    widths: tuple[int, ...]
    in_float: tuple[str, ...] = ()


def first_good(candidates: Sequence[Candidate], good: Callable[[Candidate], bool]) -> int | None:
    """Position of the first good candidate, where all behind a good one are good, too.

    Looks in strides that double, then halves the last stride: each look is a calibration.

    Args:
        candidates: from cheap to costly.
        good: whether a candidate is good enough.

    Returns:
        None where the last one is not good.
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
    """Widths raised step by step, each time where most damage is taken away; then layers left in float.

    Args:
        start: bits of each group.
        groups: of the network.
        damages: for each group, width → damage.

    Returns:
        The widths themselves, and all that follow: until every group has its largest width, and then until
        one layer is left, the layers with most damage first.
    """
    found = [Candidate(tuple(start))]
    while (wider := _wider(found[-1].widths, damages)) is not None:
        found.append(Candidate(wider))
    widest = found[-1].widths
    left: dict[str, float] = {}
    for group, options, bits in zip(groups, damages, widest, strict=True):
        for name in group.layers if group.kind is Kind.WEIGHTS else group.layers[:1]:
            left[name] = left.get(name, 0.0) + options[bits]
    worst_first = sorted(left, key=lambda name: -left[name])
    return found + [Candidate(widest, tuple(worst_first[:count])) for count in range(1, len(worst_first))]


def _wider(widths: Sequence[int], damages: Damages) -> tuple[int, ...] | None:
    """One group a step wider: the one with the largest gain for it; None where all are at their widest."""
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

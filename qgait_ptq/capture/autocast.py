"""Networks with regions of `torch.autocast`, computed in float32.

Training code computes such regions in half precision. A quantized network is compared with float32, and a
graph with half precision in it runs in few runtimes. So the regions of a captured network have no effect.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qgait_ptq.graph.code_places import find_caller

UNKNOWN_PLACE = "a decorator or an exported program"  # whose lines are not known
_enter = torch.autocast.__enter__
_lock = threading.Lock()
_users = 0  # calls of `autocast_disabled` that have not ended
_found = threading.local()


class WithoutAutocast(nn.Module):
    """A network whose regions of `torch.autocast` compute in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.regions: set[str] = set()

    def forward(self, silhouettes: Tensor) -> Any:
        """Run the network, and add the places of its regions to ``regions``."""
        with autocast_disabled() as regions:
            output = self.network(silhouettes)
        self.regions |= regions
        return output


def disabled_regions(network: nn.Module) -> tuple[str, ...]:
    """Return the places, ``file:line``, of the regions that were disabled while a network ran."""
    wrappers = (module for module in network.modules() if isinstance(module, WithoutAutocast))
    return tuple(sorted({place for wrapper in wrappers for place in wrapper.regions}))


@contextmanager
def autocast_disabled() -> Iterator[set[str]]:
    """Let regions of `torch.autocast` compute in float32 in this thread.

    A region turns autocast on when it is entered, so the method that enters regions is replaced for a while.
    Other threads are not affected. torch has no public way to be told: function modes see the operators in
    a region, but neither the region nor its line, and a guard around the network ends where a region begins.

    Returns:
        The places, ``file:line``, of the enabled regions that were entered so far.
    """
    global _users
    outer, regions = getattr(_found, "regions", None), set[str]()
    with _lock:
        _users += 1
        torch.autocast.__enter__ = _enter_disabled  # type: ignore[method-assign]
    _found.regions = regions
    try:
        yield regions
    finally:
        _found.regions = outer
        with _lock:
            _users -= 1
            if _users == 0:
                torch.autocast.__enter__ = _enter  # type: ignore[method-assign]


def _enter_disabled(region: torch.autocast) -> Any:
    """Enter a region without turning autocast on, in threads that asked for it."""
    regions: set[str] | None = getattr(_found, "regions", None)
    if regions is None or not region._enabled:
        return _enter(region)
    place = find_caller()
    regions.add(f"{place.file}:{place.line}" if place else UNKNOWN_PLACE)
    region._enabled = False
    try:
        return _enter(region)
    finally:
        region._enabled = True  # the same region may be entered again

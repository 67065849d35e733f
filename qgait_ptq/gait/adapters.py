"""Adapters: from a network's calling convention to ``forward(silhouettes [n, s, h, w]) -> embedding``.

A network of several inputs takes each as an argument of its own.

An adapter is a module that wraps the network. Write your own in a few lines and name it on the command
line: ``--adapter mypackage.adapters:MyAdapter``; its class is called with the network.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

ADAPTERS: dict[str, Callable[[nn.Module], nn.Module]] = {}


class OpenGaitAdapter(nn.Module):
    """OpenGait's convention: a tuple of inputs, a dictionary of results.

    Sequences come one in a row, with their lengths left out: with lengths, OpenGait packs sequences along
    time, which bakes the example's lengths into a captured graph.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *modalities: Tensor) -> Tensor:
        """Silhouettes ``[n, s, h, w]``, and what else the network takes, to ``[n, c, p]``."""
        # OpenGait brings all modalities to float.
        floats = [given if given.is_floating_point() else given.float() for given in modalities]
        result = self.network((floats, None, None, None, None))
        embedding: Tensor = result["inference_feat"]["embeddings"]
        return embedding


ADAPTERS["opengait"] = OpenGaitAdapter

"""Adapters: from a network's calling convention to ``forward(silhouettes [n, s, h, w]) -> embedding``.

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

    def forward(self, silhouettes: Tensor) -> Tensor:
        """``[n, s, h, w]`` to ``[n, c, p]``."""
        result = self.network(([silhouettes], None, None, None, None))
        embedding: Tensor = result["inference_feat"]["embeddings"]
        return embedding


ADAPTERS["opengait"] = OpenGaitAdapter

"""Adapters: modules with ``forward(silhouettes [n, s, h, w]) -> embedding`` around other networks.

A network with several inputs takes each as one argument.

An adapter is a module that wraps the network. Name your own on the command line:
``--adapter mypackage.adapters:MyAdapter``. Its class is called with the network.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

ADAPTERS: dict[str, Callable[[nn.Module], nn.Module]] = {}


class OpenGaitAdapter(nn.Module):
    """Adapter for networks of OpenGait, which take a tuple of inputs and return a dictionary.

    Sequences lie along the batch axis, without lengths. With lengths, OpenGait packs sequences along time,
    which fixes the example's lengths in a captured graph.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *modalities: Tensor) -> Tensor:
        """Map silhouettes ``[n, s, h, w]``, and other inputs of the network, to ``[n, c, p]``."""
        # OpenGait converts all modalities to float.
        floats = [one if one.is_floating_point() else one.float() for one in modalities]
        result = self.network((floats, None, None, None, None))
        embedding: Tensor = result["inference_feat"]["embeddings"]
        return embedding


ADAPTERS["opengait"] = OpenGaitAdapter

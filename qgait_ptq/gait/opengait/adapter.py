"""The adapter for networks of OpenGait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn

from qgait_ptq.errors import CaptureError
from qgait_ptq.gait.opengait.gpu_code import GpuCodeOnCpu

NO_LABELS = "no_labels"  # the buffer that stands for labels, which inference does not have


class OpenGaitAdapter(nn.Module):
    """Adapter for networks of OpenGait, which take a tuple of inputs and return a dictionary.

    Sequences lie along the batch axis, without lengths. With lengths, OpenGait packs sequences along time,
    which fixes the example's lengths in a captured graph. The network gets one label, because some networks
    check that a packed input has one sequence. The embedding must not depend on the label.

    Code of the network that moves tensors to a GPU runs on the CPU as it is; see `GpuCodeOnCpu`.

    Attributes:
        types: type of each sequence, such as ``nm-01``, for networks that read it. Set it in a subclass.
        views: view of each sequence, such as ``090``, for networks that read it. Set it in a subclass.
    """

    types: Sequence[str] | None = None
    views: Sequence[str] | None = None

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer(NO_LABELS, torch.zeros(1, dtype=torch.int64), persistent=False)

    def forward(self, *modalities: Tensor) -> Tensor:
        """Map silhouettes ``[n, s, h, w]``, and other inputs of the network, to ``[n, c, p]``."""
        # OpenGait converts all modalities to float.
        floats = [one if one.is_floating_point() else one.float() for one in modalities]
        with nullcontext() if modalities[0].is_cuda else GpuCodeOnCpu():
            result = self.network((floats, self.get_buffer(NO_LABELS), self.types, self.views, None))
        return _embedding(result)


def _embedding(result: Any) -> Tensor:
    """Return the embedding among the outputs of a network of OpenGait.

    Raises:
        CaptureError: there is none, as in networks that segment images.
    """
    outputs = result.get("inference_feat") if isinstance(result, Mapping) else None
    if not isinstance(outputs, Mapping) or not isinstance(outputs.get("embeddings"), Tensor):
        found = ", ".join(map(str, outputs)) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise CaptureError(
            f"the network gives no embedding: its inference_feat has no 'embeddings' (found {found}); pass "
            "an adapter that returns the embedding (--adapter module:class)"
        )
    embedding: Tensor = outputs["embeddings"]
    return embedding


def check_labels_unread(graph_module: fx.GraphModule) -> None:
    """Check that a captured network does not compute the embedding with the labels of sequences.

    Raises:
        CaptureError: it does. Inference has no labels.
    """
    if any(
        node.op == "get_attr" and str(node.target).split(".")[-1] == NO_LABELS
        for node in graph_module.graph.nodes
    ):
        raise CaptureError(
            "the network computes the embedding with the labels of the sequences, which inference does not "
            "have; pass an adapter that gives the network other values (--adapter module:class)"
        )

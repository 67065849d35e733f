"""The float network as ONNX, made of the graph that the quantized file is made of.

torch's exporter takes seconds for a graph. Float network and quantized network have the same graph but for
quantizers, so one export serves both files.
"""

from __future__ import annotations

import onnx
import torch
from onnx import numpy_helper
from torch import fx

from qgait_ptq.exporters.lowering import drop_markers
from qgait_ptq.graph.attributes import attribute


def float_model(marked: onnx.ModelProto, float_graph: fx.GraphModule) -> onnx.ModelProto | None:
    """Return the float network's model, or None if it must be exported by itself.

    torch's exporter may compute with parameters while it writes them, for example transpose a weight, or
    store equal ones once. Values of the float network cannot be put in their place then.

    Args:
        marked: model of the quantized graph with markers.
        float_graph: the same graph without quantizers.
    """
    model = onnx.ModelProto()
    model.CopyFrom(marked)
    stored = {initializer.name: initializer for initializer in model.graph.initializer}
    for path in {str(node.target) for node in float_graph.graph.nodes if node.op == "get_attr"}:
        value = attribute(float_graph, path).detach().cpu()
        initializer = stored.get(path)
        if initializer is None or tuple(initializer.dims) != tuple(value.shape):
            return None
        if not torch.equal(torch.from_numpy(numpy_helper.to_array(initializer).copy()), value):
            initializer.CopyFrom(numpy_helper.from_array(value.numpy(), path))
    return drop_markers(model)

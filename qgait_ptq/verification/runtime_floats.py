"""Floats that the runtime quantizes, by the names of the file."""

from __future__ import annotations

import numpy as np

from qgait_ptq.onnx_graph.view import OnnxGraph
from qgait_ptq.reference.arithmetic import Array
from qgait_ptq.runtime.optimized_graph import written_name

BEFORE = "_pre_q"  # onnxruntime appends it to the input of a quantizer that it moved


def known_values(
    written: OnnxGraph, optimised: OnnxGraph, as_written: dict[str, Array], as_run: dict[str, Array]
) -> dict[str, Array]:
    """Return values of the file's tensors, with the floats that the runtime quantizes.

    The runtime computes floats in another order than the unoptimised file, so its own are taken if possible.
    It renames a float tensor that it quantizes earlier. The name of a tensor is lost if the quantizer applies
    the ReLU, or if it reorders the axes.

    Args:
        written: graph of the file.
        optimised: graph that the runtime runs.
        as_written: tensors of the file.
        as_run: tensors of the optimised graph.
    """
    named = {name.removesuffix(BEFORE): value for name, value in as_run.items()}
    quantizers = {
        written_name(node.name): node.input[0]
        for node in optimised.nodes
        if node.op_type == "QuantizeLinear" and node.input[0] in as_run
    }
    values = as_written | named
    for node in written.nodes:
        name = node.input[0] if node.op_type == "QuantizeLinear" else ""
        if name in as_written and name not in named and node.name in quantizers:
            values[name] = _in_order_of(as_written[name], as_run[quantizers[node.name]])
    return values


def _in_order_of(expected: Array, actual: Array) -> Array:
    """Return a tensor of the runtime with the axes of the file; that of the file if there are none."""
    orders = [actual, np.moveaxis(actual, -1, 1)] if actual.ndim > 1 else [actual]
    fitting = [values for values in orders if values.shape == expected.shape]
    return min(fitting, key=lambda values: float(np.abs(values - expected).sum()), default=expected)

"""``model.pt2``: the quantized network as an ExportedProgram that PyTorch loads without this package.

Quantizers become the operators ``quantize_per_tensor`` and ``dequantize_per_tensor`` of
``quantized_decomposed``. Weights become int8 tensors with ``dequantize_per_channel``. torch.ao exports the
same form, and inductor compiles it to integer kernels. ``import torch.ao.quantization.fx._decomposed``
registers the operators.
"""

from __future__ import annotations

import copy
import io

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import Tensor, fx

from qgait_ptq.capture.captured import Capture
from qgait_ptq.capture.quiet import quiet_torch
from qgait_ptq.errors import ExportError, first_line
from qgait_ptq.graph.attributes import attribute, remove_unused
from qgait_ptq.graph.conversion import to_device
from qgait_ptq.graph.frame_inputs import split_inputs, split_values
from qgait_ptq.graph.views import ModuleCall, source
from qgait_ptq.quantizer.fake_quantize import BiasFakeQuantize, FakeQuantize
from qgait_ptq.quantizer.grid import quantize

OPERATORS = torch.ops.quantized_decomposed


def export_program(quantized: fx.GraphModule, capture: Capture) -> bytes:
    """Return a calibrated graph as an ExportedProgram, in the format of torch.export.save.

    The program takes the network's input, usually float32 ``[n, s, h, w]`` in [0, 1].

    Args:
        quantized: graph with fake-quantize modules whose ranges are set.
        capture: capture of the graph; its free dimensions are free in the program.

    Raises:
        ExportError: torch.export refuses the graph.
    """
    with quiet_torch():
        graph_module = to_device(copy.deepcopy(quantized), torch.device("cpu"))
    decompose_quantizers(graph_module)
    examples = split_values(capture.empty_example(), split_inputs(graph_module))
    dynamic = dict.fromkeys(capture.free_axes, torch.export.Dim.AUTO)
    buffer = io.BytesIO()
    try:
        with quiet_torch():
            program = torch.export.export(graph_module, examples, dynamic_shapes=(dynamic,) * len(examples))
            torch.export.save(program, buffer)
    except Exception as error:
        raise ExportError(
            f"the graph cannot be written as an ExportedProgram ({type(error).__name__}: {first_line(error)})"
        ) from error
    return buffer.getvalue()


def decompose_quantizers(graph_module: fx.GraphModule) -> None:
    """Replace fake-quantize modules by torch's operators, in place."""
    for node in list(graph_module.graph.nodes):
        module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, FakeQuantize):
            replace = _quantize_weight if module.channel_axis is not None else _quantize_activation
            replacement = replace(graph_module, node, module)
        elif isinstance(module, BiasFakeQuantize):
            replacement = _round_bias(graph_module, node, module)
        else:
            continue
        node.replace_all_uses_with(replacement)
        graph_module.graph.erase_node(node)
    remove_unused(graph_module)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()


def _quantize_activation(graph_module: fx.GraphModule, node: fx.Node, module: FakeQuantize) -> fx.Node:
    grid = module.grid
    parameters = (
        float(module.scale),
        int(module.zero_point),
        grid.quant_min,
        grid.quant_max,
        torch.int8 if grid.signed else torch.uint8,
    )
    graph = graph_module.graph
    with graph.inserting_before(node):
        integers = graph.call_function(OPERATORS.quantize_per_tensor.default, (source(node), *parameters))
        return graph.call_function(OPERATORS.dequantize_per_tensor.default, (integers, *parameters))


def _quantize_weight(graph_module: fx.GraphModule, node: fx.Node, module: FakeQuantize) -> fx.Node:
    weight = attribute(graph_module, _parameter(node))
    integers = quantize(weight, module.scale, module.zero_point, module.grid, module.channel_axis)
    name = str(node.target)
    stored = {
        "integers": integers.to(torch.int8),
        "scales": module.scale.float(),
        "zero_points": torch.zeros_like(module.zero_point, dtype=torch.int64),
    }
    grid = module.grid
    graph = graph_module.graph
    with graph.inserting_before(node):
        read = [_store(graph_module, f"{name}_{key}", value) for key, value in stored.items()]
        limits = (module.channel_axis, grid.quant_min, grid.quant_max, torch.int8)
        return graph.call_function(OPERATORS.dequantize_per_channel.default, (*read, *limits))


def _round_bias(graph_module: fx.GraphModule, node: fx.Node, module: BiasFakeQuantize) -> fx.Node:
    """Store the bias in float, with the values of its int32 numbers."""
    scales = [attribute(graph_module, str(scale.target)) for scale in ModuleCall(node).scales]
    bias = module(attribute(graph_module, _parameter(node)), *scales)
    with graph_module.graph.inserting_before(node):
        return _store(graph_module, f"{node.target}_values", bias)


def _parameter(node: fx.Node) -> str:
    return str(source(node).target)


def _store(graph_module: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    flat = name.replace(".", "_")
    graph_module.register_buffer(flat, value.detach().contiguous())
    return graph_module.graph.get_attr(flat)

"""``model.pt2``: the quantized network as an ExportedProgram that PyTorch loads without this package.

Quantizers become the operators ``quantize_per_tensor`` and ``dequantize_per_tensor`` of
``quantized_decomposed``. Weights become int8 tensors with ``dequantize_per_channel``. torch.ao exports the
same form, and inductor compiles it to integer kernels. ``import torch.ao.quantization.fx._decomposed``
registers the operators.
"""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from qgait_ptq.capture.captured import BATCH_AXIS, FRAME_AXIS, Capture
from qgait_ptq.capture.quiet import quiet_torch
from qgait_ptq.errors import ExportError, first_line
from qgait_ptq.exporters.recurrent_shapes import recurrent_shapes
from qgait_ptq.graph.attributes import attribute, remove_unused
from qgait_ptq.graph.conversion import to_device
from qgait_ptq.graph.frame_inputs import split_inputs, split_values
from qgait_ptq.graph.frame_layout import FrameInput
from qgait_ptq.graph.views import ModuleCall, source
from qgait_ptq.quantizer.fake_quantize import BiasFakeQuantize, FakeQuantize
from qgait_ptq.quantizer.grid import quantize

LARGEST_ERROR = 0.05  # of a program, relative to the length of its output
OPERATORS = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class TorchProgram:
    """A program for ``model.pt2``.

    Attributes:
        content: the program in the format of torch.export.save.
        captured: capture with the dimensions that are free in the program.
        notes: a line for each dimension that is free in the capture and fixed in the program.
    """

    content: bytes = field(repr=False)
    captured: Capture
    notes: tuple[str, ...] = ()


def export_program(quantized: fx.GraphModule, capture: Capture) -> TorchProgram:
    """Return a calibrated graph as an ExportedProgram.

    The program takes the network's input, usually float32 ``[n, s, h, w]`` in [0, 1]. It is run at several
    sizes. A dimension at which torch.export takes one size only, or at which the program differs from the
    graph, is fixed.

    Args:
        quantized: graph with fake-quantize modules whose ranges are set.
        capture: capture of the graph; its free dimensions are free in the program where torch allows it.

    Raises:
        ExportError: torch.export refuses the graph, or the program differs from it even at fixed sizes.
    """
    with quiet_torch():
        graph_module = to_device(copy.deepcopy(quantized), torch.device("cpu"))
    decompose_quantizers(graph_module)
    parts = split_inputs(graph_module)
    captured = capture
    notes: list[str] = []
    for _ in range(len(capture.free_axes) + 1):
        program = _export(graph_module, parts, captured)
        content = _save(program)
        wrong = _wrong_axes(program, graph_module, parts, captured)
        if not wrong:
            return TorchProgram(content, captured, tuple(notes))
        if not captured.free_axes.intersection(wrong):
            break
        captured = captured.pin(wrong)
        sizes = {BATCH_AXIS: f"batches of {captured.batch}", FRAME_AXIS: f"{captured.frames} frames"}
        notes += [
            f"model.pt2 takes {sizes[axis]} only: the program of torch.export is wrong at other sizes"
            for axis in sorted(wrong & capture.free_axes)
        ]
    raise ExportError(
        "the program of torch.export differs from the simulation even at a fixed batch size and frame count; "
        "write the result without model.pt2"
    )


def _export(graph_module: fx.GraphModule, parts: list[FrameInput], captured: Capture) -> ExportedProgram:
    examples = split_values(captured.empty_example(), parts)
    dynamic = {axis: _free_size(captured, axis) for axis in captured.free_axes}
    try:
        with quiet_torch(), recurrent_shapes():
            return torch.export.export(graph_module, examples, dynamic_shapes=(dynamic,) * len(examples))
    except Exception as error:
        raise _refused(error) from error


def _free_size(captured: Capture, axis: int) -> Any:
    """Return a free dimension. The program refuses frame counts that the capture does not take."""
    counts = captured.frame_counts
    if axis == BATCH_AXIS or (counts.shortest <= 1 and counts.longest is None):
        return Dim.AUTO
    return Dim.AUTO(min=max(counts.shortest, 1), max=counts.longest)


def _save(program: ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    try:
        with quiet_torch():
            torch.export.save(program, buffer)
    except Exception as error:
        raise _refused(error) from error
    return buffer.getvalue()


def _refused(error: Exception) -> ExportError:
    return ExportError(
        f"the graph cannot be written as an ExportedProgram ({type(error).__name__}: {first_line(error)})"
    )


def _wrong_axes(
    program: ExportedProgram, graph_module: fx.GraphModule, parts: list[FrameInput], captured: Capture
) -> set[int]:
    """Return the axes along which the program does not run, or differs from the graph."""
    module, own, wrong = program.module(), captured.own_size, set[int]()
    for size in captured.sizes:
        inputs = split_values(captured.example(*size), parts)
        try:
            with torch.no_grad():
                expected = graph_module(*inputs)
        except (RuntimeError, ValueError, IndexError):  # the network itself does not take this size
            continue
        try:
            with torch.no_grad():
                is_right = _agree(expected, module(*inputs))
        except Exception:  # torch raises several types of errors for sizes that it refuses
            is_right = False
        if not is_right:
            differing = {axis for axis, count in enumerate(size) if count != own[axis]}
            wrong |= differing or {BATCH_AXIS, FRAME_AXIS}
    return wrong


def _agree(expected: Tensor, actual: Tensor) -> bool:
    """Return whether two outputs are equal but for values that fall to the other side of a rounding step."""
    if expected.shape != actual.shape or not bool(expected.isfinite().all()):
        return expected.shape == actual.shape
    return float((expected - actual).norm()) <= LARGEST_ERROR * float(expected.norm())


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

"""Proof from a file that its additions give the same integers on every processor.

onnxruntime adds two quantized tensors differently on x86 and on ARM64, see `quantizer.addition_orders`. For
each addition between quantizers, all pairs of codes are compared. The proof also works for files of other
tools. It needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx

from qgait_ptq.onnx_graph.view import OnnxGraph
from qgait_ptq.quantizer.addition_orders import Codes, differing_pairs
from qgait_ptq.reference.pair_sums import MOVING, producer_of_moved

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
FUSED = "QLinearAdd"  # in optimised graphs: codes, scale, zero-point of a; of b; scale, zero-point of y


@dataclass(frozen=True)
class AdditionProof:
    """An addition of two quantized tensors.

    Attributes:
        node: name of the node.
        pairs: number of pairs of codes.
        differing: number of pairs that processors round to different integers.
    """

    node: str
    pairs: int
    differing: int


def prove_additions(model: onnx.ModelProto) -> tuple[AdditionProof, ...]:
    """Compare all pairs of codes of each addition between quantizers, in graph order."""
    graph = OnnxGraph(model)
    proofs = []
    for node in graph.nodes:
        codes = _codes_around(node, graph)
        if codes is not None:
            pairs = len(codes[0].all()) * len(codes[1].all())
            proofs.append(AdditionProof(node.name or node.output[0], pairs, differing_pairs(*codes)))
    return tuple(proofs)


def _codes_around(node: onnx.NodeProto, graph: OnnxGraph) -> tuple[Codes, Codes, Codes] | None:
    """Return the codes of both terms and of the sum; None for other nodes, or if one is not quantized."""
    if node.op_type == FUSED and len(node.input) == 8:
        read = list(node.input)
        terms = [
            _narrowed_before(read[at], _codes(read[at + 1], read[at + 2], graph), graph) for at in (0, 3)
        ]
        output = _narrowed_behind(node.output[0], _codes(read[6], read[7], graph), graph)
    elif node.op_type == "Add":
        terms = [_dequantized(name, graph) for name in node.input]
        output = _quantized(node.output[0], graph)
    else:
        return None
    left, right = terms
    return None if left is None or right is None or output is None else (left, right, output)


def _dequantized(name: str, graph: OnnxGraph) -> Codes | None:
    """Return the codes of a term."""
    node = producer_of_moved(name, graph)
    if node is None or node.op_type != DEQUANTIZE or len(node.input) < 3:
        return None
    return _narrowed_before(node.input[0], _codes(node.input[1], node.input[2], graph), graph)


def _quantized(name: str, graph: OnnxGraph) -> Codes | None:
    """Return the codes of a sum, after a ReLU if there is one."""
    reader = _reader_of_moved(name, graph)
    if reader is not None and reader.op_type == "Relu":
        reader = _reader_of_moved(reader.output[0], graph)
    if reader is None or reader.op_type != QUANTIZE or len(reader.input) < 3:
        return None
    return _narrowed_behind(reader.output[0], _codes(reader.input[1], reader.input[2], graph), graph)


def _reader_of_moved(name: str, graph: OnnxGraph) -> onnx.NodeProto | None:
    """Return the only reader of a tensor's values; other nodes may move them before it."""
    reader = graph.only_consumer(name)
    while reader is not None and reader.op_type in MOVING:
        reader = graph.only_consumer(reader.output[0])
    return reader


def _codes(scale: str, zero_point: str, graph: OnnxGraph) -> Codes | None:
    """Return the codes of a stored scale and an 8-bit zero-point."""
    if scale not in graph.constants or zero_point not in graph.constants:
        return None
    size, zero = graph.constants[scale], graph.constants[zero_point]
    if size.size != 1 or zero.size != 1 or zero.dtype not in (np.uint8, np.int8) or not size.item() > 0:
        return None
    limits = np.iinfo(zero.dtype)
    return Codes(float(size.item()), int(zero.item()), int(limits.min), int(limits.max))


def _narrowed_before(name: str, codes: Codes | None, graph: OnnxGraph) -> Codes | None:
    node = graph.producer(name)
    return _narrowed(node, codes, graph) if node is not None and node.op_type == "Clip" else codes


def _narrowed_behind(name: str, codes: Codes | None, graph: OnnxGraph) -> Codes | None:
    reader = graph.only_consumer(name)
    return _narrowed(reader, codes, graph) if reader is not None and reader.op_type == "Clip" else codes


def _narrowed(clip: onnx.NodeProto, codes: Codes | None, graph: OnnxGraph) -> Codes | None:
    """Return the codes within the limits of a Clip."""
    low, high = (
        int(graph.constants[name].item()) if name in graph.constants else None
        for name in [*clip.input[1:3], "", ""][:2]
    )
    if codes is None:
        return None
    return replace(
        codes,
        lowest=codes.lowest if low is None else max(low, codes.lowest),
        highest=codes.highest if high is None else min(high, codes.highest),
    )

"""The proof that a file's additions give the same integers on every processor, read from the file itself.

onnxruntime adds two quantized tensors in other ways on x86 and on ARM64, see `quantizer.addition_orders`. For
each addition between quantizers all pairs of codes are tried. Also for files that this toolkit did not write.
Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper

from qgait_ptq.quantizer.addition_orders import Codes, differing_pairs

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
FUSED = "QLinearAdd"  # in optimised graphs: codes, scale, zero-point of a; of b; scale, zero-point of y


@dataclass(frozen=True)
class AdditionProof:
    """An addition of two quantized tensors.

    Attributes:
        node: its name.
        pairs: how many pairs of codes there are.
        differing: how many of them processors round to different integers.
    """

    node: str
    pairs: int
    differing: int


def prove_additions(model: onnx.ModelProto) -> tuple[AdditionProof, ...]:
    """Try all pairs of codes of each addition between quantizers, in graph order."""
    reader = _Reader(model)
    found = []
    for node in model.graph.node:
        of = reader.codes_around(node)
        if of is not None:
            pairs = len(of[0].all()) * len(of[1].all())
            found.append(AdditionProof(node.name or node.output[0], pairs, differing_pairs(*of)))
    return tuple(found)


class _Reader:
    """A graph with its constants, producers and readers at hand."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.constants = {value.name: value for value in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def codes_around(self, node: onnx.NodeProto) -> tuple[Codes, Codes, Codes] | None:
        """Codes of both terms and of the sum; None for other nodes, and where one is not quantized."""
        if node.op_type == FUSED and len(node.input) == 8:
            read = list(node.input)
            terms = [
                self._narrowed_before(read[at], self._codes(read[at + 1], read[at + 2])) for at in (0, 3)
            ]
            output = self._narrowed_behind(node.output[0], self._codes(read[6], read[7]))
        elif node.op_type == "Add":
            terms = [self._dequantized(name) for name in node.input]
            output = self._quantized(node.output[0])
        else:
            return None
        left, right = terms
        return None if left is None or right is None or output is None else (left, right, output)

    def _dequantized(self, name: str) -> Codes | None:
        """Codes that a term is made of."""
        node = self.producers.get(name)
        if node is None or node.op_type != DEQUANTIZE or len(node.input) < 3:
            return None
        return self._narrowed_before(node.input[0], self._codes(*node.input[1:3]))

    def _quantized(self, name: str) -> Codes | None:
        """Codes that a sum becomes, behind a ReLU if there is one."""
        reader = self._only_reader(name)
        if reader is not None and reader.op_type == "Relu":
            reader = self._only_reader(reader.output[0])
        if reader is None or reader.op_type != QUANTIZE or len(reader.input) < 3:
            return None
        return self._narrowed_behind(reader.output[0], self._codes(*reader.input[1:3]))

    def _codes(self, scale: str, zero_point: str) -> Codes | None:
        """Of one stored scale and a zero-point of 8 bits."""
        if scale not in self.constants or zero_point not in self.constants:
            return None
        size = numpy_helper.to_array(self.constants[scale])
        zero = numpy_helper.to_array(self.constants[zero_point])
        if size.size != 1 or zero.size != 1 or zero.dtype not in (np.uint8, np.int8) or not size.item() > 0:
            return None
        limits = np.iinfo(zero.dtype)
        return Codes(float(size.item()), int(zero.item()), int(limits.min), int(limits.max))

    def _narrowed_before(self, name: str, codes: Codes | None) -> Codes | None:
        node = self.producers.get(name)
        return self._narrowed(node, codes) if node is not None and node.op_type == "Clip" else codes

    def _narrowed_behind(self, name: str, codes: Codes | None) -> Codes | None:
        reader = self._only_reader(name)
        return self._narrowed(reader, codes) if reader is not None and reader.op_type == "Clip" else codes

    def _narrowed(self, clip: onnx.NodeProto, codes: Codes | None) -> Codes | None:
        """Codes that a Clip leaves."""
        low, high = (
            int(numpy_helper.to_array(self.constants[name]).item()) if name in self.constants else None
            for name in [*clip.input[1:3], "", ""][:2]
        )
        if codes is None:
            return None
        return replace(
            codes,
            lowest=codes.lowest if low is None else max(low, codes.lowest),
            highest=codes.highest if high is None else min(high, codes.highest),
        )

    def _only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 else None

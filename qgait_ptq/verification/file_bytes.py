"""Verification: quantized tensors of the runtime's own graph against the integer reference, byte by byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from qgait_ptq.exporters.onnx_file import read_model
from qgait_ptq.onnx_graph.view import OnnxGraph, attribute
from qgait_ptq.reference.arithmetic import Array, quantize_floats
from qgait_ptq.reference.interpreter import simulate
from qgait_ptq.runtime.optimized_graph import written_name
from qgait_ptq.runtime.sessions import Session
from qgait_ptq.verification.emulation import record_elsewhere
from qgait_ptq.verification.recording import Recording, record

BEFORE = "_pre_q"  # onnxruntime appends it to a tensor in front of a quantizer that it moved there
LAYOUT_KEEPING = frozenset({"QLinearLeakyRelu", "QLinearAdd", "Clip", "QLinearSigmoid", "QLinearConcat"})
REARRANGED = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Clip"})
SUMMING = frozenset({"ConvInteger"})  # 32 bits wide
CHANNELS_LAST_OPERATORS = frozenset({"NhwcMaxPool"})


@dataclass(frozen=True)
class TensorCheck:
    """One tensor of the optimised graph.

    Attributes:
        name: in the optimised graph.
        node: that gives it, and its operator.
        operator: of that node.
        values: how many bytes were compared.
        differing: how many of them belong to integers that differ.
        largest: difference of two integers.
    """

    name: str
    node: str
    operator: str
    values: int
    differing: int
    largest: int


@dataclass(frozen=True)
class Verification:
    """What was compared.

    Attributes:
        tensors: in graph order.
        unknown: tensors of integers that have no counterpart in the file, such as ones that the runtime
            rearranged; they are inputs of tensors that are compared.
    """

    tensors: tuple[TensorCheck, ...]
    unknown: tuple[str, ...]

    @property
    def differing(self) -> int:
        """Bytes that differ, in all tensors."""
        return sum(tensor.differing for tensor in self.tensors)


def verify(path: Path, batches: Sequence[Sequence[Array]], processor: str | None = None) -> Verification:
    """Compare a file in onnxruntime, as it is deployed, with the integer reference.

    Args:
        path: of a file with Q/DQ nodes.
        batches: of each input of the file, ``[n, s, ...]`` of its own type.
        processor: kind of processor to emulate, see `emulation`; None is this one.

    Raises:
        ModelError: no such file, or onnxruntime cannot run it.
        ConfigError: that processor cannot be emulated here.
    """
    model = read_model(path)
    feeds = [name_inputs(model, batch) for batch in batches]
    if processor is None:
        recording = record(model, feeds)
    else:
        (recording,) = record_elsewhere(processor, [(model, feeds)])
    return compare_with_reference(model, feeds, recording)


def name_inputs(model: onnx.ModelProto, batch: Sequence[Array]) -> dict[str, Array]:
    """A batch of each input of a file, by name."""
    return {given.name: values for given, values in zip(model.graph.input, batch, strict=True)}


def compare_with_reference(
    model: onnx.ModelProto,
    feeds: Sequence[dict[str, Array]],
    recording: Recording,
    *,
    saturating: bool = False,
) -> Verification:
    """Compare what onnxruntime computed with the integer reference.

    Args:
        model: the file, as written.
        feeds: what it was given.
        recording: what it computed.
        saturating: let the reference add pairs of products in 16 bits.
    """
    written, optimised = OnnxGraph(model), OnnxGraph(recording.optimised)
    totals: dict[str, TensorCheck] = {}
    unknown: dict[str, None] = {}
    for feed, as_written, as_run in zip(feeds, recording.as_written, recording.as_run, strict=True):
        # Floats as the runtime has them, where it still has them; one that it quantizes earlier, it renames.
        renamed = {name.removesuffix(BEFORE): value for name, value in as_run.items()}
        given = as_written | renamed | feed
        expected = simulate(model, given.__getitem__, saturating=saturating)
        comparison = _Comparison(optimised, written, expected, as_run, dict(feed))
        for check in _compare(comparison, unknown):
            totals[check.name] = _sum_up(totals.get(check.name), check)
    return Verification(tuple(totals.values()), tuple(unknown))


def saturation_damage(path: Path, batches: Sequence[Sequence[Array]]) -> float:
    """Share of a file's integers that saturating pairs change, by the integer reference: on any machine.

    Args:
        path: of a file with Q/DQ nodes.
        batches: as of `verify`.

    Raises:
        ModelError: no such file, or onnxruntime cannot run it.
    """
    model = read_model(path)
    feeds = [name_inputs(model, batch) for batch in batches]
    recording = record(model, feeds)
    values = differing = 0
    for feed, as_written in zip(feeds, recording.as_written, strict=True):
        given = as_written | feed
        exact, saturated = (
            simulate(model, given.__getitem__, saturating=saturating) for saturating in (False, True)
        )
        values += sum(integers.size for integers in exact.values())
        differing += sum(int(np.count_nonzero(exact[name] != saturated[name])) for name in exact)
    return differing / max(values, 1)


def random_batches(session: Session, sequences: int, frames: int) -> list[list[Array]]:
    """Random binary silhouettes, or other values, of a session's own types and sizes, each a batch."""
    rng = np.random.default_rng(0)
    return [
        [given.example(1, frames, rng, rng.uniform(0.2, 0.6)) for given in session.inputs]
        for _ in range(sequences)
    ]


def _sum_up(before: TensorCheck | None, check: TensorCheck) -> TensorCheck:
    if before is None:
        return check
    return TensorCheck(
        check.name,
        check.node,
        check.operator,
        before.values + check.values,
        before.differing + check.differing,
        max(before.largest, check.largest),
    )


@dataclass
class _Comparison:
    """What is known while the tensors of an optimised graph are compared, in its order.

    Attributes:
        graph: the optimised graph.
        written: the file.
        expected: tensor of the file → its integers.
        found: tensor of the optimised graph → its values.
        wanted: tensor of the optimised graph → what it should hold, in its own layout.
        channels_last: tensors of the optimised graph whose channels are last.
    """

    graph: OnnxGraph
    written: OnnxGraph
    expected: dict[str, Array]
    found: dict[str, Array]
    wanted: dict[str, Array]
    channels_last: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        nodes = self.written.nodes
        own = {node.name: node.output[0] for node in nodes if node.output[0] in self.expected}
        self.counterparts = own | _quantizers_behind(self.written)
        self.read = {node.name: node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}

    def is_compared(self, node: onnx.NodeProto) -> bool:
        """Whether a node gives integers."""
        values = self.found.get(node.output[0])
        is_byte = values is not None and values.dtype in (np.uint8, np.int8)
        return is_byte or node.op_type in SUMMING

    def value_of(self, node: onnx.NodeProto) -> Array | None:
        """What a node should give, in its own layout; None where it has no counterpart in the file."""
        name = node.output[0]
        value = self.expected.get(name)
        if value is None:
            value = self.expected.get(self.counterparts.get(written_name(node.name), ""))
        keeps_last = node.op_type in LAYOUT_KEEPING and any(read in self.channels_last for read in node.input)
        if node.op_type in REARRANGED and node.input[0] in self.wanted:
            if keeps_last:
                self.channels_last.add(name)
            # Not its counterpart, which may be arranged otherwise, and of the same shape.
            return _rearranged(node, self.wanted[node.input[0]], self.found[name].shape, self.graph)
        if attribute(node, "channels_last") or node.op_type in CHANNELS_LAST_OPERATORS or keeps_last:
            self.channels_last.add(name)
            return None if value is None else np.moveaxis(value, 1, -1)
        if node.op_type == "QuantizeLinear" and self._reads_other_floats(node):
            scale, zero_point = (self.graph.constants[read] for read in node.input[1:3])
            return quantize_floats(self.found[node.input[0]], scale, zero_point)
        return value

    def _reads_other_floats(self, node: onnx.NodeProto) -> bool:
        """Whether the runtime quantizes another tensor of floats than the file: one that it arranged anew."""
        read = node.input[0]
        return read in self.found and self.read.get(written_name(node.name)) != read.removesuffix(BEFORE)


def _compare(comparison: _Comparison, unknown: dict[str, None]) -> list[TensorCheck]:
    """Each integer tensor of the optimised graph against its counterpart; without one it is `unknown`."""
    checks = []
    for node in filter(comparison.is_compared, comparison.graph.nodes):
        name = node.output[0]
        value, found = comparison.value_of(node), comparison.found[name]
        if value is None or value.shape != found.shape:
            unknown[name] = None
            continue
        comparison.wanted[name] = value
        checks.append(_check(node, found, value))
    return checks


def _check(node: onnx.NodeProto, found: Array, value: Array) -> TensorCheck:
    difference = np.abs(found.astype(np.int64) - value)
    size = found.itemsize  # of sums, which count as the bytes that they are
    return TensorCheck(
        node.output[0],
        written_name(node.name),
        node.op_type,
        difference.size * size,
        int(np.count_nonzero(difference)) * size,
        int(difference.max(initial=0)),
    )


def _rearranged(node: onnx.NodeProto, value: Array, shape: tuple[int, ...], graph: OnnxGraph) -> Array:
    if node.op_type == "Transpose":
        return value.transpose(attribute(node, "perm"))
    if node.op_type == "Clip":
        low, high = (graph.constants[name] if name else None for name in node.input[1:3])
        return np.clip(value, low, high)
    return value.reshape(shape)


def _quantizers_behind(graph: OnnxGraph) -> dict[str, str]:
    """Name of a node → tensor behind the quantizer that takes its result, past a ReLU between them."""
    behind = {}
    for node in graph.nodes:
        following = graph.consumers(node.output[0]) if node.output else []
        while len(following) == 1 and following[0].op_type == "Relu":
            following = graph.consumers(following[0].output[0])
        quantizers = [reader for reader in following if reader.op_type == "QuantizeLinear"]
        if len(quantizers) == 1:
            behind[node.name] = quantizers[0].output[0]
    return behind

"""Verification: integer tensors of the runtime's graph, compared byte by byte with the integer reference."""

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
from qgait_ptq.verification.runtime_floats import BEFORE, known_values

LAYOUT_KEEPING = frozenset({"QLinearLeakyRelu", "QLinearAdd", "Clip", "QLinearSigmoid", "QLinearConcat"})
REARRANGED = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Clip"})
SUMMING = frozenset({"ConvInteger"})  # 32 bits wide
CHANNELS_LAST_OPERATORS = frozenset({"NhwcMaxPool"})


@dataclass(frozen=True)
class TensorCheck:
    """One tensor of the optimised graph.

    Attributes:
        name: name in the optimised graph.
        node: name of the node that computes the tensor.
        operator: operator of this node.
        values: number of bytes that were compared.
        differing: number of bytes of integers that differ.
        largest: largest difference of two integers.
    """

    name: str
    node: str
    operator: str
    values: int
    differing: int
    largest: int


@dataclass(frozen=True)
class Verification:
    """Result of a comparison with the integer reference.

    Attributes:
        tensors: compared tensors in graph order.
        unknown: integer tensors without a counterpart in the file, such as tensors that the runtime
            rearranged. They are inputs of compared tensors.
    """

    tensors: tuple[TensorCheck, ...]
    unknown: tuple[str, ...]

    @property
    def differing(self) -> int:
        """Return the number of bytes that differ in all tensors."""
        return sum(tensor.differing for tensor in self.tensors)


def verify(path: Path, batches: Sequence[Sequence[Array]], processor: str | None = None) -> Verification:
    """Compare a file in onnxruntime, as in deployment, with the integer reference.

    Args:
        path: path of a file with Q/DQ nodes.
        batches: batches with one array ``[n, s, ...]`` for each input of the file, in its type.
        processor: processor to emulate, see `emulation`; None for this one.

    Raises:
        ModelError: the file does not exist, or onnxruntime cannot run it.
        ConfigError: the processor cannot be emulated on this machine.
    """
    model = read_model(path)
    feeds = [name_inputs(model, batch) for batch in batches]
    if processor is None:
        recording = record(model, feeds)
    else:
        (recording,) = record_elsewhere(processor, [(model, feeds)])
    return compare_with_reference(model, feeds, recording)


def name_inputs(model: onnx.ModelProto, batch: Sequence[Array]) -> dict[str, Array]:
    """Return the arrays of a batch by the names of the file's inputs."""
    return {entry.name: values for entry, values in zip(model.graph.input, batch, strict=True)}


def compare_with_reference(
    model: onnx.ModelProto,
    feeds: Sequence[dict[str, Array]],
    recording: Recording,
    *,
    saturating: bool = False,
) -> Verification:
    """Compare what onnxruntime computed with the integer reference.

    Args:
        model: exported file.
        feeds: batches of its inputs, by name.
        recording: tensors that onnxruntime computed for the batches.
        saturating: whether the reference stores pair sums in saturating 16 bits.
    """
    written, optimised = OnnxGraph(model), OnnxGraph(recording.optimised)
    totals: dict[str, TensorCheck] = {}
    unknown: dict[str, None] = {}
    for feed, as_written, as_run in zip(feeds, recording.as_written, recording.as_run, strict=True):
        values = known_values(written, optimised, as_written, as_run) | feed
        expected = simulate(model, values.__getitem__, saturating=saturating)
        comparison = _Comparison(optimised, written, expected, as_run, dict(feed))
        for check in _compare(comparison, unknown):
            totals[check.name] = _sum_up(totals.get(check.name), check)
    return Verification(tuple(totals.values()), tuple(unknown))


def saturation_damage(path: Path, batches: Sequence[Sequence[Array]]) -> float:
    """Return the share of integers that saturating pair sums change, 0 to 1, by the integer reference.

    Args:
        path: path of a file with Q/DQ nodes.
        batches: batches as for `verify`.

    Raises:
        ModelError: the file does not exist, or onnxruntime cannot run it.
    """
    model = read_model(path)
    feeds = [name_inputs(model, batch) for batch in batches]
    recording = record(model, feeds)
    values = differing = 0
    for feed, as_written in zip(feeds, recording.as_written, strict=True):
        floats = as_written | feed
        exact, saturated = (
            simulate(model, floats.__getitem__, saturating=saturating) for saturating in (False, True)
        )
        values += sum(integers.size for integers in exact.values())
        differing += sum(int(np.count_nonzero(exact[name] != saturated[name])) for name in exact)
    return differing / max(values, 1)


def random_batches(session: Session, sequences: int, frames: int) -> list[list[Array]]:
    """Return batches of random binary silhouettes, or other values, in the types and sizes of a session."""
    rng = np.random.default_rng(0)
    return [
        [entry.example(1, frames, rng, rng.uniform(0.2, 0.6)) for entry in session.inputs]
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
    """State of a comparison of the optimised graph's tensors, in graph order.

    Attributes:
        graph: optimised graph.
        written: graph of the file.
        expected: expected integers, by tensor of the file.
        actual: actual values, by tensor of the optimised graph.
        expected_here: expected integers in the layout of the optimised graph, by its tensors.
        channels_last: tensors of the optimised graph with the channels last.
    """

    graph: OnnxGraph
    written: OnnxGraph
    expected: dict[str, Array]
    actual: dict[str, Array]
    expected_here: dict[str, Array]
    channels_last: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        nodes = self.written.nodes
        own = {node.name: node.output[0] for node in nodes if node.output[0] in self.expected}
        self.counterparts = own | _quantizers_behind(self.written)
        self.read = {node.name: node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}

    def is_compared(self, node: onnx.NodeProto) -> bool:
        """Return whether a node computes integers."""
        values = self.actual.get(node.output[0])
        is_byte = values is not None and values.dtype in (np.uint8, np.int8)
        return is_byte or node.op_type in SUMMING

    def value_of(self, node: onnx.NodeProto) -> Array | None:
        """Return the expected output of a node in its layout; None if it has no counterpart in the file."""
        name = node.output[0]
        value = self.expected.get(name)
        if value is None:
            value = self.expected.get(self.counterparts.get(written_name(node.name), ""))
        keeps_last = node.op_type in LAYOUT_KEEPING and any(read in self.channels_last for read in node.input)
        if node.op_type in REARRANGED and node.input[0] in self.expected_here:
            if keeps_last:
                self.channels_last.add(name)
            # Its counterpart can have the same shape in another order, so the input is rearranged instead.
            return _rearranged(node, self.expected_here[node.input[0]], self.actual[name].shape, self.graph)
        if attribute(node, "channels_last") or node.op_type in CHANNELS_LAST_OPERATORS or keeps_last:
            self.channels_last.add(name)
            return None if value is None else np.moveaxis(value, 1, -1)
        if node.op_type == "QuantizeLinear" and self._reads_other_floats(node):
            scale, zero_point = (self.graph.constants[read] for read in node.input[1:3])
            return quantize_floats(self.actual[node.input[0]], scale, zero_point)
        return value

    def _reads_other_floats(self, node: onnx.NodeProto) -> bool:
        """Return whether the runtime quantizes another float tensor than the file, such as a moved one."""
        read = node.input[0]
        return read in self.actual and self.read.get(written_name(node.name)) != read.removesuffix(BEFORE)


def _compare(comparison: _Comparison, unknown: dict[str, None]) -> list[TensorCheck]:
    """Compare each integer tensor of the optimised graph with its counterpart; the others are `unknown`."""
    checks = []
    for node in filter(comparison.is_compared, comparison.graph.nodes):
        name = node.output[0]
        value, actual = comparison.value_of(node), comparison.actual[name]
        if value is None or value.shape != actual.shape:
            unknown[name] = None
            continue
        comparison.expected_here[name] = value
        checks.append(_check(node, actual, value))
    return checks


def _check(node: onnx.NodeProto, actual: Array, expected: Array) -> TensorCheck:
    difference = np.abs(actual.astype(np.int64) - expected)
    size = actual.itemsize  # sums have several bytes
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
    """Return the output of the quantizer after each node, by the node's name. A ReLU can be between them."""
    behind = {}
    for node in graph.nodes:
        following = graph.consumers(node.output[0]) if node.output else []
        while len(following) == 1 and following[0].op_type == "Relu":
            following = graph.consumers(following[0].output[0])
        quantizers = [reader for reader in following if reader.op_type == "QuantizeLinear"]
        if len(quantizers) == 1:
            behind[node.name] = quantizers[0].output[0]
    return behind

"""Verification: quantized tensors of the runtime's own graph against the integer reference, byte by byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from qgait_ptq.exporters.onnx_file import read_model
from qgait_ptq.reference.arithmetic import Array, quantize_floats
from qgait_ptq.reference.interpreter import simulate
from qgait_ptq.runtime.sessions import Session
from qgait_ptq.verification.emulation import record_elsewhere
from qgait_ptq.verification.recording import Recording, record

TOKEN = "_token_"  # noqa: S105 - onnxruntime appends it to the names of nodes that it rebuilds
BEFORE = "_pre_q"  # and this to a tensor in front of a quantizer that it moved there
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
    totals: dict[str, TensorCheck] = {}
    unknown: dict[str, None] = {}
    for feed, as_written, as_run in zip(feeds, recording.as_written, recording.as_run, strict=True):
        # Floats as the runtime has them, where it still has them; one that it quantizes earlier, it renames.
        renamed = {name.removesuffix(BEFORE): value for name, value in as_run.items()}
        given = as_written | renamed | feed
        expected = simulate(model, given.__getitem__, saturating=saturating)
        for check in _compare(model, recording.optimised, expected, as_run, feed, unknown):
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


def _compare(
    model: onnx.ModelProto,
    optimised: onnx.ModelProto,
    expected: dict[str, Array],
    found: dict[str, Array],
    feed: dict[str, Array],
    unknown: dict[str, None],
) -> list[TensorCheck]:
    """Each integer tensor of the optimised graph against its counterpart."""
    own = {node.name: node.output[0] for node in model.graph.node if node.output[0] in expected}
    read = {node.name: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    counterparts = own | _quantizers_behind(model)
    constants = {value.name: numpy_helper.to_array(value) for value in optimised.graph.initializer}
    wanted: dict[str, Array] = dict(feed)  # optimised tensor → what it should hold, in its own layout
    last: set[str] = set()  # tensors with their channels last
    checks = []
    for node in optimised.graph.node:
        name = node.output[0]
        is_integer = name in found and found[name].dtype in (np.uint8, np.int8)
        if not is_integer and node.op_type not in SUMMING:
            continue
        value = expected.get(name)
        if value is None:
            value = expected.get(counterparts.get(node.name.split(TOKEN)[0], ""))
        flags = {attribute.name: attribute.i for attribute in node.attribute}
        in_last = node.op_type in LAYOUT_KEEPING and any(given in last for given in node.input)
        if node.op_type in REARRANGED and node.input[0] in wanted:
            # Not its counterpart, which may be arranged otherwise, and of the same shape.
            value = _rearranged(node, wanted[node.input[0]], found[name].shape, constants)
            last |= {name} if in_last else set()
        elif flags.get("channels_last") or node.op_type in CHANNELS_LAST_OPERATORS or in_last:
            last.add(name)
            value = None if value is None else np.moveaxis(value, 1, -1)
        elif node.op_type == "QuantizeLinear" and _reads_other_floats(node, read, found):
            scale, zero_point = (constants[given] for given in node.input[1:3])
            value = quantize_floats(found[node.input[0]], scale, zero_point)
        if value is None or value.shape != found[name].shape:
            unknown[name] = None
            continue
        wanted[name] = value
        difference = np.abs(found[name].astype(np.int64) - value)
        size = found[name].itemsize  # of sums, which count as the bytes that they are
        checks.append(
            TensorCheck(
                name,
                node.name.split(TOKEN)[0],
                node.op_type,
                difference.size * size,
                int(np.count_nonzero(difference)) * size,
                int(difference.max(initial=0)),
            )
        )
    return checks


def _reads_other_floats(node: onnx.NodeProto, read: dict[str, str], found: dict[str, Array]) -> bool:
    """Whether the runtime quantizes another tensor of floats than the file: one that it arranged anew."""
    given = node.input[0]
    return given in found and read.get(node.name.split(TOKEN)[0]) != given.removesuffix(BEFORE)


def _rearranged(
    node: onnx.NodeProto, value: Array, shape: tuple[int, ...], constants: dict[str, Array]
) -> Array:
    if node.op_type == "Transpose":
        (permutation,) = (attribute.ints for attribute in node.attribute if attribute.name == "perm")
        return value.transpose(list(permutation))
    if node.op_type == "Clip":
        low, high = (constants[name] if name else None for name in node.input[1:3])
        return np.clip(value, low, high)
    return value.reshape(shape)


def _quantizers_behind(model: onnx.ModelProto) -> dict[str, str]:
    """Name of a node → tensor behind the quantizer that takes its result, past a ReLU between them."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    behind = {}
    for node in model.graph.node:
        following = readers.get(node.output[0], []) if node.output else []
        while len(following) == 1 and following[0].op_type == "Relu":
            following = readers.get(following[0].output[0], [])
        quantizers = [reader for reader in following if reader.op_type == "QuantizeLinear"]
        if len(quantizers) == 1:
            behind[node.name] = quantizers[0].output[0]
    return behind

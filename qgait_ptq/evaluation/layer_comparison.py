"""Comparison of the layers of an exported file with those of the float network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from qgait_ptq.errors import DataError, ModelError
from qgait_ptq.exporters.lowering import CALL_MARK
from qgait_ptq.exporters.onnx_file import read_model
from qgait_ptq.exporters.passes.first_layer_table import layers_in_tables
from qgait_ptq.gait.metrics import decibels, embedding_cosine
from qgait_ptq.graph.operators import WEIGHTED, is_operator
from qgait_ptq.graph.shapes import is_free, observed_shape, record_free_axes
from qgait_ptq.graph.stored_weights import layer_name
from qgait_ptq.placement.layers import outputs_of
from qgait_ptq.runtime.sessions import as_session_inputs, open_onnxruntime, session_inputs
from qgait_ptq.runtime.without_telemetry import onnxruntime


@dataclass(frozen=True)
class LayerComparison:
    """Error of one layer's output in the file, against the float network.

    Attributes:
        name: module path; ``path#1`` is its second call.
        sqnr_db: SQNR of the output in dB.
        cosine: mean cosine over sequences.
        distance_error: mean change of the distances between sequences of different people, in percent of
            their mean. Outputs are averaged over frames.
        simulation_sqnr_db: SQNR in the simulation at export in dB; None if the report does not have it.
    """

    name: str
    sqnr_db: float
    cosine: float
    distance_error: float
    simulation_sqnr_db: float | None


@dataclass
class _Sums:
    """Sums over sequences for one layer."""

    signal: float = 0.0
    noise: float = 0.0
    cosines: list[float] = field(default_factory=list)
    float_means: list[Tensor] = field(default_factory=list)
    file_means: list[Tensor] = field(default_factory=list)

    def add(self, expected: Tensor, actual: Tensor, factors: list[float] | None, axes: list[int]) -> None:
        """Add the outputs of a layer for one sequence.

        Args:
            expected: output in the float network.
            actual: output in the file.
            factors: equalization factors of the output channels.
            axes: axes whose size depends on the number of frames.
        """
        expected, actual = expected.double(), actual.double()
        if factors is not None:
            shape = (-1, *[1] * (actual.ndim - 2))
            actual = actual * torch.tensor(factors, dtype=torch.float64).reshape(shape)
        self.signal += float(expected.square().sum())
        self.noise += float((expected - actual).square().sum())
        self.cosines.append(float(embedding_cosine(expected.flatten()[None], actual.flatten()[None])))
        # The mean over frames gives sequences of different lengths vectors of one length.
        self.float_means.append((expected.mean(axes) if axes else expected).flatten())
        self.file_means.append((actual.mean(axes) if axes else actual).flatten())


def compare_layers(
    network: fx.GraphModule,
    file: Path,
    sequences: Sequence[tuple[Tensor, str]],
    layers: list[Mapping[str, Any]],
    advance: Callable[[], None] = lambda: None,
) -> list[LayerComparison]:
    """Run the float network and a file side by side.

    Args:
        network: simplified float graph before equalization.
        file: file that was exported from it. It runs without fusions, which hide the layers' outputs.
        sequences: silhouettes ``[1, s, h, w]`` with the subject of each, of at least two subjects.
        layers: section ``layers`` of ``report.json``, which has the factors of equalization.
        advance: function to call after each sequence.

    Returns:
        One comparison for each quantized layer, worst first.

    Raises:
        DataError: all sequences show one person.
        ModelError: the file was exported from another network.
    """
    people = [person for _, person in sequences]
    if len(set(people)) < 2:
        raise DataError("the test sequences show one person; distances between people need at least two")
    nodes = _layer_nodes(network)
    # The file has no node of its own for an operator in float whose weights are integers.
    layers = [layer for layer in layers if not layer.get("weight_only")]
    recorded = dict(zip(_with_calls([str(layer["name"]) for layer in layers]), layers, strict=True))
    quantized = [name for name, layer in recorded.items() if layer["weight_bits"] is not None]
    session, outputs, hidden = _open_with_outputs(file, quantized)
    quantized = [name for name in quantized if name not in hidden]
    inputs = session_inputs(session)
    if set(nodes) != set(recorded) or set(outputs) != set(quantized):
        differing = sorted((set(nodes) ^ set(recorded)) | (set(outputs) ^ set(quantized)))[:3]
        raise ModelError(f"{file}: exported from another network; layers that differ: {', '.join(differing)}")
    nodes = {name: nodes[name] for name in quantized}
    axes = _frame_axes(network, [batch for batch, _ in sequences])
    sums = {name: _Sums() for name in nodes}
    for batch, _ in sequences:
        with torch.inference_mode():
            expected = outputs_of(network, set(nodes.values()), batch)
        values = as_session_inputs(batch.numpy(), inputs)
        feed = {one.name: value for one, value in zip(inputs, values, strict=True)}
        arrays = session.run(list(outputs.values()), feed)
        for name, array in zip(outputs, arrays, strict=True):
            factors = recorded[name].get("equalization_factors")
            output = torch.from_numpy(np.asarray(array))
            sums[name].add(expected[nodes[name]], output, factors, axes[nodes[name]])
        advance()
    compared = [_judge(name, sums[name], people, recorded[name].get("sqnr_db")) for name in nodes]
    return sorted(compared, key=lambda layer: layer.sqnr_db)


def _layer_nodes(network: fx.GraphModule) -> dict[str, str]:
    """Return the node of each call of a layer, by the call's name in the file."""
    nodes = [node for node in network.graph.nodes if is_operator(node, WEIGHTED)]
    names = _with_calls([layer_name(node) for node in nodes])
    return dict(zip(names, (node.name for node in nodes), strict=True))


def _with_calls(names: list[str]) -> list[str]:
    """Return the names of calls in the file: ``path``, then ``path#1``."""
    calls: Counter[str] = Counter()
    unique = []
    for name in names:
        unique.append(f"{name}{CALL_MARK}{calls[name]}" if calls[name] else name)
        calls[name] += 1
    return unique


def _open_with_outputs(
    file: Path, layers: list[str]
) -> tuple[onnxruntime.InferenceSession, dict[str, str], list[str]]:
    """Return a session that gives layers' outputs, the outputs' names, and layers without an output."""
    model = read_model(file)
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in layers}
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in outputs.values() if name not in present
    )
    session = open_onnxruntime(model.SerializeToString(), optimised=False)
    return session, outputs, layers_in_tables(model.graph)


def _frame_axes(network: fx.GraphModule, batches: list[Tensor]) -> dict[str, list[int]]:
    """Return the axes of each node's output whose size depends on the number of frames."""
    by_length = sorted(batches, key=lambda batch: batch.shape[1])
    record_free_axes(network, [by_length[0], by_length[-1]])
    return {
        node.name: [axis for axis in range(len(observed_shape(node) or ())) if is_free(node, axis)]
        for node in network.graph.nodes
    }


def _judge(name: str, sums: _Sums, people: list[str], simulated: float | None) -> LayerComparison:
    tiny = torch.finfo(torch.float64).tiny
    before, after = (
        torch.cdist(vectors, vectors)
        for vectors in (torch.stack(sums.float_means), torch.stack(sums.file_means))
    )
    different = torch.tensor([[a != b for b in people] for a in people])
    error = (after - before).abs()[different].mean() / before[different].mean().clamp_min(tiny)
    sqnr = decibels(sums.signal, sums.noise)
    return LayerComparison(name, sqnr, float(np.mean(sums.cosines)), 100 * float(error), simulated)

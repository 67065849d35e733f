"""Layer by layer: what the float network computes, and what the written file computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, fx

from qgait_ptq.errors import DataError, ModelError
from qgait_ptq.exporters.lowering import CALL_MARK
from qgait_ptq.exporters.passes.first_layer_table import layers_in_tables
from qgait_ptq.graph.attributes import layer_name
from qgait_ptq.graph.operators import WEIGHTED, is_operator
from qgait_ptq.graph.shapes import is_free, observed_shape, record_free_axes
from qgait_ptq.placement.layers import outputs_of
from qgait_ptq.runtime.sessions import as_session_inputs, open_onnxruntime, session_inputs

DECIBELS = 10.0


@dataclass(frozen=True)
class LayerComparison:
    """How far the file's output of one layer is from the float network's.

    Attributes:
        name: module path; ``path#1`` is its second call.
        sqnr_db: signal to quantization noise.
        cosine: mean over sequences.
        distance_error: mean change of the distances between sequences of different people, in percent of
            their mean; of outputs averaged over frames.
        simulation_sqnr_db: of the simulation, when the file was written; None where the report has none.
    """

    name: str
    sqnr_db: float
    cosine: float
    distance_error: float
    simulation_sqnr_db: float | None


@dataclass
class _Sums:
    """What is added up over sequences, for one layer."""

    signal: float = 0.0
    noise: float = 0.0
    cosines: list[float] = field(default_factory=list)
    float_means: list[Tensor] = field(default_factory=list)
    file_means: list[Tensor] = field(default_factory=list)


def compare_layers(
    network: fx.GraphModule,
    file: Path,
    sequences: Sequence[tuple[Tensor, str]],
    layers: list[Mapping[str, Any]],
    advance: Callable[[], None] = lambda: None,
) -> list[LayerComparison]:
    """Run the float network and a file side by side.

    Args:
        network: the simplified float graph, not equalized.
        file: written from it; it runs without the runtime's fusions, which hide the layers' outputs.
        sequences: silhouettes ``[1, s, h, w]``, and whose they are; of at least two people.
        layers: of the file's ``report.json``, which knows what channels were scaled by.
        advance: called after each sequence.

    Returns:
        Worst first.

    Raises:
        DataError: all sequences are of one person.
        ModelError: the file is of another network.
    """
    people = [person for _, person in sequences]
    if len(set(people)) < 2:
        raise DataError("the test sequences are of one person; distances between people need two")
    nodes = _layer_nodes(network)
    recorded = dict(zip(_with_calls([str(layer["name"]) for layer in layers]), layers, strict=True))
    quantized = [name for name, layer in recorded.items() if layer["weight_bits"] is not None]
    session, outputs, hidden = _open_with_outputs(file, quantized)
    quantized = [name for name in quantized if name not in hidden]
    inputs = session_inputs(session)
    if set(nodes) != set(recorded) or set(outputs) != set(quantized):
        differing = sorted((set(nodes) ^ set(recorded)) | (set(outputs) ^ set(quantized)))[:3]
        raise ModelError(f"{file}: written from another network; layers that differ: {', '.join(differing)}")
    nodes = {name: nodes[name] for name in quantized}
    axes = _frame_axes(network, [batch for batch, _ in sequences])
    sums = {name: _Sums() for name in nodes}
    for batch, _ in sequences:
        with torch.inference_mode():
            expected = outputs_of(network, set(nodes.values()), batch)
        values = as_session_inputs(batch.numpy(), inputs)
        feed = {one.name: value for one, value in zip(inputs, values, strict=True)}
        given = session.run(list(outputs.values()), feed)
        for name, array in zip(outputs, given, strict=True):
            factors = recorded[name].get("equalization_factors")
            output = torch.from_numpy(np.asarray(array))
            _add(sums[name], expected[nodes[name]], output, factors, axes[nodes[name]])
        advance()
    compared = [_judge(name, sums[name], people, recorded[name].get("sqnr_db")) for name in nodes]
    return sorted(compared, key=lambda layer: layer.sqnr_db)


def _layer_nodes(network: fx.GraphModule) -> dict[str, str]:
    """Name of each call of a layer, as in the file → name of its node."""
    nodes = [node for node in network.graph.nodes if is_operator(node, WEIGHTED)]
    names = _with_calls([layer_name(node) for node in nodes])
    return dict(zip(names, (node.name for node in nodes), strict=True))


def _with_calls(names: list[str]) -> list[str]:
    """Names of calls, as in the file: ``path``, then ``path#1``."""
    calls: Counter[str] = Counter()
    unique = []
    for name in names:
        unique.append(f"{name}{CALL_MARK}{calls[name]}" if calls[name] else name)
        calls[name] += 1
    return unique


def _open_with_outputs(
    file: Path, layers: list[str]
) -> tuple[onnxruntime.InferenceSession, dict[str, str], list[str]]:
    """A session that gives every layer's output, layer → name of that output, and layers that have none."""
    try:
        model = onnx.load(file)
    except Exception as error:
        raise ModelError(f"{file}: not an ONNX file ({type(error).__name__})") from None
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in layers}
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in outputs.values() if name not in present
    )
    session = open_onnxruntime(model.SerializeToString(), optimised=False)
    return session, outputs, layers_in_tables(model.graph)


def _frame_axes(network: fx.GraphModule, batches: list[Tensor]) -> dict[str, list[int]]:
    """For each node the axes of its output whose size depends on the number of frames."""
    by_length = sorted(batches, key=lambda batch: batch.shape[1])
    record_free_axes(network, [by_length[0], by_length[-1]])
    return {
        node.name: [axis for axis in range(len(observed_shape(node) or ())) if is_free(node, axis)]
        for node in network.graph.nodes
    }


def _add(sums: _Sums, expected: Tensor, given: Tensor, factors: list[float] | None, axes: list[int]) -> None:
    expected, given = expected.double(), given.double()
    if factors is not None:
        given = given * torch.tensor(factors, dtype=torch.float64).reshape(-1, *[1] * (given.ndim - 2))
    sums.signal += float(expected.square().sum())
    sums.noise += float((expected - given).square().sum())
    sums.cosines.append(float(torch.cosine_similarity(expected.flatten(), given.flatten(), dim=0)))
    # Sequences of different lengths have vectors of one length then.
    sums.float_means.append((expected.mean(axes) if axes else expected).flatten())
    sums.file_means.append((given.mean(axes) if axes else given).flatten())


def _judge(name: str, sums: _Sums, people: list[str], simulated: float | None) -> LayerComparison:
    tiny = torch.finfo(torch.float64).tiny
    before, after = (
        torch.cdist(vectors, vectors)
        for vectors in (torch.stack(sums.float_means), torch.stack(sums.file_means))
    )
    different = torch.tensor([[a != b for b in people] for a in people])
    error = (after - before).abs()[different].mean() / before[different].mean().clamp_min(tiny)
    ratio = max(sums.signal, tiny) / max(sums.noise, tiny)
    return LayerComparison(
        name, DECIBELS * float(np.log10(ratio)), float(np.mean(sums.cosines)), 100 * float(error), simulated
    )

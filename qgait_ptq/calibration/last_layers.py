"""The layers that give the embedding, their inputs, and the float embeddings of the same clips.

Behind the maximum over frames there is one column for each sequence. The inputs of the last layers can
therefore be kept for thousands of sequences, and these layers can be trained alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from qgait_ptq.calibration.blocks import Block, block_of
from qgait_ptq.graph.attributes import shared_parameters
from qgait_ptq.graph.recorder import run_recorded
from qgait_ptq.graph.views import source
from qgait_ptq.placement.quantized_layers import QuantizedLayer, quantized_layers
from qgait_ptq.system.invariants import of_type

SAME = 1e-4  # largest difference of equal embeddings, as a share of the largest value: other orders of sums


class LabelledClips(Protocol):
    """Batches of clips, and the identity of each clip."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Tensor:
        """Return a batch ``[n, s, h, w]``."""
        ...

    def labels(self, index: int) -> Tensor:
        """Return the identities of a batch, ``[n]``; a negative number for an unknown one."""
        ...


@dataclass(frozen=True)
class LastInputs:
    """Inputs of the last layers for one batch.

    Attributes:
        quantized: values that they and the nodes behind them read in the quantized network, by node name.
        reference: input of each last layer in the float network, by the layer's node name.
        embeddings: embeddings by the float network, ``[n, c, p]`` or ``[n, c]``.
        labels: identities, ``[n]``; a negative number for an unknown one.
    """

    quantized: Mapping[str, Any]
    reference: Mapping[str, Tensor]
    embeddings: Tensor
    labels: Tensor

    @property
    def bytes(self) -> int:
        """Return the memory that the tensors take."""
        kept = [*self.quantized.values(), *self.reference.values(), self.embeddings]
        return sum(value.nbytes for value in kept if isinstance(value, Tensor))


class LastPart:
    """The last layers of a quantized graph with all nodes behind them, and those of its float reference."""

    def __init__(self, quantized: fx.GraphModule, reference: fx.GraphModule) -> None:
        """Find the last layers.

        Args:
            quantized: calibrated graph.
            reference: the same graph with its quantizers switched off.
        """
        self.quantized, self.reference = quantized, reference
        shared = shared_parameters(quantized)
        found = last_layers(quantized)
        self.layers = [
            layer
            for layer in found
            if layer.weight_path not in shared and (layer.bias_path or "") not in shared
        ]
        originals = {layer.node.name: layer for layer in quantized_layers(reference)}
        self.originals = {layer.node.name: originals[layer.node.name] for layer in self.layers}
        self.block = _behind(quantized, [layer.node for layer in found])

    def source_of(self, layer: QuantizedLayer) -> str:
        """Return the name of the node that a last layer reads."""
        return source(layer.node).name

    def read(self, batch: Tensor, labels: Tensor) -> LastInputs:
        """Run both networks on a batch, and return the inputs of the last layers.

        Args:
            batch: network input ``[n, s, h, w]``.
            labels: identities, ``[n]``.
        """
        with torch.no_grad():
            quantized, _ = _values(self.quantized, self.block.inputs, batch)
            sources = {source(original.node): name for name, original in self.originals.items()}
            floats, embeddings = _values(self.reference, list(sources), batch)
        inputs = {name: floats[source(original.node).name] for name, original in self.originals.items()}
        return LastInputs(quantized, inputs, of_type(embeddings, Tensor), labels)

    def embed(self, inputs: LastInputs) -> Tensor:
        """Return the embeddings of a batch by the quantized network, with gradients."""
        values = {node: inputs.quantized[node.name] for node in self.block.inputs}
        (embeddings,) = self.block.run(self.quantized, values)
        return embeddings

    def can_join(self, batches: Sequence[LastInputs]) -> bool:
        """Return whether batches may be joined: two of them give the same embeddings alone and as one."""
        one = join(batches[:2])
        if one is None:
            return False
        with torch.no_grad():
            apart = torch.cat([self.embed(inputs) for inputs in batches[:2]])
            try:
                together = self.embed(one)
            except RuntimeError:  # the code behind the layers is written for one number of clips
                return False
        return together.shape == apart.shape and bool(
            (together - apart).abs().max() <= SAME * apart.abs().max()
        )


def join(batches: Sequence[LastInputs]) -> LastInputs | None:
    """Return batches as one; None if it is not clear what a value becomes.

    Tensors whose first axis is a multiple of the number of clips are concatenated, and numbers that are the
    number of clips become their sum. `LastPart.can_join` tells whether that is right for a network.
    """
    joined: dict[str, Any] = {}
    counts = [len(inputs.labels) for inputs in batches]
    for name in batches[0].quantized:
        values = [inputs.quantized[name] for inputs in batches]
        if all(isinstance(value, Tensor) and value.ndim > 0 for value in values):
            if any(len(value) % count for value, count in zip(values, counts, strict=True)):
                return None
            joined[name] = torch.cat(values)
        elif values == counts:
            joined[name] = sum(counts)
        elif all(type(value) is int and value == values[0] for value in values):
            joined[name] = values[0]
        else:
            return None
    embeddings = torch.cat([inputs.embeddings for inputs in batches])
    labels = torch.cat([inputs.labels for inputs in batches])
    return LastInputs(joined, {}, embeddings, labels)  # nothing reads what the float network gave


class ManyInputs(Protocol):
    """Inputs of the last layers for many batches, such as a list of them."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[LastInputs]: ...


@dataclass(frozen=True)
class StreamedInputs:
    """Inputs of the last layers for many batches, computed anew in each iteration."""

    part: LastPart
    clips: LabelledClips

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.clips)

    def __iter__(self) -> Iterator[LastInputs]:
        """Yield the inputs of each batch."""
        for index in range(len(self)):
            yield self.part.read(self.clips[index], self.clips.labels(index))


def read_all(
    part: LastPart, clips: LabelledClips, memory: int, advance: Callable[[], None] = lambda: None
) -> list[LastInputs] | None:
    """Return the inputs of the last layers for all batches; None if they do not fit into memory.

    Args:
        part: the last layers.
        clips: the batches.
        memory: limit in bytes.
        advance: called after each batch.
    """
    found: list[LastInputs] = []
    for inputs in StreamedInputs(part, clips):
        found.append(inputs)
        if found[0].bytes * len(clips) > memory:
            return None
        advance()
    return found


def last_layers(graph_module: fx.GraphModule) -> list[QuantizedLayer]:
    """Return the quantized layers behind which there is no other one."""
    layers = {layer.node: layer for layer in quantized_layers(graph_module)}
    before: set[fx.Node] = set()  # nodes that lead to a quantized layer
    for node in reversed(graph_module.graph.nodes):
        if any(user in before or user in layers for user in node.users):
            before.add(node)
    return [layer for node, layer in layers.items() if node not in before]


def _behind(graph_module: fx.GraphModule, layers: Sequence[fx.Node]) -> Block:
    """Return some layers with the quantizers of their parameters, and all nodes behind them."""
    inside = set(layers)
    for node in graph_module.graph.nodes:
        if any(given in inside for given in node.all_input_nodes):
            inside.add(node)
    for node in list(graph_module.graph.nodes):
        parameters = node.op == "call_module" and node.all_input_nodes[0].op == "get_attr"
        if parameters and any(user in inside for user in node.users):
            inside.add(node)
    ends = ("output", "get_attr")
    return block_of([node for node in graph_module.graph.nodes if node in inside and node.op not in ends])


def _values(
    graph_module: fx.GraphModule, wanted: Sequence[fx.Node], batch: Tensor
) -> tuple[dict[str, Any], Any]:
    """Return the values of some nodes for a batch, by name, and the output."""
    names, found = {node.name for node in wanted}, {}

    def visit(node: fx.Node, value: Any) -> None:
        if node.name in names:
            found[node.name] = value

    output = run_recorded(graph_module, batch, visit)
    return found, output

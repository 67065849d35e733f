"""OnnxGraph: nodes of an ONNX model, producers and consumers of tensors, and stored tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

ONNX_DOMAINS = ("", "ai.onnx")


class OnnxGraph:
    """An index of a model's graph. It is a snapshot: make a new one after nodes were added or removed.

    A stored tensor is decoded on first access, so the index of a damaged graph can be made. Reading a damaged
    graph can raise any exception, see `runtime.written_file.refuse_damage`.

    Attributes:
        nodes: nodes in the order of the file.
        inputs: declarations of the graph inputs, by name.
        outputs: names of the graph outputs.
        initializers: stored tensors, by name.
        constants: stored tensors as arrays of their shape and type, by name.
        opset: version of the ONNX operators; 0 if the model names none.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.inputs = {value.name: value for value in graph.input}
        self.outputs = tuple(value.name for value in graph.output)
        self.initializers = {value.name: value for value in graph.initializer}
        self.constants: Mapping[str, NDArray[Any]] = _Constants(self.initializers)
        self.opset = next((o.version for o in model.opset_import if o.domain in ONNX_DOMAINS), 0)
        self._ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
        self._producers: dict[str, onnx.NodeProto] = {}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            self._producers.update((name, node) for name in node.output if name)
            for name in filter(None, node.input):
                self._consumers.setdefault(name, []).append(node)

    def nodes_of(self, *operators: str) -> Iterator[onnx.NodeProto]:
        """Return the nodes of some operators, in the order of the file."""
        return (node for node in self.nodes if node.op_type in operators)

    def producer(self, name: str) -> onnx.NodeProto | None:
        """Return the node that computes a tensor; None for inputs, stored tensors and ``""``."""
        return self._producers.get(name)

    def consumers(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a tensor. A node that reads it twice is listed twice."""
        return list(self._consumers.get(name, ()))

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """Return the only node that reads a tensor; None if it is read more than once or never."""
        consumers = self._consumers.get(name, ())
        return consumers[0] if len(consumers) == 1 else None

    def initializer(self, name: str, through: Collection[str] = ()) -> onnx.TensorProto | None:
        """Return the stored tensor of a name; None if it is computed.

        Args:
            name: name of the tensor.
            through: operators, such as Cast, of which one can be between the stored tensor and the name.
        """
        producer = self.producer(name)
        if producer is not None and producer.op_type in through:
            name = producer.input[0]
        return self.initializers.get(name)

    def rank(self, name: str) -> int | None:
        """Return the number of axes of an inner tensor; None if the model does not have its shape."""
        return self._ranks.get(name)


class _Constants(Mapping[str, NDArray[Any]]):
    """Stored tensors as arrays. Each is decoded once."""

    def __init__(self, initializers: Mapping[str, onnx.TensorProto]) -> None:
        self._initializers = initializers
        self._decoded: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._decoded:
            self._decoded[name] = numpy_helper.to_array(self._initializers[name])
        return self._decoded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._initializers

    def get(self, name: str, default: Any = None) -> Any:
        """Return the array of a name, or the default. A damaged tensor raises an error."""
        if name not in self._initializers:
            return default
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._initializers)

    def __len__(self) -> int:
        return len(self._initializers)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return a node's attribute as a Python object, or the default if the node does not have it.

    If several attributes have the name, the last one counts, as in onnxruntime.

    Raises:
        ValueError: the attribute's type is unknown.
    """
    for entry in reversed(node.attribute):
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default

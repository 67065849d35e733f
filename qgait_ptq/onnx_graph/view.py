"""OnnxGraph: the nodes of an ONNX model, who gives and who reads each tensor, and the stored tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

ONNX_DOMAINS = ("", "ai.onnx")


class OnnxGraph:
    """A model's graph, indexed once. It is a snapshot: make a new one after nodes were added or removed.

    The view follows nothing by itself and decodes a stored tensor only when it is asked for. So it can be
    made of a damaged graph; reading one may raise any exception, see `runtime.written_file.refuse_damage`.

    Attributes:
        nodes: in the order of the file.
        inputs: name → declaration of a graph input.
        outputs: names of the graph outputs.
        initializers: name → stored tensor.
        constants: name → the stored tensor as an array of its own shape and type.
        opset: version of the ONNX operators; 0 where the model names none.
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
        """Nodes of some operators, in the order of the file."""
        return (node for node in self.nodes if node.op_type in operators)

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that gives a tensor; None for inputs, stored tensors and ``""``."""
        return self._producers.get(name)

    def consumers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read a tensor; one that reads it twice is listed twice."""
        return list(self._consumers.get(name, ()))

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """The node that reads a tensor, if there is exactly one and it reads it once."""
        consumers = self._consumers.get(name, ())
        return consumers[0] if len(consumers) == 1 else None

    def initializer(self, name: str, through: Collection[str] = ()) -> onnx.TensorProto | None:
        """The stored tensor of a name; None where it is computed.

        Args:
            name: of a tensor.
            through: operators, such as Cast, behind one of which the tensor may also stand.
        """
        producer = self.producer(name)
        if producer is not None and producer.op_type in through:
            name = producer.input[0]
        return self.initializers.get(name)

    def rank(self, name: str) -> int | None:
        """Count of axes of an inner tensor; None where the model holds no shape of it."""
        return self._ranks.get(name)


class _Constants(Mapping[str, NDArray[Any]]):
    """Stored tensors as arrays, each decoded once."""

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
        """The array of a name, or the default; a damaged tensor is no missing one, but raises."""
        if name not in self._initializers:
            return default
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._initializers)

    def __len__(self) -> int:
        return len(self._initializers)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute as a Python object, or the default where the node has none.

    Of two with one name the last one counts, as in onnxruntime.

    Raises:
        ValueError: the attribute's type is unknown.
    """
    for found in reversed(node.attribute):
        if found.name == name:
            return helper.get_attribute_value(found)
    return default

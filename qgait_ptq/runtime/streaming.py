"""Streaming: sequences of any length in the memory of one chunk.

A maximum over frames equals the maximum of the maxima of chunks. If every path through a network has such a
maximum, and nothing before it mixes frames, the file is split there into two models. The first model gets the
sequence chunk by chunk, and the second gets the running maxima. Both models are unchanged pieces of the file,
so the embedding is bit-identical.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qgait_ptq.onnx_graph.view import OnnxGraph
from qgait_ptq.runtime.exactness import exact_network
from qgait_ptq.runtime.sessions import cannot_run, open_onnxruntime
from qgait_ptq.runtime.without_telemetry import onnxruntime

MAXIMUM = "ReduceMax"
ELEMENTWISE_BEHIND = frozenset({"QuantizeLinear", "Clip"})  # monotone, so the file can be cut after them
SHAPE_READERS = frozenset({"Shape"})
TRIED_FRAMES, TRIED_PIECES = 12, ((5, 7), (1, 11), (4, 3, 5))


class StreamingSession:
    """A file that is split into two models, in onnxruntime.

    Calling `run` from several threads is safe.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        threads: int | None = None,
        spinning: bool = True,
        name: str | Path = "the model",
    ) -> None:
        """Split a file and load its two models.

        Args:
            model: content of the file.
            threads: as for `open_session`.
            spinning: as for `open_session`.
            name: name of the file in errors.

        Raises:
            ValueError: the file has no maximum over frames on every path.
        """
        self._name = name
        model = exact_network(model)
        cut = find_cut(model)
        if cut is None:
            raise ValueError("no maximum that separates frames from the embedding")
        # One after the other, so that memory holds at most one model twice.
        self._first, self._second = (
            open_onnxruntime(part.SerializeToString(), threads, spinning) for part in split(model, cut)
        )
        self._read_first = [value.name for value in self._first.get_inputs()]
        self._inputs = [value.name for value in self._second.get_inputs()]
        self._input_names, self._cut = [value.name for value in model.graph.input], cut

    def run(self, pieces: Iterator[Sequence[NDArray[Any]]]) -> NDArray[np.float32]:
        """Embed a sequence in chunks. A chunk has one array ``[n, s_i, ...]`` for each input, in its type.

        Raises:
            ModelError: onnxruntime fails on a chunk.
        """
        running: list[NDArray[Any]] | None = None
        last: dict[str, NDArray[Any]] = {}
        for piece in pieces:
            last = dict(zip(self._input_names, piece, strict=True))
            maxima = self._infer(self._first, self._cut, {name: last[name] for name in self._read_first})
            running = maxima if running is None else list(map(np.maximum, running, maxima))
        feed = dict(zip(self._cut, running or [], strict=True)) | last
        (embedding,) = self._infer(self._second, None, {name: feed[name] for name in self._inputs})
        return np.asarray(embedding)

    def _infer(
        self, session: onnxruntime.InferenceSession, outputs: list[str] | None, feed: dict[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        try:
            return list(session.run(outputs, feed))
        except Exception as error:  # onnxruntime's exceptions have no common public base
            raise cannot_run(
                self._name, f"onnxruntime {onnxruntime.__version__}", list(feed.values()), error
            ) from None


def can_stream(model: onnx.ModelProto, examples: Sequence[NDArray[Any]]) -> bool:
    """Return whether a file can be streamed with bit-identical results.

    Args:
        model: exported file with free frame count.
        examples: example inputs ``[n, s, ...]`` with s of at least `TRIED_FRAMES`.
    """
    if find_cut(model) is None:
        return False
    examples = [example[:1, :TRIED_FRAMES] for example in examples]
    model = exact_network(model)
    complete = open_onnxruntime(model.SerializeToString(), spinning=False)
    names = [value.name for value in model.graph.input]
    (expected,) = complete.run(None, dict(zip(names, examples, strict=True)))
    session = StreamingSession(model, spinning=False)
    for lengths in TRIED_PIECES:
        ends = np.cumsum(lengths)[:-1]
        try:
            pieces = zip(*(np.split(example, ends, axis=1) for example in examples), strict=True)
            actual = session.run(pieces)
        except Exception:  # onnxruntime's exceptions have no common public base
            return False  # the second model depends on the frame count
        if actual.shape != np.shape(expected) or not np.array_equal(actual, expected):
            return False
    return True


def find_cut(model: onnx.ModelProto) -> list[str] | None:
    """Return the tensors after the first maximum on each path; None if a path has no maximum."""
    graph = OnnxGraph(model)
    cut: list[str] = []
    pending, seen = list(graph.inputs), set[str]()
    while pending:
        name = pending.pop()
        if name in graph.outputs:
            return None
        for node in graph.consumers(name):
            if node.op_type in SHAPE_READERS or node.name in seen:
                continue
            seen.add(node.name)
            if node.op_type == MAXIMUM:
                cut.append(_behind(node, graph))
            else:
                pending.extend(node.output)
    return sorted(set(cut)) or None


def _behind(maximum: onnx.NodeProto, graph: OnnxGraph) -> str:
    """Return the tensor to cut at: after the quantizer of the maximum, if there is one."""
    name = str(maximum.output[0])
    while (reader := graph.only_consumer(name)) is not None and reader.op_type in ELEMENTWISE_BEHIND:
        name = str(reader.output[0])
    return name


def split(model: onnx.ModelProto, cut: list[str]) -> Iterator[onnx.ModelProto]:
    """Yield the models before and after some tensors of a file.

    The second model also reads the inputs of the network if it needs their batch size.
    """
    graph = OnnxGraph(model)
    boundary = [helper.make_tensor_value_info(name, _element_type(name, graph), None) for name in cut]
    inputs = list(model.graph.input)
    yield _submodel(model, cut, set(), inputs, boundary)
    outputs = [value.name for value in model.graph.output]
    yield _submodel(model, outputs, set(cut), [*boundary, *inputs], model.graph.output)


def _element_type(name: str, graph: OnnxGraph) -> int:
    """Return the ONNX element type of a tensor to cut at: the type of its quantizer, or float."""
    node = graph.producer(name)
    while node is not None and node.op_type == "Clip":
        node = graph.producer(node.input[0])
    if node is None or node.op_type != "QuantizeLinear":
        return int(TensorProto.FLOAT)
    return int(graph.initializers[node.input[2]].data_type)


def _submodel(
    model: onnx.ModelProto, results: list[str], sources: set[str], inputs: list[Any], outputs: Any
) -> onnx.ModelProto:
    """Return the nodes of a model that compute some tensors from others, as a model."""
    complete = OnnxGraph(model)
    needed, pending = set[str](), list(results)
    while pending:
        name = pending.pop()
        if name in needed:
            continue
        needed.add(name)
        producer = complete.producer(name)
        if producer is not None and name not in sources:
            pending.extend(read for read in producer.input if read)
    nodes = [
        node for node in complete.nodes if any(name in needed and name not in sources for name in node.output)
    ]
    initializers = [value for value in model.graph.initializer if value.name in needed]
    used = [value for value in inputs if value.name in needed]
    graph = helper.make_graph(nodes, model.graph.name, used, list(outputs), initializers)
    part = helper.make_model(graph, opset_imports=model.opset_import)
    part.ir_version = model.ir_version
    return part

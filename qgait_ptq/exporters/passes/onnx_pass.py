"""OnnxPass: a rewrite of an ONNX model with a name and declared needs, and the runner that checks each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import onnx

from qgait_ptq.errors import ExportError, first_line
from qgait_ptq.onnx_graph.view import OnnxGraph

PER_CHANNEL_OPSET = 13  # the first whose QuantizeLinear takes a scale for each channel


@dataclass(frozen=True)
class Requirements:
    """Requirements of a pass on its model.

    Attributes:
        opset: smallest version of the ONNX operators; older models lack an operator that the pass writes.
        shapes: whether the pass needs shapes of inner tensors, which are inferred before it.
    """

    opset: int = PER_CHANNEL_OPSET
    shapes: bool = False


@dataclass(frozen=True)
class OnnxPass:
    """A rewrite of an ONNX model that does not change its result.

    Attributes:
        name: name in `Target.onnx_passes` and in errors.
        rewrite: function that changes a model in place and keeps the names of inputs and outputs.
        requires: requirements that the runner checks or provides before the pass.
        layer_suffix: suffix of the layer's name for a node that computes a layer's integers; empty if the
            pass adds no such node.
    """

    name: str
    rewrite: Callable[[onnx.ModelProto], None]
    requires: Requirements = Requirements()
    layer_suffix: str = ""

    def run(self, model: onnx.ModelProto) -> None:
        """Rewrite a model in place and check it.

        Raises:
            ExportError: the model does not meet the requirements, or the pass made it invalid.
        """
        opset = OnnxGraph(model).opset
        if opset < self.requires.opset:
            raise ExportError(
                f"the ONNX pass {self.name} needs opset {self.requires.opset} or newer; the file has {opset}"
            )
        interface = _interface(model)
        with _inferred_shapes(model) if self.requires.shapes else _as_it_is():
            try:
                self.rewrite(model)
            except Exception as error:
                error.add_note(f"raised in the ONNX pass {self.name}")
                raise
        if _interface(model) != interface:
            raise ExportError(f"the ONNX pass {self.name} changed the inputs or outputs of the file")
        check_model(model, f"after the ONNX pass {self.name}")


def run_passes(model: onnx.ModelProto, passes: Iterable[OnnxPass]) -> None:
    """Run passes one after the other, in place; the model is checked after each.

    Raises:
        ExportError: a pass cannot run or made the model invalid. The error names the pass.
    """
    for onnx_pass in passes:
        onnx_pass.run(model)


def check_model(model: onnx.ModelProto, when: str) -> None:
    """Refuse a model that the ONNX checker refuses, shapes and types included.

    Args:
        model: model to check.
        when: step before the check, for the error.

    Raises:
        ExportError: the checker refuses the model.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the ONNX checker refuses the file {when} ({first_line(error)})") from error


def _interface(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Return the names of the graph's inputs and outputs."""
    return [value.name for value in model.graph.input], [value.name for value in model.graph.output]


@contextmanager
def _inferred_shapes(model: onnx.ModelProto) -> Iterator[None]:
    """Declare the shapes of inner tensors temporarily."""
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    declared = list(model.graph.value_info)
    _declare(model, inferred)
    yield
    _declare(model, declared)


def _declare(model: onnx.ModelProto, values: Iterable[onnx.ValueInfoProto]) -> None:
    del model.graph.value_info[:]
    model.graph.value_info.extend(values)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield

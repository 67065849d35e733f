"""Reading an ONNX model in OpenVINO, with an error for each operator that it does not convert."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import onnx

UNCONVERTED = "Model wasn't fully converted. "  # in OpenVINO's error, before the operators
BEHIND = "static"  # in what it says of operators whose input has no known type or rank
UNKNOWN = "No conversion rule found for operations"


def read_in_openvino(core: Any, content: bytes) -> tuple[Any, dict[str, str]]:
    """Return a model in OpenVINO, not yet compiled, and the metadata of the file.

    OpenVINO 2026.4 ends the process without an error if it reads a Clip with a missing bound behind an
    operator that it does not convert: it asks for the limits of a type that it does not know. Files with
    fewer than 8 bits have such Clips. So a copy without them is read first; it raises the error.

    Args:
        core: OpenVINO's ``Core``.
        content: serialized ONNX model.

    Raises:
        ValueError: OpenVINO does not convert an operator; the text names it.
    """
    model = onnx.load_from_string(content)
    copy = without_one_sided_clips(model)
    try:
        if copy is not None:
            core.read_model(copy.SerializeToString())
        return core.read_model(content), {entry.key: entry.value for entry in model.metadata_props}
    except Exception as error:  # OpenVINO's exceptions have no common public base
        _, found, details = " ".join(str(error).split()).partition(UNCONVERTED)
        if not found:
            raise
        raise ValueError(_cause(details)) from None


def _cause(details: str) -> str:
    """Return the part of OpenVINO's error about operators that are to blame, not those behind them."""
    log, _, summary = details.partition("Summary:")
    if UNKNOWN in summary:
        return re.split(" -- | To facilitate", summary[summary.find(UNKNOWN) :])[0]
    entries = [entry.strip() for entry in log.split("-- ")[1:]]
    return next((entry for entry in entries if BEHIND not in entry), summary)


def without_one_sided_clips(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a copy of a model with an Identity for each Clip with a missing bound; None if it has none."""
    if not any(map(_is_one_sided, _nodes(model))):
        return None
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for node in filter(_is_one_sided, _nodes(copied)):
        node.op_type = "Identity"
        del node.input[1:], node.attribute[:]
    return copied


def _is_one_sided(node: onnx.NodeProto) -> bool:
    return node.op_type == "Clip" and sum(map(bool, node.input[1:])) < 2


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes, also those of functions and of graphs inside nodes."""
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while waiting:
        for node in waiting.pop().node:
            yield node
            for entry in node.attribute:
                waiting.extend([entry.g] if entry.HasField("g") else entry.graphs)

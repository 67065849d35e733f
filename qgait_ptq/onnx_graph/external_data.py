"""Reading of ONNX files whose weights are all in the file. Needs neither onnx nor a runtime.

ONNX can store tensors in other files (external data). OpenVINO then opens any path that a model names, even
if the model is in memory. So a model is searched for such tensors before a runtime or onnx sees it. The
search follows the fields of protobuf messages that can hold tensors, and skips all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qgait_ptq.errors import ModelError
from qgait_ptq.system.reading import read_bytes

LARGEST_MODEL = 2**31  # bytes of a file; protobuf cannot read larger ones
MOST_FIELDS = 4_000_000  # searched fields of a file
# Messages that hold tensors: numbers of their fields with such messages, from onnx.proto.
FIELDS = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
DATA_LOCATION = 14  # field of a TensorProto; zero means that the tensor is in the file
VARINT, FIXED64, MESSAGE, FIXED32 = 0, 1, 2, 5  # kinds of fields
LONGEST_VARINT = 10  # bytes


def read_model_bytes(model: Path | bytes) -> bytes:
    """Return a serialized model that has all its tensors.

    Args:
        model: path of the file, or serialized model.

    Raises:
        ModelError: the file cannot be read, is not a protobuf message, or has tensors in other files.
    """
    if isinstance(model, Path):
        name, content = str(model), read_bytes(model, LARGEST_MODEL, "the model", ModelError)
    else:
        name, content = "the model", model
    try:
        is_external = has_external_data(content)
    except ValueError as error:
        raise ModelError(f"{name}: cannot load the model: damaged, or not an ONNX file ({error})") from None
    if is_external:
        raise ModelError(
            f"{name}: its weights are in other files, which are not read. Store them in the model: "
            "onnx.save(onnx.load(path), path)"
        )
    return content


def has_external_data(content: bytes) -> bool:
    """Return whether a tensor of a serialized model is in another file, at any depth.

    Raises:
        ValueError: the content is not a protobuf message, or has more than `MOST_FIELDS` fields.
    """
    waiting, left = [("ModelProto", 0, len(content))], MOST_FIELDS
    while waiting:
        message, start, end = waiting.pop()
        for field, kind, value, size in _fields(content, start, end):
            left -= 1
            if left < 0:
                raise ValueError(f"more than {MOST_FIELDS} fields")
            if message == "TensorProto" and field == DATA_LOCATION and kind == VARINT and value:
                return True
            inner = FIELDS[message].get(field) if kind == MESSAGE else None
            if inner is not None:
                waiting.append((inner, value, value + size))
    return False


def _fields(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, kind, value and size of each field. The value of a message is its position.

    Raises:
        ValueError: a field exceeds the message, or is of a kind that ONNX does not use.
    """
    position = start
    while position < end:
        tag, position = _varint(content, position, end)
        field, kind, size, value = tag >> 3, tag & 7, 0, 0
        if kind == VARINT:
            value, position = _varint(content, position, end)
        elif kind == MESSAGE:
            size, position = _varint(content, position, end)
            value = position
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        position += size
        if position > end or field == 0:
            raise ValueError("a field without a number, or beyond the end")
        yield field, kind, value, size


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    """Return an integer of variable length, and the position behind it."""
    value = 0
    for index in range(LONGEST_VARINT):
        if position >= end:
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position
    raise ValueError("an integer without an end")

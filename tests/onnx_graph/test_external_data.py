"""Tensors that a model stores in other files are found wherever a model can have a tensor."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.errors import ModelError
from qgait_ptq.exporters.onnx_file import read_model
from qgait_ptq.onnx_graph import external_data
from qgait_ptq.onnx_graph.external_data import FIELDS, has_external_data, read_model_bytes
from qgait_ptq.runtime.sessions import RUNTIMES, is_installed, open_unguarded
from tests.runtime.small_model import save, small_model

VALUES = np.ones((2, 2), np.float32)


def stored_elsewhere(location="secret.bin"):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def sparse(values, indices):
    return onnx.SparseTensorProto(values=values, indices=indices, dims=[4])


def graph_with(tensor):
    return helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "inner", [], [], [tensor])


def attribute(**values):
    return onnx.AttributeProto(name="a", **values)


def add_attribute(model, entry):
    model.graph.node[0].attribute.append(entry)


INTEGERS = numpy_helper.from_array(np.zeros(2, np.int64), "i")
PLACES = {
    "initializer": lambda model, tensor: model.graph.initializer.append(tensor),
    "sparse values": lambda model, tensor: model.graph.sparse_initializer.append(sparse(tensor, INTEGERS)),
    "sparse indices": lambda model, tensor: model.graph.sparse_initializer.append(sparse(INTEGERS, tensor)),
    "attribute": lambda model, tensor: add_attribute(model, attribute(t=tensor)),
    "list of tensors": lambda model, tensor: add_attribute(model, attribute(tensors=[INTEGERS, tensor])),
    "sparse attribute": lambda model, tensor: add_attribute(
        model, attribute(sparse_tensor=sparse(tensor, INTEGERS))
    ),
    "branch of an If": lambda model, tensor: add_attribute(model, attribute(g=graph_with(tensor))),
    "branch in a branch": lambda model, tensor: add_attribute(
        model,
        attribute(
            graphs=[
                helper.make_graph(
                    [helper.make_node("If", ["c"], ["y"], then_branch=graph_with(tensor))], "outer", [], []
                )
            ]
        ),
    ),
    "function": lambda model, tensor: model.functions.add(
        name="f", node=[helper.make_node("Constant", [], ["y"], value=tensor)]
    ),
    "training": lambda model, tensor: model.training_info.add().initialization.CopyFrom(graph_with(tensor)),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_refused_wherever_it_is(place, tmp_path):
    (tmp_path / "secret.bin").write_bytes(VALUES.tobytes())
    inside, outside = small_model(), small_model()
    PLACES[place](inside, numpy_helper.from_array(VALUES, "w"))
    PLACES[place](outside, stored_elsewhere())
    assert not has_external_data(inside.SerializeToString())
    path = save(outside, tmp_path)
    message = r"model\.onnx: its weights are in other files, which are not read\. Store them in the model"
    for read in (read_model, read_model_bytes, open_unguarded):
        with pytest.raises(ModelError, match=message):
            read(path)


def test_all_messages_of_onnx_that_hold_tensors_are_searched():
    """A field that a newer version of onnx adds is missing in the table."""
    holders, pending = {}, [onnx.ModelProto.DESCRIPTOR]
    while pending:
        message = pending.pop()
        holders[message.name] = {
            field.number: field.message_type for field in message.fields if field.message_type is not None
        }
        pending += [inner for inner in holders[message.name].values() if inner.name not in holders]
    found, before = {"TensorProto"}, set()
    while found != before:
        before = set(found)
        found |= {
            name for name, fields in holders.items() if any(inner.name in found for inner in fields.values())
        }
    assert {
        name: {number: inner.name for number, inner in holders[name].items() if inner.name in found}
        for name in found
    } == FIELDS


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_model_in_memory_reads_no_file_either(runtime, tmp_path):
    """OpenVINO opened any path that a model names."""
    if not is_installed(runtime):
        pytest.skip(f"needs {runtime}")
    (tmp_path / "secret.bin").write_bytes(VALUES.tobytes())
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy"]
    node, tensor = helper.make_node("Add", ["x", "w"], ["y"]), stored_elsewhere(str(tmp_path / "secret.bin"))
    graph = helper.make_graph([node], "g", values[:1], values[1:], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    with pytest.raises(ModelError, match="the model: its weights are in other files"):
        open_unguarded(model.SerializeToString(), runtime)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello", "a field of the unknown kind 4"),
        (b"\x00\x00", "a field without a number"),
        (b"\x3a\x05\x08", "beyond the end"),
        (b"\x08\xff", "an integer without an end"),
        (b"\x08" + b"\xff" * 11, "an integer without an end"),
        (b"\x0d\x00", "beyond the end"),
    ],
)
def test_content_that_is_no_message_is_refused(content, reason, tmp_path):
    with pytest.raises(ModelError, match=rf"model\.onnx: cannot load the model: .*{reason}"):
        read_model_bytes(save(content, tmp_path))


def test_a_file_of_very_many_fields_ends(monkeypatch):
    monkeypatch.setattr(external_data, "MOST_FIELDS", 100)
    with pytest.raises(ValueError, match="more than 100 fields"):
        has_external_data(b"\x08\x00" * 101)
    assert not has_external_data(b"\x08\x00" * 100)

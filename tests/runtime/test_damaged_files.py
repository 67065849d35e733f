"""ONNX files that are damaged, or whose metadata or graphs were written to do harm."""

import json
import os

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import qgait_ptq as qg
from qgait_ptq.cli import targets
from qgait_ptq.cli.verify import examine
from qgait_ptq.errors import ModelError, QgaitError
from qgait_ptq.export.onnx_file import read_model
from qgait_ptq.runtime.benchmark import measure
from qgait_ptq.runtime.sessions import OnnxRuntimeSession, is_installed, open_onnxruntime, open_session
from qgait_ptq.runtime.workload import Setting
from tests.runtime.small_model import CHANNELS, FRAMES, METADATA, SEQUENCE, save, small_model, use


def test_the_file_of_these_tests_is_whole(tmp_path):
    path = save(small_model(), tmp_path)
    use(path)
    assert qg.Embedder(path, threads=1)(SEQUENCE).shape == (12, CHANNELS)
    sums, verification, _ = examine(path, 1, FRAMES)
    assert sums.safe
    assert verification.tensors
    assert verification.differing == 0


LONG_INTEGER = int("9" * 4000)
LIES = [
    *((section, None, value) for section in METADATA for value in (None, [], "x", 3)),
    *(("model", field, value) for field in ("raw", "streams") for value in (None, 1, "no")),
    *(("model", "inputs", value) for value in ({}, [3], [{}], [None], None)),
    ("model", "inputs", [{"name": "x", "shape": [4, 3], "kind": "odd"}]),
    ("model", "inputs", [{"name": "x", "shape": "43", "kind": "values"}]),
    ("model", "inputs", [{"name": 3, "shape": [4, 3], "kind": "values"}]),
    *(("model", "submodule", value) for value in ("part", {}, [], {"name": "part"})),
    ("model", "submodule", {"name": [], "given_axis": 0, "result_axis": 0, "result_shape": [1]}),
    *(("model", "frames", value) for value in ("30", 0, -1, True, 1.5, LONG_INTEGER)),
    *(("model", field, value) for field in ("macs", "macs_frames") for value in ("many", None, -1, 1e9)),
    *(("model", field, value) for field in ("channels", "parts") for value in ("5", 0, None)),
    ("model", "macs_frames", 0),
    *(("data", "cut_columns", value) for value in ("10", -1, 0.5, [1])),
    *(("data", "modalities", value) for value in (0, [], ["0"], [-1], None, {"0": 1})),
    *(("data", "metric", value) for value in ("manhattan", None, [], 3)),
    *(("target", "name", value) for value in (None, 3, [])),
    *(("target", "runtimes", value) for value in ("onnxruntime", None, 3, [3], {})),
    *(("pair_sums", "safe", value) for value in ("yes", 1, None)),
]


@pytest.mark.parametrize(("section", "field", "value"), LIES)
def test_metadata_of_another_type_name_the_file_and_the_field(section, field, value, tmp_path):
    metadata = json.loads(json.dumps(METADATA))
    if field is None:
        metadata[section] = value
    else:
        metadata[section][field] = value
    path = save(small_model(metadata), tmp_path)
    name = section if field is None else rf"{section}\.{field}"
    for read in (qg.Embedder, read_model, open_session):
        with pytest.raises(ModelError, match=rf"model\.onnx: its metadata are damaged: {name} is "):
            read(path)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"target": {}}, r"target\.name"),
        ({"target": {"name": "x"}}, r"target\.runtimes"),
        ({"model": {"macs": 5}}, r"model\.macs_frames"),
    ],
)
def test_metadata_that_lack_a_field_are_refused(changes, missing, tmp_path):
    path = save(small_model(METADATA | changes), tmp_path)
    with pytest.raises(ModelError, match=rf"model\.onnx: its metadata are damaged: {missing} is missing"):
        qg.Embedder(path)


@pytest.mark.parametrize("section", METADATA)
def test_files_of_older_versions_lack_sections(section, tmp_path):
    metadata = {key: value for key, value in METADATA.items() if key != section}
    use(save(small_model(metadata), tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"model": ' + "9" * 5000 + "}", "[]", "3", "null"])
def test_metadata_that_are_not_a_json_mapping_are_refused(text, tmp_path):
    path = save(small_model(text), tmp_path)
    for read in (qg.Embedder, read_model):
        with pytest.raises(ModelError, match=r"model\.onnx: its metadata are damaged: (not JSON|expected)"):
            read(path)


@pytest.mark.parametrize("text", [b"cut_columns", b"silhouettes", b"embedding", b"conv", b"Transpose"])
def test_names_that_are_not_utf_8_are_refused(text, tmp_path):
    content = small_model().SerializeToString()
    path = save(content.replace(text, b"\xff" + text[1:]), tmp_path)
    with pytest.raises(ModelError, match=r"model\.onnx: "):
        read_model(path)
    with pytest.raises(ModelError, match=r"model\.onnx: "):
        use(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(40), b"\xff\xfe\x00", bytes(1000)])
def test_other_files_are_refused(content, tmp_path):
    path = save(content, tmp_path)
    for read in (use, lambda path: examine(path, 1, 1)):
        with pytest.raises(ModelError, match=r"model\.onnx: "):
            read(path)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(2**31 + 1)
    for name in ("pipe.onnx", "huge.onnx", ".", "none.onnx", "a\0b", "n" * 5000):
        for read in (qg.Embedder, read_model):
            with pytest.raises(ModelError, match=r"the model (cannot be read|is larger than)"):
                read(tmp_path / name)


def set_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7


def append(*nodes, output="other"):
    """A change that puts nodes behind the embedding, and makes another tensor the output."""

    def change(model):
        model.graph.node.extend(nodes)
        model.graph.output[0].CopyFrom(onnx.ValueInfoProto(name=output))

    return change


def reshape(model):
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 13]), "shape"))
    append(helper.make_node("Reshape", ["embedding", "shape"], ["other"]))(model)


def scalar(model):
    append(helper.make_node("ReduceSum", ["embedding"], ["other"], keepdims=0))(model)


def shorter_scales(model):
    (scales,) = (value for value in model.graph.initializer if value.name == "scales")
    scales.CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "scales"))


def two_outputs(model):
    model.graph.output.append(helper.make_tensor_value_info("codes", TensorProto.UINT8, None))


def many_inputs(model):
    model.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, [1, "frames", 2]))


def shape_of_input(*sizes):
    """A change of the input, in a file that would flatten any."""

    def change(model):
        model.graph.input[0].CopyFrom(
            helper.make_tensor_value_info("silhouettes", TensorProto.UINT8, list(sizes))
        )
        del model.graph.node[:]
        model.graph.node.append(helper.make_node("Cast", ["silhouettes"], ["floats"], to=1))
        append(helper.make_node("Flatten", ["floats"], ["other"], axis=0))(model)

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_batch,
        reshape,
        scalar,
        shorter_scales,
        two_outputs,
        many_inputs,
        append(helper.make_node("Cast", ["embedding"], ["other"], to=TensorProto.DOUBLE)),
        append(helper.make_node("Shape", ["embedding"], ["other"])),
        append(helper.make_node("Cast", ["embedding"], ["other"], to=TensorProto.STRING)),
        append(helper.make_node("SequenceConstruct", ["embedding"], ["other"])),
        append(helper.make_node("Concat", ["embedding", "embedding"], ["other"], axis=0)),
        append(helper.make_node("Concat", ["embedding", "embedding"], ["other"], axis=1)),
    ],
)
def test_a_graph_that_is_not_a_network_s_is_refused(change, tmp_path):
    model = small_model()
    change(model)
    path = save(model, tmp_path)
    with pytest.raises(QgaitError, match=r"model\.onnx"):
        qg.Embedder(path, threads=1)(SEQUENCE)


@pytest.mark.parametrize(
    "sizes",
    [(), (1,), (1, 0, 4, 3), (1, 2**30, 4, 3), (2**10, 2**10, 4, 3, 2**10), (1, "frames", 2**20, 2**20)],
)
def test_inputs_that_are_no_sequences_or_too_large_are_refused(sizes, tmp_path):
    model = small_model()
    shape_of_input(*sizes)(model)
    path = save(model, tmp_path)
    for read in (qg.Embedder, open_session, lambda path: examine(path, 1, FRAMES)):
        with pytest.raises(
            ModelError, match=r"model\.onnx: its input silhouettes is \[.*, (not|which is too)"
        ):
            read(path)


def test_a_failure_at_run_time_names_the_file_and_the_shapes(tmp_path):
    model = small_model()
    reshape(model)
    path = save(model, tmp_path)
    with pytest.raises(ModelError, match=r"model\.onnx: onnxruntime .* cannot run it on \[1, 3, 4, 3\] \("):
        qg.Embedder(path, threads=1)(SEQUENCE)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        qg.Embedder(path, threads=1, longest_piece=1)(SEQUENCE)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        examine(path, 1, FRAMES)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        measure([path], Setting(rounds=1, seconds=0.01, frames=FRAMES))


@pytest.mark.skipif(not is_installed("openvino"), reason="needs OpenVINO")
def test_a_failure_in_openvino_names_the_file(tmp_path):
    metadata = METADATA | {"target": {"name": "openvino", "runtimes": ["openvino"]}}
    for change in (reshape, two_outputs, scalar, shape_of_input()):
        model = small_model(metadata)
        change(model)
        path = save(model, tmp_path)
        with pytest.raises(ModelError, match=r"model\.onnx"):
            qg.Embedder(path, threads=1, runtime="openvino")(SEQUENCE)


def test_a_file_that_says_falsely_that_it_streams_is_refused(tmp_path):
    model = small_model()
    maximum = model.graph.node[-1]
    maximum.op_type, maximum.name = "ReduceMean", "mean"
    path = save(model, tmp_path)
    qg.Embedder(path, threads=1)(SEQUENCE)
    with pytest.raises(ModelError, match=r"model\.onnx: damaged"):
        qg.Embedder(path, threads=1, longest_piece=1)(SEQUENCE)


def test_layouts_that_are_not_the_file_s_are_refused(tmp_path):
    inputs = [{"name": name, "shape": [4, 3], "kind": "silhouettes"} for name in ("silhouettes", "more")]
    metadata = METADATA | {"model": METADATA["model"] | {"inputs": inputs}}
    path = save(small_model(metadata), tmp_path)
    with pytest.raises(ModelError, match=r"it takes silhouettes; its metadata say silhouettes, more"):
        qg.Embedder(path, threads=1)


def test_embeddings_of_another_size_than_the_metadata_say_are_refused(tmp_path):
    metadata = METADATA | {"model": METADATA["model"] | {"parts": 16}}
    embedder = qg.Embedder(save(small_model(metadata), tmp_path), threads=1)
    with pytest.raises(ModelError, match=r"gives embeddings \[c, p\] of \[5, 12\]; .* say \[5, 16\]"):
        embedder(SEQUENCE)


def drop_inputs(model):
    for node in model.graph.node:
        if node.op_type in ("Conv", "DequantizeLinear"):
            del node.input[1:]


def cut_weight(model):
    (weight,) = (value for value in model.graph.initializer if value.name == "weight")
    weight.raw_data = weight.raw_data[:5]


def cycle(model):
    """Casts that read each other: code that follows them upwards would not end."""
    model.graph.node[3].input[1] = "second"
    model.graph.node.append(helper.make_node("Cast", ["second"], ["first"], to=1))
    model.graph.node.append(helper.make_node("Cast", ["first"], ["second"], to=1))


def redefined(model):
    """The same in the right order, where a node gives what is known already."""
    model.graph.node[3].input[1] = "second"
    model.graph.node.insert(0, helper.make_node("Cast", ["silhouettes"], ["second"], to=1))
    model.graph.node.insert(1, helper.make_node("Cast", ["second"], ["silhouettes"], to=1))


def external_weight(model):
    (weight,) = (value for value in model.graph.initializer if value.name == "weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.append(onnx.StringStringEntryProto(key="location", value="../../../etc/passwd"))


def odd_element(model):
    model.graph.initializer[2].data_type = 77


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "change",
    [drop_inputs, cut_weight, cycle, redefined, external_weight, odd_element],
    ids=lambda c: c.__name__,
)
def test_commands_that_read_a_hostile_graph_refuse_it(change, tmp_path):
    model = small_model()
    change(model)
    path = save(model, tmp_path)
    done = CliRunner().invoke(targets.command, [str(path), "--json"], standalone_mode=False)
    assert isinstance(done.exception, ModelError), done.exception
    with pytest.raises(ModelError, match=r"model\.onnx"):
        use(path)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        examine(path, 1, FRAMES)


def test_a_graph_that_the_exact_kernels_cannot_be_made_for_is_refused(tmp_path, monkeypatch):
    """On processors where sums saturate, the graph is read when a file is loaded."""
    model = small_model({**METADATA, "pair_sums": {"safe": False}})
    model.graph.node[3].attribute.append(helper.make_attribute("group", "one"))
    content = model.SerializeToString()
    session = OnnxRuntimeSession(open_onnxruntime(small_model().SerializeToString()), "model")
    session.properties = {}
    monkeypatch.setattr("qgait_ptq.runtime.exactness.saturates", lambda runtime: True)
    monkeypatch.setattr("qgait_ptq.runtime.sessions.open_unguarded", lambda *_: session)
    with pytest.raises(ModelError, match="its integer layers cannot be read"):
        open_session(content)

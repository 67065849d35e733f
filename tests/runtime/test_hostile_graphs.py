"""Graphs that are no network's, or made to harm those who read them."""

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import qgait_ptq as qg
from qgait_ptq.cli import targets
from qgait_ptq.cli.verify import examine
from qgait_ptq.errors import ModelError, QgaitError
from qgait_ptq.evaluation.benchmark import benchmark_files
from qgait_ptq.evaluation.workload import BenchmarkSetting
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import OnnxRuntimeSession, is_installed, open_onnxruntime
from qgait_ptq.runtime.written_file import refuse_damage
from tests.runtime.small_model import FRAMES, METADATA, SEQUENCE, save, small_model, use


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
            ModelError, match=r"model\.onnx: its input silhouettes has the shape \[.*, (not|which is too)"
        ):
            read(path)


def test_a_failure_at_run_time_names_the_file_and_the_shapes(tmp_path):
    model = small_model()
    reshape(model)
    path = save(model, tmp_path)
    with pytest.raises(
        ModelError, match=r"model\.onnx: onnxruntime .* cannot run the model on \[1, 3, 4, 3\] \("
    ):
        qg.Embedder(path, threads=1)(SEQUENCE)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        qg.Embedder(path, threads=1, longest_piece=1)(SEQUENCE)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        examine(path, 1, FRAMES)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        benchmark_files([path], BenchmarkSetting(rounds=1, seconds=0.01, frames=FRAMES))


@pytest.mark.skipif(not is_installed("openvino"), reason="needs OpenVINO")
def test_a_failure_in_openvino_names_the_file(tmp_path):
    metadata = METADATA | {"target": {"name": "openvino", "runtimes": ["openvino"]}}
    for change in (reshape, two_outputs, scalar, shape_of_input()):
        model = small_model(metadata)
        change(model)
        path = save(model, tmp_path)
        with pytest.raises(ModelError, match=r"model\.onnx"):
            qg.Embedder(path, threads=1, runtime="openvino")(SEQUENCE)


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


def weight_beside(model):
    """A file beside the model, which onnx would read; it is made by the test."""
    external_weight(model)
    (weight,) = (value for value in model.graph.initializer if value.name == "weight")
    weight.external_data[0].value = "beside.bin"


def odd_element(model):
    model.graph.initializer[2].data_type = 77


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "change",
    [drop_inputs, cut_weight, cycle, redefined, external_weight, weight_beside, odd_element],
    ids=lambda c: c.__name__,
)
def test_commands_that_read_a_hostile_graph_refuse_it(change, tmp_path):
    model = small_model()
    change(model)
    path = save(model, tmp_path)
    (tmp_path / "beside.bin").write_bytes(bytes(10_000))
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
    monkeypatch.setattr("qgait_ptq.runtime.exact_sessions.open_unguarded", lambda *_: session)
    with pytest.raises(ModelError, match="its integer layers cannot be read"):
        open_session(content)


def test_too_little_memory_is_not_called_damage_of_the_file(tmp_path):
    """Sequences are of the user's size, and the file can be sound."""
    with pytest.raises(MemoryError), refuse_damage(tmp_path / "model.onnx"):
        np.empty(2**58)

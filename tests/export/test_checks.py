import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.export.checks import find_failing_axes
from qgait_ptq.graph.trace import BATCH_AXIS, FRAME_AXIS, Capture
from qgait_ptq.inputs import random_silhouettes
from qgait_ptq.runtime.sessions import open_session, run_session

CAPTURE = Capture(torch.fx.GraphModule({}, torch.fx.Graph()), None, None, (8, 4), ())


def mean_file(batch_factor, frame_divisor):
    """A file that should give the mean over frames; None takes the true sizes, a number bakes one in."""
    axes = numpy_helper.from_array(torch.tensor([1]).numpy(), "axes")
    nodes, constants = [], [axes]
    if frame_divisor is None:
        nodes.append(helper.make_node("ReduceMean", ["silhouettes", "axes"], ["mean"], keepdims=0))
    else:
        constants.append(numpy_helper.from_array(torch.tensor(float(frame_divisor)).numpy(), "divisor"))
        nodes.append(helper.make_node("ReduceSum", ["silhouettes", "axes"], ["sum"], keepdims=0))
        nodes.append(helper.make_node("Div", ["sum", "divisor"], ["mean"]))
    # The first rows only: with a batch that is baked in, those of one size.
    shape = [-1 if batch_factor is None else batch_factor, 32]
    constants.append(numpy_helper.from_array(torch.tensor(shape).numpy(), "shape"))
    nodes.append(helper.make_node("Reshape", ["mean", "shape"], ["embedding"]))
    silhouettes = helper.make_tensor_value_info("silhouettes", TensorProto.FLOAT, ["n", "s", 8, 4])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 32])
    graph = helper.make_graph(nodes, "mean", [silhouettes], [embedding], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    ("batch_factor", "frame_divisor", "failing"),
    [
        (None, None, set()),
        (2, None, {BATCH_AXIS}),
        (None, 7, {FRAME_AXIS}),
        (2, 7, {BATCH_AXIS, FRAME_AXIS}),
        (None, 5, {FRAME_AXIS, BATCH_AXIS}),  # wrong at the median size, too
    ],
)
def test_a_file_that_is_wrong_at_another_size_than_the_exported_is_found(
    batch_factor, frame_divisor, failing
):
    session = open_session(mean_file(batch_factor, frame_divisor).SerializeToString())
    silhouettes = random_silhouettes(3, 17, (8, 4))
    found = find_failing_axes(
        lambda batch: run_session(session, batch),
        lambda batch: batch.mean(1).flatten(1),
        silhouettes,
        CAPTURE.sizes,
        0.999,
    )
    assert found == failing


def test_sizes_that_the_network_itself_refuses_are_not_held_against_the_file():
    session = open_session(mean_file(2, None).SerializeToString())

    def simulate(batch):
        if batch.shape[0] != 2:
            raise RuntimeError("two sequences only")
        return batch.mean(1).flatten(1)

    found = find_failing_axes(
        lambda batch: run_session(session, batch),
        simulate,
        random_silhouettes(3, 17, (8, 4)),
        CAPTURE.sizes,
        1 - 1e-6,
    )
    assert found == set()

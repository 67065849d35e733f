import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.capture.captured import BATCH_AXIS, FRAME_AXIS, Capture
from qgait_ptq.errors import DataError, ExportError
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.graph.network_input import random_silhouettes
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import run_session
from qgait_ptq.verification.parity import compare_with_simulation, find_failing_axes
from qgait_ptq.verification.simulation import Simulation

CAPTURE = Capture(torch.fx.GraphModule({}, torch.fx.Graph()), None, FrameCounts(), (8, 4), ())


def simulation_of(function):
    return Simulation(function, lambda batch: iter([function(batch)]))


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
        simulation_of(lambda batch: batch.mean(1).flatten(1)),
        silhouettes,
        CAPTURE.sizes,
        0.999,
    )
    assert set(found) == failing


def test_sizes_that_the_network_itself_refuses_are_not_held_against_the_file():
    session = open_session(mean_file(2, None).SerializeToString())

    def simulate(batch):
        if batch.shape[0] != 2:
            raise RuntimeError("two sequences only")
        return batch.mean(1).flatten(1)

    found = find_failing_axes(
        lambda batch: run_session(session, batch),
        simulation_of(simulate),
        random_silhouettes(3, 17, (8, 4)),
        CAPTURE.sizes,
        1 - 1e-6,
    )
    assert found == {}


def noisy(seed, size):
    """Means over frames with an error of some size, as of one way among many to sum."""
    generator = torch.Generator().manual_seed(seed)

    def embed(batch):
        means = batch.mean(1).flatten(1)
        return means + size * means.norm(dim=1, keepdim=True) * torch.nn.functional.normalize(
            torch.randn(means.shape, generator=generator), dim=1
        )

    return embed


def rounding(*sizes):
    """A simulation whose results with rounding errors are some distances away, one after the other."""
    ways = [noisy(1 + number, size) for number, size in enumerate(sizes)]
    return Simulation(noisy(0, 0.0), lambda batch: (way(batch) for way in ways))


@pytest.mark.parametrize(("size", "refused"), [(0.1, False), (0.4, True)])
def test_a_network_that_amplifies_rounding_is_told_from_a_file_that_is_wrong(size, refused):
    """Two correct ways of summing end 0.1 apart: so may the file, but not further."""
    simulation = rounding(0.1)
    file = noisy(2, size)
    batches = [random_silhouettes(1, frames, (8, 4)) for frames in (5, 9)]

    def run(batch):
        return file(torch.from_numpy(batch)).numpy()

    failing = find_failing_axes(run, simulation, random_silhouettes(3, 17, (8, 4)), CAPTURE.sizes, 0.999)
    assert bool(failing) is refused
    if refused:
        with pytest.raises(ExportError, match=r"after rounding errors of float32: 0\.99"):
            compare_with_simulation(run, simulation, batches, 0.999)
    else:
        parity = compare_with_simulation(run, simulation, batches, 0.999)
        assert parity.cosine_min == pytest.approx(1 - 0.1**2 / 2, abs=0.002)
        assert parity.single_cosine_min == pytest.approx(1 - 0.1**2 / 2, abs=0.002)


def test_a_file_cannot_be_compared_without_a_sequence():
    exact = noisy(0, 0.0)
    with pytest.raises(DataError, match="no sequence has a frame count that the network takes"):
        compare_with_simulation(lambda batch: batch, simulation_of(exact), [], 0.999)


def test_one_of_several_rounding_errors_can_explain_a_difference():
    """A value on the border of a rounding step does not fall to its other side in each draw."""
    simulation, file = rounding(0.0, 0.0, 0.1), noisy(9, 0.1)
    batches = [random_silhouettes(1, frames, (8, 4)) for frames in (5, 9)]

    def run(batch):
        return file(torch.from_numpy(batch)).numpy()

    assert compare_with_simulation(run, simulation, batches, 0.999).single_cosine_min < 0.999
    assert not find_failing_axes(run, simulation, random_silhouettes(3, 17, (8, 4)), CAPTURE.sizes, 0.999)
    with pytest.raises(ExportError, match=r"after rounding errors of float32: 1\.0"):
        compare_with_simulation(run, rounding(0.0, 0.0), batches, 0.999)


def test_rounding_errors_are_not_asked_where_the_file_agrees():
    def fail(batch):
        raise AssertionError("not needed")

    exact = noisy(0, 0.0)
    batches = [random_silhouettes(1, 5, (8, 4))]
    parity = compare_with_simulation(
        lambda batch: exact(torch.from_numpy(batch)).numpy(), Simulation(exact, fail), batches, 0.999
    )
    assert parity.single_cosine_min == 1.0


@pytest.mark.parametrize(("share", "refused"), [(0.05, False), (0.3, True)])
def test_a_difference_that_a_common_offset_hides_from_the_cosine_is_found(share, refused):
    """All embeddings point in nearly one direction, as behind an activation that is never negative."""
    batches = [random_silhouettes(1, frames, (8, 4)) for frames in (5, 9, 12)]
    means = torch.cat([batch.mean(1).flatten(1) for batch in batches])
    spread = (means - means.mean(0)).norm(dim=1).mean()

    def embed(batch):
        return 100 + batch.mean(1).flatten(1)

    def run(batch):
        embedding = embed(torch.from_numpy(batch))
        embedding[:, 0] += share * spread
        return embedding.numpy()

    if refused:
        with pytest.raises(ExportError, match=r"by 30 % of the distance of a sequence"):
            compare_with_simulation(run, simulation_of(embed), batches, 0.999)
    else:
        assert compare_with_simulation(run, simulation_of(embed), batches, 0.999).cosine_min > 0.9999


def test_a_step_of_a_quantized_embedding_is_explained_by_rounding():
    batches = [random_silhouettes(1, frames, (8, 4)) for frames in (5, 9)]

    def embed(batch):
        return 100 + batch.mean(1).flatten(1)

    def stepped(batch):
        return embed(batch) + torch.eye(32)[:1]

    simulation = Simulation(embed, lambda batch: iter([embed(batch), stepped(batch)]))
    parity = compare_with_simulation(
        lambda batch: stepped(torch.from_numpy(batch)).numpy(), simulation, batches, 0.999
    )
    assert parity.max_abs == pytest.approx(1, abs=1e-4)


def test_sequences_whose_embedding_is_not_finite_are_left_out():
    """The evaluation leaves them out, too, and names them."""
    batches = [random_silhouettes(1, frames, (8, 4)) for frames in (5, 9)]

    def embed(batch):
        means = batch.mean(1).flatten(1)
        return means / (0.0 if batch.shape[1] == 5 else 1.0)

    def run(batch):
        return embed(torch.from_numpy(batch)).numpy()

    assert compare_with_simulation(run, simulation_of(embed), batches, 0.999).sequences == 1
    with pytest.raises(ExportError, match="the lowest cosine over 1 sequences is nan"):
        compare_with_simulation(lambda batch: run(batch) * float("nan"), simulation_of(embed), batches, 0.999)
    with pytest.raises(DataError):
        compare_with_simulation(run, simulation_of(embed), batches[:1], 0.999)


def test_outputs_of_different_sizes_have_no_spread():
    """A submodule can give something for each frame."""
    batches = [random_silhouettes(1, frames, (8, 4)) for frames in (5, 9)]

    def run(batch):
        return batch.reshape(1, -1) + 1

    simulation = simulation_of(lambda batch: batch.flatten(1) + 1)
    assert compare_with_simulation(run, simulation, batches, 0.999).sequences == 2


@pytest.mark.parametrize(("judges", "minimum"), [(False, 0.999), (True, -1.0)])
def test_the_spread_is_judged_only_where_it_is_asked_for(judges, minimum):
    batches = [random_silhouettes(1, frames, (8, 4)) for frames in (5, 9)]

    def embed(batch):
        return 100 + batch.mean(1).flatten(1)

    parity = compare_with_simulation(
        lambda batch: embed(torch.from_numpy(batch)).numpy() + np.eye(1, 32, dtype=np.float32),
        simulation_of(embed),
        batches,
        minimum,
        judges_spread=judges,
    )
    assert parity.max_abs == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("offset", "refused"), [(0.0, False), (0.1, True)])
def test_embeddings_of_zeros_agree(offset, refused):
    """Blank silhouettes give zeros behind a last ReLU, without amplified rounding."""
    batches = [random_silhouettes(1, 5, (8, 4)), torch.zeros(1, 9, 8, 4)]

    def embed(batch):
        return batch.mean(1).flatten(1).relu()

    def run(batch):
        return embed(torch.from_numpy(batch)).numpy() + offset * (batch.max() == 0)

    if refused:
        with pytest.raises(ExportError, match=r"the lowest cosine over 2 sequences is 0\.0000"):
            compare_with_simulation(run, simulation_of(embed), batches, 0.999)
    else:
        parity = compare_with_simulation(run, simulation_of(embed), batches, 0.999)
        assert parity.cosine_min == pytest.approx(1)
        assert parity.single_cosine_min == 1

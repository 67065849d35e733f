"""The refit of the last layers: ridge regression of float outputs on quantized inputs."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from qgait_ptq.calibration.compensation import InputMoments, corrected_weight
from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.last_layers import LastPart, StreamedInputs, last_layers, read_all
from qgait_ptq.calibration.refitting import refit_last_layers
from qgait_ptq.calibration.training_batches import SequenceBatches
from qgait_ptq.gait.data.frame_pool import UNKNOWN, FramePool
from qgait_ptq.placement.quantized_layers import quantized_layers, weight_of
from qgait_ptq.quantizer.fake_quantize import set_quantizing
from tests.conftest import make_gaitbase
from tests.networks import quantize_network

CPU = torch.device("cpu")
LARGE = 10**9  # bytes


@pytest.fixture(scope="module")
def graphs(batches):
    graph = quantize_network(make_gaitbase(), batches, weight_bits=3, activation_bits=3).graph
    reference = copy.deepcopy(graph)
    set_quantizing(reference, False)
    return graph, reference


@pytest.fixture(scope="module")
def clips(people):
    """Clips of four people to refit on, and of the others to measure."""
    taken = [torch.from_numpy(silhouettes[:8]).float()[None] / 255 for silhouettes, _ in people]
    return [torch.cat(taken[i : i + 4]) for i in range(0, 12, 4)], [torch.cat(taken[12:])]


class Batches(list):
    """Batches of clips of unknown people."""

    def labels(self, index):
        return torch.full((len(self[index]),), UNKNOWN)


def refit(graph, reference, batches):
    part = LastPart(graph, reference)
    return refit_last_layers(part, read_all(part, Batches(batches), LARGE))


def error(graph, reference, batches):
    with torch.no_grad():
        pairs = [(graph(batch), reference(batch)) for batch in batches]
    return float(sum(IdcLoss.anchor(given, wanted) for given, wanted in pairs))


def test_it_changes_the_layer_that_gives_the_embedding_and_no_other(graphs, clips):
    before, reference = graphs
    graph = copy.deepcopy(before)
    changed = refit(graph, reference, clips[0])
    layers = quantized_layers(graph)
    assert changed == [layers[-1].node.name]
    for layer, original in zip(layers, quantized_layers(before), strict=True):
        same = torch.equal(weight_of(graph, layer), weight_of(before, original))
        assert same == (layer.node.name not in changed)


def test_unseen_people_come_closer_to_the_float_network_and_the_mean_error_vanishes(graphs, clips):
    before, reference = graphs
    graph = copy.deepcopy(before)
    learned, unseen = clips
    refit(graph, reference, learned)
    assert error(graph, reference, learned) < error(before, reference, learned)
    assert error(graph, reference, unseen) < error(before, reference, unseen)
    with torch.no_grad():
        wanted = torch.cat([reference(batch) for batch in learned])
        mean = (torch.cat([graph(batch) for batch in learned]) - wanted).mean(0)
    # Rounding the inputs to 8 bits happens before the regression, rounding the weights after it.
    assert float(mean.abs().max()) < 0.01 * float(wanted.abs().max())


def test_inputs_that_do_not_fit_into_memory_are_computed_anew_with_the_same_result(graphs, clips):
    kept, streamed = copy.deepcopy(graphs[0]), copy.deepcopy(graphs[0])
    part, advanced = LastPart(streamed, graphs[1]), []
    assert read_all(part, Batches(clips[0]), 10) is None
    refit_last_layers(part, StreamedInputs(part, Batches(clips[0])), advance=lambda: advanced.append(1))
    assert len(advanced) == len(clips[0])
    refit(kept, graphs[1], clips[0])
    for name, value in kept.state_dict().items():
        assert torch.equal(value, streamed.state_dict()[name]), name


def test_a_second_refit_on_the_same_clips_changes_little(graphs, clips):
    graph, reference = copy.deepcopy(graphs[0]), graphs[1]
    refit(graph, reference, clips[0])
    once = error(graph, reference, clips[0])
    weight = weight_of(graph, quantized_layers(graph)[-1]).clone()
    refit(graph, reference, clips[0])
    assert error(graph, reference, clips[0]) <= 1.01 * once
    moved = weight_of(graph, quantized_layers(graph)[-1]) - weight
    assert float(moved.norm()) < 0.5 * float(weight.norm())


def test_the_solution_is_that_of_ridge_regression_around_the_current_weight():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 5, 400, generator=generator, dtype=torch.float64)
    drifted = inputs + 0.3 * torch.randn(1, 5, 400, generator=generator, dtype=torch.float64)
    weight, start = torch.randn(2, 1, 3, 5, generator=generator, dtype=torch.float64)
    second, cross = InputMoments.of(drifted, inputs).about_zero()
    found = corrected_weight(weight, second, cross, 400, 0.01, start)[0]
    amount = (0.01 + 10 * 5 / 400) * second[0].diagonal().mean()
    # numpy: the rows of √λ·I with the targets √λ·V are the regularizer ‖W − V‖².
    rows = np.concatenate([drifted[0].T.numpy() / 20, np.sqrt(float(amount)) * np.eye(5)])
    targets = np.concatenate(
        [(weight[0] @ inputs[0]).T.numpy() / 20, np.sqrt(float(amount)) * start[0].T.numpy()]
    )
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(1, 4, 5, 4), nn.Linear(4, 8), nn.Linear(4, 8)

    def forward(self, silhouettes):
        maps = self.conv(silhouettes.flatten(0, 1).unsqueeze(1)).relu().mean((2, 3))
        pooled = maps.unflatten(0, (silhouettes.shape[0], -1)).amax(1)
        return torch.cat([self.first(pooled), self.second(pooled).relu()], 1)


def test_every_layer_without_another_behind_it_is_a_last_one(batches):
    torch.manual_seed(0)
    graph = quantize_network(TwoHeads().eval(), batches[:2]).graph
    assert [layer.weight_path.split(".")[0] for layer in last_layers(graph)] == ["first", "second"]


@pytest.mark.parametrize(("complete", "sizes"), [(False, [4, 4, 3]), (True, [4, 4])])
def test_each_sequence_of_a_pool_is_in_one_batch(complete, sizes):
    frames = np.arange(55, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    pool = FramePool(frames, np.array([(5 * i, 5) for i in range(11)]), 10 * np.arange(11))
    found = SequenceBatches(pool, 4, 3, CPU, complete)
    assert [len(batch) for batch in found] == sizes
    sequences = torch.cat(list(found))[:, 0, 0, 0].mul(255).round().long() // 5
    assert sequences.tolist() == list(range(sum(sizes)))
    labels = torch.cat([found.labels(index) for index in range(len(found))])
    assert labels.tolist() == [10 * i for i in range(sum(sizes))]
    for index in (0, len(sizes) - 1):
        assert torch.equal(found[index], found[index])
    with pytest.raises(IndexError):
        found[len(sizes)]

"""Sensitivity: what one quantizer alone does."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import fx, nn

import qgait_ptq as qg
from qgait_ptq.calibration.resuming import SavedStates
from qgait_ptq.cli.sensitivity import input_widths
from qgait_ptq.gait.metrics import single_shot_rank1
from qgait_ptq.mixed_precision.damage import judge_damage
from qgait_ptq.mixed_precision.damage_table import SensitivityMeasurement
from qgait_ptq.mixed_precision.groups import Kind, find_groups, layer_costs
from qgait_ptq.mixed_precision.sensitivity import measure_sensitivity
from qgait_ptq.placement.layers import list_layers
from qgait_ptq.placement.quantized_layers import weight_only_weights
from qgait_ptq.quantizer.fake_quantize import set_quantizing
from qgait_ptq.stages.training_data import Clips
from qgait_ptq.system.progress import Silent
from tests.conftest import make_gaitbase
from tests.networks import quantize_network
from tests.small_network import Small
from tests.weight_only_networks import make_network, random_batches

NO_STATES = SavedStates(None, "", resume=False)


@pytest.fixture(scope="module")
def by_width(batches):
    return {
        bits: quantize_network(
            make_gaitbase(), batches, weight_bits=bits, activation_bits=bits, edge_bits=bits
        )
        for bits in (3, 8)
    }


@pytest.fixture(scope="module")
def clips(batches):
    frames = torch.cat([batch[:, :5] for batch in batches])
    return Clips((255 * frames).to(torch.uint8), torch.arange(len(batches)) // 4)


@pytest.fixture(scope="module")
def reference(by_width):
    graph = quantized_copy(by_width[8])
    set_quantizing(graph, False)
    return graph


def quantized_copy(quantized):
    import copy

    return copy.deepcopy(quantized.graph)


def measure(by_width, clips, reference, states=NO_STATES, batch_size=5, advance=lambda: None):
    groups = find_groups(by_width[8].graph)
    graphs = {bits: quantized.graph for bits, quantized in by_width.items()}
    widths = {Kind.WEIGHTS: (3, 8), Kind.ACTIVATIONS: (3,)}
    device = torch.device("cpu")
    found = measure_sensitivity(reference, graphs, groups, widths, clips, batch_size, device, states, advance)
    return groups, {(m.group, m.bits): m.damage for m in found}


def test_every_weight_and_every_input_but_the_silhouettes_has_a_group(by_width):
    groups = find_groups(by_width[8].graph)
    weights = [group for group in groups if group.kind is Kind.WEIGHTS]
    inputs = [group for group in groups if group.kind is Kind.ACTIVATIONS]
    layers = list_layers(by_width[8].float_graph)
    assert [group.layers for group in weights] == [(layer.name,) for layer in layers]
    assert {name for group in inputs for name in group.layers} == {layer.name for layer in layers[1:]}
    # The shortcut reads what the first convolution of its block reads.
    assert any(set(group.layers) == {"blocks.1.conv1", "blocks.1.shortcut.0"} for group in inputs)


def test_the_damage_is_that_of_the_whole_graph_with_one_quantizer_on(by_width, clips, reference):
    groups, found = measure(by_width, clips, reference)
    batch = clips.batch(torch.arange(len(clips)), torch.device("cpu"))
    with torch.inference_mode():
        wanted = reference(batch)
    for number, group in enumerate(groups):
        graph = quantized_copy(by_width[3])
        set_quantizing(graph, False)
        enable(graph, group)
        with torch.inference_mode():
            expected = judge_damage(wanted, graph(batch), clips.labels)
        assert found[number, 3].distance_error == pytest.approx(expected.distance_error, rel=1e-3)
        assert found[number, 3].sqnr_db == pytest.approx(expected.sqnr_db, abs=0.01)


def enable(graph: fx.GraphModule, group):
    (call,) = group.calls
    node = next(n for n in graph.graph.nodes if n.name == call)
    quantizer = node.args[1] if group.kind is Kind.WEIGHTS else node
    graph.get_submodule(str(quantizer.target)).enable_fake_quant(True)


def test_fewer_bits_do_more_damage(by_width, clips, reference):
    groups, found = measure(by_width, clips, reference)
    for number, group in enumerate(groups):
        if group.kind is Kind.WEIGHTS:
            assert found[number, 3].distortion > 10 * found[number, 8].distortion


def test_a_killed_measurement_goes_on_and_gives_the_same(by_width, clips, reference, tmp_path):
    class StopError(Exception):
        pass

    def kill():
        raise StopError

    folder = tmp_path / "states"
    with pytest.raises(StopError):
        measure(by_width, clips, reference, SavedStates(folder, "same", resume=True), advance=kill)
    assert [path.name for path in folder.iterdir()] == ["sensitivity-0.pt"]
    _, resumed = measure(by_width, clips, reference, SavedStates(folder, "same", resume=True))
    _, whole = measure(by_width, clips, reference)
    assert resumed == whole


def test_costs_know_which_tensor_a_layer_reads(by_width):
    quantized = by_width[8]
    groups = find_groups(quantized.graph)
    macs = {layer.node: layer.macs for layer in list_layers(quantized.float_graph)}
    costs = {cost.name: cost for cost in layer_costs(quantized.graph, groups, macs)}
    assert costs["stem.0"].activations is None
    assert costs["blocks.1.conv1"].activations == costs["blocks.1.shortcut.0"].activations
    assert all(cost.macs > 0 and cost.elements > 0 for cost in costs.values())


@pytest.fixture(scope="module")
def recurrent():
    return {
        bits: quantize_network(
            make_network("lstm of two layers and directions"),
            random_batches(4),
            weight_bits=bits,
            activation_bits=bits,
            edge_bits=bits,
        )
        for bits in (3, 8)
    }


def test_all_weights_of_an_lstm_are_one_group_whose_operations_do_not_count(recurrent):
    quantized = recurrent[8]
    groups = find_groups(quantized.graph)
    (group,) = [group for group in groups if group.layers == ("inner.rnn",)]
    assert (group.kind, len(group.calls)) == (Kind.WEIGHTS, 1)
    macs = {layer.node: layer.macs for layer in list_layers(quantized.float_graph)}
    costs = [c for c in layer_costs(quantized.graph, groups, macs) if c.name == "inner.rnn"]
    assert sum(cost.elements for cost in costs) == 2 * 4 * 48 * ((32 + 48) + (96 + 48))
    assert {(groups[cost.weights], cost.activations, cost.macs) for cost in costs} == {(group, None, 0)}


def test_weights_of_an_lstm_are_measured_alone(recurrent):
    reference = quantized_copy(recurrent[8])
    set_quantizing(reference, False)
    batch = torch.cat(random_batches(4))
    clips = Clips((255 * batch).to(torch.uint8), torch.tensor([0, 0, 1, 1]))
    groups, damages = measure(recurrent, clips, reference)
    number = next(i for i, group in enumerate(groups) if group.layers == ("inner.rnn",))
    alone = quantized_copy(recurrent[3])
    set_quantizing(alone, False)
    for weight in weight_only_weights(alone):
        weight.quantizer.enable_fake_quant(True)
    expected = judge_damage(reference(batch), alone(batch), clips.labels)
    assert damages[number, 3].distortion == pytest.approx(expected.distortion, rel=1e-3)
    assert 0 < damages[number, 8].distortion < damages[number, 3].distortion


def test_equal_embeddings_are_not_damaged():
    embeddings = torch.randn(6, 4, 3)
    damage = judge_damage(embeddings, embeddings, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert (damage.distortion, damage.distance_error, damage.rank1_drop) == (0, 0, 0)


def test_lengths_of_embeddings_are_no_damage_to_cosine_distances():
    generator, labels = torch.Generator().manual_seed(0), torch.tensor([0, 0, 1, 1, 2, 2])
    embeddings = torch.randn(6, 4, 3, generator=generator)
    scaled = embeddings * (0.5 + torch.rand(6, 1, 3, generator=generator))
    damage = judge_damage(embeddings, scaled, labels, "cosine")
    assert damage.distortion == pytest.approx(0, abs=1e-9)
    assert damage.distance_error == pytest.approx(0, abs=1e-3)
    assert damage.rank1_drop == pytest.approx(0)
    assert judge_damage(embeddings, scaled, labels).distance_error > 5


def test_single_shot_rank1_is_the_mean_over_all_galleries_with_one_sequence_of_each():
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    points = torch.randn(8, 2, generator=generator)
    distances = torch.cdist(points, points)
    members = {label: [i for i in range(8) if labels[i] == label] for label in range(3)}
    hits = []
    for probe in range(8):
        own = int(labels[probe])
        for partner in (i for i in members[own] if i != probe):
            others = [members[label] for label in range(3) if label != own]
            galleries = list(product(*others))
            hits.append(
                sum(
                    all(distances[probe, partner] < distances[probe, g] for g in gallery)
                    for gallery in galleries
                )
                / len(galleries)
            )
    assert single_shot_rank1(distances, labels) == pytest.approx(100 * sum(hits) / len(hits))


def test_rank1_of_people_with_one_sequence_is_not_known():
    damage = judge_damage(torch.randn(3, 4), torch.randn(3, 4), torch.arange(3))
    assert damage.rank1_drop is None


class OverFiveFrames(Small):
    """It takes five frames or more."""

    def __init__(self):
        super().__init__()
        self.temporal = nn.Conv1d(8, 8, 5)

    def features(self, silhouettes):
        maps = self.conv(silhouettes.flatten(0, 1).unsqueeze(1)).relu().mean((2, 3))
        return self.temporal(maps.unflatten(0, (silhouettes.shape[0], -1)).mT).relu().amax(2)


def test_costs_are_counted_on_a_sequence_that_the_network_takes():
    rng = np.random.default_rng(0)
    walks = [((rng.random((3 if i else 9, 32, 22)) < 0.3).astype(np.uint8) * 255, f"{i}") for i in range(6)]
    data = qg.GaitDataset.from_pairs(walks)
    state = qg.prepare(OverFiveFrames().eval(), qg.GaitData(data, data), qg.QuantConfig(), device="cpu")
    assert not state.captured.frame_counts.fits(len(data.choose(1, state.config.seed)[0][0]))
    assert SensitivityMeasurement(state, Silent()).costs().fixed_bytes > 0


def test_a_measurement_says_which_sequences_it_leaves_out():
    rng = np.random.default_rng(0)
    walks = [((rng.random((9, 32, 22)) < 0.3).astype(np.uint8) * 255, f"{i // 3}") for i in range(6)]
    walks += [walks[0], (walks[4][0][:3], "1")]
    data = qg.GaitDataset.from_pairs(walks)
    config = qg.QuantConfig(rounding="nearest", bias_correction=False)
    state = qg.prepare(OverFiveFrames().eval(), qg.GaitData(data, data), config, device="cpu")
    measured = SensitivityMeasurement(state, Silent())
    notes = measured.measure({Kind.WEIGHTS: (8,), Kind.ACTIVATIONS: (8,)}).notes
    copy, short, not_taken = notes
    assert copy.startswith("1 calibration sequences repeat others")
    assert short.startswith("1 calibration sequences are shorter than 9 frames")
    assert not_taken.startswith("1 calibration sequences are left out: the network is captured for 5 frames")


def test_inputs_that_are_not_measured_as_asked_are_noted():
    note = "inputs are measured at 8 bits: the target tensorrt takes no fewer than 8"
    assert input_widths((2, 4), 8, "tensorrt") == ((8,), [note])
    assert input_widths((2, 8), 8, "tensorrt") == ((8,), [note])
    assert input_widths((2, 8), 2, "onnxruntime") == ((2, 8), [])

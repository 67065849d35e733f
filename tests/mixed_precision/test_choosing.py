"""Widths chosen for a budget or for an accuracy, from Python."""

import pytest
import torch

import qgait_ptq as qg
from qgait_ptq.config.schema import BudgetConfig
from qgait_ptq.errors import CalibrationError, ConfigError, DataError
from qgait_ptq.exporters.metadata import metadata_text
from qgait_ptq.gait.data.gait_data import GaitData
from qgait_ptq.mixed_precision.choosing import WidthChooser
from qgait_ptq.mixed_precision.groups import Kind
from qgait_ptq.mixed_precision.search import Candidate
from qgait_ptq.placement.planning import plan
from qgait_ptq.report.page import render_report
from qgait_ptq.report.terminal import summary_lines
from qgait_ptq.report.widths import allocation_lines
from qgait_ptq.stages.stage import Stopwatch
from qgait_ptq.system.progress import Silent
from tests.conftest import make_gaitbase
from tests.networks import draw_people
from tests.remembered import forget_exports
from tests.weight_only_networks import OverFrames, Recurrent

FAST = {
    "calibration_sequences": 8,
    "calibration_frames": 8,
    "correction_frames": 6,
    "idc": {"frames": 6, "steps": 6, "identities": 4},
    "minimum_agreement": -1.0,
}


@pytest.fixture(scope="module")
def data(people):
    return GaitData(people, people.choose(6))


ALL = {"calibration_sequences": 20}  # so that some of the people can be held out
QUICK = {"idc": {"enabled": False, "frames": 6}}
BY_SIZE = {
    **QUICK,
    "budget": {"size_mb": 0.07},
    "weight_bits": 4,
    "layers": {"blocks.3.conv2": {"weight_bits": 8}},
}


def quantize(data, network=None, **config):
    network = network or make_gaitbase(channels=(8, 16, 32, 32), strides=(1, 2, 1, 1), embedding=32)
    return qg.quantize(network, data, qg.QuantConfig(**{**FAST, **config}), device="cpu")


@pytest.fixture(scope="module")
def by_size(data):
    return quantize(data, **BY_SIZE)


def test_the_file_keeps_the_budget_and_uses_it(by_size):
    size = by_size.report.size_bytes["onnx"]
    assert 0.85 * 70_000 < size <= 70_000
    assert {layer.weight_bits for layer in by_size.report.layers} == {4, 8}
    assert {layer.activation_bits for layer in by_size.report.layers} == {8}


def test_the_metadata_of_the_file_are_slightly_overestimated(by_size):
    """They have an entry for each layer."""
    layers = by_size.report.config["layers"]
    assert len(layers) == len(by_size.report.layers)
    estimated = by_size.report.allocation["chosen"]["file_bytes"] - by_size.report.size_bytes["onnx"]
    assert 0 <= estimated <= 3000


class Long(torch.nn.Module):
    """Many layers with long names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(64 * 44, 8), torch.nn.Linear(8, 16)
        self.a_long_name_of_a_backbone = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(40))

    def forward(self, silhouettes):
        features = self.first(silhouettes.flatten(2)).relu()
        for layer in self.a_long_name_of_a_backbone:
            features = layer(features).relu()
        return self.last(features.amax(1))[..., None]


def test_metadata_grow_with_the_number_of_layers(people):
    config = qg.QuantConfig(budget={"size_mb": 1.0}, **FAST)
    state = qg.prepare(Long().eval(), qg.GaitData(people, people), config, device="cpu")
    chooser = WidthChooser(state, Stopwatch(Silent()))
    given = chooser.with_widths(Candidate((8,) * len(chooser.groups)))
    assert len(given.layers) == 42
    text = metadata_text({"config": given.model_dump(mode="json")})
    assert len(text) < chooser.measurement.metadata_bytes() < len(text) + 5000


def test_a_layer_that_is_named_keeps_its_width(by_size):
    bits = {layer.name: layer.weight_bits for layer in by_size.report.layers}
    assert bits["blocks.3.conv2"] == 8


def test_the_report_knows_how_widths_were_chosen(by_size):
    allocation = by_size.report.allocation
    assert allocation["by"] == "size"
    assert allocation["chosen"]["file_bytes"] >= by_size.report.size_bytes["onnx"]
    sizes = [point["file_bytes"] for point in allocation["front"]]
    assert sizes == sorted(sizes)
    assert {"layers", "kind", "bits", "distance_error", "rank1_drop"} <= set(allocation["sensitivity"][0])


def test_the_page_draws_the_front(by_size):
    assert '<figure id="front">' in render_report(by_size.report.to_json())


def test_people_are_told_how_widths_were_chosen(by_size):
    (line,) = allocation_lines(by_size.report.to_json())
    assert line == "widths chosen for a file of 0.07 MB: weights 4 to 8 bits, inputs 8 bits"


def test_a_width_that_the_budget_overrides_is_noted(by_size):
    assert any(note.startswith("weight_bits 4 has no effect: the budget") for note in by_size.report.notes)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_file(by_size, data):
    forget_exports()
    again = quantize(data, **BY_SIZE)
    assert again.onnx_model.SerializeToString() == by_size.onnx_model.SerializeToString()


@pytest.mark.slow
def test_bit_operations_are_shared_out_over_weights_and_inputs(data):
    layers = quantize(data, budget={"bops_percent": 30}, **QUICK).report.layers
    spent = sum(layer.macs * layer.weight_bits * layer.activation_bits for layer in layers)
    allowed = 0.3 * sum(64 * layer.macs for layer in layers)
    assert 0.8 * allowed < spent <= allowed
    assert len({(layer.weight_bits, layer.activation_bits) for layer in layers}) > 2


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        pytest.param(  # also tried on the command line
            {"size_mb": 0.03},
            r"size=0.03MB cannot be met: the smallest file for target onnxruntime has 0\.06 MB",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"bops_percent": 1},
            r"bops=1% cannot be met: the narrowest widths need \d",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(data, budget, words):
    with pytest.raises(ConfigError, match=words):
        quantize(data, budget=budget)


@pytest.mark.slow
def test_widths_are_raised_until_no_more_rank1_is_lost(data):
    report = quantize(data, weight_bits=2, activation_bits=2, max_drop=1.0, **ALL).report
    looks = report.allocation["looks"]
    assert looks[0]["drop"] > 1.0 >= report.allocation["held_out_drop"]
    assert f"found with {len(looks)} calibrations" in "".join(allocation_lines(report.to_json()))
    assert any(layer.weight_bits > 2 or layer.activation_bits > 2 for layer in report.layers[1:-1])


@pytest.mark.slow
def test_the_smallest_file_that_keeps_an_accuracy_is_found(data):
    result = quantize(data, target_accuracy=-100.0, **QUICK, **ALL)
    front = result.report.allocation["front"]
    assert result.report.allocation["chosen"]["file_bytes"] == min(point["file_bytes"] for point in front)


@pytest.mark.slow
def test_an_accuracy_that_no_widths_keep_is_an_error(data, monkeypatch):
    # Better than float by two points: a drop that no candidate reaches.
    monkeypatch.setattr("qgait_ptq.mixed_precision.choosing.allowed_drop", lambda config: -50.0)
    with pytest.raises(CalibrationError, match=r"no widths keep held-out rank-1 within"):
        quantize(data, target_accuracy=-0.1, **ALL)


def test_accuracy_cannot_be_held_without_people_to_hold_out(walkers):
    few = GaitData(walkers.choose(12), walkers.choose(4))
    with pytest.raises(DataError, match="identities"):
        quantize(few, make_gaitbase(), max_drop=0.5)


def test_sensitivity_needs_two_people(people):
    alone = people.where(lambda record: record.subject == people.subjects[0])
    with pytest.raises(DataError, match="at least two identities; found 1"):
        quantize(GaitData(alone, alone), make_gaitbase(), budget={"size_mb": 1.0})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": BudgetConfig(size_mb=1), "max_drop": 1.0}, "exclude each other"),
        ({"budget": {"size_mb": 1, "bops_percent": 3}}, "set either size_mb or bops_percent"),
        ({"budget": {}}, "set either size_mb or bops_percent"),
        ({"target_accuracy": 0.5}, "less than or equal to 0"),
        ({"max_drop": -1.0}, "greater than or equal to 0"),
    ],
)
def test_goals_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        qg.QuantConfig(**settings)


@pytest.mark.slow
def test_weights_of_an_lstm_take_part_in_a_budget(people):
    """At 8 bits, the LSTM alone exceeds the budget."""
    torch.manual_seed(0)
    network = OverFrames(Recurrent("LSTM", 96), 96).eval()
    config = {**FAST, **QUICK, "calibration_sequences": 8, "budget": {"size_mb": 0.05}}
    result = qg.quantize(
        network, GaitData(people.choose(8), people.choose(4)), qg.QuantConfig(**config), device="cpu"
    )
    (row,) = [layer for layer in result.report.layers if layer.weight_only]
    assert row.weight_bits == 4
    assert row.parameters > 49_000
    assert result.report.size_bytes["onnx"] <= 50_000
    assert any(
        line.startswith("weight-only: 0.05 M weights") for line in summary_lines(result.report.to_json())
    )
    assert "inner.rnn: weight-only" in render_report(result.report.to_json())


class NamedLikePatterns(torch.nn.Module):
    """Names that fnmatch would read as patterns, beside names that these patterns match."""

    NAMES = ("a[1]", "a1", "b*", "bc", "d?", "de")

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(32 * 22, 8), torch.nn.Linear(8, 16)
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(8, 8) for name in self.NAMES})

    def forward(self, silhouettes):
        features = self.first(silhouettes.flatten(2)).relu()
        for head in self.heads.values():
            features = head(features).relu()
        return self.last(features.amax(1))


def test_chosen_widths_and_layers_in_float_belong_to_the_layers_that_they_name():
    network, data = NamedLikePatterns().eval(), draw_people(2, 1)
    config = qg.QuantConfig(budget={"bops_percent": 50})
    dataset = qg.GaitDataset.from_pairs((frames[:, :32, :22], about.subject) for frames, about in data)
    chooser = WidthChooser(qg.prepare(network, dataset, config, device="cpu"), Stopwatch(Silent()))
    names = [f"heads.{name}" for name in NamedLikePatterns.NAMES]
    weights = [group.kind is Kind.WEIGHTS for group in chooser.groups]
    widths = tuple(2 + index % 7 for index in range(len(weights)))
    expected = {
        group.layers: bits
        for group, bits, of_weights in zip(chooser.groups, widths, weights, strict=True)
        if of_weights
    }
    given = chooser.with_widths(Candidate(widths, in_float=("heads.a[1]", "heads.b*")))
    layers = {layer.name: layer.weight_bits for layer in plan(network, (32, 22), given)[2]}
    for name in names:
        in_float = name in ("heads.a[1]", "heads.b*")
        assert layers[name] == (None if in_float else expected[(name,)]), name


@pytest.mark.parametrize("name", NamedLikePatterns.NAMES)
def test_the_name_of_a_layer_is_a_pattern_that_matches_it(name):
    given = qg.QuantConfig(layers={f"heads.{name}": {"weight_bits": 3}})
    layers = {layer.name: layer.weight_bits for layer in plan(NamedLikePatterns(), (32, 22), given)[2]}
    assert layers[f"heads.{name}"] == 3

import copy
from dataclasses import replace
from functools import cache, partial

import pytest
import torch

from qgait_ptq.capture.trace import capture
from qgait_ptq.config.schema import LayerBits, QuantConfig
from qgait_ptq.errors import ConfigError
from qgait_ptq.graph.annotation import BitWidths, OwnSpec, SharedSpec, annotation_of
from qgait_ptq.graph.operators import WEIGHTED, is_operator, operator_name
from qgait_ptq.graph.passes import SIMPLIFICATION
from qgait_ptq.graph.passes.graph_pass import run_passes
from qgait_ptq.graph.shapes import record_shapes
from qgait_ptq.graph.stored_weights import layer_name
from qgait_ptq.graph.views import WeightedLayer
from qgait_ptq.placement.annotate import annotate
from qgait_ptq.placement.insert import insert_quantizers
from qgait_ptq.placement.layers import float_operators, list_layers
from qgait_ptq.placement.planning import plan, width_notes
from qgait_ptq.quantizer.fake_quantize import BiasFakeQuantize, FakeQuantize
from qgait_ptq.targets.registry import TARGETS, get_target
from tests.conftest import DEEP, make_gaitbase, make_gaitset

RULES = get_target("onnxruntime").rules


make_deep_gaitbase = partial(make_gaitbase, **DEEP)


@cache
def simplified(make):
    """Capture a network once; the tests change copies of its graph."""
    captured = capture(make(), (64, 44))
    graph_module = run_passes(captured.graph_module, SIMPLIFICATION, [captured.example()])
    record_shapes(graph_module, captured.example())
    return graph_module


def placed(make, **widths):
    return annotate(
        copy.deepcopy(simplified(make)), RULES, BitWidths(**{"weight": 4, "activation": 4, **widths})
    )


def by_name(graph_module):
    return {layer.name: layer for layer in list_layers(graph_module)}


def test_first_and_last_layer_keep_eight_bits_and_the_others_get_theirs():
    layers = by_name(placed(make_deep_gaitbase))
    widths = {name: (layer.weight_bits, layer.activation_bits) for name, layer in layers.items()}
    assert widths.pop("stem.0") == (8, 8)
    assert widths.pop("part_linear") == (8, 8)
    assert set(widths.values()) == {(4, 4)}


def test_edge_bits_change_first_and_last_layer():
    layers = by_name(placed(make_deep_gaitbase, edge=4))
    assert {(layer.weight_bits, layer.activation_bits) for layer in layers.values()} == {(4, 4)}


def test_layers_can_be_given_widths_by_pattern():
    layers = by_name(
        placed(make_deep_gaitbase, layers={"blocks.3.*": (6, None), "blocks.3.conv2": (None, 8)})
    )
    assert (layers["blocks.3.conv1"].weight_bits, layers["blocks.3.conv1"].activation_bits) == (6, 4)
    assert (layers["blocks.3.conv2"].weight_bits, layers["blocks.3.conv2"].activation_bits) == (6, 8)


def test_a_pattern_that_names_no_layer_is_refused_with_the_nearest_names():
    with pytest.raises(ConfigError, match=r"blocks\.0\.conv1"):
        placed(make_deep_gaitbase, layers={"block.0.conv1": (8, 8)})


def test_layers_are_left_in_float_by_module_and_by_operator():
    layers = by_name(placed(make_deep_gaitbase, exclude=("blocks.3", "*.shortcut.0")))
    in_float = {name for name, layer in layers.items() if layer.weight_bits is None}
    assert in_float == {name for name in layers if name.startswith("blocks.3.") or "shortcut" in name}
    assert {layers[name].note for name in in_float} == {"left in float by include or exclude"}
    assert not any(layers[name].integer for name in in_float)
    with pytest.raises(ConfigError, match="leave no layer"):
        placed(make_gaitset, exclude=("operator:conv2d",))


def test_only_included_layers_are_quantized_and_the_edges_stay_those_of_the_network():
    layers = by_name(placed(make_deep_gaitbase, include=("blocks.0", "part_linear")))
    quantized = {name: layer.weight_bits for name, layer in layers.items() if layer.weight_bits}
    assert quantized == {"blocks.0.conv1": 4, "blocks.0.conv2": 4, "part_linear": 8}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"exclude": ("blok.3",)}, r"exclude: 'blok.3'.*blocks\.3"),
        ({"include": ("operator:conv9",)}, "include: 'operator:conv9'.*operator:conv2d"),
        ({"exclude": ("*",)}, "leave no layer"),
    ],
)
def test_patterns_that_name_nothing_or_leave_nothing_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        placed(make_deep_gaitbase, **setting)


def test_relu_is_absorbed_by_the_layer_before_it():
    graph_module = placed(make_deep_gaitbase)
    for node in graph_module.graph.nodes:
        if operator_name(node) == "relu":
            assert isinstance(annotation_of(node).output, OwnSpec)
            assert annotation_of(node.args[0]).output is None


def test_both_inputs_of_a_residual_addition_are_quantized_at_the_elementwise_width():
    graph_module = placed(make_deep_gaitbase)
    additions = [
        n for n in graph_module.graph.nodes if operator_name(n) == "add" and annotation_of(n).integer
    ]
    assert len(additions) == 4
    for node in additions:
        for source in node.args[:2]:
            assert annotation_of(source).output.grid.bits == 8


def test_a_layer_reads_the_input_of_an_addition_at_its_own_width():
    graph_module = placed(make_deep_gaitbase)
    shared = [n for n in graph_module.graph.nodes if annotation_of(n).for_layers]
    assert len(shared) == 2  # the other two blocks have a convolution in their shortcut
    assert {layer.activation_bits for layer in list_layers(graph_module)[1:-1]} == {4}

    quantized = insert_quantizers(graph_module)
    nodes = {node.name: node for node in quantized.graph.nodes}
    for tensor in shared:
        (wide,) = nodes[tensor.name].users
        (narrow,) = [user for user in wide.users if user.op == "call_module"]
        assert [operator_name(user) for user in wide.users if user is not narrow] == ["add"]
        assert all(WeightedLayer.of(user) for user in narrow.users)
        widths = [quantized.get_submodule(str(call.target)).grid.bits for call in (wide, narrow)]
        assert widths == [8, 4]


@pytest.mark.parametrize("elementwise", [3, 4])
def test_one_quantizer_is_enough_if_additions_read_no_more_bits_than_layers(elementwise):
    graph_module = placed(make_deep_gaitbase, elementwise=elementwise)
    assert not any(annotation_of(n).for_layers for n in graph_module.graph.nodes)


def test_maximum_over_frames_shares_the_quantizer_of_its_input():
    graph_module = placed(make_gaitset)
    maxima = [n for n in graph_module.graph.nodes if operator_name(n) == "amax" and len(n.args[1]) == 1]
    shared = [n for n in maxima if isinstance(annotation_of(n).output, SharedSpec)]
    assert len(shared) >= 3
    for node in shared:
        assert annotation_of(node.args[0]).output is not None


def test_mean_stays_in_float_and_says_why():
    reasons = float_operators(placed(make_deep_gaitbase))
    assert reasons["mean"] == "no integer kernel on this target"
    assert "mean" in reasons["add"]


@pytest.mark.parametrize(
    ("target", "in_float"), [("onnxruntime", []), ("openvino", []), ("generic-qdq", ["part_linear"])]
)
def test_the_embedding_layer_sums_integers_where_its_target_can(target, in_float):
    _, _, layers = plan(make_gaitbase(), (64, 44), QuantConfig(target=target))
    assert [layer.name for layer in layers if not layer.integer] == in_float


def test_input_bits_are_those_of_the_input_alone():
    plain, narrow = (by_name(placed(make_deep_gaitbase, **given)) for given in ({}, {"input": 1}))
    differing = {name for name in plain if plain[name] != narrow[name]}
    assert differing == {"stem.0"}
    assert (narrow["stem.0"].weight_bits, narrow["stem.0"].activation_bits) == (8, 1)


def test_one_bit_for_the_input_is_refused_where_activations_are_signed(monkeypatch, gaitbase):
    unsigned = get_target("onnxruntime")
    signed = replace(unsigned, name="own", rules=replace(unsigned.rules, activation_signed=True))
    monkeypatch.setitem(TARGETS, "own", signed)
    with pytest.raises(ConfigError, match=r"input_bits is 1; the target own .* Set input_bits to 2 or more"):
        plan(gaitbase, (64, 44), QuantConfig(target="own", input_bits=1))
    layers = plan(gaitbase, (64, 44), QuantConfig(target="own", input_bits=2))[2]
    assert layers[0].activation_bits == 2


def test_weights_are_symmetric_per_channel_and_activations_unsigned_per_tensor():
    for node in placed(make_deep_gaitbase).graph.nodes:
        annotation = annotation_of(node)
        if annotation.weight:
            assert annotation.weight.channel_axis == 0
            assert annotation.weight.grid.symmetric
            assert annotation.weight.grid.quant_min == -annotation.weight.grid.quant_max
        if isinstance(annotation.output, OwnSpec):
            assert annotation.output.channel_axis is None
            assert annotation.output.grid.quant_min == 0


def test_insertion_obeys_the_annotations_and_leaves_the_float_graph_alone(gaitbase):
    graph_module = placed(lambda: gaitbase)
    silhouettes = torch.rand(1, 5, 64, 44)
    before = graph_module(silhouettes)
    quantized = insert_quantizers(graph_module)
    own = sum(isinstance(annotation_of(n).output, OwnSpec) for n in graph_module.graph.nodes)
    own += sum(annotation_of(n).for_layers is not None for n in graph_module.graph.nodes)
    weights = sum(annotation_of(n).weight is not None for n in graph_module.graph.nodes)
    biases = sum(annotation_of(n).bias is not None for n in graph_module.graph.nodes)
    assert sum(isinstance(m, FakeQuantize) for m in quantized.modules()) == own + weights
    assert sum(isinstance(m, BiasFakeQuantize) for m in quantized.modules()) == biases
    assert torch.equal(graph_module(silhouettes), before)


def test_layer_names_are_the_users_module_paths(gaitbase):
    graph_module = placed(lambda: gaitbase)
    names = [layer_name(n) for n in graph_module.graph.nodes if is_operator(n, WEIGHTED)]
    modules = dict(gaitbase.named_modules())
    assert all(name in modules for name in names)


def test_a_network_without_layers_is_refused():
    class Nothing(torch.nn.Module):
        def forward(self, silhouettes):
            return silhouettes.amax((1, 2))

    with pytest.raises(ConfigError, match="no convolution"):
        placed(Nothing)


def input_observer(graph_module):
    outputs = (annotation_of(node).output for node in graph_module.graph.nodes)
    return next(output for output in outputs if isinstance(output, OwnSpec)).observer


def test_only_silhouettes_have_the_full_range_whatever_the_observer(gaitbase):
    config = QuantConfig(observer="percentile")
    assert input_observer(plan(gaitbase, (64, 44), config)[1]) == "minmax"
    assert input_observer(plan(gaitbase, (64, 44), config, raw=True)[1]) == "percentile"
    with pytest.raises(ConfigError, match="input_bits is 1, but the input of the network is not silhouettes"):
        plan(gaitbase, (64, 44), QuantConfig(input_bits=1), raw=True)


def test_a_width_that_a_layer_does_not_get_is_said(gaitbase):
    """Both branches of a block read one tensor, which has the width of the widest reader."""
    shortcut = next(name for name, _ in gaitbase.named_modules() if name.endswith("shortcut.0"))
    config = QuantConfig(layers={shortcut: LayerBits(activation_bits=3), "part_linear": {"weight_bits": 4}})
    _, network, layers = plan(gaitbase, (64, 44), config)
    (note,) = width_notes(network, layers, config)
    assert note.startswith(f"the input of {shortcut} has 8 bits instead of 3: another layer reads")
    assert not width_notes(network, layers, QuantConfig())


class ReadsConstants(torch.nn.Module):
    """A network that adds features of a stored picture, which a convolution and a linear layer read."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.picture = torch.nn.Conv2d(1, 8, 3), torch.nn.Conv2d(1, 8, 3)
        self.numbers, self.head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 6)
        self.register_buffer("stored", torch.rand(1, 1, 30, 30))
        self.register_buffer("table", torch.rand(500, 4))

    def forward(self, silhouettes):
        maps = self.first(silhouettes.flatten(0, 1).unsqueeze(1)).relu().amax((2, 3))
        maps = maps + self.picture(self.stored).mean((2, 3)) + self.numbers(self.table).mean(0)
        return self.head(maps.unflatten(0, silhouettes.shape[:2]).amax(1))


def test_layers_that_read_a_stored_tensor_stay_in_float():
    layers = by_name(plan(ReadsConstants().eval(), (16, 12), QuantConfig())[1])
    assert {name for name, layer in layers.items() if layer.integer} == {"first", "head"}
    assert layers["picture"].note == "its input is a stored tensor, which no quantizer observes"

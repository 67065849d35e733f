"""Views read arguments by name, wherever and whether the call gives them."""

import re
from pathlib import Path

import pytest
from torch import fx

import qgait_ptq
from qgait_ptq.graph.operators import aten
from qgait_ptq.graph.views import BatchNorm, ModuleCall, WeightedLayer, argument, first_argument, operands


@pytest.fixture
def graph():
    return fx.Graph()


@pytest.fixture
def x(graph):
    return graph.placeholder("x")


@pytest.mark.parametrize("by_keyword", [False, True])
def test_an_argument_is_found_by_position_and_by_keyword(graph, x, by_keyword):
    extra = {"keepdim": True} if by_keyword else {}
    call = graph.call_function(aten.amax.default, (x, [1]) if by_keyword else (x, [1], True), extra)
    assert (argument(call, "dim"), argument(call, "keepdim")) == ([1], True)


def test_an_argument_that_is_left_out_has_the_default_of_the_operator(graph, x):
    assert argument(graph.call_function(aten.amax.default, (x,)), "keepdim") is False
    assert argument(graph.call_function(aten.stack.default, ([x, x],)), "dim") == 0


def test_an_unknown_argument_is_an_error(graph, x):
    with pytest.raises(KeyError, match="no argument axis"):
        argument(graph.call_function(aten.amax.default, (x,)), "axis")


@pytest.mark.parametrize("convolution", [aten.conv1d, aten.conv2d, aten.conv3d])
def test_settings_of_a_convolution_are_one_number_for_each_axis(graph, x, convolution):
    axes = int(convolution.default.__name__[4])
    weight, bias = graph.get_attr("weight"), graph.get_attr("bias")
    plain = WeightedLayer.of(graph.call_function(convolution.default, (x, weight)))
    assert (plain.stride, plain.padding, plain.dilation) == ([1] * axes, [0] * axes, [1] * axes)
    assert (plain.input, plain.weight, plain.bias, plain.groups) == (x, weight, None, 1)
    full = WeightedLayer.of(
        graph.call_function(
            convolution.default, (x, weight, bias), {"stride": [2], "padding": 3, "groups": 4}
        )
    )
    assert (full.stride, full.padding, full.groups) == ([2] * axes, [3] * axes, 4)
    assert full.bias is bias


def test_replaced_parameters_leave_the_settings_of_a_layer(graph, x):
    first, second, bias = (graph.get_attr(name) for name in ("first", "second", "bias"))
    node = graph.call_function(aten.conv2d.default, (x, first), {"bias": None, "stride": [2, 2]})
    layer = WeightedLayer.of(node)
    layer.replace_parameters(second, bias)
    assert (layer.weight, layer.bias, layer.stride) == (second, bias, [2, 2])
    assert node.kwargs == {"stride": [2, 2]}


def test_views_of_other_nodes_are_none(graph, x):
    call = graph.call_function(aten.relu.default, (x,))
    for view in (WeightedLayer, BatchNorm, ModuleCall):
        assert view.of(call) is None
        assert view.of("no node") is None
    assert first_argument(x) is None
    assert first_argument(call) is x
    assert operands(graph.call_function(aten.add.Tensor, (x, 2.0))) == (x, 2.0)


def test_the_package_reads_few_arguments_by_position():
    root = Path(qgait_ptq.__file__).parent
    uses = [
        f"{file.name}:{number}"
        for file in root.rglob("*.py")
        if file.name != "views.py"
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(r"\.args\[\d", line)
    ]
    assert len(uses) < 20, uses


def test_a_batch_norm_names_its_parameters(graph, x):
    names = ("weight", "bias", "mean", "variance")
    nodes = [graph.get_attr(name) for name in names]
    call = graph.call_function(aten.batch_norm.default, (x, *nodes, False, 0.1, 1e-5, False))
    batch_norm = BatchNorm.of(call)
    assert batch_norm.parameters == tuple(nodes)
    assert (batch_norm.input, batch_norm.eps) == (x, pytest.approx(1e-5))

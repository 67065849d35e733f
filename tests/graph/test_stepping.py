"""Walking a graph node by node, and its blocks."""

import copy

import pytest
import torch

from qgait_ptq.calibration.blocks import Granularity, find_blocks
from qgait_ptq.graph.operators import WEIGHTED, is_operator
from qgait_ptq.graph.stepping import Stepper
from tests.conftest import make_gaitbase, make_gaitset
from tests.networks import quantize_network


@pytest.fixture(scope="module", params=[make_gaitbase, make_gaitset], ids=["gaitbase", "gaitset"])
def quantized(request, batches):
    return quantize_network(request.param(), batches[:4]).graph


def layers(graph):
    return [node for node in graph.graph.nodes if is_operator(node, WEIGHTED)]


@pytest.mark.parametrize("memory", [2**30, 0], ids=["memory", "disk"])
def test_inputs_of_layers_are_those_of_a_whole_run(quantized, batches, memory):
    whole = torch.fx.Interpreter(quantized, garbage_collect_values=False)
    with torch.no_grad():
        whole.run(batches[1])
    stepper = Stepper(quantized, batches[:3], memory)
    for layer in layers(quantized):
        stepper.advance(layer.name)
        _, second, _ = stepper.input_of(layer.name)
        assert torch.equal(second, whole.env[layer.args[0]])


def test_what_is_changed_ahead_is_seen(quantized, batches):
    graph = copy.deepcopy(quantized)
    stepper = Stepper(graph, batches[:1])
    last = layers(graph)[-1]
    stepper.advance(layers(graph)[1].args[1].name)  # before the second layer's weight is quantized
    first = graph.get_submodule(str(layers(graph)[1].args[1].target))
    first.scale = first.scale * 2
    stepper.advance(last.name)
    expected = torch.fx.Interpreter(graph, garbage_collect_values=False)
    with torch.no_grad():
        expected.run(batches[0])
    assert torch.equal(next(stepper.input_of(last.name)), expected.env[last.args[0]])


def test_values_are_forgotten_after_their_last_use(quantized, batches):
    stepper = Stepper(quantized, batches[:1])
    stepper.advance(layers(quantized)[-1].name)
    held = stepper._interpreters[0].env
    assert len(held) < 12


@pytest.mark.parametrize("granularity", list(Granularity))
def test_blocks_one_after_the_other_are_the_network(quantized, batches, granularity):
    blocks = find_blocks(quantized, granularity)
    assert sum(len(block.layers) for block in blocks) == len(layers(quantized))
    placeholder = next(node for node in quantized.graph.nodes if node.op == "placeholder")
    values = {placeholder: batches[0]}
    with torch.no_grad():
        for block in blocks:
            assert set(block.inputs) <= set(values)
            values |= zip(block.outputs, block.run(quantized, values), strict=True)
        expected = quantized(batches[0])
    output = next(node for node in quantized.graph.nodes if node.op == "output")
    assert torch.equal(values[output.all_input_nodes[0]], expected)


def test_residual_blocks_stay_whole_and_layers_can_be_single(quantized):
    whole, single = (find_blocks(quantized, g) for g in (Granularity.BLOCK, Granularity.LAYER))
    assert 1 < len(whole) < len(single)
    assert all(len(block.layers) <= 1 for block in single[:-1])

"""Remembered captures: a network never gets the graph of another one."""

import copy

import torch

from qgait_ptq.config import QuantConfig
from qgait_ptq.exporters.onnx_file import export_float
from qgait_ptq.graph.network_input import random_silhouettes
from qgait_ptq.placement import planning
from tests.small_network import Small

SIZE = (32, 22)
SILHOUETTES = random_silhouettes(1, 5, SIZE)


class Scaled(Small):
    """A setting that is no weight changes what it computes."""

    def __init__(self, strength=1.0):
        super().__init__()
        self.strength = strength

    def forward(self, silhouettes):
        return self.strength * super().forward(silhouettes)


def capture(network):
    return planning.plan(network, SIZE, QuantConfig())[0].graph_module


def assert_computes(graph, network):
    torch.testing.assert_close(graph(SILHOUETTES), network(SILHOUETTES), rtol=1e-4, atol=1e-5)


def test_a_network_gets_its_own_graph_and_a_copy_of_its_own():
    network = Small().eval()
    first = capture(network)
    again = capture(copy.deepcopy(network))
    assert_computes(again, network)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert_computes(capture(network), network)


def test_another_weight_setting_or_hook_is_another_network():
    network = Scaled().eval()
    capture(network)
    with torch.no_grad():
        next(network.parameters()).mul_(-1)
    assert_computes(capture(network), network)
    assert_computes(capture(Scaled(2.0).eval()), Scaled(2.0).eval())
    network.register_forward_hook(lambda module, given, embedding: 2 * embedding)
    assert_computes(capture(network), network)


def test_an_export_depends_on_weights_free_axes_and_opset():
    captured, graph_module, _ = planning.plan(Small().eval(), SIZE, QuantConfig())

    def export(capture=captured, opset=21):
        return export_float(graph_module, capture, opset).SerializeToString()

    first = export()
    assert export() == first
    assert export(opset=22) != first
    assert export(captured.pin({0: (1, 1)})) != first
    with torch.no_grad():
        next(graph_module.parameters()).mul_(-1)
    assert export() != first

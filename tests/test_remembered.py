"""Remembered captures: a network never gets the graph of another one."""

import copy

import torch

from qgait_ptq.config import QuantConfig
from qgait_ptq.graph.network_input import random_silhouettes
from qgait_ptq.placement import planning
from tests.conftest import make_gaitset

SILHOUETTES = random_silhouettes(1, 5, (64, 44))


def capture(network):
    return planning.plan(network, (64, 44), QuantConfig())[0].graph_module


def assert_computes(graph, network):
    torch.testing.assert_close(graph(SILHOUETTES), network(SILHOUETTES), rtol=1e-4, atol=1e-5)


def test_a_network_gets_its_own_graph_and_a_copy_of_its_own():
    network = make_gaitset(strips=(1,))
    first = capture(network)
    again = capture(copy.deepcopy(network))
    assert_computes(again, network)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert_computes(capture(network), network)


def test_another_weight_setting_or_hook_is_another_network():
    network = make_gaitset(strips=(1,))
    capture(network)
    with torch.no_grad():
        next(network.parameters()).mul_(-1)
    assert_computes(capture(network), network)
    assert_computes(capture(make_gaitset(strips=(2,))), make_gaitset(strips=(2,)))
    network.register_forward_hook(lambda module, given, embedding: 2 * embedding)
    assert_computes(capture(network), network)

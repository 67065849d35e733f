"""Additions are on integers where the runtime has an integer kernel for them, and only there."""

import torch
from torch import nn

from qgait_ptq.exporters.onnx_file import export_quantized
from qgait_ptq.graph.annotation import annotation_of
from qgait_ptq.graph.network_input import random_silhouettes
from qgait_ptq.graph.operators import operator_name
from qgait_ptq.placement.layers import float_operators
from qgait_ptq.runtime.optimized_graph import optimized_graph
from qgait_ptq.targets.registry import get_target
from tests.networks import quantize_network

SIZE = (16, 12)


class Additions(nn.Module):
    """Additions after a convolution, and a fully connected layer behind which `last` gives the embedding."""

    def __init__(self, add, last=lambda embedding: embedding):
        super().__init__()
        torch.manual_seed(0)
        self.add, self.last = add, last
        self.first, self.second, self.third = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 6)

    def forward(self, silhouettes):
        maps = self.first(silhouettes.flatten(0, 1).unsqueeze(1)).relu()
        maps = self.third(self.add(maps, self.second(maps)))
        return self.last(self.head(maps.unflatten(0, (silhouettes.shape[0], -1)).amax((1, 3, 4))))


def quantize(network):
    """Return the float graph, and the operators of the graph that onnxruntime runs."""
    quantized = quantize_network(network.eval(), [random_silhouettes(1, 9, SIZE)])
    file = export_quantized(quantized.graph, quantized.captured, get_target("onnxruntime"))
    nodes = optimized_graph(file, portable=True).graph.node
    return quantized.float_graph, [node.op_type for node in nodes]


def test_additions_of_two_tensors_are_on_integers():
    graph, kernels = quantize(
        Additions(lambda maps, others: (maps + others) + others.amax((2, 3), keepdim=True))
    )
    assert float_operators(graph) == {}
    additions = [node for node in graph.graph.nodes if operator_name(node) == "add"]
    assert kernels.count("QLinearAdd") == len(additions) == 2
    assert all(annotation_of(node).integer for node in additions)


def test_additions_of_numbers_and_multiples_and_other_sums_are_in_float():
    def add(maps, others):
        maps = torch.add(maps, 0.5 + others, alpha=2)
        return others - maps.add_(others, alpha=3) * 0.5 + -others

    graph, kernels = quantize(Additions(add))
    assert set(float_operators(graph)) == {"add", "sub", "mul", "neg"}
    assert "adds a number or a multiple of a tensor" in float_operators(graph)["add"]
    assert kernels.count("QLinearAdd") == 0


def test_an_embedding_that_is_shifted_or_scaled_by_numbers_is_not_quantized():
    graph, kernels = quantize(
        Additions(lambda maps, others: maps + others, lambda embedding: 1 - -(embedding * 16 + 0.5) / 3)
    )
    node = next(iter(reversed(graph.graph.nodes)))
    while operator_name(node) != "linear":
        (node,) = node.all_input_nodes
        assert annotation_of(node).output is None
    assert "DequantizeLinear" not in kernels[kernels.index("QGemm") :]

import pytest
import torch
from torch import fx

from qgait_ptq.calibration.ranges import calibrate_ranges
from qgait_ptq.errors import CalibrationError
from qgait_ptq.graph.annotation import annotation_of
from qgait_ptq.graph.attributes import tensor_of
from qgait_ptq.placement.insert import insert_quantizers
from qgait_ptq.placement.layers import layer_sqnr
from qgait_ptq.quantizer.fake_quantize import FakeQuantize
from qgait_ptq.quantizer.grid import INT32_MAX
from tests.conftest import make_gaitbase
from tests.networks import quantize_again, quantize_network


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).min().item()


def embed(graph, batches):
    with torch.inference_mode():
        return torch.cat([graph(batch) for batch in batches])


@pytest.fixture(scope="module")
def network():
    return make_gaitbase()


@pytest.fixture(scope="module")
def eight(network, batches):
    return quantize_network(network, batches)


def test_eight_bits_are_close_to_float_and_four_further_away(network, eight, batches):
    expected = embed(network, batches)
    wide = embed(eight.graph, batches)
    narrow = embed(quantize_again(eight, batches, weight_bits=4, activation_bits=4).graph, batches)
    assert cosine(expected, wide) > 0.99
    assert 0.7 < cosine(expected, narrow) < cosine(expected, wide)


def test_binary_silhouettes_lie_on_the_input_grid_exactly(eight):
    graph = eight.graph
    stem = next(node for node in graph.graph.nodes if annotation_of(node).weight)
    quantizer = graph.get_submodule(str(stem.args[0].target))
    binary, grey = torch.tensor([0.0, 1.0]), torch.arange(256) / 255
    assert torch.equal(quantizer(binary), binary)
    torch.testing.assert_close(quantizer(grey), grey, rtol=1e-6, atol=0)


def test_zero_points_after_relu_are_zero(eight):
    graph = eight.graph
    for name, module in graph.named_modules():
        if isinstance(module, FakeQuantize) and name.startswith("relu"):
            assert module.zero_point.item() == 0


class NodeValues(fx.Interpreter):
    """Keeps what each node returned in the last run."""

    def __init__(self, graph):
        super().__init__(graph)
        self.values = {}

    def run_node(self, node):
        self.values[node] = super().run_node(node)
        return self.values[node]


def test_bias_is_rounded_with_scale_of_input_times_weight(eight, batches):
    graph = eight.graph
    run = NodeValues(graph)
    with torch.inference_mode():
        run.run(batches[0][:1])
    layers = [node for node in graph.graph.nodes if annotation_of(node).bias is not None]
    assert layers
    for node in layers:
        inputs, weights = (graph.get_submodule(str(argument.target)).scale for argument in node.args[:2])
        scale = inputs * weights
        rounded, bias = run.values[node.args[2]], run.values[node.args[2].args[0]]
        steps = rounded.double() / scale.double()
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert ((rounded - bias).abs() <= 0.501 * scale).all()


def test_a_channel_without_weight_keeps_its_bias(batches):
    """Batch norm folding leaves such channels; their bias must survive in int32."""
    network = make_gaitbase()
    with torch.no_grad():
        network.stem[1].weight[0] = 1e-12
        network.stem[1].bias[0] = 3.0
    graph = quantize_network(network, batches).graph
    stem = next(node for node in graph.graph.nodes if annotation_of(node).bias)
    bias = tensor_of(graph, stem.args[2].args[0])
    inputs, weights = (graph.get_submodule(str(argument.target)) for argument in stem.args[:2])
    assert (bias.abs() / (inputs.scale * weights.scale)).max() <= INT32_MAX / 1.9
    assert cosine(embed(network, batches), embed(graph, batches)) > 0.99


def test_constant_channels_and_dead_networks_are_quantized_without_nan(batches):
    network = make_gaitbase()
    with torch.no_grad():
        network.blocks[0].conv1.weight.zero_()
    assert torch.isfinite(embed(quantize_network(network, batches).graph, batches)).all()


def test_observing_many_batches_is_observing_their_union(eight, batches):
    frames = [batch[:, :8] for batch in batches]
    one_by_one = quantize_again(eight, frames, observer="minmax").graph
    at_once = quantize_again(eight, [torch.cat(frames)], observer="minmax").graph
    for name, value in one_by_one.state_dict().items():
        if name.endswith("scale"):
            torch.testing.assert_close(value, at_once.state_dict()[name])


def test_no_batch_is_an_error(eight):
    with pytest.raises(CalibrationError, match="no calibration sequence"):
        calibrate_ranges(insert_quantizers(eight.float_graph), [])


def test_layer_errors_grow_as_bits_fall(eight, batches):
    by_bits = []
    for bits in (8, 5, 3):
        quantized = quantize_again(eight, batches, weight_bits=bits, activation_bits=bits)
        by_bits.append(layer_sqnr(quantized.float_graph, quantized.graph, batches[:2]))
    for name in by_bits[0]:
        if name not in ("conv2d", "conv2d_default"):  # first and last layer keep eight bits
            assert by_bits[0][name] > by_bits[1][name] > by_bits[2][name]

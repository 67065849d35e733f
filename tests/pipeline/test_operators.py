"""Each operator that gait networks are made of: captured, quantized where it pays, and right in the file."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from qgait_ptq.exporters.onnx_file import export_quantized
from qgait_ptq.graph.conversion import in_double
from qgait_ptq.graph.network_input import random_silhouettes
from qgait_ptq.placement.layers import float_operators, list_layers
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import run_session
from qgait_ptq.targets.registry import get_target
from qgait_ptq.verification.parity import layers_without_integer_kernel
from tests.conftest import randomise_batch_norms
from tests.networks import quantize_network

SIZE = (16, 12)


class Around(nn.Module):
    """A convolution, something on maps ``[n·s, 8, 16, 12]``, a convolution, and pooling."""

    def __init__(self, inner):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.inner = inner
        self.second = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 6)

    def forward(self, silhouettes):
        maps = self.second(self.inner(self.first(silhouettes.flatten(0, 1).unsqueeze(1))))
        pooled = maps.unflatten(0, (silhouettes.shape[0], -1)).amax((1, 3, 4))
        return self.head(pooled)


class Gate(nn.Module):
    """Squeeze and excitation (Hu et al. 2018), over places."""

    def __init__(self, activation):
        super().__init__()
        self.activation, self.squeeze, self.excite = activation, nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, maps):
        gates = self.excite(functional.relu(self.squeeze(maps.mean((2, 3), keepdim=True))))
        return maps * self.activation(gates)


class LabelledParts(nn.Module):
    """Features weighed by parts of the body, as in parsing networks: sums and products of masks."""

    def forward(self, maps):
        labels = (maps[:, :1] * 4).long()
        part = labels == -1
        for label in (1, 2):
            part += labels == label
        part = part * (labels != 3)
        return part.float() * maps * 0.75 + (~part).float() * maps * 0.25


class OverPlaces(nn.Module):
    """A sequence operator over the rows, columns being averaged."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, maps):
        return maps + self.inner(maps.mean(3)).unsqueeze(3)


class Attention(nn.Module):
    """Attention between rows, written out."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)

    def forward(self, rows):
        query, key, value = self.qkv(self.norm(rows.transpose(1, 2))).chunk(3, 2)
        weights = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1)
        return (weights @ value).transpose(1, 2)


class FusedAttention(Attention):
    """The same by PyTorch's own operator."""

    def forward(self, rows):
        query, key, value = self.qkv(self.norm(rows.transpose(1, 2))).chunk(3, 2)
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


class GeneralisedMean(nn.Module):
    """GeM over columns (Radenović et al. 2018)."""

    def __init__(self):
        super().__init__()
        self.power = nn.Parameter(torch.tensor(4.0))

    def forward(self, maps):
        return maps.clamp_min(1e-6).pow(self.power).mean(3, keepdim=True).pow(1 / self.power)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, maps):
        return self.function(maps)


class TemporalConvolution(nn.Module):
    """Conv1d over frames; maps of one sequence only reach it, so it is a network of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.temporal = nn.Conv2d(1, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 6)

    def forward(self, silhouettes):
        maps = self.first(silhouettes.flatten(0, 1).unsqueeze(1)).relu().amax((2, 3))
        frames = maps.unflatten(0, (silhouettes.shape[0], -1)).transpose(1, 2)
        return self.head(self.temporal(frames).relu().amax(2))


def pool_with_indices(maps):
    return functional.max_pool2d(maps, 2, return_indices=True)[0]


NORMALISED = {"mean", "layer_norm", "add"}


class Transformer(nn.Module):
    """PyTorch's own encoder layer over rows."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, rows):
        return self.layer(rows.transpose(1, 2)).transpose(1, 2)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, rows):
        return self.lstm(rows.transpose(1, 2))[0].transpose(1, 2)


torch.manual_seed(0)  # the modules below have the same weights whatever was imported before
# Name → modules in a row, and the operators that stay in float with their layers on integers all the same.
# Operators of a kind share a network, since each network takes seconds.
KINDS = [
    nn.Conv2d(8, 8, 3, padding=1, groups=8),
    nn.Conv2d(8, 8, 3, padding=1, groups=2),
    nn.Conv2d(8, 8, 3, padding=2, dilation=2),
]
FUNCTIONS = (nn.GELU(), nn.Hardswish(), nn.Mish(), nn.ELU())
POINTWISE = [module for function in FUNCTIONS for module in (nn.Conv2d(8, 8, 1), function)]
MAXIMA = [
    nn.MaxPool2d(2),
    nn.AdaptiveMaxPool2d((4, 3)),
    Function(pool_with_indices),
    Function(lambda maps: maps.max(3, keepdim=True)[0]),
]
EXTREMES = [  # of all values
    Function(lambda maps: maps / (maps.amax() + 1)),
    Function(lambda maps: maps - maps.amin((), keepdim=True)),
    Function(lambda maps: maps * maps.amax(dim=())),
]
MEANS = [
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, 1, 1, divisor_override=5),
    Function(lambda maps: maps.clamp(0, 1)),
    nn.AdaptiveAvgPool2d((4, 3)),
    GeneralisedMean(),
]
LARGER = [
    nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.Upsample(scale_factor=2),
    nn.ConvTranspose2d(8, 8, 2, 2),
    nn.ZeroPad2d(1),
]
MASKS = {"eq", "ne", "logical_or", "logical_and", "bitwise_not"}
ACTIVATIONS = [
    module
    for function in (nn.LeakyReLU(0.1), nn.ReLU6(), nn.PReLU(8))
    for module in (nn.Conv2d(8, 8, 1), function)
]
NORMS = [nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8)]
ATTENTION = [OverPlaces(inner) for inner in (Attention(), FusedAttention(), Transformer())]
GATES = [Gate(torch.sigmoid), Gate(functional.hardsigmoid)]
CHANNELS = [
    Function(lambda maps: torch.cat([maps, maps.flip(3)], 1)),
    Function(lambda maps: torch.mul(*maps.chunk(2, 1))),
]
INNER = {
    "kinds of convolutions": (KINDS, set()),
    "activations": (ACTIVATIONS, {"hardtanh", "prelu"}),
    "pointwise functions": (POINTWISE, {"gelu", "hardswish", "mish", "elu"}),
    "gates": (GATES, {"mean", "sigmoid", "hardsigmoid", "mul"}),
    "norms": (NORMS, {"batch_norm", "group_norm", "instance_norm"}),
    "attention": (ATTENTION, NORMALISED | {"softmax", "matmul", "div", "scaled_dot_product_attention"}),
    "recurrent layer": ([OverPlaces(Recurrent())], {"mean", "zeros", "lstm", "add"}),
    "convolution over rows": ([OverPlaces(nn.Conv1d(8, 8, 3, padding=1))], {"mean"}),
    "maxima": (MAXIMA, set()),
    "extremes": (EXTREMES, {"amin", "div", "add", "sub", "mul"}),
    "means": (MEANS, {"avg_pool2d", "adaptive_avg_pool2d", "clamp", "clamp_min", "pow", "mean", "mul"}),
    "larger maps": (LARGER, {"upsample_bilinear2d", "upsample_nearest2d", "conv_transpose2d", "pad"}),
    "channels": (CHANNELS, {"flip", "cat", "mul"}),
    "sums of masks": ([LabelledParts()], MASKS | {"mul", "add", "to"}),
}  # fmt: skip


REPEATED = ("recurrent layer",)  # tests/placement exports recurrent layers


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in REPEATED else []) for name in INNER]
)
def test_an_operator_between_convolutions(name):
    inner, in_float = INNER[name]
    torch.manual_seed(0)
    check(Around(nn.Sequential(*inner)), in_float)


def test_a_convolution_over_frames():
    check(TemporalConvolution(), set())


def check(network, in_float):
    network = randomise_batch_norms(network).eval()
    quantized = quantize_network(network, [random_silhouettes(1, frames, SIZE) for frames in (9, 20)])
    assert (quantized.captured.batch, quantized.captured.frames) == (None, None)
    assert set(float_operators(quantized.float_graph)) == in_float
    integer = [layer.name for layer in list_layers(quantized.float_graph) if layer.integer]
    file = export_quantized(quantized.graph, quantized.captured, get_target("onnxruntime"))
    assert layers_without_integer_kernel(file.SerializeToString(), integer) == []
    session, exact = open_session(file.SerializeToString(), spinning=False), in_double(quantized.graph)
    for batch, frames in ((1, 5), (2, 17), (3, 40)):
        silhouettes = random_silhouettes(batch, frames, SIZE)
        given = torch.from_numpy(run_session(session, silhouettes.numpy()))
        expected = exact(silhouettes.double()).float()
        assert torch.cosine_similarity(given, expected).min() >= 0.9999
        assert torch.cosine_similarity(expected, network(silhouettes)).min() >= 0.99

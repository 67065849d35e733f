"""Networks as researchers write them: each is quantized, and its file computes what the simulation does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qgait_ptq as qg
from qgait_ptq.config.schema import IdcConfig
from qgait_ptq.errors import ExportError
from qgait_ptq.verification.file_bytes import random_batches, verify
from tests.small_network import quantize


class Parts(nn.Module):
    """Modules and stored tensors that the networks below combine."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.second = nn.Conv2d(1, 8, 5, 4, 2), nn.Conv2d(8, 8, 3, 1, 1)
        self.temporal, self.wide = nn.Conv1d(8, 8, 3, 1, 1), nn.Conv2d(2, 8, 5, 4, 2)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 16)
        self.bias = nn.Parameter(torch.ones(1))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.route, self.kernels = nn.Linear(8, 3), nn.Parameter(0.1 * torch.randn(3, 8, 8, 3, 3))
        self.labels, self.places = nn.Embedding(4, 8), nn.Parameter(torch.randn(64, 8))
        self.ramp, self.matrix = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(8, 16) / 3)

    def maps(self, x):
        return F.relu(self.conv(x.flatten(0, 1).unsqueeze(1)))  # [n·s, 8, 8, 6]

    def steps(self, maps, x):
        return maps.mean((2, 3)).unflatten(0, x.shape[:2])  # [n, s, 8]


def causal_mask(net, x):
    steps = net.steps(net.maps(x), x)
    mask = torch.triu(torch.full((steps.shape[1],) * 2, float("-inf")), 1)
    return net.head(net.attention(steps, steps, steps, attn_mask=mask)[0].amax(1))


def fused_attention_with_a_mask(net, x):
    steps = net.steps(net.maps(x), x)
    mask = torch.triu(torch.full((steps.shape[1],) * 2, float("-inf")), 1)
    return net.head(F.scaled_dot_product_attention(steps, steps, steps, attn_mask=mask).amax(1))


def ramp_of_frames(net, x):
    steps = net.steps(net.maps(x), x)
    ramp = torch.arange(steps.shape[1]) / steps.shape[1]
    return net.head((ramp[None] @ steps).squeeze(1))


def product_with_a_computed_vector(net, x):
    steps = net.steps(net.maps(x), x)
    weights = torch.arange(steps.shape[1]).float() / steps.shape[1] ** 2
    return net.head(steps.amax(1) + 0.25 * (steps.transpose(1, 2) @ weights))


def blur(net, x):
    return net.head(
        net.steps(F.conv2d(net.maps(x), torch.ones(8, 1, 3, 3) / 9, groups=8, padding=1), x).amax(1)
    )


def mixture_of_kernels(net, x):
    maps = net.maps(x)
    gate = net.route(maps.mean((0, 2, 3))[None])[0].softmax(0)
    kernel = torch.einsum("e,eoihw->oihw", gate, net.kernels)
    return net.head(net.steps(F.conv2d(maps, kernel, padding=1), x).amax(1))


def kernel_in_pieces(net, x):
    maps = net.maps(x)
    kernel = torch.cat([net.second.weight[:4], net.second.weight[4:] * maps.mean()])
    return net.head(net.steps(F.conv2d(maps, kernel, padding=1), x).amax(1))


def batch_norm_behind_a_computed_bias(net, x):
    maps = F.conv2d(net.maps(x), net.second.weight, net.bias.expand(8), padding=1)
    return net.head(net.steps(net.norm(maps), x).amax(1))


def shifted_maps(net, x):
    return net.head(net.steps(F.relu(net.second(torch.roll(net.maps(x), (-1, -1), (2, 3)))), x).amax(1))


def input_beside_its_mirror(net, x):
    both = torch.stack([x, x.flip(3)], 2).flatten(0, 1)
    return net.head(net.steps(F.relu(net.wide(both)), x).amax(1))


def sum_with_the_reversed_input(net, x):
    return net.head(net.steps(net.maps((x + x.flip(1)) / 2), x).amax(1))


def embedded_labels(net, x):
    maps = net.labels((x.flatten(0, 1) * 3).long()).permute(0, 3, 1, 2)
    return net.head(net.steps(F.relu(net.second(maps)), x).amax(1))


def layer_on_a_stored_table(net, x):
    steps = net.steps(net.maps(x), x)
    return net.head((steps * net.route(net.places[: x.shape[1]]).mean(-1, keepdim=True).sigmoid()).amax(1))


def sum_and_product_in_one(net, x):
    return torch.addmm(net.ramp, net.steps(net.maps(x), x).amax(1), net.matrix)


MIXING = (mixture_of_kernels, kernel_in_pieces)  # a kernel that depends on all sequences of a batch


@pytest.mark.parametrize(
    "forward",
    [
        mixture_of_kernels,
        batch_norm_behind_a_computed_bias,
        layer_on_a_stored_table,
        sum_and_product_in_one,
        # These resemble one of the others.
        *(
            pytest.param(forward, marks=pytest.mark.slow)
            for forward in (
                causal_mask,
                blur,
                embedded_labels,
                fused_attention_with_a_mask,
                input_beside_its_mirror,
                product_with_a_computed_vector,
                ramp_of_frames,
                kernel_in_pieces,
                shifted_maps,
                sum_with_the_reversed_input,
            )
        ),
    ],
    ids=lambda forward: forward.__name__,
)
def test_the_file_computes_what_the_simulation_does(forward, tmp_path):
    network = type(forward.__name__, (Parts,), {"forward": forward})().eval()
    result, notes = quantize(network)
    assert result.report.parity.cosine_min > 0.99999
    fixed = [note for note in notes if "is taken with" in note]
    assert not [note for note in notes if "amplifies" in note]
    assert ["other sequences of the batch" in note for note in fixed] == [True] * (forward in MIXING)
    path = result.save(tmp_path) / "model.onnx"
    found = verify(path, random_batches(qg.Embedder(path).session, 1, 8))
    assert found.differing == 0
    assert found.tensors


def vector_of_each_sequence(net, x):
    steps = net.steps(net.maps(x), x)
    return torch.stack([net.head(steps[index].amax(0)) for index in range(x.shape[0])])


def frames_of_each_sequence(net, x):
    steps = net.steps(net.maps(x), x)
    return net.head(torch.stack([F.relu(net.temporal(one.t())).amax(1) for one in steps.unbind(0)]))


def image_of_each_sequence(net, x):
    images = [F.relu(net.second(F.relu(net.conv(one.amax(0, keepdim=True))))) for one in x.unbind(0)]
    return net.head(torch.stack([image.mean((1, 2)) for image in images]))


@pytest.mark.parametrize(
    "forward",
    [
        frames_of_each_sequence,
        pytest.param(vector_of_each_sequence, marks=pytest.mark.slow),
        pytest.param(image_of_each_sequence, marks=pytest.mark.slow),
    ],
)
def test_layers_may_be_called_without_a_batch(forward):
    """Research code loops over sequences. The file then takes one sequence at a time, and says so."""
    result, notes = quantize(type(forward.__name__, (Parts,), {"forward": forward})().eval())
    assert result.report.parity.cosine_min > 0.99999
    assert any("batch size of 1 only" in note for note in notes)


class PartHeads(nn.Module):
    """A fully connected layer for each part: as a list of layers, or as one product."""

    def __init__(self, as_list, bias=False):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.second = nn.Conv2d(1, 8, 5, 4, 2), nn.Conv2d(8, 8, 3, 1, 1)
        self.heads = nn.ModuleList(nn.Linear(8, 6, bias=False) for _ in range(4)) if as_list else None
        if not as_list:
            self.weight = nn.Parameter(torch.randn(4, 8, 6) / 3)
        self.bias = nn.Parameter(torch.randn(4, 1, 6)) if bias else None

    def forward(self, x):
        maps = F.relu(self.second(F.relu(self.conv(x.flatten(0, 1).unsqueeze(1)))))
        parts = maps.unflatten(0, x.shape[:2]).amax(1).unflatten(2, (4, -1)).mean((3, 4))  # [n, 8, 4]
        if self.heads is not None:
            return torch.stack([head(parts[..., index]) for index, head in enumerate(self.heads)], -1)
        product = parts.permute(2, 0, 1) @ self.weight
        return (product if self.bias is None else product + self.bias).permute(1, 2, 0)


@pytest.mark.parametrize("network", [PartHeads(True), PartHeads(False, bias=True)], ids=["list", "bias"])
def test_the_embedding_is_not_quantized_where_several_layers_give_it(network):
    """Its values are sums in float, not codes of 8 bits, and all layers that give it count as last ones."""
    result, _ = quantize(network.eval())
    embedding = result.model(torch.rand(4, 9, 32, 22).round())
    assert len(embedding.unique()) == embedding.numel()
    widths = qg.prepare(
        network, [(torch.rand(9, 32, 22).round().byte().numpy() * 255, str(i // 2)) for i in range(8)],
        qg.QuantConfig(weight_bits=4, activation_bits=4), device="cpu",
    ).layers  # fmt: skip
    last = [layer for layer in widths if layer.name not in ("conv", "second")]
    assert {(layer.weight_bits, layer.activation_bits) for layer in last} == {(8, 8)}
    assert [(layer.weight_bits, layer.activation_bits) for layer in widths if layer.name == "second"] == [
        (4, 4)
    ]


def pool_with_another_divisor(net, x):
    maps = F.avg_pool2d(net.maps(x), 2, ceil_mode=True, divisor_override=3)  # rewritten without ceil_mode
    return net.head(net.steps(maps, x).amax(1))


def test_an_operator_that_the_exporter_gets_wrong_is_named():
    network = type("PoolWithAnotherDivisor", (Parts,), {"forward": pool_with_another_divisor})().eval()
    with pytest.raises(ExportError, match=r"computes avg_pool2d.* differently"):
        quantize(network)


class FeaturesBesideTheHead(nn.Module):
    """The embedding holds pooled features that another layer of few bits reads, and the sums of a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.second = nn.Conv2d(1, 8, 5, 4, 2), nn.Conv2d(8, 8, 3, 1, 1)
        self.third, self.head = nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 16)

    def forward(self, x):
        features = F.relu(self.second(F.relu(self.conv(x.flatten(0, 1).unsqueeze(1)))))
        deeper = F.relu(self.third(features))
        pooled, last = (maps.amax((2, 3)).unflatten(0, x.shape[:2]).amax(1) for maps in (features, deeper))
        return torch.cat([pooled, self.head(last)], 1)


def test_features_in_the_embedding_have_8_bits_where_a_layer_reads_them_with_fewer():
    config = qg.QuantConfig(weight_bits=4, activation_bits=4, idc=IdcConfig(enabled=False))
    walks = [(torch.rand(9, 32, 22).round().byte().numpy() * 255, str(index // 2)) for index in range(8)]
    result = qg.quantize(FeaturesBesideTheHead().eval(), walks, config, device="cpu")
    embeddings = result.model(torch.rand(40, 9, 32, 22).round())
    assert len(embeddings[:, :8].unique()) > 30  # 4 bits have 16 values
    (third,) = (layer for layer in result.report.layers if layer.name == "third")
    assert third.activation_bits == 4

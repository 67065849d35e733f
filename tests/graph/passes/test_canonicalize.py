"""Whatever the spelling, the same layers are found under the user's names, and the function stays."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qgait_ptq.capture.trace import capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import CaptureError
from qgait_ptq.graph.operators import aten, is_operator
from qgait_ptq.graph.passes import SIMPLIFICATION
from qgait_ptq.graph.passes.graph_pass import GraphPass, run_passes
from qgait_ptq.graph.passes.slices import SPLITS, STACKS
from qgait_ptq.placement.planning import plan

PARTS, CHANNELS, OUTPUTS = 4, 8, 6
PER_PART = {
    "matmul": lambda f, w: torch.matmul(f.permute(2, 0, 1), w).permute(1, 2, 0),
    "bmm": lambda f, w: torch.bmm(f.permute(2, 0, 1).contiguous(), w).permute(1, 2, 0).contiguous(),
    "broadcast": lambda f, w: (f.transpose(1, 2)[:, :, None] @ w[None]).squeeze(2).transpose(1, 2),
    "broadcast, weight as it is": lambda f, w: (f.transpose(1, 2)[:, :, None] @ w).squeeze(2).mT,
    "einsum, weight first": lambda f, w: torch.einsum("pcd,ncp->ndp", w, f),
    "einsum": lambda f, w: torch.einsum("ncp, pcd -> ndp", f, w),
    "einsum, weight given transposed": lambda f, w: torch.einsum("ncp,dpc->npd", f, w.permute(2, 0, 1)).mT,
    "normalised weight": lambda f, w: torch.matmul(f.permute(2, 0, 1), F.normalize(w, dim=1)).permute(
        1, 2, 0
    ),
}
LOOPS = {
    "loop": lambda f, w: torch.stack([f[:, :, part] @ w[part] for part in range(PARTS)], 2),
    "loop over unbound": lambda f, w: torch.stack(
        [a @ b for a, b in zip(f.unbind(2), w.unbind(0), strict=True)], -1
    ),
    "loop over chunks": lambda f, w: torch.cat(
        [
            torch.einsum("nc,cd->nd", a.squeeze(2), b)[..., None]
            for a, b in zip(f.chunk(PARTS, 2), w, strict=True)
        ],
        2,
    ),
}


class PerPart(nn.Module):
    """Features of four parts, and a fully connected layer for each in some spelling."""

    def __init__(self, product):
        super().__init__()
        torch.manual_seed(0)
        self.product, self.head = product, nn.Module()
        self.head.fc_bin = nn.Parameter(torch.randn(PARTS, CHANNELS, OUTPUTS))

    def forward(self, silhouettes):
        features = silhouettes.amax(1)[:, :8, :32].reshape(-1, CHANNELS, PARTS, 8).mean(3)
        return self.product(features, self.head.fc_bin)


@pytest.mark.parametrize("spelling", PER_PART)
def test_every_spelling_of_a_per_part_layer_becomes_one_grouped_convolution(spelling):
    network = PerPart(PER_PART[spelling])
    captured, graph_module, layers = plan(network, (64, 44), QuantConfig())
    assert [(layer.name, layer.operator, layer.weight_bits) for layer in layers] == [("head", "conv2d", 8)]
    silhouettes = captured.example(3, 17)
    torch.testing.assert_close(graph_module(silhouettes), network(silhouettes))


@pytest.mark.parametrize("spelling", LOOPS)
def test_a_loop_over_parts_becomes_a_quantized_layer_for_each(spelling):
    network = PerPart(LOOPS[spelling])
    captured, graph_module, layers = plan(network, (64, 44), QuantConfig())
    assert [(layer.name, layer.operator, layer.weight_bits) for layer in layers] == [
        ("head", "linear", 8)
    ] * 4
    silhouettes = captured.example(3, 17)
    torch.testing.assert_close(graph_module(silhouettes), network(silhouettes))


class Strips(nn.Module):
    """One convolution over strips of the map."""

    def __init__(self, cut):
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.conv = cut, nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, silhouettes):
        frames = silhouettes.flatten(0, 1).unsqueeze(1)
        maps = torch.cat([self.conv(strip) for strip in self.cut(frames)], 2)
        return maps.unflatten(0, (silhouettes.shape[0], -1)).amax((1, 4))


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x.split(16, 2),
        lambda x: x.split([10, 54], 2),
        lambda x: x.chunk(3, 2),
        lambda x: torch.tensor_split(x, 4, 2),
    ],
    ids=["split", "sizes", "uneven chunks", "tensor_split"],
)
def test_strips_are_slices_that_share_the_quantizer_of_the_map(cut):
    network = Strips(cut)
    captured, graph_module, layers = plan(network, (64, 44), QuantConfig())
    assert not any(is_operator(node, SPLITS | STACKS) for node in graph_module.graph.nodes)
    assert all(layer.integer and layer.name == "conv" for layer in layers)
    assert len({layer.node for layer in layers}) == len(layers) > 1
    for sizes in ((1, 5), (3, 17)):
        silhouettes = captured.example(*sizes)
        torch.testing.assert_close(graph_module(silhouettes), network(silhouettes))


class FramesInTwo(nn.Module):
    """Cuts the frames themselves: how long a piece is depends on how many there are."""

    def forward(self, silhouettes):
        first, second = silhouettes.chunk(2, 1)
        return first.amax((1, 3)) + second.mean((1, 3))


def test_pieces_of_a_dimension_that_changes_stay_right_at_every_length():
    network = FramesInTwo()
    captured = capture(network, (64, 44))
    others = [captured.example(*sizes) for sizes in captured.checked]
    graph_module = run_passes(captured.graph_module, SIMPLIFICATION, [captured.example(), *others])
    for silhouettes in others:
        torch.testing.assert_close(graph_module(silhouettes), network(silhouettes))


def test_a_rewrite_that_holds_on_the_example_only_is_refused(gaitbase):
    captured = capture(gaitbase, (64, 44))
    example, longer = captured.example(), captured.example(2, 17)
    nodes = [n for n in captured.graph_module.graph.nodes if n.target is aten.amax.default]

    def keep_seven_frames(graph_module):
        with graph_module.graph.inserting_before(nodes[0]):
            cut = graph_module.graph.call_function(aten.slice.Tensor, (nodes[0].args[0], 1, 0, 7))
        nodes[0].replace_input_with(nodes[0].args[0], cut)
        graph_module.recompile()

    broken = GraphPass("keep-seven-frames", keep_seven_frames)
    with pytest.raises(CaptureError, match=r"keep-seven-frames .* \[2, 17, 64, 44\]"):
        run_passes(captured.graph_module, (broken,), [example, longer])

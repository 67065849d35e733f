"""Regions such as torch.enable_grad and torch.cond: their layers are found, quantized and exported."""

import pytest
import torch
from torch.export import Dim
from torch.utils.checkpoint import checkpoint

from qgait_ptq.capture.trace import capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import CaptureError
from qgait_ptq.placement.planning import plan
from tests.conftest import randomise_batch_norms
from tests.small_network import Small, quantize


class WithoutAutocastAtTheEnd(Small):
    def forward(self, silhouettes):
        features = self.features(silhouettes)
        with torch.autocast("cpu", enabled=False):
            return self.fc(features.float())


class WithoutAutocastAsAWhole(Small):
    def forward(self, silhouettes):
        with torch.autocast("cpu", enabled=False):
            return super().forward(silhouettes)


class RegionInARegion(Small):
    def forward(self, silhouettes):
        with torch.autocast("cpu", enabled=False):
            with torch.enable_grad():
                features = self.features(silhouettes)
            return self.fc(features)


class GradientsForTheConvolution(Small):
    def forward(self, silhouettes):
        with torch.enable_grad():
            features = self.features(silhouettes)
        return self.fc(features)


class NoGradients(Small):
    def forward(self, silhouettes):
        with torch.no_grad():
            features = self.features(silhouettes)
        return self.fc(features)


class Checkpoint(Small):
    def forward(self, silhouettes):
        return self.fc(checkpoint(self.features, silhouettes, use_reentrant=False))


class ConstantBranch(Small):
    """The predicate is computed from a buffer."""

    def forward(self, silhouettes):
        chosen = torch.cond(
            self.factor > 2, lambda x: self.features(x) * 2, lambda x: self.features(x), (silhouettes,)
        )
        return self.fc(chosen)


class WritesInARegion(Small):
    """A mask is written in place, where nobody would look for it."""

    def features(self, silhouettes):
        with torch.enable_grad():
            maps = self.norm(self.conv(silhouettes.flatten(0, 1).unsqueeze(1)))
            mask = torch.zeros(maps.shape[-2:])
            mask[1:-1] = 1
            maps = (maps * mask).relu().mean((2, 3))
        return maps.unflatten(0, (silhouettes.shape[0], -1)).amax(1)


KINDS = [
    WithoutAutocastAtTheEnd,
    WithoutAutocastAsAWhole,
    RegionInARegion,
    GradientsForTheConvolution,
    NoGradients,
    Checkpoint,
    ConstantBranch,
    WritesInARegion,
]


# These regions are inlined in the same way.
ALIKE = {
    WithoutAutocastAsAWhole,
    GradientsForTheConvolution,
    NoGradients,
    Checkpoint,
    WithoutAutocastAtTheEnd,
    WritesInARegion,
}


@pytest.mark.parametrize(
    "make", [pytest.param(make, marks=[pytest.mark.slow] if make in ALIKE else []) for make in KINDS]
)
def test_layers_in_regions_are_quantized_and_the_file_computes_what_the_network_does(make):
    network = randomise_batch_norms(make())
    result, _ = quantize(network)
    assert [layer.name for layer in result.report.layers] == ["conv", "fc"]
    assert result.report.slow_layers == []
    assert result.report.parity.cosine_min > 0.9999
    assert result.report.agreement.cosine_mean > 0.999


@pytest.mark.parametrize("make", KINDS)
def test_the_graph_has_no_region_and_is_right_at_every_size(make):
    network = randomise_batch_norms(make())
    captured, graph_module, _ = plan(network, (32, 22), QuantConfig())
    assert (captured.batch, captured.frames) == (None, None)
    assert not [node for node in graph_module.graph.nodes if "higher_order" in str(type(node.target))]
    for batch, frames in ((1, 4), (3, 19)):
        silhouettes = captured.example(batch, frames)
        torch.testing.assert_close(graph_module(silhouettes), network(silhouettes))


def test_an_exported_program_with_regions_is_taken():
    network = randomise_batch_norms(GradientsForTheConvolution())
    dynamic = ({0: Dim.AUTO, 1: Dim.AUTO},)
    with torch.no_grad():
        program = torch.export.export(network, (torch.rand(2, 7, 32, 22),), dynamic_shapes=dynamic)
    _, _, layers = plan(program.module(check_guards=False), (32, 22), QuantConfig())
    assert [layer.name for layer in layers] == ["conv", "fc"]


class BranchOnValues(Small):
    def forward(self, silhouettes):
        features = self.features(silhouettes)
        return torch.cond(features.mean() > 0.1, self.fc, lambda x: self.fc(x) * 2, (features,))


class BranchOnFrames(Small):
    def forward(self, silhouettes):
        features = self.features(silhouettes)
        return torch.cond(silhouettes.shape[1] > 9, self.fc, lambda x: self.fc(x) * 2, (features,))


class Loop(Small):
    def forward(self, silhouettes):
        def halve(count, features):
            return count + 1, features.tanh() / 2

        features = self.features(silhouettes)
        start = (torch.tensor(0), features)
        _, features = torch._higher_order_ops.while_loop(lambda count, _: count < 3, halve, start)
        return self.fc(features)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (BranchOnValues, r"test_inlining.py:\d+: torch.cond chooses .* values of the input.*torch.where"),
        (BranchOnFrames, "torch.cond chooses a branch by the batch size or the frame count.*--frames"),
        (Loop, r"test_inlining.py:\d+: layers inside the operator while_loop cannot be quantized"),
    ],
)
def test_what_cannot_be_inlined_is_refused_with_its_line(make, message):
    with pytest.raises(CaptureError, match=message):
        capture(make().eval(), (32, 22))


def test_a_branch_on_the_frame_count_is_taken_where_that_is_fixed():
    network = randomise_batch_norms(BranchOnFrames())
    captured, graph_module, layers = plan(network, (32, 22), QuantConfig(), frames=12)
    assert [layer.name for layer in layers] == ["conv", "fc"]
    torch.testing.assert_close(graph_module(captured.example()), network(captured.example()))

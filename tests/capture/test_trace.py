import pytest
import torch
from torch import nn

from qgait_ptq.capture.trace import capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import CaptureError
from qgait_ptq.placement.planning import plan


class Embedding(nn.Module):
    """The smallest gait network: a mean over frames and pixels, one linear layer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, silhouettes):
        return self.linear(silhouettes.mean(1).flatten(1)[:, :4])


class FixedFrames(Embedding):
    """Takes eight frames only, and says so by failing."""

    def forward(self, silhouettes):
        return self.linear(silhouettes.reshape(silhouettes.shape[0], 8 * 64 * 44)[:, :4])


class CountsTheBatch(Embedding):
    """Makes a number of the batch size, which torch.export fixes."""

    def forward(self, silhouettes):
        count = int(silhouettes.shape[0])
        return super().forward(silhouettes).reshape(count, 3)


class BranchOnLength(Embedding):
    """Python control flow on the frame count, which torch.export bakes in."""

    def forward(self, silhouettes):
        frames = silhouettes.shape[1]
        kept = silhouettes[:, : frames // 2] if frames > 10 else silhouettes
        return self.linear(kept.mean(1).flatten(1)[:, :4])


class BranchOnData(Embedding):
    def forward(self, silhouettes):
        return super().forward(silhouettes) * (2 if silhouettes.sum() > 5 else 3)


class GivesDictionary(Embedding):
    def forward(self, silhouettes):
        return {"features": [super().forward(silhouettes)], "frames": silhouettes.mean((0, 2, 3))}


class GivesPair(Embedding):
    """Embedding and class scores, which nothing but a name tells apart."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(3, 10)

    def forward(self, silhouettes):
        embedding = super().forward(silhouettes)
        return embedding, {"scores": self.classifier(embedding)}


class GivesNothing(Embedding):
    def forward(self, silhouettes):
        return {"loss": silhouettes.sum()}


class GivesScores(Embedding):
    def forward(self, silhouettes):
        return super().forward(silhouettes).sum(0)


class GivesWholeNumbers(Embedding):
    def forward(self, silhouettes):
        return super().forward(silhouettes).long()


class DrawsNumbers(Embedding):
    def forward(self, silhouettes):
        return super().forward(silhouettes) + torch.rand(1)


def test_batch_and_frames_are_free_and_the_graph_computes_the_same(gaitbase):
    captured = capture(gaitbase, (64, 44))
    assert (captured.batch, captured.frames) == (None, None)
    silhouettes = torch.rand(4, 23, 64, 44)
    torch.testing.assert_close(captured.graph_module(silhouettes), gaitbase(silhouettes))


def test_the_graph_was_compared_at_five_lengths_and_three_batch_sizes(gaitset):
    checked = capture(gaitset, (64, 44)).checked
    assert {batch for batch, _ in checked} == {1, 2, 3}
    assert {frames for _, frames in checked} == {1, 5, 7, 12, 17}


def test_the_network_itself_is_left_as_it_was(gaitbase):
    before = {name: value.clone() for name, value in gaitbase.state_dict().items()}
    capture(gaitbase, (64, 44))
    for name, value in gaitbase.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_network_for_one_length_is_captured_with_that_length():
    with pytest.raises(CaptureError, match="name that with --frames"):
        capture(FixedFrames().eval(), (64, 44))
    captured = capture(FixedFrames().eval(), (64, 44), frames=8)
    assert captured.frames == 8
    assert captured.batch is None


def test_a_batch_size_that_is_baked_in_is_pinned_to_one_sequence():
    network = CountsTheBatch().eval()
    captured = capture(network, (64, 44))
    assert (captured.batch, captured.frames) == (1, None)
    silhouettes = torch.rand(1, 11, 64, 44)
    torch.testing.assert_close(captured.graph_module(silhouettes), network(silhouettes))


def test_a_branch_on_the_length_is_captured_on_the_side_of_usual_lengths():
    network = BranchOnLength().eval()
    captured = capture(network, (64, 44))
    assert (captured.frame_counts.shortest, captured.frame_counts.longest) == (11, None)
    for frames in (11, 30, 60):
        silhouettes = torch.rand(2, frames, 64, 44)
        torch.testing.assert_close(captured.graph_module(silhouettes), network(silhouettes))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (BranchOnData(), "cannot capture"),
        (GivesNothing(), r"returns a dict without an embedding.*loss \[\]"),
        (GivesPair(), r"0 \[2, 3\], 1.scores \[2, 10\]; name it with --output"),
        (GivesScores(), "an embedding must be"),
        (GivesWholeNumbers(), "an embedding must be"),
        (DrawsNumbers(), "draws no random numbers"),
        (nn.Conv2d(9, 1, 3), "does not run on sequences"),
    ],
)
def test_what_cannot_be_captured_is_refused_with_a_reason(network, message):
    with pytest.raises(CaptureError, match=message):
        capture(network, (64, 44))


def test_embeddings_that_are_not_finite_are_refused(gaitbase):
    with torch.no_grad():
        gaitbase.part_linear.weight[0, 0, 0] = float("nan")
    with pytest.raises(CaptureError, match="NaN"):
        capture(gaitbase, (64, 44))


def test_the_embedding_is_found_among_other_outputs():
    network = GivesDictionary().eval()
    captured = capture(network, (64, 44))
    silhouettes = torch.rand(3, 11, 64, 44)
    expected = network(silhouettes)["features"][0]
    torch.testing.assert_close(captured.graph_module(silhouettes), expected)


@pytest.mark.parametrize(("output", "channels"), [("0", 3), ("1.scores", 10)])
def test_one_of_several_outputs_is_named_and_nothing_else_is_kept(output, channels):
    captured = capture(GivesPair().eval(), (64, 44), output=output)
    assert captured.graph_module(torch.rand(3, 11, 64, 44)).shape == (3, channels)
    kept = [name for name, _ in captured.graph_module.named_parameters()]
    assert any("classifier" in name for name in kept) == (output == "1.scores")


def test_an_output_that_is_not_there_is_an_error_that_lists_what_is():
    with pytest.raises(CaptureError, match=r"no output 'feature'; its outputs are 0 \[2, 3\]"):
        capture(GivesPair().eval(), (64, 44), output="feature")


def test_layers_are_named_as_in_the_network_whatever_is_wrapped_around_it():
    _, _, layers = plan(GivesDictionary().eval(), (64, 44), QuantConfig())
    assert [layer.name for layer in layers] == ["linear"]


def test_pinning_leaves_a_size_that_somebody_has_chosen():
    captured = capture(FixedFrames().eval(), (64, 44), frames=8)
    pinned = captured.pin({0, 1})
    assert (pinned.batch, pinned.frames) == (1, 8)

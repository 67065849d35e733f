"""Only networks that treat each frame alone are streamed; all others see the whole sequence."""

import numpy as np
import pytest
import torch
from torch import nn

import qgait_ptq as qg
from tests.conftest import randomise_batch_norms
from tests.small_network import Small, quantize

LENGTH = 61  # frames, twice as many as sequences that tests quantize with


class OverFrames(Small):
    """Features of each frame ``[n, s, c]``, and something that is done to all of them before the maximum."""

    def forward(self, silhouettes):
        maps = self.norm(self.conv(silhouettes.flatten(0, 1).unsqueeze(1))).relu().mean((2, 3))
        frames = maps.unflatten(0, (silhouettes.shape[0], -1))
        return self.fc(self.pool(frames))

    def pool(self, frames):
        return frames.amax(1)


class EachFrameAlone(OverFrames):
    pass


class Differences(OverFrames):
    def pool(self, frames):
        return torch.cat((frames, (frames[:, 1:] - frames[:, :-1]).abs() / 4), 1).amax(1)


class FirstTwentyFrames(OverFrames):
    def pool(self, frames):
        return frames[:, :20].amax(1)


class CountsFramesBefore(OverFrames):
    def pool(self, frames):
        return (frames * (1 + frames.shape[1] // 30)).amax(1)


class CountsFramesBehind(OverFrames):
    def pool(self, frames):
        return frames.amax(1) * (1 + frames.shape[1] // 30)


class TemporalConvolution(OverFrames):
    def __init__(self):
        super().__init__()
        self.temporal = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))

    def pool(self, frames):
        return self.temporal(frames.transpose(1, 2)[..., None, None]).amax((2, 3, 4))


class CumulativeSums(OverFrames):
    """Counts the frames with a silhouette, and lowers the later ones."""

    def pool(self, frames):
        seen = (frames.sum(2, keepdim=True) >= 0).to(frames.dtype).cumsum(1)
        return (frames / (1 + (seen / 20).floor())).amax(1)


class SoftmaxOverFrames(OverFrames):
    """Leaves frames out whose weight among all is small."""

    def pool(self, frames):
        return (frames * (frames.softmax(1) > 0.02)).amax(1)


class Positions(OverFrames):
    """Frames are weighted by their number."""

    def pool(self, frames):
        numbers = torch.arange(frames.shape[1], device=frames.device).unsqueeze(1)
        return (frames / (1 + numbers // 10)).amax(1)


REASONS = {
    Differences: "slice behind conv looks at single frames",
    FirstTwentyFrames: "slice behind conv looks at single frames",
    CountsFramesBefore: "mul behind conv computes with the number of frames",
    CountsFramesBehind: "mul behind conv computes with the number of frames",
    CumulativeSums: "cumsum behind conv combines frames",
    SoftmaxOverFrames: "softmax behind conv combines frames",
    Positions: "arange on the input computes with the number of frames",
}


def sequence():
    rng = np.random.default_rng(1)
    densities = np.linspace(0.1, 0.6, LENGTH)[:, None, None]  # later frames differ from the first ones
    return (rng.random((LENGTH, 32, 22)) < densities).astype(np.uint8) * 255


def embed_both_ways(result, folder):
    """Return an embedder of short chunks, and the embeddings of chunks and of the whole sequence."""
    path = result.save(folder) / "model.onnx"
    chunks, whole = (qg.Embedder(path, longest_piece=length) for length in (8, 1000))
    return chunks, chunks(sequence()), whole(sequence())


# tests/graph/test_frame_independence.py tests the others without files.
USUAL = (CountsFramesBehind,)


@pytest.mark.parametrize(
    "make", [pytest.param(make, marks=[] if make in USUAL else [pytest.mark.slow]) for make in REASONS]
)
def test_a_network_that_a_trial_of_twelve_frames_takes_for_streamable_sees_whole_sequences(make, tmp_path):
    result, notes = quantize(randomise_batch_norms(make()))
    embedder, in_chunks, whole = embed_both_ways(result, tmp_path)
    assert not embedder.streams
    np.testing.assert_array_equal(in_chunks, whole)
    assert f"long sequences are not streamed: {REASONS[make]}" in notes


def test_a_network_with_a_convolution_over_frames_sees_whole_sequences(tmp_path):
    result, _ = quantize(randomise_batch_norms(TemporalConvolution()))
    embedder, in_chunks, whole = embed_both_ways(result, tmp_path)
    assert not embedder.streams
    np.testing.assert_array_equal(in_chunks, whole)


def test_a_network_that_treats_each_frame_alone_is_streamed(tmp_path):
    result, notes = quantize(randomise_batch_norms(EachFrameAlone()))
    embedder, in_chunks, whole = embed_both_ways(result, tmp_path)
    assert embedder.streams
    assert not [note for note in notes if "streamed" in note]
    np.testing.assert_array_equal(in_chunks, whole)

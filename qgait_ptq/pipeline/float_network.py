"""The float network in the evaluation: the user's own network, or its file where both are equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from qgait_ptq.capture.comparison import are_close
from qgait_ptq.capture.own_copy import copy_network
from qgait_ptq.capture.trace import embedding_network
from qgait_ptq.errors import QgaitError
from qgait_ptq.gait.embedding import Embed, network_batch
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.graph.frame_inputs import join_inputs
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import ONNXRUNTIME, run_session
from qgait_ptq.stages.state import State

PROOF_SEQUENCES = 8  # test sequences on which the float file is compared with the network
TORCH = "torch"


@dataclass(frozen=True)
class FloatNetwork:
    """A float network to evaluate.

    Attributes:
        embed: function that embeds a batch.
        runtime: ``onnxruntime`` for the float file, ``torch`` for the user's own network.
    """

    embed: Embed
    runtime: str


def choose_float_network(state: State, threads: int | None = None) -> FloatNetwork:
    """Return the float file in onnxruntime if it is proven equal to the user's network, else that network.

    The file is faster on a CPU. On a GPU, and if only a submodule is captured, the network runs in torch.

    Args:
        state: state with a file.
        threads: threads of onnxruntime for one call; None for its default.
    """
    if state.submodule is not None:
        return FloatNetwork(state.submodule.isolated.host, TORCH)
    own = _own_network(state)
    if state.device.type != "cpu":
        return FloatNetwork(own, TORCH)
    try:
        session = open_session(
            state.file.float_model.SerializeToString(), ONNXRUNTIME, threads, spinning=False
        )
    except QgaitError:  # no kernel for an operator of the network
        return FloatNetwork(own, TORCH)

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(run_session(session, batch.numpy()))

    in_file = partial(embed_fitted, state.captured.frame_counts, run)
    return FloatNetwork(in_file, ONNXRUNTIME) if _are_equal(own, in_file, state) else FloatNetwork(own, TORCH)


def embed_fitted(counts: FrameCounts, run: Embed, batch: Tensor) -> Tensor:
    """Embed the frames that a file takes of sequences ``[n, s, ...]``."""
    length = batch.shape[1]
    return run(batch if counts.takes(length) else batch[:, counts.indices(length)])


def _are_equal(own: Embed, in_file: Embed, state: State) -> bool:
    """Return whether the network and its file give the same embeddings for some test sequences."""
    try:
        with torch.inference_mode():
            return all(are_close(in_file(batch), own(batch).cpu()) for batch in _proof_batches(state))
    except Exception:  # whatever the network or the file raises; the evaluation in torch reports it
        return False


def _proof_batches(state: State) -> Iterator[Tensor]:
    """Yield test sequences as batches of one and, if the batch is free, two of equal length as a batch."""
    chosen = state.given.test.choose(PROOF_SEQUENCES, state.config.seed)
    batches = [
        network_batch(silhouettes, record, state.given.frame_shape, state.source.frames)
        for silhouettes, record in chosen
    ]
    yield from batches
    if state.captured.batch is None and len(batches) > 1:
        first, second = batches[:2]
        length = min(first.shape[1], second.shape[1])
        yield torch.cat([first[:, :length], second[:, :length]])


def _own_network(state: State) -> Embed:
    """Return the user's network, in float32 on the device: never our graph of it.

    Where the file takes one frame count only, and the network refuses a sequence, the network gets the frames
    that the file gets.
    """
    captured, source = state.captured, state.source
    network = join_inputs(copy_network(source.model), state.data.layout)
    length = captured.example_frames if captured.frames is None else captured.frames
    network = embedding_network(network, captured.frame_shape, length, source.output)
    place = _place_of(network, captured.example(sequences=1), state.device)

    def embed(batch: Tensor) -> Tensor:
        batch = batch.to(place)
        try:
            embedding: Tensor = network(batch)
        except Exception:
            if captured.frames in (None, batch.shape[1]):
                raise
            embedding = network(batch[:, captured.frame_counts.indices(batch.shape[1])])
        return embedding

    return embed


def _place_of(network: nn.Module, example: Tensor, device: torch.device) -> torch.device:
    """Move a network to the device, or leave it on the CPU where its code makes tensors there."""
    try:
        with torch.inference_mode():
            network.to(device)(example.to(device))
    except RuntimeError:
        device = torch.device("cpu")
        network.to(device)
    return device

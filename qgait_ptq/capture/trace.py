"""Capture: from a network to a checked FX graph of ATen operators.

`torch.export` with dynamic batch and frames supports nearly every silhouette network. It can fix a dimension
silently, so the capture is compared with the network at other batch sizes and frame counts. A dimension that
fails this check is fixed, and a note says so.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn

from qgait_ptq.capture.attempt import Attempt
from qgait_ptq.capture.autocast import WithoutAutocast, autocast_disabled, disabled_regions
from qgait_ptq.capture.captured import (
    BATCH_AXIS,
    EXAMPLE_BATCH,
    EXAMPLE_FRAMES,
    LONGER_EXAMPLE_FRAMES,
    PINNED_BATCH,
    Capture,
)
from qgait_ptq.capture.comparison import are_close
from qgait_ptq.capture.diagnosis import explain_forward_failure
from qgait_ptq.capture.embedding_output import could_be_embedding, reduce_to_embedding
from qgait_ptq.capture.float_types import (
    LayerTypes,
    WithoutConversions,
    dropped_conversions,
    is_type_conflict,
)
from qgait_ptq.errors import CaptureError
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.graph.frame_inputs import SeveralInputs
from qgait_ptq.graph.network_input import random_silhouettes

REMEDY_ALONE = """the evaluation and the file embed one sequence at a time. A squeeze() without an axis, for
  example, also removes the axis of the batch; name its axes. Or give each sequence twice in an adapter
  (--adapter module:class wraps the network):
    return self.network(torch.cat([silhouettes, silhouettes]))[: len(silhouettes)]"""
MIXES_SEQUENCES = (
    "an embedding depends on the other sequences of the batch, for example through batch norms that use the "
    "statistics of their input"
)


def capture(
    network: nn.Module,
    frame_shape: tuple[int, ...],
    frames: int | None = None,
    output: str | None = None,
) -> Capture:
    """Capture a network and compare the graph with it.

    Args:
        network: network on the CPU. It maps ``[n, s, h, w]`` in [0, 1] to ``[n, c, p]`` or ``[n, c]``, alone
            or in a dictionary or tuple.
        frame_shape: shape of a frame: ``(h, w)``, or ``(c, h, w)`` for inputs ``[n, s, c, h, w]``.
        frames: frame count, for networks that accept only one; None for any.
        output: name of the embedding among several outputs; see `reduce_to_embedding`.

    Raises:
        CaptureError: the network does not run, cannot be captured, has no embedding as its output, gives
            values that are not finite, or differs from its graph.
    """
    set_to_inference(network)
    nothing = fx.GraphModule({}, fx.Graph())
    network, (sequences, length) = _reduced(network, frame_shape, frames, output)
    batch = sequences if sequences == PINNED_BATCH else None
    captured = Capture(nothing, batch, FrameCounts.exactly(frames), frame_shape, (), example_frames=length)
    _check_single_sequence(network, random_silhouettes(1, length, frame_shape))
    if batch is None and _mixes_sequences(network, random_silhouettes(sequences, length, frame_shape)):
        captured = captured.pin([BATCH_AXIS]).because(BATCH_AXIS, MIXES_SEQUENCES)
    for _ in range(4):  # as captured, with a longer example, then with one and with both dimensions pinned
        example = captured.example()
        _check_embedding(_run_network(network, example), example)
        captured, complete = Attempt(network, captured).conclude()
        if complete:
            return replace(
                captured,
                without_autocast=disabled_regions(network),
                without_conversions=dropped_conversions(network),
            )
    raise CaptureError("the graph differs from the network even at a fixed batch size and frame count")


def embedding_network(
    network: nn.Module, frame_shape: tuple[int, ...], frames: int | None = None, output: str | None = None
) -> nn.Module:
    """Return a network with the embedding as its only output, in float32; arguments as of `capture`."""
    return _reduced(network, frame_shape, frames, output)[0]


def _reduced(
    network: nn.Module, frame_shape: tuple[int, ...], frames: int | None, output: str | None
) -> tuple[nn.Module, tuple[int, int]]:
    """Return `embedding_network`, and the first batch size and frame count that it takes."""
    with autocast_disabled() as regions:
        try:
            with LayerTypes() as types:
                given, size = _first_outputs(network, frame_shape, frames)
            in_float32 = not types.others
        except CaptureError as error:
            if not is_type_conflict(error):
                raise
            in_float32 = False
        if not in_float32:
            network = WithoutConversions(network)
            given, size = _first_outputs(network, frame_shape, frames)
    network = WithoutAutocast(network) if regions else network
    return reduce_to_embedding(network, given, size[0], output), size


def set_to_inference(network: nn.Module) -> None:
    """Set a network to eval mode. Exported programs are always in eval mode and do not allow the call."""
    with suppress(NotImplementedError):
        network.eval()


def _first_outputs(
    network: nn.Module, frame_shape: tuple[int, ...], frames: int | None
) -> tuple[Any, tuple[int, int]]:
    """Return the outputs at the first batch size and frame count that the network takes, and these sizes.

    Some networks take one sequence at a time, and some need more frames than others.

    Raises:
        CaptureError: the network does not run; the error is that of the first sizes.
    """
    counts = (EXAMPLE_FRAMES, LONGER_EXAMPLE_FRAMES) if frames is None else (frames,)
    failures = []
    for size in product((EXAMPLE_BATCH, PINNED_BATCH), counts):
        try:
            return _run_network(network, random_silhouettes(*size, frame_shape)), size
        except CaptureError as error:
            failures.append(error)
    raise failures[0]


def _run_network(network: nn.Module, silhouettes: Tensor) -> Any:
    try:
        with torch.inference_mode():
            return network(silhouettes)
    except CaptureError:
        raise
    except Exception as error:
        sizes = f"{list(silhouettes.shape)} in [0, 1]"
        if isinstance(network, SeveralInputs):
            sizes = f"{list(silhouettes.shape[:2])} of {network.layout}"
        raise CaptureError(
            explain_forward_failure(error, f"the network does not run on sequences {sizes}")
        ) from error


def _check_embedding(embedding: Tensor, example: Tensor) -> None:
    if not could_be_embedding(embedding, example.shape[0]):
        raise CaptureError(
            f"the network returns a tensor {list(embedding.shape)} of {embedding.dtype} for a batch of "
            f"{example.shape[0]}; an embedding must be [n, c, p] or [n, c]"
        )
    if not torch.isfinite(embedding).all():
        raise CaptureError("the network's embedding has NaN or infinite values; check its weights")


def _check_single_sequence(network: nn.Module, single: Tensor) -> None:
    """Check that a network embeds one sequence alone, as the evaluation and the file do.

    Raises:
        CaptureError: it fails, or gives something else than ``[1, c, p]`` or ``[1, c]``.
    """
    try:
        with torch.inference_mode():
            embedding = network(single)
    except Exception as error:
        runs = f"the network runs on {EXAMPLE_BATCH} sequences, but not on one alone"
        raise CaptureError(explain_forward_failure(error, runs, REMEDY_ALONE)) from error
    try:
        _check_embedding(embedding, single)
    except CaptureError as error:
        raise CaptureError(f"{error}; {REMEDY_ALONE}") from error


def _mixes_sequences(network: nn.Module, silhouettes: Tensor) -> bool:
    """Return whether the embedding of a sequence depends on the other sequences of its batch."""
    # Random sequences have nearly equal means, so one is made darker.
    brightness = torch.linspace(1, 0.5, len(silhouettes)).reshape(-1, *[1] * (silhouettes.ndim - 1))
    silhouettes = silhouettes * brightness
    with torch.inference_mode():
        together = network(silhouettes.clone())  # a network can write to its input
        alone = [network(one.clone()) for one in silhouettes.split(1)]
    return not are_close(together, torch.cat(alone))

"""Multiply-accumulates at several frame counts: some run in each frame, others once in each sequence."""

from __future__ import annotations

import copy
import math

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from qgait_ptq.capture.captured import Capture
from qgait_ptq.graph.macs import count_macs
from qgait_ptq.graph.shapes import record_shapes

STEP = 12  # of the frame counts: strides of 2, 3 and 4 over frames leave no remainder
COUNTED = (
    3  # they determine a parabola: products of all pairs of frames, as in attention, are its square term
)


def count_macs_by_frames(captured: Capture, network: fx.GraphModule) -> dict[str, int]:
    """Count the multiply-accumulates of one sequence at several frame counts. Nothing is computed.

    Args:
        captured: capture, which says which frame counts the network takes.
        network: simplified graph of the network. Its recorded shapes stay as they are.

    Returns:
        Multiply-accumulates by the frame count as text, as JSON stores it. Empty if one frame count only is
        taken, or if a shape depends on values.
    """
    if captured.frames is not None:
        return {}
    first = math.ceil(captured.frame_counts.shortest / STEP)
    counts = [STEP * number for number in range(first, first + COUNTED)]
    copied = fx.GraphModule(network, copy.deepcopy(network.graph))
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    try:
        return {
            str(frames): _count(captured, copied, frames, device)
            for frames in counts
            if captured.frame_counts.takes(frames)
        }
    except RuntimeError:  # an operator whose shape depends on values
        return {}


def _count(captured: Capture, network: fx.GraphModule, frames: int, device: torch.device) -> int:
    example = captured.example(sequences=1, length=frames).to(device)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        record_shapes(network, mode.from_tensor(example))
    return sum(map(count_macs, network.graph.nodes))

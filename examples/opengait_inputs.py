"""Synthetic sequences for OpenGait's networks, and adapters for those with a convention of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from measure_models import as_input
from numpy.typing import NDArray
from torch import Tensor, nn

from qgait_ptq.gait import Condition, GaitDataset, Split, render_walkers
from qgait_ptq.gait.opengait import OpenGaitAdapter, OpenGaitConfig

HEIGHT, WIDTH = 64, 44
LARGE = (128, 88)
LABELS = 11  # parts of a body in label maps
JOINTS = {"coco": 17, "alphapose": 18, "openpose": 18}
# Why a network cannot take these inputs: name of a transform, or of the network.
UNSUPPORTED = {
    "BaseRgbTransform": "takes RGB images",
    "PointCloudsTransform": "takes point clouds",
    "DenoisingGait": "takes features of a diffusion model",
}
LARGE_FRAMES = ("gaitbase_hid", "gln_")  # configurations for frames of 128×88


class Statuses(OpenGaitAdapter):
    """Adapter for networks that read the type of a sequence, which is a diagnosis in their data."""

    types: Sequence[str] | None = ("positive",)


class ChannelsFirst(OpenGaitAdapter):
    """Adapter for networks that take ``[n, c, s, ...]`` instead of ``[n, s, c, ...]``."""

    def forward(self, *modalities: Tensor) -> Tensor:
        """Map poses ``[n, s, c, v, 1]`` to ``[n, c, p]``."""
        return super().forward(*(modality.transpose(1, 2) for modality in modalities))


ADAPTERS: dict[str, type[OpenGaitAdapter]] = {
    "GaitGraph1": ChannelsFirst,
    "ScoNet": Statuses,
    "FoundationGait_Scaling_LinearProbing_Scoliosis1K": Statuses,
}


def adapt(network: nn.Module, config: OpenGaitConfig) -> nn.Module:
    """Return the network with its adapter."""
    return ADAPTERS.get(config.network, OpenGaitAdapter)(network).eval()


def why_unsupported(config: OpenGaitConfig) -> str | None:
    """Return why this command makes no inputs for a network; None if it does."""
    return next(
        (UNSUPPORTED[key] for key in (*config.not_applied, config.network) if key in UNSUPPORTED), None
    )


def frame_shapes(config: OpenGaitConfig) -> tuple[tuple[int, ...], ...]:
    """Return the shape of a frame of each input, after OpenGait's transforms."""
    settings, name = config.model_cfg, config.network
    joints = JOINTS.get(str(settings.get("joint_format")), JOINTS["coco"])
    if name in ("GaitTR", "GaitGraph1", "GaitGraph2"):
        channels = settings.get("in_channels", settings.get("input_branch"))[0]
        if name == "GaitGraph2":
            return ((joints, settings["input_num"], channels),)
        return ((channels, joints, 1),)
    if name == "MultiScaleGaitGraph":
        return ((12, settings["in_channels"][0]),)
    size = LARGE if config.path.name.startswith(LARGE_FRAMES) else (HEIGHT, WIDTH)
    backbone = settings.get("backbone_cfg") or settings.get("Backbone") or {}
    channels = backbone.get("in_channel", backbone.get("in_channels", 1))
    if "part1_channel" in backbone:
        channels = backbone["part1_channel"] + backbone["part2_channel"]
    frames = size if channels == 1 else (channels, *size)
    return (frames, (85,)) if name == "SMPLGait" else (frames,)


def render(config: OpenGaitConfig, split: Split, count: int, frames: int) -> GaitDataset:
    """Return sequences of some people, as inputs of a network.

    Args:
        config: configuration of the network.
        split: identities of different splits differ.
        count: number of people, each with one sequence.
        frames: frames of a sequence.
    """
    walks = render_walkers(split, count, trials=((Condition.NORMAL, 1),), views_per_trial=1)
    shapes = frame_shapes(config)
    has_labels = "BaseParsingCuttingTransform" in config.not_applied
    is_raw = has_labels or (len(shapes[0]) == 2 and shapes[0][0] < HEIGHT) or shapes[0][-1] < WIDTH
    pairs = []
    for silhouettes, record in walks:
        walk = silhouettes[np.arange(frames) % len(silhouettes)]
        inputs = tuple(make_input(walk, shape, has_labels) for shape in shapes)
        pairs.append((inputs if len(inputs) > 1 else inputs[0], record.subject))
    return GaitDataset.from_pairs(pairs, raw=is_raw)


def make_input(walk: NDArray[np.uint8], shape: tuple[int, ...], has_labels: bool) -> NDArray[Any]:
    """Return a walk as frames of a shape: silhouettes, label maps, maps of strips, poses or a body model."""
    if len(shape) == 1:
        return as_input(walk, shape)
    if shape[-1] < WIDTH:
        rng = np.random.default_rng(int(walk.sum()))
        wandering = rng.normal(0, 0.02, (len(walk), *shape)).cumsum(0) + rng.uniform(-0.5, 0.5, shape)
        return wandering.clip(-1, 1).astype(np.float32)
    scale = shape[-1] // WIDTH
    frames = walk.repeat(scale, 1).repeat(scale, 2)
    height = frames.shape[1]
    if has_labels:
        labels = 1 + np.arange(height) * LABELS // height
        return (labels[:, None] * (frames > 127)).astype(np.float32)
    if len(shape) == 2:
        return frames
    strips = np.stack([frames] * shape[0], axis=1)
    for channel in range(1, shape[0]):  # the first map is the whole silhouette
        strips[:, channel, : height * (channel - 1) // (shape[0] - 1)] = 0
        strips[:, channel, height * channel // (shape[0] - 1) :] = 0
    return strips

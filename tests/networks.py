"""Quantized small networks for the tests of calibration and export."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.held_out import HeldOut, embed_clips
from qgait_ptq.calibration.ranges import calibrate_ranges
from qgait_ptq.calibration.training_batches import LabelledBatches
from qgait_ptq.capture.captured import Capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.gait.data.clips import cut_clips, split_identities_off
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sampling import PKSampler
from qgait_ptq.placement.annotate import annotate
from qgait_ptq.placement.insert import insert_quantizers
from qgait_ptq.placement.planning import bit_widths, plan
from qgait_ptq.stages.training_data import Clips, TrainingData
from qgait_ptq.targets.registry import get_target


@dataclass(frozen=True)
class Quantized:
    captured: Capture
    float_graph: fx.GraphModule
    graph: fx.GraphModule


def quantize_network(network: nn.Module, batches: list[torch.Tensor], **config: object) -> Quantized:
    captured, float_graph, _ = plan(network, tuple(batches[0].shape[2:]), QuantConfig(**config))
    graph = calibrate_ranges(insert_quantizers(float_graph), batches)
    return Quantized(captured, float_graph, graph)


def quantize_again(quantized: Quantized, batches: list[torch.Tensor], **config: object) -> Quantized:
    """Quantize the captured network with other settings for the same target; a capture takes long."""
    settings = QuantConfig(**config)
    rules = get_target(settings.target).rules
    float_graph = annotate(copy.deepcopy(quantized.float_graph), rules, bit_widths(settings))
    graph = calibrate_ranges(insert_quantizers(float_graph), batches)
    return Quantized(quantized.captured, float_graph, graph)


def training_data(people: GaitDataset, float_graph: fx.GraphModule) -> TrainingData:
    """Clips of six frames: a quarter of the people held out, batches of 4 × 2 of the others."""
    clips = cut_clips(people, 6, (64, 44), seed=0)
    everything = Clips(clips.silhouettes, clips.labels)
    learned, held_out = split_identities_off(clips.subjects, 0.25, seed=0)
    sampler = PKSampler([clips.subjects[i] for i in learned], 4, 2)
    seen, unseen = everything.take(learned), everything.take(held_out)
    subjects = frozenset(clips.subjects[i] for i in held_out)
    embeddings = embed_clips(float_graph, unseen, 8, torch.device("cpu"))
    return TrainingData(seen, sampler, unseen, embeddings, subjects)


def labelled_batches(data: TrainingData, frames: int = 6) -> LabelledBatches:
    return LabelledBatches(data.clips, data.sampler, frames, consecutive=False)


def draw_people(people: int, walks: int, frames: int = 6) -> GaitDataset:
    """People as coarse random patterns, of which each walk changes a few squares."""
    rng = np.random.default_rng(0)
    pairs = []
    for person in range(people):
        pattern = rng.random((8, 11)) < 0.5
        for _ in range(walks):
            squares = pattern ^ (rng.random((frames, 8, 11)) < 0.05) ^ (rng.random((8, 11)) < 0.1)
            pairs.append((np.kron(squares, np.full((1, 8, 4), 255, np.uint8)), f"{person:03d}"))
    return GaitDataset.from_pairs(pairs)


def held_out_judge(data: TrainingData) -> HeldOut:
    embeddings, cpu = data.held_out_embeddings, torch.device("cpu")
    return HeldOut(data.held_out, embeddings, IdcLoss(), labelled=True, batch=8, device=cpu)

"""Quantized small networks for the tests of calibration and export."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from qgait_ptq.calibration.ranges import calibrate_ranges
from qgait_ptq.config import QuantConfig
from qgait_ptq.graph.insert import insert_quantizers
from qgait_ptq.graph.trace import Capture
from qgait_ptq.pipeline import plan


@dataclass(frozen=True)
class Quantized:
    captured: Capture
    float_graph: fx.GraphModule
    graph: fx.GraphModule


def quantize_network(network: nn.Module, batches: list[torch.Tensor], **config: object) -> Quantized:
    captured, float_graph, _ = plan(network, 64, 44, QuantConfig(**config))
    graph = calibrate_ranges(insert_quantizers(float_graph), batches)
    return Quantized(captured, float_graph, graph)

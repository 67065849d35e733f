"""Any runtime that supports QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from qgait_ptq.graph.annotation import PlacementRules
from qgait_ptq.graph.operators import (
    ADDITIONS,
    CONCATENATIONS,
    MAX_POOLS,
    MAXIMA,
    RECTIFIERS,
    VALUE_PRESERVING,
    WEIGHT_ONLY,
    WEIGHTED,
)
from qgait_ptq.targets.target import Storage, Target

TARGET = Target(
    "generic-qdq",
    "Any runtime that supports QuantizeLinear and DequantizeLinear of opset 18: uint8 and int8 numbers",
    PlacementRules(
        weighted=WEIGHTED,
        absorbed=RECTIFIERS,
        elementwise=ADDITIONS | CONCATENATIONS,
        value_preserving=VALUE_PRESERVING,
        reducing=MAX_POOLS | MAXIMA,
        saturating_pairs=True,
        weight_only=WEIGHT_ONLY,
    ),
    Storage(int4_weights=False),
    opset=18,
    onnx_passes=("squeeze-maxima",),
    runtimes=("onnxruntime", "openvino"),
    limits=("weights of 4 bits are stored as int8 numbers",),
)

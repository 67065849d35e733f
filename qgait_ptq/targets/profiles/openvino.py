"""OpenVINO on CPUs."""

from __future__ import annotations

from qgait_ptq.graph.annotation import LastLayer, PlacementRules
from qgait_ptq.graph.operators import (
    ADDITIONS,
    CONCATENATIONS,
    LEAKY_RECTIFIERS,
    MAX_POOLS,
    MAXIMA,
    RECTIFIERS,
    VALUE_PRESERVING,
    WEIGHT_ONLY,
    WEIGHTED,
)
from qgait_ptq.targets.target import Target

TARGET = Target(
    "openvino",
    "OpenVINO on CPUs: uint8 activations, one-sided additions, LeakyReLU absorbed",
    PlacementRules(
        weighted=WEIGHTED,
        absorbed=RECTIFIERS | LEAKY_RECTIFIERS,
        elementwise=ADDITIONS | CONCATENATIONS,
        value_preserving=VALUE_PRESERVING,
        reducing=MAX_POOLS | MAXIMA,
        last_layer=LastLayer.INTEGER_SUMS,
        one_sided_additions=True,
        saturating_pairs=True,
        weight_only=WEIGHT_ONLY,
    ),
    onnx_passes=("squeeze-maxima",),
    runtimes=("openvino",),
    limits=("float parts compute in bfloat16 where the processor has it, unless told otherwise",),
)

"""LiteRT-like integer runtimes."""

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
    WEIGHTED,
)
from qgait_ptq.targets.target import Storage, Target

TARGET = Target(
    "litert-int8",
    "LiteRT-like integer runtimes: int8 activations with zero-points, embedding in int8",
    PlacementRules(
        weighted=WEIGHTED,
        absorbed=RECTIFIERS,
        elementwise=ADDITIONS | CONCATENATIONS | LEAKY_RECTIFIERS,
        value_preserving=VALUE_PRESERVING,
        reducing=MAX_POOLS | MAXIMA,
        activation_signed=True,
        last_layer=LastLayer.INTEGER,
    ),
    Storage(int4_weights=False, narrowest_activations=8),
    opset=18,
    byte_input=False,
    limits=(
        "the file is ONNX, for a converter; it is checked against the rules, not run in LiteRT",
        "weights of 4 bits are stored as int8 numbers; activations have 8 bits",
    ),
)

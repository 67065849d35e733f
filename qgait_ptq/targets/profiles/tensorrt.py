"""TensorRT on GPUs."""

from __future__ import annotations

from qgait_ptq.graph.annotation import LastLayer, PlacementRules
from qgait_ptq.graph.operators import (
    ADDITIONS,
    LEAKY_RECTIFIERS,
    RECTIFIERS,
    VALUE_PRESERVING,
    WEIGHTED,
)
from qgait_ptq.targets.target import Storage, Target

TARGET = Target(
    "tensorrt",
    "TensorRT on GPUs: int8 activations and weights, zero-points zero, one-sided additions",
    PlacementRules(
        weighted=WEIGHTED,
        absorbed=RECTIFIERS | LEAKY_RECTIFIERS,
        elementwise=ADDITIONS,
        value_preserving=VALUE_PRESERVING,
        reducing=frozenset(),
        activation_signed=True,
        activation_symmetric=True,
        last_layer=LastLayer.INTEGER_SUMS,
        one_sided_additions=True,
        hand_over=False,
    ),
    Storage(int4_weights=False, integer_biases=False, narrowest_activations=8),
    opset=19,
    byte_input=False,
    limits=(
        "files are checked against the rules, not run in TensorRT",
        "weights of 4 bits are stored as int8 numbers; activations have 8 bits",
    ),
)

"""ONNX Runtime on x86."""

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
from qgait_ptq.graph.passes.sink_leaky_relu import SINK_LEAKY_RELU
from qgait_ptq.targets.target import Storage, Target

TARGET = Target(
    "onnxruntime",
    "ONNX Runtime on x86: uint8 activations, int8 weights per channel, ReLU absorbed",
    PlacementRules(
        weighted=WEIGHTED,
        absorbed=RECTIFIERS,
        # LeakyReLU has its own integer kernel. Absorbed into a convolution, it would keep the
        # convolution in float.
        elementwise=ADDITIONS | CONCATENATIONS | LEAKY_RECTIFIERS,
        value_preserving=VALUE_PRESERVING,
        reducing=MAX_POOLS | MAXIMA,
        last_layer=LastLayer.INTEGER_SUMS,
        saturating_pairs=True,
        weight_only=WEIGHT_ONLY,
    ),
    Storage(integer_operators=frozenset({"ConvInteger"})),
    # Without these passes, layers with float results are computed in float. Reductions of an outer
    # axis and convolutions of a single channel are slow.
    onnx_passes=("conv-integer", "pool-maxima", "first-layer-table"),
    runtimes=("onnxruntime",),
    # No kernel fuses LeakyReLU with a convolution, and after maxima it has fewer values to compute.
    graph_passes=(SINK_LEAKY_RELU,),
    limits=(
        "needs onnxruntime 1.24 or newer: older ones lack ConvInteger of int8 weights, and INT4",
        "integer kernels need all graph optimisations (ORT_ENABLE_ALL, the default)",
        "fast on x86 with AVX512-VNNI or AVX-VNNI; slower on others, with the same integers",
    ),
)

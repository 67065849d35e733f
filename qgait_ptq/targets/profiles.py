"""Targets: what each runtime wants, as data. Adding a runtime adds a table, and changes no code."""

from __future__ import annotations

from dataclasses import dataclass, field

from qgait_ptq.errors import ConfigError
from qgait_ptq.graph.annotation import BitWidths, LastLayer, PlacementRules
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

NARROWEST = 2  # bits


@dataclass(frozen=True)
class Storage:
    """How numbers are written into a file.

    Attributes:
        int4_weights: weights of up to 4 bits are stored two to a byte and cast to int8, which the runtime
            folds when it loads; else they are int8 numbers.
        integer_biases: biases are int32 numbers with a DequantizeLinear; else they are the same values in
            float32.
        narrowest_activations: smallest width of activations. Below 8 bits they are clipped between
            QuantizeLinear and DequantizeLinear.
        integer_operators: operators on integers themselves that files may have, beside those between
            QuantizeLinear and DequantizeLinear.
    """

    int4_weights: bool = True
    integer_biases: bool = True
    narrowest_activations: int = NARROWEST
    integer_operators: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Target:
    """A runtime profile.

    Attributes:
        name: as on the command line.
        description: one line.
        rules: where its quantizers stand.
        storage: how numbers are written.
        onnx_passes: rewrites of its files, in order; names in `exporters.passes.PASSES`.
        opset: of the ONNX file.
        byte_input: files may take silhouettes as uint8.
        runtimes: those of the toolkit that its files are for; none where no such runtime is at hand, and
            files are checked against the rules only.
        late_leaky_rectifiers: LeakyReLU is computed behind maxima, on fewer values.
        limits: what its users should know, one line each.
    """

    name: str
    description: str
    rules: PlacementRules
    storage: Storage = field(default_factory=Storage)
    onnx_passes: tuple[str, ...] = ()
    opset: int = 21
    byte_input: bool = True
    runtimes: tuple[str, ...] = ()
    late_leaky_rectifiers: bool = False
    limits: tuple[str, ...] = ()


_INTEGER_ELEMENTWISE = ADDITIONS | CONCATENATIONS

TARGETS = {
    target.name: target
    for target in (
        Target(
            "onnxruntime",
            "ONNX Runtime on x86: uint8 activations, int8 weights per channel, ReLU absorbed",
            PlacementRules(
                weighted=WEIGHTED,
                absorbed=RECTIFIERS,
                # LeakyReLU has an integer kernel of its own; absorbed into a convolution it would keep
                # the convolution in float.
                elementwise=_INTEGER_ELEMENTWISE | LEAKY_RECTIFIERS,
                value_preserving=VALUE_PRESERVING,
                reducing=MAX_POOLS | MAXIMA,
                last_layer=LastLayer.INTEGER_SUMS,
                saturating_pairs=True,
            ),
            Storage(integer_operators=frozenset({"ConvInteger"})),
            # It computes sums that leave a layer in float as floats, and is slow at reducing an outer axis
            # and at convolving a single channel.
            onnx_passes=("conv-integer", "pool-maxima", "first-layer-table"),
            runtimes=("onnxruntime",),
            late_leaky_rectifiers=True,
            limits=(
                "needs onnxruntime 1.24 or newer: older ones lack ConvInteger of int8 weights, and INT4",
                "integer kernels need all graph optimisations (ORT_ENABLE_ALL, the default)",
                "fast on x86 with AVX512-VNNI or AVX-VNNI; slower on others, with the same integers",
            ),
        ),
        Target(
            "openvino",
            "OpenVINO on CPUs: uint8 activations, one-sided additions, LeakyReLU absorbed",
            PlacementRules(
                weighted=WEIGHTED,
                absorbed=RECTIFIERS | LEAKY_RECTIFIERS,
                elementwise=_INTEGER_ELEMENTWISE,
                value_preserving=VALUE_PRESERVING,
                reducing=MAX_POOLS | MAXIMA,
                last_layer=LastLayer.INTEGER_SUMS,
                one_sided_additions=True,
                saturating_pairs=True,
            ),
            runtimes=("openvino",),
            limits=("float parts compute in bfloat16 where the processor has it, unless told otherwise",),
        ),
        Target(
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
                "no TensorRT is at hand: files are checked against its rules, not run in it",
                "weights of 4 bits are stored as int8 numbers; activations have 8 bits",
            ),
        ),
        Target(
            "litert-int8",
            "LiteRT-like integer runtimes: int8 activations with zero-points, embedding in int8",
            PlacementRules(
                weighted=WEIGHTED,
                absorbed=RECTIFIERS,
                elementwise=_INTEGER_ELEMENTWISE | LEAKY_RECTIFIERS,
                value_preserving=VALUE_PRESERVING,
                reducing=MAX_POOLS | MAXIMA,
                activation_signed=True,
                last_layer=LastLayer.INTEGER,
            ),
            Storage(int4_weights=False, narrowest_activations=8),
            opset=18,
            byte_input=False,
            limits=(
                "the file is ONNX, for a converter; no LiteRT is at hand, it is checked against the rules",
                "weights of 4 bits are stored as int8 numbers; activations have 8 bits",
            ),
        ),
        Target(
            "generic-qdq",
            "Any runtime that knows QuantizeLinear and DequantizeLinear of opset 18: uint8 and int8 numbers",
            PlacementRules(
                weighted=WEIGHTED,
                absorbed=RECTIFIERS,
                elementwise=_INTEGER_ELEMENTWISE,
                value_preserving=VALUE_PRESERVING,
                reducing=MAX_POOLS | MAXIMA,
                saturating_pairs=True,
            ),
            Storage(int4_weights=False),
            opset=18,
            runtimes=("onnxruntime", "openvino"),
            limits=("weights of 4 bits are stored as int8 numbers",),
        ),
    )
}


def check_widths(target: Target, widths: BitWidths) -> None:
    """Refuse widths that a target's files cannot hold, before any work is done.

    Raises:
        ConfigError: names the setting.
    """
    narrowest = target.storage.narrowest_activations
    own = {f"layers[{name!r}].activation_bits": bits[1] for name, bits in widths.layers.items() if bits[1]}
    asked: dict[str, int | None] = {
        "activation_bits": widths.activation,
        "edge_bits": widths.edge,
        "elementwise_bits": widths.elementwise,
        **own,
    }
    if narrowest > NARROWEST:  # elsewhere the input may have a single bit
        asked["input_bits"] = widths.input
    for setting, bits in asked.items():
        if bits is not None and bits < narrowest:
            raise ConfigError(
                f"{setting} is {bits}; the target {target.name} takes activations of {narrowest} bits or "
                "more (weights may have fewer: --weight-bits)"
            )


def get_target(name: str) -> Target:
    """Look a target up.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in TARGETS:
        raise ConfigError(f"no target {name!r}; there are {', '.join(TARGETS)}")
    return TARGETS[name]

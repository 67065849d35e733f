"""Target: the profile of a runtime, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from qgait_ptq.errors import ConfigError
from qgait_ptq.graph.annotation import BitWidths, PlacementRules
from qgait_ptq.graph.passes.graph_pass import GraphPass

NARROWEST = 2  # bits


@dataclass(frozen=True)
class Storage:
    """Formats of numbers in a file.

    Attributes:
        int4_weights: whether weights of up to 4 bits are stored as INT4 with a Cast to int8, which the
            runtime folds on loading; else they are int8.
        integer_biases: whether biases are int32 with a DequantizeLinear; else they are float32 with the same
            values.
        narrowest_activations: smallest width of activations. Below 8 bits they are clipped between
            QuantizeLinear and DequantizeLinear.
        integer_operators: supported operators on integers, such as ConvInteger.
    """

    int4_weights: bool = True
    integer_biases: bool = True
    narrowest_activations: int = NARROWEST
    integer_operators: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Target:
    """A runtime profile.

    Attributes:
        name: name on the command line.
        description: description in one line.
        rules: rules of placing quantizers.
        storage: formats of numbers in the file.
        graph_passes: additional rewrites of the float graph before placement, in order.
        onnx_passes: names of the rewrites of the file, in order; see `exporters.passes`.
        opset: opset of the ONNX file.
        byte_input: whether files may take silhouettes as uint8.
        runtimes: runtimes of the toolkit that run the files. If there are none, files are only checked
            against the rules.
        limits: limits for users, one line each.
    """

    name: str
    description: str
    rules: PlacementRules
    storage: Storage = field(default_factory=Storage)
    graph_passes: tuple[GraphPass, ...] = ()
    onnx_passes: tuple[str, ...] = ()
    opset: int = 21
    byte_input: bool = True
    runtimes: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


def check_widths(target: Target, widths: BitWidths) -> None:
    """Refuse widths that a target does not support.

    Raises:
        ConfigError: a width is not supported. The error names the setting.
    """
    narrowest = target.storage.narrowest_activations
    own = {f"layers[{name!r}].activation_bits": bits[1] for name, bits in widths.layers.items() if bits[1]}
    asked: dict[str, int | None] = {
        "activation_bits": widths.activation,
        "edge_bits": widths.edge,
        "elementwise_bits": widths.elementwise,
        **own,
    }
    if narrowest > NARROWEST:  # other targets allow network inputs of one bit
        asked["input_bits"] = widths.input
    for setting, bits in asked.items():
        if bits is not None and bits < narrowest:
            raise ConfigError(
                f"{setting} is {bits}; the target {target.name} takes activations of {narrowest} bits or "
                "more. Only weights may have fewer bits (--weight-bits)"
            )
    if widths.input == 1 and target.rules.activation_signed:
        raise ConfigError(
            f"input_bits is 1; the target {target.name} stores activations as signed integers, which need 2 "
            "bits or more. Set input_bits to 2 or more, or use a target with unsigned activations "
            "(activation_signed of its PlacementRules)"
        )

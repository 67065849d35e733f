"""Target: what a runtime wants, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from qgait_ptq.errors import ConfigError
from qgait_ptq.graph.annotation import BitWidths, PlacementRules
from qgait_ptq.graph.passes.graph_pass import GraphPass

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
        graph_passes: rewrites of the float graph before placement, beside those of every target; in order.
        onnx_passes: rewrites of its files, in order; names of passes in `exporters.passes`.
        opset: of the ONNX file.
        byte_input: files may take silhouettes as uint8.
        runtimes: those of the toolkit that its files are for; none where no such runtime is at hand, and
            files are checked against the rules only.
        limits: what its users should know, one line each.
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

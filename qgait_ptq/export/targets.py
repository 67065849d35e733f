"""Targets: what each runtime wants, as data. Adding a runtime adds a table, and changes no code."""

from __future__ import annotations

from dataclasses import dataclass

from qgait_ptq.errors import ConfigError
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
from qgait_ptq.graph.specs import PlacementRules


@dataclass(frozen=True)
class Target:
    """A runtime profile.

    Attributes:
        name: as on the command line.
        description: one line.
        rules: where its quantizers stand.
        opset: of the ONNX file.
    """

    name: str
    description: str
    rules: PlacementRules
    opset: int = 21


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
                elementwise=ADDITIONS | CONCATENATIONS | LEAKY_RECTIFIERS,
                value_preserving=VALUE_PRESERVING,
                reducing=MAX_POOLS | MAXIMA,
            ),
        ),
    )
}


def get_target(name: str) -> Target:
    """Look a target up.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in TARGETS:
        raise ConfigError(f"no target {name!r}; there are {', '.join(TARGETS)}")
    return TARGETS[name]

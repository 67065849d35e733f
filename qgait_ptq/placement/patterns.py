"""Patterns that name layers in a configuration."""

from __future__ import annotations

import re
from difflib import get_close_matches
from fnmatch import fnmatch

from torch import fx

from qgait_ptq.errors import ConfigError
from qgait_ptq.graph.annotation import BitWidths
from qgait_ptq.graph.operators import operator_name
from qgait_ptq.graph.stored_weights import layer_name

OPERATOR_PREFIX = "operator:"  # prefix of patterns that select layers by operator


def names_layer(pattern: str, layer: fx.Node) -> bool:
    """Return whether a pattern matches a layer: by its path, an enclosing module, or ``operator:conv2d``.

    A path that is written out always matches itself, also if it has characters of patterns.
    """
    if pattern.startswith(OPERATOR_PREFIX):
        return fnmatch(operator_name(layer), pattern.removeprefix(OPERATOR_PREFIX))
    name = layer_name(layer)
    if f"{name}.".startswith(f"{pattern}."):
        return True
    return fnmatch(name, pattern) or fnmatch(name, f"{pattern}.*")


def pattern_of(name: str) -> str:
    """Return the pattern that matches a path, and no path that only looks like it.

    Example:
        >>> pattern_of("blocks.0.conv"), pattern_of("heads.left[1]")
        ('blocks.0.conv', 'heads.left[[]1]')
    """
    return re.sub(r"[*?[]", lambda found: f"[{found[0]}]", name)


def check_patterns(widths: BitWidths, integer: list[fx.Node], in_float: list[fx.Node]) -> None:
    """Refuse patterns that have no effect.

    Args:
        widths: widths with patterns of layers.
        integer: layers that can compute on integers.
        in_float: operators in float whose weights can be quantized.

    Raises:
        ConfigError: a pattern matches no layer, or sets a width of inputs that stay in float.
    """
    layers = [*integer, *in_float]
    names = sorted({layer_name(layer) for layer in layers})
    for setting in ("layers", "include", "exclude"):
        for pattern in getattr(widths, setting):
            if not any(names_layer(pattern, layer) for layer in layers):
                operators = sorted({f"{OPERATOR_PREFIX}{operator_name(layer)}" for layer in layers})
                known = operators if pattern.startswith(OPERATOR_PREFIX) else names
                nearest = get_close_matches(pattern, known, n=3, cutoff=0.0)
                raise ConfigError(
                    f"{setting}: {pattern!r} matches no layer; the nearest are {', '.join(nearest)}"
                )
    for pattern, (_, activation) in widths.layers.items():
        if activation is None or any(names_layer(pattern, layer) for layer in integer):
            continue
        if any(names_layer(pattern, layer) for layer in in_float):
            raise ConfigError(
                f"layers: {pattern!r} names operators that compute in float, so their inputs have no width; "
                "remove its activation_bits"
            )

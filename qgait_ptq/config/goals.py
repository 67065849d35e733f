"""Widths that have no effect because a goal chooses the widths of layers."""

from __future__ import annotations

from qgait_ptq.config.schema import QuantConfig

FIXED = "To fix the width of a layer, name it in `layers` of the recipe"


def unused_widths(config: QuantConfig) -> tuple[str, ...]:
    """Return the settings of widths that have no effect, because the goal chooses these widths.

    `max_drop` starts at the configured widths, so all of them have an effect.

    Example:
        >>> unused_widths(QuantConfig(budget={"bops_percent": 25}))
        ('weight_bits', 'activation_bits')
    """
    if _chooses_inputs(config):
        # Only the width of the network's input is left to `edge_bits`.
        edges = () if config.input_bits is None else ("edge_bits",)
        return ("weight_bits", "activation_bits", *edges)
    return ("weight_bits",) if _chooses_weights(config) else ()


def unused_widths_notes(config: QuantConfig) -> list[str]:
    """Return notes on settings of widths that a goal overrides. Settings at their default need none."""
    if not _chooses_weights(config):
        return []
    notes, unused = [], unused_widths(config)
    ignored = [name for name in unused if _is_set(config, name)]
    if ignored:
        listed = " and ".join(f"{name} {getattr(config, name)}" for name in ignored)
        have = "have" if len(ignored) > 1 else "has"
        notes.append(f"{listed} {have} no effect: {describe_choice(config)}. {FIXED}")
    if "edge_bits" not in unused and _is_set(config, "edge_bits"):
        left = "the network's input" if _chooses_inputs(config) else "the inputs of edge layers"
        notes.append(f"edge_bits {config.edge_bits} sets {left} only: {describe_choice(config)}")
    return notes


def describe_choice(config: QuantConfig) -> str:
    """Return a sentence that names the goal and the widths that it chooses, also in edge layers."""
    chosen = "weights and inputs" if _chooses_inputs(config) else "weights"
    goal = "target_accuracy" if config.budget is None else "the budget"
    return f"{goal} chooses the widths of all {chosen}"


def _chooses_weights(config: QuantConfig) -> bool:
    return config.budget is not None or config.target_accuracy is not None


def _chooses_inputs(config: QuantConfig) -> bool:
    return config.budget is not None and config.budget.bops_percent is not None


def _is_set(config: QuantConfig, name: str) -> bool:
    return bool(getattr(config, name) != QuantConfig.model_fields[name].default)

"""Widths that a goal overrides."""

import pytest

from qgait_ptq.config.goals import unused_widths_notes
from qgait_ptq.config.schema import QuantConfig

SIZE, OPERATIONS = {"budget": {"size_mb": 1}}, {"budget": {"bops_percent": 30}}


@pytest.mark.parametrize(
    ("settings", "notes"),
    [
        (SIZE, []),
        ({"weight_bits": 4, "edge_bits": 4}, []),
        ({"max_drop": 0.5, "weight_bits": 4, "edge_bits": 4}, []),
        ({**SIZE, "activation_bits": 4}, []),
        (
            {**SIZE, "weight_bits": 4},
            ["weight_bits 4 has no effect: the budget chooses the widths of all weights."],
        ),
        (
            {**SIZE, "edge_bits": 4},
            ["edge_bits 4 sets the inputs of edge layers only: the budget chooses the widths of all weights"],
        ),
        ({"target_accuracy": -1, "weight_bits": 4}, ["weight_bits 4 has no effect: target_accuracy chooses"]),
        (
            {**OPERATIONS, "weight_bits": 4, "activation_bits": 3, "edge_bits": 6},
            [
                "weight_bits 4 and activation_bits 3 have no effect: the budget chooses the widths of all",
                "edge_bits 6 sets the network's input only",
            ],
        ),
        ({**OPERATIONS, "input_bits": 1, "edge_bits": 6}, ["edge_bits 6 has no effect"]),
    ],
)
def test_widths_that_a_goal_overrides_are_named(settings, notes):
    given = unused_widths_notes(QuantConfig(**settings))
    assert len(given) == len(notes)
    assert all(line.startswith(start) for line, start in zip(given, notes, strict=True))

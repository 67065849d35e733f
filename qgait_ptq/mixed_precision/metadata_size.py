"""The size of the metadata in a file, before the file is written."""

from __future__ import annotations

from dataclasses import asdict

from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.exporters.metadata import metadata_text
from qgait_ptq.graph.operators import ADDITIONS, is_operator
from qgait_ptq.stages.state import State

# Upper bounds in bytes, for numbers with all their digits.
ACCURACY = 850  # of one network
ADDITION = 24  # name of an addition, as some of them differ between processors
REST = 1536  # model, data, target, versions, agreement, and the key


def metadata_bytes(state: State, config: QuantConfig) -> int:
    """Return the bytes of the metadata in a file, slightly overestimated.

    Args:
        state: state with a network.
        config: configuration that the file will contain, with the widths of all layers.
    """
    layout = state.data.layout
    known = {
        "config": config.model_dump(mode="json"),
        "in_float": [asdict(part) for part in state.totals.float_parts],
        "inputs": layout.describe() if layout else [],
    }
    if config.weight_range != "safe":  # layers whose sums may differ are listed
        known["names"] = [layer.name for layer in state.layers]
    additions = sum(is_operator(node, ADDITIONS) for node in state.network.graph.nodes)
    networks = 3 + config.evaluate_simulation if state.given.test_set else 0
    return len(metadata_text(known)) + networks * ACCURACY + additions * ADDITION + REST

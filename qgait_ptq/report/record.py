"""The report of a run: the source of ``report.json``, terminal tables and metadata of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from qgait_ptq.graph.frame_inputs import largest_integers
from qgait_ptq.placement.layers import LayerPlan, layer_scales
from qgait_ptq.placement.macs_by_frames import count_macs_by_frames
from qgait_ptq.placement.planning import REPORTED_FRAMES
from qgait_ptq.placement.totals import count_totals
from qgait_ptq.report.schema import Report
from qgait_ptq.stages.state import State

CALIBRATION_KEYS = (
    "equalized_groups",
    "refined_ranges",
    "shared_weights",
    "idc",
    "finetune",
    "refit",
    "undone_for_rank1",
)


def build_report(state: State, about: dict[str, Any]) -> Report:
    """Build the report from the results of the stages.

    Sizes stay empty: they are known only after the metadata, which this report contains, are in the files.

    Args:
        state: state after all stages.
        about: entries about the model, such as its path and hash.
    """
    record, config, data = state.record, state.config, state.given
    layers = state.layers
    content: dict[str, Any] = {
        "toolkit": {
            "qgait_ptq": version("qgait-ptq"),
            "torch": torch.__version__,
            "device": state.device.type,
        },
        "model": _describe_model(state, layers, about),
        "config": config.model_dump(mode="json"),
        "target": {"name": state.target.name, "runtimes": list(state.target.runtimes)},
        "data": {
            "description": data.description,
            "calibration_sequences": min(config.calibration_sequences, len(data.calibration)),
            "test_sequences": len(data.test),
            "test_names": _digest(record.name for record in data.test.records),
            "test_content": record["test_content"],
            "protocol": data.test_set.protocol.name if data.test_set else None,
            "metric": data.metric,
            "cut_columns": data.cut_columns,
            "modalities": list(data.modalities),
            # Data in memory are not read, so that nothing is said about how.
            **({} if data.calibration.reading is None else {"longest": data.longest}),
            "notes": data.notes.lines,
        },
        "accuracy": record["accuracy"],
        "comparison": record["comparison"],
        "agreement": record["agreement"],
        "evaluation": record["evaluation"],
        "size_bytes": {},
        "parity": record["parity"],
        "pair_sums": {"weight_range": config.weight_range, **record["proof"]},
        "slow_layers": record["slow_layers"],
        "notes": list(state.notes),
        "layers": _describe_layers(state, layers),
        "calibration": {key: record[key] for key in CALIBRATION_KEYS if key in record},
        "allocation": record.get("allocation", {}),
        "speed": record.get("speed"),
        "seconds": dict(state.seconds),
    }
    return Report.model_validate(content)


def _describe_model(state: State, layers: list[LayerPlan], about: dict[str, Any]) -> dict[str, Any]:
    captured, embedding, data = state.captured, state.embeddings["float"], state.data
    totals = count_totals(state.network)
    return {
        **about,
        "frame_shape": list(captured.frame_shape),
        "raw": data.raw,
        "inputs": data.layout.describe(largest_integers(state.network)) if data.layout else [],
        "frames": captured.frames,
        "frame_counts": captured.frame_counts.describe(),
        "batch": captured.batch,
        "size_causes": captured.described_causes(),
        "channels": embedding.shape[1],
        "parts": embedding.shape[2],
        "parameters": totals.parameters,
        "quantized_parameters": totals.quantized_parameters,
        "weight_only_parameters": totals.weight_only_parameters,
        "macs": totals.macs,
        "integer_macs": totals.integer_macs,
        "in_float": [asdict(part) for part in totals.float_parts],
        "macs_frames": captured.frame_counts.nearest(REPORTED_FRAMES),
        "macs_by_frames": count_macs_by_frames(captured, state.network),
        "streams": state.record["streams"],
        "submodule": None if state.submodule is None else state.submodule.describe(),
    }


def _describe_layers(state: State, layers: list[LayerPlan]) -> list[dict[str, Any]]:
    scales = layer_scales(state.quantized)
    factors, sqnr = state.record["factors"], state.record["sqnr"]
    return [
        {
            "name": layer.name,
            "op": layer.operator,
            "weight_bits": layer.weight_bits,
            "activation_bits": layer.activation_bits,
            "integer": layer.integer,
            "weight_only": layer.weight_only,
            "note": layer.note,
            "parameters": layer.parameters,
            "macs": layer.macs,
            "scales": scales.get(layer.node, {}),
            "equalization_factors": factors.get(layer.node),
            "sqnr_db": sqnr.get(layer.node),
        }
        for layer in layers
    ]


def _digest(names: Iterable[str]) -> str:
    """Return a digest of names that identifies a test set, whatever its folder and the order of people."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]

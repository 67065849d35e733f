"""The report of a run: ``report.json``, the terminal's tables and the file's metadata come from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch

from qgait_ptq.placement.layers import LayerPlan, count_parameters, layer_scales, list_layers
from qgait_ptq.placement.planning import REPORTED_FRAMES
from qgait_ptq.stages.state import State


@dataclass(frozen=True)
class Report:
    """What was done and how good it is; `to_json` gives the keys of ``report.json``.

    Attributes:
        toolkit: versions.
        model: the network: path and hash where known, input size, parameters and MACs.
        config: the configuration.
        target: what the file is for: its name, and the runtimes of the toolkit that may load it.
        data: what it was calibrated and tested on.
        accuracy: of ``float``, ``quantized``, ``onnx``, ``onnx_float_gallery`` in percent; empty without
            gallery and probes.
        comparison: what changed person by person: ``distances`` between sequences, and paired differences
            from float of ``quantized`` and ``onnx``.
        agreement: cosine and SQNR between quantized and float embeddings.
        size_bytes: of the ``float`` and the quantized ``onnx`` file.
        parity: the file in the runtime against the simulation.
        pair_sums: the weight range, and whether the file is proven to give the same integers on every
            processor.
        slow_layers: quantized layers that the runtime does not run on integers.
        layers: for each weighted layer what was decided and how well it fares.
        calibration: what IDC and fine-tuning did: losses on the held-out identities, and what was kept.
        allocation: how widths of layers were chosen; empty where the configuration gives them.
        speed: a short look at the file beside the float network in its runtime; empty where that is not at
            hand.
        seconds: stage → time.
    """

    toolkit: dict[str, str]
    model: dict[str, Any]
    config: dict[str, Any]
    target: dict[str, Any]
    data: dict[str, Any]
    accuracy: dict[str, dict[str, Any]]
    comparison: dict[str, Any]
    agreement: dict[str, float]
    size_bytes: dict[str, int]
    parity: dict[str, Any]
    pair_sums: dict[str, Any]
    slow_layers: list[str]
    layers: list[dict[str, Any]]
    calibration: dict[str, Any]
    allocation: dict[str, Any]
    speed: dict[str, Any]
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        return asdict(self)

    def metadata(self) -> dict[str, Any]:
        """What the ONNX file carries: no times and no paths, so that the same run gives the same file."""
        kept = ("toolkit", "model", "config", "target", "data", "accuracy", "agreement", "pair_sums")
        metadata = {key: value for key, value in self.to_json().items() if key in kept}
        metadata["model"].pop("path", None)
        metadata["data"].pop("description")
        return metadata

    def float_metadata(self, runtimes: tuple[str, ...]) -> dict[str, Any]:
        """What the float file beside it carries; it may run anywhere."""
        metadata = self.metadata()
        kept = {key: metadata[key] for key in ("toolkit", "data")}
        model = {**metadata["model"], "streams": False}
        target = {"name": "float", "runtimes": list(runtimes)}
        return {**kept, "model": model, "target": target, "pair_sums": {"safe": True}}


CALIBRATION_KEYS = ("equalized_groups", "shared_weights", "idc", "finetune", "undone_for_rank1")


def build_report(state: State, about: dict[str, Any]) -> Report:
    """Gather what the stages gave; sizes are known when the files have their metadata, which is from here.

    Args:
        state: behind all stages.
        about: what to say of the model, such as its path and hash.
    """
    record, config, data = state.record, state.config, state.given
    layers = list_layers(state.network)
    return Report(
        toolkit={"qgait_ptq": version("qgait-ptq"), "torch": torch.__version__},
        model=_describe_model(state, layers, about),
        config=config.model_dump(mode="json"),
        target={"name": state.target.name, "runtimes": list(state.target.runtimes)},
        data={
            "description": data.description,
            "calibration_sequences": min(config.calibration_sequences, len(data.calibration)),
            "test_sequences": len(data.test),
            "test_names": _digest(record.name for record in data.test.records),
            "protocol": data.test_set.protocol.name if data.test_set else None,
            "metric": data.metric,
            "cut_columns": data.cut_columns,
            "modalities": list(data.modalities),
        },
        accuracy=record["accuracy"],
        comparison=record["comparison"],
        agreement=record["agreement"],
        size_bytes={},
        parity=record["parity"],
        pair_sums={"weight_range": config.weight_range, **record["proof"]},
        slow_layers=record["slow_layers"],
        layers=_describe_layers(state, layers),
        calibration={key: record[key] for key in CALIBRATION_KEYS if key in record},
        allocation=record.get("allocation", {}),
        speed=record.get("speed", {}),
        seconds=dict(state.seconds),
    )


def _describe_model(state: State, layers: list[LayerPlan], about: dict[str, Any]) -> dict[str, Any]:
    captured, embedding, data = state.captured, state.embeddings[0], state.data
    return {
        **about,
        "frame_shape": list(captured.frame_shape),
        "raw": data.raw,
        "inputs": data.layout.describe() if data.layout else [],
        "frames": captured.frames,
        "batch": captured.batch,
        "channels": embedding.shape[1],
        "parts": embedding.shape[2],
        "parameters": count_parameters(layers),
        "macs": sum(layer.macs for layer in layers),
        "macs_frames": captured.frames or REPORTED_FRAMES,
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
    """Tells test sets apart, wherever they lie."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

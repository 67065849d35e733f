"""Post-training quantization of gait-recognition networks.

    import qgait_ptq as qg
    result = qg.quantize(model, data, qg.QuantConfig(weight_bits=4, activation_bits=4))
    result.save("out/")
    embedding = qg.Embedder("out/model.onnx")(silhouettes)

The names below are the public interface; everything else may change. They are imported when they are first
used: a pipeline that only embeds needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qgait_ptq.config.schema import LayerBits, QuantConfig
    from qgait_ptq.errors import QgaitError
    from qgait_ptq.gait.data.dataset import GaitDataset
    from qgait_ptq.gait.data.sources import GaitData, load_directory, load_walkers
    from qgait_ptq.pipeline.quantize import calibrate, evaluate, export, prepare, quantize
    from qgait_ptq.pipeline.result import QuantizationResult
    from qgait_ptq.runtime.embedder import Embedder
    from qgait_ptq.runtime.submodule_file import load_submodule
    from qgait_ptq.stages.stage import Stage, run_stages
    from qgait_ptq.stages.state import State

_HOMES = {
    "Embedder": "qgait_ptq.runtime.embedder",
    "GaitData": "qgait_ptq.gait.data.sources",
    "GaitDataset": "qgait_ptq.gait.data.dataset",
    "LayerBits": "qgait_ptq.config.schema",
    "QgaitError": "qgait_ptq.errors",
    "QuantConfig": "qgait_ptq.config.schema",
    "QuantizationResult": "qgait_ptq.pipeline.result",
    "Stage": "qgait_ptq.stages.stage",
    "State": "qgait_ptq.stages.state",
    "calibrate": "qgait_ptq.pipeline.quantize",
    "evaluate": "qgait_ptq.pipeline.quantize",
    "export": "qgait_ptq.pipeline.quantize",
    "load_directory": "qgait_ptq.gait.data.sources",
    "load_submodule": "qgait_ptq.runtime.submodule_file",
    "load_walkers": "qgait_ptq.gait.data.sources",
    "prepare": "qgait_ptq.pipeline.quantize",
    "quantize": "qgait_ptq.pipeline.quantize",
    "run_stages": "qgait_ptq.stages.stage",
}

__all__ = [
    "Embedder",
    "GaitData",
    "GaitDataset",
    "LayerBits",
    "QgaitError",
    "QuantConfig",
    "QuantizationResult",
    "Stage",
    "State",
    "calibrate",
    "evaluate",
    "export",
    "load_directory",
    "load_submodule",
    "load_walkers",
    "prepare",
    "quantize",
    "run_stages",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

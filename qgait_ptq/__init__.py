"""Post-training quantization of gait-recognition networks.

    import qgait_ptq as qg
    result = qg.quantize(model, data, qg.QuantConfig(weight_bits=4, activation_bits=4))
    result.save("out/")
    embedding = qg.Embedder("out/model.onnx")(silhouettes)

The public interface is the names in `__all__`, here and in the packages that are among them. Other names may
change. Names are imported when they are first used: a pipeline that only embeds needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgait_ptq.system.lazy import lazy_names

if TYPE_CHECKING:
    from qgait_ptq import calibration, config, errors, evaluation, gait, runtime
    from qgait_ptq.config.schema import LayerBits, QuantConfig
    from qgait_ptq.errors import QgaitError
    from qgait_ptq.gait.data.dataset import GaitDataset
    from qgait_ptq.gait.data.directory import load_directory
    from qgait_ptq.gait.data.gait_data import GaitData
    from qgait_ptq.gait.walkers.loading import load_walkers
    from qgait_ptq.pipeline.exporting import check_parity, to_onnx
    from qgait_ptq.pipeline.quantize import calibrate, evaluate, export, prepare, quantize
    from qgait_ptq.pipeline.result import QuantizationResult
    from qgait_ptq.report.terminal import TerminalProgress
    from qgait_ptq.runtime.embedder import Embedder
    from qgait_ptq.runtime.submodule_file import load_submodule
    from qgait_ptq.stages.stage import Stage, run_stages
    from qgait_ptq.stages.state import State
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "": ("calibration", "config", "errors", "evaluation", "gait", "runtime"),
            "config.schema": ("LayerBits", "QuantConfig"),
            "errors": ("QgaitError",),
            "gait.data.dataset": ("GaitDataset",),
            "gait.data.directory": ("load_directory",),
            "gait.data.gait_data": ("GaitData",),
            "gait.walkers.loading": ("load_walkers",),
            "pipeline.exporting": ("check_parity", "to_onnx"),
            "pipeline.quantize": ("calibrate", "evaluate", "export", "prepare", "quantize"),
            "pipeline.result": ("QuantizationResult",),
            "report.terminal": ("TerminalProgress",),
            "runtime.embedder": ("Embedder",),
            "runtime.submodule_file": ("load_submodule",),
            "stages.stage": ("Stage", "run_stages"),
            "stages.state": ("State",),
        },
    )

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
    "TerminalProgress",
    "calibrate",
    "calibration",
    "check_parity",
    "config",
    "errors",
    "evaluate",
    "evaluation",
    "export",
    "gait",
    "load_directory",
    "load_submodule",
    "load_walkers",
    "prepare",
    "quantize",
    "run_stages",
    "runtime",
    "to_onnx",
]

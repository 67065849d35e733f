"""Embedding with the files of qgait-ptq. Needs numpy and onnxruntime, and neither torch nor qgait-ptq.

from qgait_ptq_runtime import Embedder
embedding = Embedder("model.onnx")(silhouettes)
"""

from __future__ import annotations

from qgait_ptq_runtime.errors import (
    ConfigError,
    DataError,
    MissingExtraError,
    ModelError,
    ProcessorWarning,
    QgaitError,
    SequenceLengthWarning,
)
from qgait_ptq_runtime.gait.data.sequences import read_sequence
from qgait_ptq_runtime.runtime.embedder import Embedder
from qgait_ptq_runtime.runtime.matching import Matches

__all__ = [
    "ConfigError",
    "DataError",
    "Embedder",
    "Matches",
    "MissingExtraError",
    "ModelError",
    "ProcessorWarning",
    "QgaitError",
    "SequenceLengthWarning",
    "read_sequence",
]

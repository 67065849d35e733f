"""The embedder that a pipeline imports: silhouettes in, embedding out, with numpy and onnxruntime alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qgait_ptq.errors import DataError, ModelError
from qgait_ptq.export.metadata import parse_metadata
from qgait_ptq.gait.sequences import check_silhouettes, check_values, cut_width, shape_text


class Embedder:
    """A quantized gait network in ONNX Runtime.

    Calling it with one sequence of silhouettes gives its embedding. It may be called from several threads.

    Example:
        >>> embedder = Embedder("out/model.onnx")                       # doctest: +SKIP
        >>> embedder(np.zeros((30, 64, 44), np.uint8)).shape            # doctest: +SKIP
        (16, 128)

    Attributes:
        metadata: what the toolkit wrote into the file.
        session: of onnxruntime.
        frame_shape: of the frames that the network takes: ``(h, w)``, or ``(c, h, w)``.
        frames: fixed frame count; None where any is taken.
        raw: whether it takes values as they are, such as poses, instead of silhouettes.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        """Load a file.

        Args:
            path: written by the toolkit.
            threads: of the runtime for one call; None lets it choose.

        Raises:
            ModelError: no such file, not an ONNX file, or none of this toolkit.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError(f"{self.path}: no such file")
        self.session = open_session(self.path, threads)
        metadata = parse_metadata(self.session.get_modelmeta().custom_metadata_map)
        if metadata is None:
            raise ModelError(f"{self.path}: an ONNX file, but not one that qgait-ptq wrote")
        self.metadata: dict[str, Any] = metadata
        _, frames, *frame_shape = self.session.get_inputs()[0].shape
        self.frame_shape = tuple(map(int, frame_shape))
        self.frames = frames if isinstance(frames, int) else None
        self.raw = bool(metadata.get("model", {}).get("raw"))

    def __call__(self, sequence: NDArray[Any]) -> NDArray[np.float32]:
        """Embed one sequence.

        Args:
            sequence: silhouettes ``[s, h, w]``: uint8 in {0, 1} or 0..255, or bool. Square ones lose their
                empty columns where the network takes narrower ones. Any numbers ``[s, ...]`` where `raw`.

        Returns:
            ``[parts, channels]`` float32; one part for networks without parts.

        Raises:
            DataError: another type, shape or size, or no frame.
        """
        frames = self._check(np.asarray(sequence))
        if self.frames is not None and len(frames) != self.frames:
            raise DataError(f"the sequence: {len(frames)} frames, {self.path} takes {self.frames}")
        batch = frames[None] if self.raw else frames[None].astype(np.float32) / np.float32(255)
        embedding = run_session(self.session, batch)[0]
        return np.ascontiguousarray(embedding.reshape(len(embedding), -1).T)

    def _check(self, sequence: NDArray[Any]) -> NDArray[Any]:
        """Frames of the shape that the network takes."""
        if self.raw:
            frames: NDArray[Any] = check_values(sequence, "the sequence")
        else:
            frames = check_silhouettes(sequence, "the sequence")
            frames = frames if frames.shape[1:] == self.frame_shape else cut_width(frames)
        if frames.shape[1:] != self.frame_shape:
            raise DataError(
                f"the sequence: {'frames' if self.raw else 'silhouettes'} of {shape_text(frames.shape[1:])}, "
                f"{self.path} takes {shape_text(self.frame_shape)}"
            )
        return frames


def open_session(
    model: Path | bytes, threads: int | None = None, spinning: bool = True, optimised: bool = True
) -> onnxruntime.InferenceSession:
    """Open an ONNX model in onnxruntime on the CPU.

    Args:
        model: file or serialized model.
        threads: for one call; None lets onnxruntime choose.
        spinning: whether its threads wait actively between calls, which takes the cores from others in this
            process, such as torch.
        optimised: whether nodes are fused, into integer kernels where they are quantized.

    Raises:
        ModelError: it is no model that this onnxruntime can run.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common public base
        name = model if isinstance(model, Path) else "the model"
        detail = " ".join(str(error).split())[:200]
        raise ModelError(f"{name}: onnxruntime {onnxruntime.__version__} cannot load it ({detail})") from None


def run_session(session: onnxruntime.InferenceSession, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a network of one input and one output."""
    (output,) = session.run(None, {session.get_inputs()[0].name: batch})
    return np.asarray(output)

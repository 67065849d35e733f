"""The embedder that a pipeline imports: silhouettes in, embedding out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import ConfigError, DataError, ModelError
from qgait_ptq.export.metadata import parse_metadata
from qgait_ptq.gait.sequences import check_silhouettes, check_values, cut_width, shape_text
from qgait_ptq.runtime.matching import Index, Matches, match
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session, open_session

if TYPE_CHECKING:
    from qgait_ptq.runtime.streaming import StreamingSession

LONGEST_PIECE = 60  # frames that are in the runtime at a time, where the network can be streamed


class Embedder:
    """A quantized gait network in a runtime.

    Calling it with one sequence of silhouettes gives its embedding. It may be called from several threads.

    Example:
        >>> embedder = Embedder("out/model.onnx")                       # doctest: +SKIP
        >>> embedder(np.zeros((30, 64, 44), np.uint8)).shape            # doctest: +SKIP
        (16, 128)
        >>> embedder.match(gallery, probes, top_k=5).indices            # doctest: +SKIP

    Attributes:
        metadata: what the toolkit wrote into the file.
        frame_shape: of the frames that the network takes: ``(h, w)``, or ``(c, h, w)``.
        frames: fixed frame count; None where any is taken.
        raw: whether it takes values as they are, such as poses, instead of silhouettes.
        streams: whether long sequences go through in pieces, with the same result to the bit: the network's
            frames meet in a maximum, and the runtime is onnxruntime.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        runtime: str = ONNXRUNTIME,
        longest_piece: int = LONGEST_PIECE,
    ) -> None:
        """Load a file.

        Args:
            path: written by the toolkit.
            threads: of the runtime for one call; None lets it choose.
            runtime: ``onnxruntime`` or ``openvino``.
            longest_piece: longer sequences are streamed in pieces of so many frames, where that is possible.

        Raises:
            ModelError: no such file, not an ONNX file, none of this toolkit, or one for another runtime.
            MissingExtraError: the runtime is not installed.
            ConfigError: there is no such runtime, or pieces without a frame.
        """
        if longest_piece < 1:
            raise ConfigError(f"longest_piece is {longest_piece}; at least one frame is needed")
        self.path, self._threads, self._longest_piece = Path(path), threads, longest_piece
        if not self.path.is_file():
            raise ModelError(f"{self.path}: no such file")
        self._runtime, self._loading = runtime, Lock()
        self._whole: Session | None = open_session(self.path, runtime, threads)
        self._parts: StreamingSession | None = None
        metadata = parse_metadata(self._whole.properties)
        if metadata is None:
            raise ModelError(f"{self.path}: an ONNX file, but not one that qgait-ptq wrote")
        self.metadata: dict[str, Any] = metadata
        _check_target(self.path, metadata, runtime)
        self._takes_bytes = self._whole.takes_bytes
        _, self.frames, *frame_shape = self._whole.input_shape
        self.frame_shape = tuple(size for size in frame_shape if size is not None)
        described = metadata.get("model", {})
        self.raw = bool(described.get("raw"))
        self._cut_columns: int | None = metadata.get("data", {}).get("cut_columns")
        self.streams = bool(described.get("streams")) and runtime == ONNXRUNTIME

    def __call__(self, sequence: NDArray[Any]) -> NDArray[np.float32]:
        """Embed one sequence.

        Args:
            sequence: silhouettes ``[s, h, w]``: uint8 in {0, 1} or 0..255, or bool. Wider ones are cut as
                those that calibrated the network. Any numbers ``[s, ...]`` where `raw`.

        Returns:
            ``[parts, channels]`` float32; one part for networks without parts.

        Raises:
            DataError: another type, shape or size, or no frame.
        """
        frames = self._check(np.asarray(sequence))
        if self.frames is not None and len(frames) != self.frames:
            raise DataError(f"the sequence: {len(frames)} frames, {self.path} takes {self.frames}")
        parts = self._load_parts() if self.streams and len(frames) > self._longest_piece else self._parts
        if parts is not None:
            embedding = parts.run(self._pieces(frames))[0]
        else:
            embedding = self.session.infer(self._as_input(frames))[0]
        return np.ascontiguousarray(embedding.reshape(len(embedding), -1).T)

    def embed(self, sequences: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Embed sequences of any lengths, one after the other: ``[n, parts, channels]``.

        Raises:
            DataError: as of a call, with the number of the sequence; or no sequence.
        """
        embeddings = []
        for number, sequence in enumerate(sequences):
            try:
                embeddings.append(self(sequence))
            except DataError as error:
                raise DataError(f"sequence {number}: {error}") from None
        if not embeddings:
            raise DataError("no sequence to embed")
        return np.stack(embeddings)

    def match(
        self, gallery: NDArray[Any], probes: NDArray[Any], top_k: int = 1, index: Index = "exact"
    ) -> Matches:
        """Find the nearest of a gallery for each probe, by the metric that the network was tested with.

        See `qgait_ptq.runtime.matching.match`. The gallery may be embedded by the float network.
        """
        metric = self.metadata.get("data", {}).get("metric", "euclidean")
        return match(gallery, probes, top_k, metric, index)

    @property
    def session(self) -> Session:
        """The whole file in the runtime."""
        with self._loading:
            if self._whole is None:
                self._whole = open_session(self.path, self._runtime, self._threads)
            return self._whole

    def _load_parts(self) -> StreamingSession:
        """The file in two parts, in place of the whole: not both need be in memory."""
        # Here, so that onnxruntime and numpy are enough for what is not streamed.
        import onnx

        from qgait_ptq.runtime.streaming import StreamingSession

        with self._loading:
            if self._parts is None:
                self._whole = None
                self._parts = StreamingSession(onnx.load(self.path), self._threads)
            return self._parts

    def _pieces(self, frames: NDArray[Any]) -> Iterator[NDArray[Any]]:
        for start in range(0, len(frames), self._longest_piece):
            yield self._as_input(frames[start : start + self._longest_piece])

    def _as_input(self, frames: NDArray[Any]) -> NDArray[Any]:
        """As a batch of the session's own type."""
        if self.raw or self._takes_bytes:
            return frames[None]
        return frames[None].astype(np.float32) / np.float32(255)

    def _check(self, sequence: NDArray[Any]) -> NDArray[Any]:
        """Frames of the shape that the network takes."""
        if self.raw:
            frames: NDArray[Any] = check_values(sequence, "the sequence")
        else:
            frames = check_silhouettes(sequence, "the sequence")
            if frames.shape[1:] != self.frame_shape and frames.shape[-1] > 2 * (self._cut_columns or 0):
                frames = cut_width(frames, self._cut_columns)
        if frames.shape[1:] != self.frame_shape:
            kind, given = "frames" if self.raw else "silhouettes", shape_text(sequence.shape[1:])
            raise DataError(
                f"the sequence: {kind} of {given}, {self.path} takes {shape_text(self.frame_shape)}"
            )
        return frames


def _check_target(path: Path, metadata: dict[str, Any], runtime: str) -> None:
    """Refuse a file that was written for something else: it would run slowly, or not as it was tested."""
    target = metadata.get("target", {"name": ONNXRUNTIME, "runtimes": [ONNXRUNTIME]})
    if runtime not in target["runtimes"]:
        raise ModelError(
            f"{path}: written for the target {target['name']}, not for {runtime}; quantize with a target of "
            f"{runtime} ('qgait-ptq targets' lists them)"
        )

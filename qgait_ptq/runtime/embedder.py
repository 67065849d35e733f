"""The embedder that a pipeline imports: silhouettes in, embedding out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import ConfigError, DataError, ModelError, SequenceLengthWarning
from qgait_ptq.gait.data.modalities import as_modalities, check_layout, check_modalities
from qgait_ptq.gait.data.sequences import check_silhouettes, check_values, cut_width, shape_text
from qgait_ptq.graph.frame_counts import parse_frame_counts
from qgait_ptq.graph.frame_layout import BYTE, PartKind, parse_layout
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.matching import Index, Matches, match
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session
from qgait_ptq.runtime.written_file import open_file, refuse_damage

if TYPE_CHECKING:
    from qgait_ptq.runtime.streaming import StreamingSession

Recording = NDArray[Any] | tuple[NDArray[Any], ...] | Mapping[str, NDArray[Any]]
LONGEST_PIECE = 30  # frames that are in the runtime at a time, where the network can be streamed


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
        layout: of the inputs, where the network takes several; else None.
        frame_shape: of the frames that the network takes: ``(h, w)``, or ``(c, h, w)``; ``(F,)``, all numbers
            of a frame, where it takes several inputs.
        frames: fixed frame count; None where several are taken.
        frame_counts: frame counts that the file takes, and how shorter sequences are repeated.
        modalities: which array files of a folder the network was calibrated with, in the order of their
            names.
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
            ModelError: no such file, not an ONNX file, none of this toolkit, one for another runtime, or a
                damaged one.
            MissingExtraError: the runtime is not installed.
            ConfigError: there is no such runtime, or pieces without a frame.
        """
        if longest_piece < 1:
            raise ConfigError(f"longest_piece is {longest_piece}; at least one frame is needed")
        self.path, self._threads, self._longest_piece = Path(path), threads, longest_piece
        self._runtime, self._loading = runtime, Lock()
        session, metadata = open_file(self.path, runtime, threads)
        self._whole: Session | None = session
        self._parts: StreamingSession | None = None
        self.metadata: dict[str, Any] = metadata
        submodule = metadata.get("model", {}).get("submodule")
        if submodule is not None:
            raise ModelError(
                f"{self.path}: holds only the part {submodule['name']} of a network and gives no embedding; "
                f"put it back into the network: network.{submodule['name']} = qgait_ptq.load_submodule(path)"
            )
        self._inputs = session.inputs
        self.frames = self._inputs[0].shape[1]
        described, data = metadata.get("model", {}), metadata.get("data", {})
        self.frame_counts = parse_frame_counts(described.get("frame_counts"), self.frames)
        self._told_of_lengths = False
        self.raw = bool(described.get("raw"))
        self.layout = parse_layout(described["inputs"]) if described.get("inputs") else None
        self.frame_shape = self._inputs[0].frame_shape if self.layout is None else (self.layout.size,)
        self._check_inputs()
        self._cut_columns: int | None = data.get("cut_columns")
        self.modalities: tuple[int, ...] = tuple(data.get("modalities", (0,)))
        self.streams = bool(described.get("streams")) and runtime == ONNXRUNTIME

    def __call__(self, sequence: Recording) -> NDArray[np.float32]:
        """Embed one sequence.

        Args:
            sequence: silhouettes ``[s, h, w]``: uint8 in {0, 1} or 0..255, or bool. Wider ones are cut as
                those that calibrated the network. Any numbers ``[s, ...]`` where `raw`. For a network of
                several inputs a tuple of arrays, or a dictionary of them by the names in `layout`.

        Returns:
            ``[parts, channels]`` float32; one part for networks without parts.

        Raises:
            DataError: another type, shape or size, no frame, or a frame count at which the file would compute
                something else than the network.
            ModelError: the runtime fails, or the file gives no embedding.
        """
        inputs = self._fit(self._check(sequence))
        length = len(inputs[0])
        parts = self._load_parts() if self.streams and length > self._longest_piece else self._parts
        if parts is not None:
            with refuse_damage(self.path):
                embedding = parts.run(self._pieces(inputs, length))
        else:
            embedding = self.session.infer(*self._as_inputs(inputs))
        self._check_embedding(embedding)
        return np.ascontiguousarray(embedding[0].reshape(embedding.shape[1], -1).T)

    def embed(self, sequences: Sequence[Recording]) -> NDArray[np.float32]:
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
                with refuse_damage(self.path):
                    self._parts = StreamingSession(onnx.load(self.path), self._threads)
            return self._parts

    def _fit(self, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Bring a sequence to a frame count that the file takes, as evaluation does."""
        length = len(inputs[0])
        if self.frame_counts.takes(length):
            return inputs
        indices = self.frame_counts.indices(length)
        if self.frames is not None and not self._told_of_lengths:
            self._told_of_lengths = True
            warnings.warn(
                f"{self.path} takes {self.frame_counts}: shorter sequences are repeated in a circle, and of "
                "longer ones the first frames are taken",
                SequenceLengthWarning,
                stacklevel=3,
            )
        return [frames[indices] for frames in inputs]

    def _check_inputs(self) -> None:
        """Refuse a file whose inputs are not those that its metadata describe."""
        found = [given.name for given in self._inputs]
        described = found[:1] if self.layout is None else [part.name for part in self.layout.parts]
        if found != described:
            raise ModelError(
                f"{self.path}: damaged: it takes {', '.join(found)}; its metadata say {', '.join(described)}"
            )

    def _check_embedding(self, embedding: NDArray[Any]) -> None:
        """Refuse an output that is not the embedding ``[1, c, ...]`` of one sequence."""
        shape, described = embedding.shape, self.metadata.get("model", {})
        if embedding.dtype != np.float32 or len(shape) < 2 or shape[0] != 1 or 0 in shape:
            raise ModelError(
                f"{self.path}: damaged: it gives {embedding.dtype} {list(shape)}, not an embedding [1, c, p]"
            )
        found = (shape[1], math.prod(shape[2:]))
        expected = (described.get("channels", found[0]), described.get("parts", found[1]))
        if found != expected:
            raise ModelError(
                f"{self.path}: damaged: it gives embeddings [c, p] of {list(found)}; its metadata say "
                f"{list(expected)}"
            )

    def _pieces(self, inputs: list[NDArray[Any]], length: int) -> Iterator[list[NDArray[Any]]]:
        for start in range(0, length, self._longest_piece):
            yield self._as_inputs([frames[start : start + self._longest_piece] for frames in inputs])

    def _as_inputs(self, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """As a batch of the session's own types."""
        return [
            frames[None].astype(np.float32) / BYTE
            if frames.dtype == np.uint8 and not given.takes_bytes
            else frames[None]
            for frames, given in zip(inputs, self._inputs, strict=True)
        ]

    def _check(self, sequence: Recording) -> list[NDArray[Any]]:
        """Frames of each input, of the shape that the network takes."""
        several = as_modalities(sequence)
        if self.layout is None:
            if several is not None:
                raise DataError(f"the sequence: {len(several)} arrays, {self.path} takes one")
            return [self._check_one(np.asarray(sequence))]
        names = [part.name for part in self.layout.parts]
        if several is None or len(several) != len(names):
            given = "one array" if several is None else f"{len(several)} arrays"
            raise DataError(f"the sequence: {given}, {self.path} takes {len(names)}: {', '.join(names)}")
        if isinstance(sequence, tuple):
            several = dict(zip(names, sequence, strict=True))
        if set(several) != set(names):
            raise DataError(f"the sequence: {', '.join(several)}; {self.path} takes {', '.join(names)}")
        ordered = {name: several[name] for name in names}
        arrays = check_modalities(ordered, "the sequence", self.raw)
        for part in self.layout.parts:
            if part.kind is PartKind.SILHOUETTES:
                arrays[part.name] = self._cut(arrays[part.name], part.shape)
        check_layout(arrays, self.layout, "the sequence")
        return list(arrays.values())

    def _cut(self, frames: NDArray[Any], frame_shape: tuple[int, ...]) -> NDArray[Any]:
        """Without the columns that were cut where the network was calibrated."""
        if self.raw and self._cut_columns is None:
            return frames
        if frames.shape[1:] != frame_shape and frames.shape[-1] > 2 * (self._cut_columns or 0):
            return cut_width(frames, self._cut_columns)
        return frames

    def _check_one(self, sequence: NDArray[Any]) -> NDArray[Any]:
        """Frames of the shape that the network takes."""
        check = check_values if self.raw else check_silhouettes
        frames: NDArray[Any] = self._cut(check(sequence, "the sequence"), self.frame_shape)
        if frames.shape[1:] != self.frame_shape:
            kind, given = "frames" if self.raw else "silhouettes", shape_text(sequence.shape[1:])
            raise DataError(
                f"the sequence: {kind} of {given}, {self.path} takes {shape_text(self.frame_shape)}"
            )
        return frames

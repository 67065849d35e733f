"""The embedder: it maps silhouettes to an embedding with an exported file."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError, ModelError, SequenceLengthWarning
from qgait_ptq.gait.data.sequences import shape_text
from qgait_ptq.graph.frame_counts import parse_frame_counts
from qgait_ptq.graph.frame_layout import BYTE, largest_of, parse_layout
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.matching import Index, Matches, match
from qgait_ptq.runtime.sequence_input import Recording, SequenceInput
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session, is_installed
from qgait_ptq.runtime.written_file import check_threads, open_file, refuse_damage
from qgait_ptq.system.integers import check_integer
from qgait_ptq.system.reading import as_path

if TYPE_CHECKING:
    from qgait_ptq.runtime.streaming import StreamingSession

LONGEST_PIECE = 30  # frames of a chunk, for networks that can be streamed


class Embedder:
    """A quantized gait network in a runtime.

    A call with one sequence of silhouettes returns its embedding. Calls from several threads are safe.
    The file is read once: it can be replaced or deleted afterwards.

    Example:
        >>> embedder = Embedder("out/model.onnx")                       # doctest: +SKIP
        >>> embedder(np.zeros((30, 64, 44), np.uint8)).shape            # doctest: +SKIP
        (16, 128)
        >>> embedder.match(gallery, probes, top_k=5).indices            # doctest: +SKIP

    Attributes:
        path: absolute path of the file.
        sha256: hash of the file.
        metadata: metadata that the toolkit wrote into the file.
        layout: layout of the inputs of a network with several inputs; else None.
        frame_shape: shape of a frame: ``(h, w)``, ``(c, h, w)``, or ``(F,)``, all numbers of a frame, for a
            network with several inputs.
        frames: fixed frame count; None if several are accepted.
        frame_counts: accepted frame counts, and how shorter sequences are repeated.
        modalities: indices of the array files in a sequence folder, sorted by name, that calibrated the
            network.
        raw: whether the network takes unscaled values, such as poses, instead of silhouettes.
        streams: whether long sequences are computed in chunks, with bit-identical results. This needs a
            maximum over frames in the network, onnxruntime, and onnx. Without onnx, they are computed whole.
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
            path: path of a file that the toolkit exported.
            threads: threads of the runtime for one call; None for the runtime's default.
            runtime: ``onnxruntime`` or ``openvino``.
            longest_piece: frames of a chunk. Longer sequences are streamed in chunks, if the file allows it.

        Raises:
            ModelError: the path is of another type, or the file does not exist, is damaged, was not written
                by this toolkit, or is for another runtime.
            MissingExtraError: the runtime is not installed.
            ConfigError: the runtime is unknown, or `threads` or `longest_piece` is not an integer of at least
                one, or there are too many threads.
        """
        self.path = as_path(path, "the model", ModelError).absolute()
        self._threads = check_threads(threads)
        self._longest_piece = check_integer(longest_piece, "longest_piece", 1)
        self._runtime, self._loading = runtime, Lock()
        file = open_file(self.path, runtime, threads)
        session, metadata = file.session, file.metadata
        self._whole: Session | None = session
        self._parts: StreamingSession | None = None
        self.sha256 = hashlib.sha256(file.content).hexdigest()
        self.metadata: dict[str, Any] = metadata
        submodule = metadata.get("model", {}).get("submodule")
        if submodule is not None:
            raise ModelError(
                f"{self.path}: the file holds only the submodule {submodule['name']} and gives no embedding; "
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
        self._sequences = SequenceInput(
            self.path,
            self.layout,
            self.frame_shape,
            self.raw,
            data.get("cut_columns"),
            largest_of(described.get("inputs", ())),
        )
        self.modalities: tuple[int, ...] = tuple(data.get("modalities", (0,)))
        can_split = runtime == ONNXRUNTIME and is_installed("onnx")
        self.streams = bool(described.get("streams")) and can_split
        # The parts for streaming are made of it later. The file may be another one by then.
        self._content = file.content if self.streams else b""

    def __call__(self, sequence: Recording) -> NDArray[np.float32]:
        """Embed one sequence.

        Args:
            sequence: silhouettes ``[s, h, w]``: uint8 in {0, 1} or 0..255, or bool. Wider silhouettes are cut
                as in calibration. If `raw`, any numbers ``[s, ...]``. For a network with several inputs, a
                tuple of arrays or a dictionary of arrays by the names in `layout`.

        Returns:
            Embedding ``[parts, channels]`` float32. Networks without parts give one entry.

        Raises:
            DataError: another type, shape or size, no frame, a frame count at which the file would compute
                something else than the network, or an embedding that is not finite.
            ModelError: the runtime fails, or the file gives no embedding.
        """
        inputs = self._fit(self._sequences.check(sequence))
        length = len(inputs[0])
        parts = self._load_parts() if self.streams and length > self._longest_piece else self._parts
        if parts is not None:
            with refuse_damage(self.path):
                embedding = parts.run(self._pieces(inputs, length))
        else:
            embedding = self.session.infer(*self._as_inputs(inputs))
        self._check_embedding(embedding)
        return np.ascontiguousarray(embedding[0].reshape(embedding.shape[1], -1).T)

    def __repr__(self) -> str:
        frame = shape_text(self.frame_shape)
        return f"Embedder({str(self.path)!r}, {self._runtime}: {self.frame_counts} of {frame})"

    def embed(self, sequences: Sequence[Recording]) -> NDArray[np.float32]:
        """Embed sequences of any lengths one by one, and return ``[n, parts, channels]`` float32.

        Raises:
            DataError: a sequence is not valid; the text has its index. Or there is no sequence.
        """
        embeddings = []
        for number, sequence in enumerate(sequences):
            try:
                embeddings.append(self(sequence))
            except DataError as error:
                raise DataError(f"sequence {number}: {error}") from None
        if not embeddings:
            raise DataError("no sequence to embed; pass at least one")
        return np.stack(embeddings)

    def match(
        self, gallery: NDArray[Any], probes: NDArray[Any], top_k: int = 1, index: Index = "exact"
    ) -> Matches:
        """Find the nearest gallery embeddings of each probe, with the metric of the network's evaluation.

        See `qgait_ptq.runtime.matching.match`. The gallery can come from the float network.
        """
        metric = self.metadata.get("data", {}).get("metric", "euclidean")
        return match(gallery, probes, top_k, metric, index)

    @property
    def session(self) -> Session:
        """Return the session of the complete file."""
        with self._loading:
            if self._whole is None:
                self._whole = open_session(self._content, self._runtime, self._threads)
            return self._whole

    def _load_parts(self) -> StreamingSession:
        """Return the session for streaming. It replaces the session of the complete file to save memory."""
        # Late import: without streaming, onnxruntime and numpy are enough.
        import onnx

        from qgait_ptq.runtime.streaming import StreamingSession

        with self._loading:
            if self._parts is None:
                with refuse_damage(self.path):
                    content = onnx.load_from_string(self._content)
                    self._parts = StreamingSession(content, self._threads, name=self.path)
                self._whole = None
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
        """Refuse a file whose inputs differ from its metadata."""
        actual = [entry.name for entry in self._inputs]
        described = actual[:1] if self.layout is None else [entry.name for entry in self.layout.inputs]
        if actual != described:
            raise ModelError(
                f"{self.path}: damaged: its inputs are {', '.join(actual)}, but its metadata say "
                f"{', '.join(described)}"
            )

    def _check_embedding(self, embedding: NDArray[Any]) -> None:
        """Refuse an output that is not an embedding ``[1, c, ...]`` of one sequence, with finite values."""
        shape, described = embedding.shape, self.metadata.get("model", {})
        if embedding.dtype != np.float32 or len(shape) < 2 or shape[0] != 1 or 0 in shape:
            raise ModelError(
                f"{self.path}: damaged: its output is {embedding.dtype} {list(shape)}, not an embedding "
                "[1, c, p]"
            )
        actual = (shape[1], math.prod(shape[2:]))
        expected = (described.get("channels", actual[0]), described.get("parts", actual[1]))
        if actual != expected:
            raise ModelError(
                f"{self.path}: damaged: its embeddings [c, p] are {list(actual)}, but its metadata say "
                f"{list(expected)}"
            )
        if not np.isfinite(embedding).all():
            raise DataError(
                f"the sequence has an embedding with NaN or infinite values in {self.path}; compare its "
                "values with those of the sequences that calibrated the network"
            )

    def _pieces(self, inputs: list[NDArray[Any]], length: int) -> Iterator[list[NDArray[Any]]]:
        for start in range(0, length, self._longest_piece):
            yield self._as_inputs([frames[start : start + self._longest_piece] for frames in inputs])

    def _as_inputs(self, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return frames as a batch of one sequence, in the types of the session."""
        return [
            frames[None].astype(np.float32) / BYTE
            if frames.dtype == np.uint8 and not entry.takes_bytes
            else frames[None]
            for frames, entry in zip(inputs, self._inputs, strict=True)
        ]

"""Contact sheet of sequences: one row for each sequence, with some of its frames."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qgait_ptq.gait.data.dataset import GaitDataset, Silhouettes
from qgait_ptq.graph.frame_layout import FrameLayout, InputKind

SHOWN_SEQUENCES, SHOWN_FRAMES = 6, 14
LINE, PAPER = 1, np.uint8(90)  # width and grey of the lines between frames


def join_frames(rows: list[list[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Join frames ``[h, w]`` of one size, row by row, into a grey image with lines between them."""
    framed = [
        [np.pad(frame, ((0, LINE), (0, LINE)), constant_values=PAPER) for frame in frames] for frames in rows
    ]
    return np.concatenate([np.concatenate(frames, axis=1) for frames in framed])


def draw_sequences(data: GaitDataset, seed: int) -> NDArray[np.uint8]:
    """Draw some sequences of a set, each with frames from its complete length.

    Args:
        data: silhouettes ``[s, h, w]``, or maps ``[s, c, h, w]``, whose first channel is drawn. Of several
            inputs, the first of these is drawn.
        seed: random seed of the choice.

    Returns:
        A grey image ``[rows, columns]``.
    """
    chosen = data.choose(SHOWN_SEQUENCES, seed)
    return join_frames([_frames(_silhouettes(sequence, data.layout)) for sequence, _ in chosen])


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Return a grey image as the content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _silhouettes(sequence: Silhouettes, layout: FrameLayout | None) -> Silhouettes:
    if layout is None:
        return sequence
    name = next(entry.name for entry in layout.inputs if entry.kind is InputKind.SILHOUETTES)
    return layout.unpack(sequence)[name]


def _frames(sequence: Silhouettes) -> list[NDArray[np.uint8]]:
    indices = np.linspace(0, len(sequence) - 1, SHOWN_FRAMES).round().astype(int)
    images = sequence[indices] if sequence.ndim == 3 else sequence[indices][:, 0]
    return [np.asarray(image, dtype=np.uint8) for image in images]

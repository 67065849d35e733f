"""Recording of all tensors that onnxruntime computes for a file, also on an emulated processor.

``python -m qgait_ptq.verification.recording FOLDER`` runs in the emulation. It needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from qgait_ptq.runtime.exactness import exact_network, saturates
from qgait_ptq.runtime.optimized_graph import optimized_graph
from qgait_ptq.runtime.sessions import ONNXRUNTIME, open_onnxruntime
from qgait_ptq.runtime.without_telemetry import onnxruntime
from qgait_ptq.system.workers import end_with_parent

Values = dict[str, NDArray[np.generic]]
MODEL, FEED, OPTIMISED, WRITTEN, RUN = (
    "model.onnx",
    "feed{}.npz",
    "optimised.onnx",
    "written{}.npz",
    "run{}.npz",
)
SATURATES = "saturates"


@dataclass(frozen=True)
class Recording:
    """A file in onnxruntime on one processor.

    Attributes:
        optimised: graph that onnxruntime runs in place of the file on this processor.
        as_written: all tensors of the file for each batch, computed without optimisation.
        as_run: all tensors of the optimised graph for each batch.
        saturates: whether the processor stores pair sums in 16 bits.
    """

    optimised: onnx.ModelProto
    as_written: list[Values]
    as_run: list[Values]
    saturates: bool


def record(model: onnx.ModelProto, feeds: Sequence[Values], *, guarded: bool = True) -> Recording:
    """Run a file and keep every tensor.

    Args:
        model: model with Q/DQ nodes.
        feeds: batches of its inputs, by name.
        guarded: whether to use exact kernels if sums can saturate, as in deployment.

    Raises:
        ModelError: onnxruntime cannot run the file.
    """
    optimised = optimized_graph(exact_network(model) if guarded else model)
    written, run = (
        open_onnxruntime(_expose(graph).SerializeToString(), spinning=False, optimised=False)
        for graph in (model, optimised)
    )
    return Recording(
        optimised,
        [_run(written, feed) for feed in feeds],
        [_run(run, feed) for feed in feeds],
        saturates(ONNXRUNTIME),
    )


def write_task(folder: Path, model: onnx.ModelProto, feeds: Sequence[Values]) -> None:
    """Write the inputs for another process that records a file."""
    folder.mkdir(parents=True)
    onnx.save(model, folder / MODEL)
    for index, feed in enumerate(feeds):
        _write_values(folder / FEED.format(index), feed)


def read_recording(folder: Path) -> Recording:
    """Read the recording of another process."""
    count = len(list(folder.glob(FEED.format("*"))))
    written, run = (
        [_read_values(folder / name.format(index)) for index in range(count)] for name in (WRITTEN, RUN)
    )
    return Recording(onnx.load(folder / OPTIMISED), written, run, (folder / SATURATES).exists())


def _record_task(folder: Path) -> None:
    count = len(list(folder.glob(FEED.format("*"))))
    feeds = [_read_values(folder / FEED.format(index)) for index in range(count)]
    recording = record(onnx.load(folder / MODEL), feeds)
    onnx.save(recording.optimised, folder / OPTIMISED)
    for index in range(count):
        _write_values(folder / WRITTEN.format(index), recording.as_written[index])
        _write_values(folder / RUN.format(index), recording.as_run[index])
    if recording.saturates:
        (folder / SATURATES).touch()


def _write_values(path: Path, values: Values) -> None:
    """Write arrays to an npz file. Names are stored in an array, because not all are valid file names."""
    np.savez(path, *values.values(), names=np.array(list(values), dtype=np.str_))


def _read_values(path: Path) -> Values:
    with np.load(path) as stored:
        return {str(name): stored[f"arr_{index}"] for index, name in enumerate(stored["names"])}


def _expose(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model with every tensor as an output."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    present = {output.name for output in exposed.graph.output}
    names = [name for node in exposed.graph.node for name in node.output if name and name not in present]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return exposed


def _run(session: onnxruntime.InferenceSession, feed: Values) -> Values:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, feed)), strict=True))


if __name__ == "__main__":
    end_with_parent()
    for task in sys.argv[1:]:
        _record_task(Path(task))

"""Checks of an exported file: integer kernels in the runtime, and parity with the simulation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from qgait_ptq.errors import DataError, ExportError, ModelError
from qgait_ptq.exporters.passes import layer_path, layer_suffix
from qgait_ptq.gait.metrics import embedding_cosine
from qgait_ptq.onnx_graph.view import OnnxGraph
from qgait_ptq.runtime.optimized_graph import optimized_graph, written_name
from qgait_ptq.verification.simulation import Simulation

INTEGER_KERNELS = frozenset(
    {"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
)


# Largest allowed ratio of two errors: of the file, and of the simulation with rounding errors of float32.
AMPLIFIED = 3.0

# Largest difference from the simulation, as a share of the distance of a sequence from the mean embedding,
# that needs no explanation by rounding errors. Quantization itself moves embeddings by several percent.
LARGEST_SHARE = 0.1
LARGEST_EMBEDDING = 2**20  # values of an output that is kept for this comparison

_Compared = tuple[Tensor, Tensor, Tensor]  # a batch, its embedding in the simulation, and by the file


@dataclass(frozen=True)
class Parity:
    """Parity of the file in the runtime with the simulation.

    Attributes:
        cosine_min: cosine of the worst sequence.
        max_abs: largest absolute difference of an embedding's value.
        sequences: number of compared sequences.
        single_cosine_min: lowest cosine between the exact simulation and simulations with rounding errors of
            float32, over sequences below the required cosine; 1 if there are none.
    """

    cosine_min: float
    max_abs: float
    sequences: int
    single_cosine_min: float = 1.0


def compare_with_simulation(
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    simulation: Simulation,
    batches: Iterable[Tensor],
    minimum_cosine: float,
    *,
    judges_spread: bool = True,
) -> Parity:
    """Run file and simulation on the same sequences.

    Args:
        run: function that runs the file.
        simulation: simulation to compare with.
        batches: silhouettes ``[1, s, h, w]`` of different lengths.
        minimum_cosine: required cosine. A lower one is accepted only if the network amplifies rounding as
            much, see `AMPLIFIED`.
        judges_spread: whether differences are also compared with the spread of the embeddings, if the
            required cosine is positive.

    Raises:
        ExportError: the file differs from the simulation.
        DataError: there is no sequence.
    """
    cosines, differences, single, wrong = [], [], [1.0], False
    kept: list[_Compared] = []
    for batch in batches:
        expected, actual = _both(run, simulation, batch.cpu())
        if not bool(torch.isfinite(expected).all()):  # the evaluation leaves such a sequence out
            continue
        cosines.append(_smallest_cosine(expected, actual))
        differences.append((expected - actual).abs().max().item())
        lost = 1 - cosines[-1]
        if not wrong and not lost <= 1 - minimum_cosine:
            amplified = _amplified(lost, AMPLIFIED, simulation, batch, _lost_cosine)
            single.append(1 - amplified)
            wrong = not lost <= AMPLIFIED * amplified
        if expected.numel() <= LARGEST_EMBEDDING:
            kept.append((batch, expected, actual))
    if not cosines:
        raise DataError(
            "file and simulation cannot be compared: no sequence has a frame count that the network takes"
        )
    parity = Parity(float(np.min(cosines)), max(differences), len(cosines), min(single))
    if wrong:
        raise ExportError(
            f"the file differs from the simulation: the lowest cosine over {parity.sequences} sequences is "
            f"{parity.cosine_min:.6f}, below {minimum_cosine} (of the simulation with itself after rounding "
            f"errors of float32: {parity.single_cosine_min:.6f})"
        )
    if judges_spread and minimum_cosine > 0:
        _check_spread(simulation, kept)
    return parity


def _check_spread(simulation: Simulation, compared: Sequence[_Compared]) -> None:
    """Compare the differences with the spread of the embeddings.

    A cosine hides differences if all embeddings point in nearly one direction. Outputs of different sizes,
    such as those of a submodule for each frame, have no spread.

    Raises:
        ExportError: a difference is a large share of the spread, and rounding errors do not explain it.
    """
    if len({expected.shape for _, expected, _ in compared}) != 1:
        return
    vectors = torch.cat([expected.double().flatten(1) for _, expected, _ in compared])
    spread = float((vectors - vectors.mean(0)).norm(dim=1).mean())

    def share(expected: Tensor, actual: Tensor) -> float:
        distance = (expected.double() - actual.double()).flatten(1).norm(dim=1).max().item()
        return distance / spread if spread > 0 else 0.0

    ratio = math.sqrt(AMPLIFIED)  # that of a cosine is quadratic
    for batch, expected, actual in compared:
        found = share(expected, actual)
        if not found <= LARGEST_SHARE and not found <= ratio * _amplified(
            found, ratio, simulation, batch, share
        ):
            raise ExportError(
                f"the file differs from the simulation: by {100 * found:.0f} % of the distance of a sequence "
                "from the mean embedding, which rounding errors do not explain"
            )


def _both(
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]], simulation: Simulation, batch: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the embeddings of simulation and file.

    Raises:
        ExportError: they differ in shape.
    """
    with torch.inference_mode():
        expected = simulation.exact(batch).cpu()
    actual = torch.from_numpy(run(batch.numpy()))
    if actual.shape != expected.shape:
        raise ExportError(
            f"the file gives {list(actual.shape)}, but the simulation {list(expected.shape)}, "
            f"for silhouettes {list(batch.shape)}"
        )
    return expected, actual


def find_failing_axes(
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    simulation: Simulation,
    silhouettes: Tensor,
    sizes: Iterable[tuple[int, int]],
    minimum_cosine: float,
) -> dict[int, tuple[int, int]]:
    """Find free axes of a file's input at which the file is wrong for some sizes.

    Exporters can fix a dimension silently, so a file is run at several sizes.

    Args:
        run: function that runs the file.
        simulation: simulation, which is right at all sizes.
        silhouettes: batch ``[n, s, h, w]``, at least as large as all `sizes`.
        sizes: sizes (batch, frames) to check.
        minimum_cosine: required cosine, see `compare_with_simulation`. The length of an embedding must agree
            equally well.

    Returns:
        Axes 0 (batch) or 1 (frames) along which a wrong size differs from the median size, with the first
        wrong size; both axes if the median size itself is wrong.
    """
    sizes = sorted(sizes)
    usual = tuple(int(np.median(values)) for values in zip(*sizes, strict=True))
    failing: dict[int, tuple[int, int]] = {}
    # Between vectors of equal length: |a - b|² = 2 (1 - cosine) |a|².
    allowed = math.sqrt(2 * (1 - minimum_cosine))
    for batch, frames in sizes:
        inputs = silhouettes[:batch, :frames]
        try:
            with torch.inference_mode():
                expected = simulation.exact(inputs).cpu()
        except RuntimeError:  # the network itself does not accept this size
            continue
        if not bool(torch.isfinite(expected).all()):  # a sequence that the evaluation leaves out
            continue
        try:
            actual = torch.from_numpy(run(inputs.cpu().numpy()))
        except Exception:  # onnxruntime's exceptions have no common public base
            actual = expected.new_empty(0)
        if actual.shape != expected.shape or not _is_close(expected, actual, allowed, simulation, inputs):
            differing = {axis for axis, size in enumerate((batch, frames)) if size != usual[axis]}
            failing = dict.fromkeys(differing or {0, 1}, (batch, frames)) | failing
    return failing


def _is_close(
    expected: Tensor, actual: Tensor, allowed: float, simulation: Simulation, inputs: Tensor
) -> bool:
    error = _largest_relative_error(expected, actual)
    if error <= allowed:
        return True
    # The ratio holds for 1 - cosine, which is quadratic in this error.
    ratio = math.sqrt(AMPLIFIED)
    return error <= ratio * _amplified(error, ratio, simulation, inputs, _largest_relative_error)


def _amplified(
    error: float,
    ratio: float,
    simulation: Simulation,
    batch: Tensor,
    measure: Callable[[Tensor, Tensor], float],
) -> float:
    """Return the largest difference that rounding errors make in the simulation.

    Args:
        error: difference of a file. The search ends once a larger one is found.
        ratio: allowed ratio of both differences.
        simulation: simulation of the network.
        batch: input.
        measure: function that returns the difference of two batches of embeddings.
    """
    largest = 0.0
    with torch.inference_mode():
        expected = simulation.exact(batch).cpu()
        for rounded in simulation.rounded(batch):
            largest = max(largest, measure(expected, rounded.cpu()))
            if error <= ratio * largest:
                break
    return largest


def _lost_cosine(expected: Tensor, actual: Tensor) -> float:
    """Return 1 less the lowest cosine over the sequences of a batch."""
    return 1 - _smallest_cosine(expected, actual)


def _smallest_cosine(expected: Tensor, actual: Tensor) -> float:
    """Return the lowest cosine over the sequences of a batch."""
    return embedding_cosine(expected, actual).min().item()


def _largest_relative_error(expected: Tensor, actual: Tensor) -> float:
    """Return the largest relative error over the sequences of a batch."""
    a, b = expected.double().flatten(1), actual.double().flatten(1)
    return ((a - b).norm(dim=1) / a.norm(dim=1).clamp_min(torch.finfo(a.dtype).tiny)).max().item()


def layers_without_integer_kernel(model: bytes, layers: Iterable[str]) -> list[str]:
    """Return the quantized layers that onnxruntime does not run in an integer kernel.

    Args:
        model: serialized model, in which nodes of layers have module paths as names.
        layers: names of the layers that should have integer kernels, once for each call of a layer.

    Raises:
        ExportError: onnxruntime cannot load the model, or the temporary folder is full.
    """
    try:
        graph = OnnxGraph(optimized_graph(model, portable=True))
    except ModelError as error:
        raise ExportError(f"the kernels of the file cannot be read: {error}") from error
    names = [written_name(node.name) for node in graph.nodes if _is_on_integers(node)]
    integer = Counter(map(layer_path, names))
    return [name for name, calls in Counter(layers).items() if integer[name] < calls]


def _is_on_integers(node: onnx.NodeProto) -> bool:
    """Return whether a node computes a layer in integers: by an integer kernel, or as a result of a pass."""
    return node.op_type in INTEGER_KERNELS or bool(layer_suffix(written_name(node.name)))

"""Checks of a written model: integer kernels in the runtime, and agreement with the simulation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from qgait_ptq.errors import ExportError, ModelError
from qgait_ptq.exporters.passes import layer_path, layer_suffix
from qgait_ptq.graph.conversion import in_double
from qgait_ptq.onnx_graph.view import OnnxGraph
from qgait_ptq.runtime.optimized_graph import optimized_graph, written_name

INTEGER_KERNELS = frozenset(
    {"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
)


# A file may be so many times as far from the simulation as that is in float32 from itself in float64: in a
# deep network with random weights, one value that falls to the other side of a rounding step moves thousands
# behind it, and two correct ways of summing end that far apart.
AMPLIFIED = 3.0


@dataclass(frozen=True)
class Simulation:
    """The quantized graph, as what a file is compared with.

    Attributes:
        exact: in float64: integer kernels sum exactly.
        single: in float32; asked only where a file differs, for how much the network amplifies rounding.
    """

    exact: Callable[[Tensor], Tensor]
    single: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, quantized: fx.GraphModule, device: torch.device | None = None) -> Simulation:
        """Of a graph with quantizers; batches are moved to a device."""
        double = in_double(quantized)
        return cls(
            lambda batch: double(batch.to(device).double()).float(), lambda batch: quantized(batch.to(device))
        )


@dataclass(frozen=True)
class Parity:
    """Agreement of the file in the runtime with the simulation.

    Attributes:
        cosine_min: of the worst sequence.
        max_abs: largest difference of an embedding's value.
        sequences: how many were compared.
        single_cosine_min: of the simulation in float32 with that in float64, on sequences on which the file
            agreed less than asked for; 1 where there were none.
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
) -> Parity:
    """Run file and simulation on the same sequences.

    Args:
        run: the file in the runtime.
        simulation: the quantized graph.
        batches: silhouettes ``[1, s, h, w]`` of different lengths.
        minimum_cosine: below it the file is refused, unless the network amplifies rounding as much, see
            `AMPLIFIED`.

    Raises:
        ExportError: the file computes something else than the simulation.
    """
    cosines, differences, single, wrong = [], [], [1.0], False
    with torch.inference_mode():
        for batch in batches:
            expected = simulation.exact(batch).cpu()
            given = torch.from_numpy(run(batch.cpu().numpy()))
            if given.shape != expected.shape:
                raise ExportError(
                    f"the file gives {list(given.shape)}, the simulation {list(expected.shape)}, "
                    f"for silhouettes {list(batch.shape)}"
                )
            cosines.append(_smallest_cosine(expected, given))
            differences.append((expected - given).abs().max().item())
            if not cosines[-1] >= minimum_cosine:
                single.append(_smallest_cosine(expected, simulation.single(batch).cpu()))
                wrong = wrong or not 1 - cosines[-1] <= AMPLIFIED * (1 - single[-1])
    parity = Parity(min(cosines), max(differences), len(cosines), min(single))
    if wrong:
        raise ExportError(
            f"the file differs from the simulation: cosine {parity.cosine_min:.6f} on the worst of "
            f"{parity.sequences} sequences, at least {minimum_cosine} is asked for (the simulation in "
            f"float32 differs from that in float64 by {parity.single_cosine_min:.6f})"
        )
    return parity


def find_failing_axes(
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    simulation: Simulation,
    silhouettes: Tensor,
    sizes: Iterable[tuple[int, int]],
    minimum_cosine: float,
) -> set[int]:
    """Axes of the input that a file declares free although it is wrong at some of their sizes.

    Exporters may fix a dimension without a word, so a file is believed at the sizes only at which it was run.

    Args:
        run: the file in the runtime.
        simulation: the quantized graph, right at all sizes.
        silhouettes: ``[n, s, h, w]``, at least as large as all `sizes`.
        sizes: (batch, frames) to try.
        minimum_cosine: as of `compare_with_simulation`; a file is also wrong where an embedding differs by
            as much in length.

    Returns:
        Of 0 (batch) and 1 (frames) those along which a wrong size differs from the median size; both where
        the median size itself is wrong.
    """
    sizes = sorted(sizes)
    usual = tuple(int(np.median(values)) for values in zip(*sizes, strict=True))
    failing: set[int] = set()
    # Between vectors of equal length: |a - b|² = 2 (1 - cosine) |a|².
    allowed = math.sqrt(2 * (1 - minimum_cosine))
    for batch, frames in sizes:
        part = silhouettes[:batch, :frames]
        try:
            with torch.inference_mode():
                expected = simulation.exact(part).cpu()
        except RuntimeError:  # a size that the network itself does not take
            continue
        try:
            given = torch.from_numpy(run(part.cpu().numpy()))
        except Exception:  # onnxruntime's exceptions have no common public base
            given = expected.new_empty(0)
        if given.shape != expected.shape or not _is_close(expected, given, allowed, simulation, part):
            differing = {axis for axis, size in enumerate((batch, frames)) if size != usual[axis]}
            failing |= differing or {0, 1}
    return failing


def _is_close(expected: Tensor, given: Tensor, allowed: float, simulation: Simulation, part: Tensor) -> bool:
    error = _largest_relative_error(expected, given)
    if error <= allowed:
        return True
    with torch.inference_mode():
        single = _largest_relative_error(expected, simulation.single(part).cpu())
    # Errors in length, not their squares as 1 - cosine is.
    return error <= math.sqrt(AMPLIFIED) * single


def _smallest_cosine(expected: Tensor, given: Tensor) -> float:
    """Of the sequences of a batch."""
    a, b = expected.double().flatten(1), given.double().flatten(1)
    return torch.nn.functional.cosine_similarity(a, b, dim=1).min().item()


def _largest_relative_error(expected: Tensor, given: Tensor) -> float:
    """Of the sequences of a batch."""
    a, b = expected.double().flatten(1), given.double().flatten(1)
    return ((a - b).norm(dim=1) / a.norm(dim=1).clamp_min(torch.finfo(a.dtype).tiny)).max().item()


def layers_without_integer_kernel(model: bytes, layers: Iterable[str]) -> list[str]:
    """The layers that onnxruntime does not run on integers although they are quantized.

    Args:
        model: serialized, its layers' nodes named by module path.
        layers: names of the layers that should run on integers; a layer that is called several times is
            named as often.

    Raises:
        ExportError: onnxruntime cannot load the model, or the temporary folder is full.
    """
    try:
        graph = OnnxGraph(optimized_graph(model, portable=True))
    except ModelError as error:
        raise ExportError(f"the file's kernels cannot be looked at: {error}") from error
    names = [written_name(node.name) for node in graph.nodes if _is_on_integers(node)]
    integer = Counter(map(layer_path, names))
    return [name for name, calls in Counter(layers).items() if integer[name] < calls]


def _is_on_integers(node: onnx.NodeProto) -> bool:
    """Whether a node computes a layer's integers: by an integer kernel, or as a pass wrote it."""
    return node.op_type in INTEGER_KERNELS or bool(layer_suffix(written_name(node.name)))

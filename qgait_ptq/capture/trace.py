"""Capture: from a network to a checked FX graph of ATen operators.

`torch.export` with dynamic batch and frames supports nearly every silhouette network. It can fix a dimension
silently, so the capture is compared with the network at other batch sizes and frame counts. A dimension that
fails this check is fixed, and a note says so.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from qgait_ptq.capture.autocast import WithoutAutocast, autocast_disabled, disabled_regions
from qgait_ptq.capture.comparison import Comparer, Comparison
from qgait_ptq.capture.diagnosis import explain_failure, explain_forward_failure
from qgait_ptq.capture.embedding_output import could_be_embedding, reduce_to_embedding
from qgait_ptq.capture.exportable import ExportableOperators
from qgait_ptq.capture.guards import SizeGuards
from qgait_ptq.capture.inlining import inline_regions
from qgait_ptq.capture.side_effects import restore_batch_norms, without_side_effects
from qgait_ptq.errors import CaptureError
from qgait_ptq.graph.attributes import ORIGIN_KEY, remove_unused
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.graph.frame_inputs import SeveralInputs
from qgait_ptq.graph.network_input import random_silhouettes
from qgait_ptq.graph.places import PLACE_KEY, read_place
from qgait_ptq.system.invariants import of_type

EXAMPLE_BATCH = 2  # with 1, networks with squeeze are captured wrongly
EXAMPLE_FRAMES = 7  # prime, so that arithmetic on it does not work by accident
LONGER_EXAMPLE_FRAMES = 31  # for networks that go another way with fewer frames than usual
BATCHES = (1, 2, 3)
LARGEST_TRIED = 64  # frames, of an end of the frame counts that is tried, too
FRAME_COUNTS = (5, 7, 12, 17)  # shorter, as captured, with many divisors, more than twice as long
# Sizes of fixed dimensions, if the network, its capture or its file accepts one size only.
PINNED_BATCH, PINNED_FRAMES = 1, 30
BATCH_AXIS, FRAME_AXIS = 0, 1


@dataclass(frozen=True)
class Capture:
    """A captured network.

    Attributes:
        graph_module: takes silhouettes ``[n, s, h, w]``, gives the embedding.
        batch: fixed batch size; None where any is taken.
        frame_counts: frame counts at which the graph computes what the network does.
        frame_shape: shape of one frame: ``(h, w)`` of silhouettes, ``(c, h, w)`` of maps.
        checked: (batch, frames) at which graph and network were compared and agree.
        example_frames: frame count of examples.
        without_autocast: places, ``file:line``, of regions of `torch.autocast` that are computed in float32.
    """

    graph_module: fx.GraphModule
    batch: int | None
    frame_counts: FrameCounts
    frame_shape: tuple[int, ...]
    checked: tuple[tuple[int, int], ...]
    example_frames: int = EXAMPLE_FRAMES
    without_autocast: tuple[str, ...] = ()

    @property
    def frames(self) -> int | None:
        """Fixed frame count; None where several are taken."""
        return self.frame_counts.fixed

    def example(self, sequences: int = EXAMPLE_BATCH, length: int | None = None) -> Tensor:
        """Return random silhouettes ``[n, s, h, w]`` of the nearest size that the graph takes.

        Args:
            sequences: batch size.
            length: frame count; None takes the one of the capture.
        """
        count = self.frame_counts.nearest(length or self.example_frames)
        return random_silhouettes(self.batch or sequences, count, self.frame_shape)

    def empty_example(self) -> Tensor:
        """Return zeros of the sizes of `example`, for exporters, which look at sizes only."""
        return torch.zeros(*self.own_size, *self.frame_shape)

    @property
    def own_size(self) -> tuple[int, int]:
        """Batch size and frame count of examples."""
        return self.batch or EXAMPLE_BATCH, self.frame_counts.nearest(self.example_frames)

    @property
    def free_axes(self) -> frozenset[int]:
        """Return the axes of batch and frames that can have any size."""
        sizes = {BATCH_AXIS: self.batch, FRAME_AXIS: self.frames}
        return frozenset(axis for axis, size in sizes.items() if size is None)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The (batch, frames) to check at: one of both at a time differs from those of the example."""
        own = self.own_size
        batches = BATCHES if self.batch is None else (self.batch,)
        counts = [count for count in (*FRAME_COUNTS, own[1]) if self.frame_counts.takes(count)]
        ends = [self.frame_counts.shortest, self.frame_counts.longest or 0]
        counts += [end for end in ends if 0 < end <= LARGEST_TRIED]
        return tuple(sorted({(n, own[1]) for n in batches} | {(own[0], s) for s in counts}))

    def pin(self, axes: Iterable[int]) -> Capture:
        """Return a copy in which some free dimensions are fixed: one sequence, `PINNED_FRAMES` frames."""
        free = self.free_axes.intersection(axes)
        return replace(
            self,
            batch=PINNED_BATCH if BATCH_AXIS in free else self.batch,
            frame_counts=FrameCounts.exactly(PINNED_FRAMES) if FRAME_AXIS in free else self.frame_counts,
        )


def capture(
    network: nn.Module,
    frame_shape: tuple[int, ...],
    frames: int | None = None,
    output: str | None = None,
) -> Capture:
    """Capture a network and compare the graph with it.

    Args:
        network: network on the CPU. It maps ``[n, s, h, w]`` in [0, 1] to ``[n, c, p]`` or ``[n, c]``, alone
            or in a dictionary or tuple.
        frame_shape: shape of a frame: ``(h, w)``, or ``(c, h, w)`` for inputs ``[n, s, c, h, w]``.
        frames: frame count, for networks that accept only one; None for any.
        output: name of the embedding among several outputs; see `reduce_to_embedding`.

    Raises:
        CaptureError: the network does not run, cannot be captured, has no embedding as its output, gives
            values that are not finite, or differs from its graph.
    """
    set_to_inference(network)
    nothing = fx.GraphModule({}, fx.Graph())
    length = _example_frames(network, frame_shape) if frames is None else frames
    captured = Capture(nothing, None, FrameCounts.exactly(frames), frame_shape, (), length)
    network = embedding_network(network, frame_shape, length, output)
    for _ in range(4):  # as captured, with a longer example, then with one and with both dimensions pinned
        example = captured.example()
        _check_embedding(_run_network(network, example), example)
        program, graph_module, pinned = _export(network, example, captured.free_axes)
        comparer = Comparer(network, graph_module, frame_shape)
        if comparer.compare(captured.own_size) is Comparison.DIFFERS:
            raise CaptureError(
                "the captured graph differs from the network on the input of the capture; check that the "
                "network keeps no state and draws no random numbers in eval mode"
            )
        counts, differing = _check_guards(comparer, program, captured, captured.free_axes - pinned)
        usual = counts.takes(PINNED_FRAMES)
        if FRAME_AXIS in captured.free_axes and not usual and length < LONGER_EXAMPLE_FRAMES:
            length = LONGER_EXAMPLE_FRAMES
            captured = replace(captured, example_frames=length)
            continue
        pinned |= differing | (set() if usual or captured.frames else {FRAME_AXIS})
        captured = replace(captured, frame_counts=counts) if usual else captured
        found = {size: comparer.compare(size) for size in captured.sizes}
        pinned = pinned or {axis for axis in captured.free_axes if _must_pin(found, axis, example)}
        if not pinned:
            agreeing = (size for size, result in found.items() if result is Comparison.AGREES)
            captured = replace(captured, without_autocast=disabled_regions(network))
            return replace(captured, graph_module=graph_module, checked=tuple(agreeing))
        # With the frame count fixed, the capture can be right at any batch size.
        captured = captured.pin({FRAME_AXIS} if FRAME_AXIS in pinned else pinned)
    raise CaptureError("the graph differs from the network even at a fixed batch size and frame count")


def _check_guards(
    comparer: Comparer, program: ExportedProgram, captured: Capture, free: frozenset[int]
) -> tuple[FrameCounts, set[int]]:
    """Compare graph and network on both sides of the conditions that torch.export puts on sizes.

    Args:
        comparer: network and graph.
        program: program with the conditions.
        captured: sizes of the capture.
        free: axes that torch.export left free.

    Returns:
        The frame counts at which the graph is right, and the axes that must be pinned.
    """
    counts, differing = captured.frame_counts, set[int]()
    if FRAME_AXIS in free:
        counts = comparer.frame_counts(SizeGuards(program, FRAME_AXIS), *captured.own_size)
    if BATCH_AXIS in free:
        guards = SizeGuards(program, BATCH_AXIS)
        differing = set() if comparer.batch_is_free(guards, *captured.own_size) else {BATCH_AXIS}
    return counts, differing


def embedding_network(
    network: nn.Module, frame_shape: tuple[int, ...], frames: int | None = None, output: str | None = None
) -> nn.Module:
    """Return a network with the embedding as its only output, in float32; arguments as of `capture`."""
    example = random_silhouettes(EXAMPLE_BATCH, frames or EXAMPLE_FRAMES, frame_shape)
    with autocast_disabled() as regions:
        given = _run_network(network, example)
    network = WithoutAutocast(network) if regions else network
    return reduce_to_embedding(network, given, EXAMPLE_BATCH, output)


def set_to_inference(network: nn.Module) -> None:
    """Set a network to eval mode. Exported programs are always in eval mode and do not allow the call."""
    with suppress(NotImplementedError):
        network.eval()


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Hide warnings, log and output of torch's exporters, which a user cannot act on."""
    names = ("torch.export", "torch.onnx", "torch._export", "torch.fx", "onnxscript", "torch._dynamo")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        # On failure, torch.export prints the graph so far.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _example_frames(network: nn.Module, frame_shape: tuple[int, ...]) -> int:
    """Return the frame count to capture with: a larger one where the network does not take the usual one."""
    for count in (EXAMPLE_FRAMES, LONGER_EXAMPLE_FRAMES):
        with suppress(CaptureError):
            _run_network(network, random_silhouettes(EXAMPLE_BATCH, count, frame_shape))
            return count
    return EXAMPLE_FRAMES


def _run_network(network: nn.Module, silhouettes: Tensor) -> Any:
    try:
        with torch.inference_mode():
            return network(silhouettes)
    except Exception as error:
        sizes = f"{list(silhouettes.shape)} in [0, 1]"
        if isinstance(network, SeveralInputs):
            sizes = f"{list(silhouettes.shape[:2])} of {network.layout}"
        raise CaptureError(
            explain_forward_failure(error, f"the network does not run on sequences {sizes}")
        ) from error


def _check_embedding(embedding: Tensor, example: Tensor) -> None:
    if not could_be_embedding(embedding, example.shape[0]):
        raise CaptureError(
            f"the network returns a tensor {list(embedding.shape)} of {embedding.dtype} for a batch of "
            f"{example.shape[0]}; an embedding must be [n, c, p] or [n, c]"
        )
    if not torch.isfinite(embedding).all():
        raise CaptureError("the network's embedding has NaN or infinite values; check its weights")


def _export(
    network: nn.Module, example: Tensor, free_axes: frozenset[int]
) -> tuple[ExportedProgram, fx.GraphModule, set[int]]:
    """Export with the dimensions that are not fixed left to torch; return also the axes that it fixed."""
    dynamic = dict.fromkeys(sorted(free_axes), Dim.AUTO)
    try:
        with quiet_torch(), torch.no_grad(), ExportableOperators():
            program = torch.export.export(network, (example,), dynamic_shapes=(dynamic,), strict=False)
            graph_module = without_side_effects(inline_regions(program)).module(check_guards=False)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(explain_failure(error, "torch.export cannot capture the network")) from error
    graph_module = of_type(graph_module, fx.GraphModule)
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    shape = placeholders[0].meta["val"].shape
    pinned = {axis for axis in dynamic if isinstance(shape[axis], int)}
    graph_module = _plain_graph_module(graph_module)
    restore_batch_norms(graph_module)
    _name_as_inside(graph_module, network)
    return program, graph_module, pinned


def _plain_graph_module(exported: fx.GraphModule) -> fx.GraphModule:
    """Return a graph with one input and one output, without metadata and unused buffers."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.op == "output":
            (value,) = node.args
            graph.output(copied[value[0] if isinstance(value, (tuple, list)) else value])
        else:
            copied[node] = graph.node_copy(node, lambda source: copied[source])
            place = read_place(node.meta.get("stack_trace"))
            copied[node].meta = {PLACE_KEY: place} if place else {}
    graph_module = fx.GraphModule(exported, graph)
    remove_unused(graph_module)
    graph_module.training = False
    return graph_module


def unwrap(network: nn.Module) -> tuple[nn.Module, str]:
    """Return the user's network without wrappers, such as adapters, and its path with a final dot."""
    prefix = ""
    while [name for name, _ in network.named_children()] == ["network"] and not network._parameters:
        network, prefix = network.get_submodule("network"), f"{prefix}network."
    return network, prefix


def _name_as_inside(graph_module: fx.GraphModule, network: nn.Module) -> None:
    """Give parameters their names in the user's network."""
    _, prefix = unwrap(network)
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith(prefix):
            node.meta[ORIGIN_KEY] = str(node.target).removeprefix(prefix)


def _must_pin(found: dict[tuple[int, int], Comparison], axis: int, example: Tensor) -> bool:
    """Return whether a free dimension must be fixed: another size differs, or all are refused."""
    own = (example.shape[0], example.shape[1])
    others = [
        result
        for size, result in found.items()
        if size[axis] != own[axis] and size[1 - axis] == own[1 - axis]
    ]
    return bool(others) and (
        Comparison.DIFFERS in others or all(result is Comparison.REFUSED for result in others)
    )

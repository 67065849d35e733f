"""Capture: from a network to an FX graph of ATen operators, checked before it is believed.

`torch.export` with automatic dynamic shapes on batch and frames takes nearly every silhouette network. It
may silently fix a dimension, so the capture is compared with the network at other batch sizes and frame
counts, and a dimension that fails is pinned and said so.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from qgait_ptq.capture.autocast import WithoutAutocast, autocast_disabled, disabled_regions
from qgait_ptq.capture.diagnosis import explain_failure
from qgait_ptq.capture.embedding_output import could_be_embedding, reduce_to_embedding
from qgait_ptq.capture.inlining import inline_regions
from qgait_ptq.capture.side_effects import restore_batch_norms, without_side_effects
from qgait_ptq.errors import CaptureError, first_line
from qgait_ptq.graph.attributes import ORIGIN_KEY, remove_unused
from qgait_ptq.graph.frame_parts import SeveralInputs
from qgait_ptq.graph.network_input import random_silhouettes
from qgait_ptq.system.invariants import of_type

EXAMPLE_BATCH = 2  # with 1, networks that squeeze are captured wrongly
EXAMPLE_FRAMES = 7  # prime, so that no arithmetic on it works by accident
BATCHES = (1, 2, 3)
FRAME_COUNTS = (5, 7, 17)  # shorter, as captured, more than twice as long
# What a dimension is fixed at where the network, its capture or its file takes one size only.
PINNED_BATCH, PINNED_FRAMES = 1, 30
TOLERANCE = 1e-4  # relative to the largest value of the embedding
BATCH_AXIS, FRAME_AXIS = 0, 1


@dataclass(frozen=True)
class Capture:
    """A captured network.

    Attributes:
        graph_module: takes silhouettes ``[n, s, h, w]``, gives the embedding.
        batch: fixed batch size; None where any is taken.
        frames: fixed frame count; None where any is taken.
        frame_shape: of one frame: ``(h, w)`` of silhouettes, ``(c, h, w)`` of maps.
        checked: the (batch, frames) at which capture and network were compared.
        without_autocast: places, ``file:line``, of regions of `torch.autocast` that are computed in float32.
    """

    graph_module: fx.GraphModule
    batch: int | None
    frames: int | None
    frame_shape: tuple[int, ...]
    checked: tuple[tuple[int, int], ...]
    without_autocast: tuple[str, ...] = ()

    def example(self, sequences: int = EXAMPLE_BATCH, length: int = EXAMPLE_FRAMES) -> Tensor:
        """Random silhouettes ``[n, s, h, w]`` that the graph takes; fixed dimensions have their way."""
        return random_silhouettes(self.batch or sequences, self.frames or length, self.frame_shape)

    def empty_example(self) -> Tensor:
        """Zeros of the sizes of `example`, for exporters, which look at sizes only."""
        return torch.zeros(self.batch or EXAMPLE_BATCH, self.frames or EXAMPLE_FRAMES, *self.frame_shape)

    @property
    def free_axes(self) -> frozenset[int]:
        """Which of batch and frames may have any size."""
        sizes = {BATCH_AXIS: self.batch, FRAME_AXIS: self.frames}
        return frozenset(axis for axis, size in sizes.items() if size is None)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The (batch, frames) to check at: one of both at a time differs from those of the example."""
        own = (self.batch or EXAMPLE_BATCH, self.frames or EXAMPLE_FRAMES)
        batches = BATCHES if self.batch is None else (self.batch,)
        counts = FRAME_COUNTS if self.frames is None else (self.frames,)
        return tuple(sorted({(n, own[1]) for n in batches} | {(own[0], s) for s in counts}))

    def pin(self, axes: Iterable[int]) -> Capture:
        """The same with free dimensions fixed: one sequence, of `PINNED_FRAMES` frames; fixed ones stay."""
        free = self.free_axes.intersection(axes)
        return replace(
            self,
            batch=PINNED_BATCH if BATCH_AXIS in free else self.batch,
            frames=PINNED_FRAMES if FRAME_AXIS in free else self.frames,
        )


def capture(
    network: nn.Module,
    frame_shape: tuple[int, ...],
    frames: int | None = None,
    output: str | None = None,
) -> Capture:
    """Capture a network and compare the graph with it.

    Args:
        network: on the CPU; takes ``[n, s, h, w]`` in [0, 1], gives ``[n, c, p]`` or ``[n, c]``, alone
            or in a dictionary or tuple.
        frame_shape: of one frame: ``(h, w)``, or ``(c, h, w)`` for a network that takes ``[n, s, c, h, w]``.
        frames: capture with this frame count only; None tries any.
        output: names the embedding among several outputs; see `reduce_to_embedding`.

    Raises:
        CaptureError: the network does not run on such an input, cannot be captured, has no embedding as its
            output, gives values that are not finite, or computes something else than its graph.
    """
    set_to_inference(network)
    network = embedding_network(network, frame_shape, frames, output)
    captured = Capture(fx.GraphModule({}, fx.Graph()), None, frames, frame_shape, ())
    for _ in range(3):  # as captured, then with one and with both dimensions pinned
        example = captured.example()
        _check_embedding(_run_network(network, example), example)
        graph_module, pinned = _export(network, example, captured.free_axes)
        found = {size: _compare(network, graph_module, size, example) for size in captured.sizes}
        if found[example.shape[0], example.shape[1]] is _Comparison.DIFFERS:
            raise CaptureError(
                "the captured graph computes something else than the network on the very input it was "
                "captured with; does the network keep state, or draw random numbers in eval mode?"
            )
        if not pinned:
            pinned = {axis for axis in captured.free_axes if _must_pin(found, axis, example)}
        if not pinned:
            agreeing = (size for size, result in found.items() if result is _Comparison.AGREES)
            captured = replace(captured, without_autocast=disabled_regions(network))
            return replace(captured, graph_module=graph_module, checked=tuple(agreeing))
        # One that varies with a wrong frame count may be right for any batch.
        captured = captured.pin({FRAME_AXIS} if FRAME_AXIS in pinned else pinned)
    raise CaptureError("the graph differs from the network even where batch size and frame count are fixed")


def embedding_network(
    network: nn.Module, frame_shape: tuple[int, ...], frames: int | None = None, output: str | None = None
) -> nn.Module:
    """A network that gives the embedding of another one alone, in float32; arguments as of `capture`."""
    example = random_silhouettes(EXAMPLE_BATCH, frames or EXAMPLE_FRAMES, frame_shape)
    with autocast_disabled() as regions:
        given = _run_network(network, example)
    network = WithoutAutocast(network) if regions else network
    return reduce_to_embedding(network, given, EXAMPLE_BATCH, output)


def set_to_inference(network: nn.Module) -> None:
    """Put a network in eval mode; modules of exported programs refuse that, because they always are."""
    with suppress(NotImplementedError):
        network.eval()


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep from the user what torch's exporters warn of, log and print: nobody can do anything about it."""
    names = ("torch.export", "torch.onnx", "torch._export", "torch.fx", "onnxscript", "torch._dynamo")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        # Of a network that it cannot take, torch.export prints the graph so far.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _run_network(network: nn.Module, silhouettes: Tensor) -> Any:
    try:
        with torch.inference_mode():
            return network(silhouettes)
    except Exception as error:
        given = f"{list(silhouettes.shape)} in [0, 1]"
        if isinstance(network, SeveralInputs):
            given = f"{list(silhouettes.shape[:2])} of {network.layout}"
        raise CaptureError(
            f"the network does not run on sequences {given} "
            f"({type(error).__name__}: {first_line(error)}); check the size of a frame, or write an adapter "
            "that brings it to this convention; where it takes one frame count only, name that with --frames"
        ) from error


def _check_embedding(embedding: Tensor, example: Tensor) -> None:
    if not could_be_embedding(embedding, example.shape[0]):
        raise CaptureError(
            f"the network gives a tensor {list(embedding.shape)} of {embedding.dtype} for a batch of "
            f"{example.shape[0]}; an embedding is [n, c, p] or [n, c]"
        )
    if not torch.isfinite(embedding).all():
        raise CaptureError("the network's embedding holds NaN or infinite values; are its weights sound?")


def _export(
    network: nn.Module, example: Tensor, free_axes: frozenset[int]
) -> tuple[fx.GraphModule, set[int]]:
    """Export with the dimensions that are not fixed left to torch; gives the axes that it fixed."""
    dynamic = dict.fromkeys(sorted(free_axes), Dim.AUTO)
    try:
        with quiet_torch(), torch.no_grad():
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
    return graph_module, pinned


def _plain_graph_module(exported: fx.GraphModule) -> fx.GraphModule:
    """One tensor in and one out, instead of torch.export's trees; without its notes and unused buffers."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.op == "output":
            (value,) = node.args
            graph.output(copied[value[0] if isinstance(value, (tuple, list)) else value])
        else:
            copied[node] = graph.node_copy(node, lambda source: copied[source])
            copied[node].meta = {}
    graph_module = fx.GraphModule(exported, graph)
    remove_unused(graph_module)
    graph_module.training = False
    return graph_module


def unwrap(network: nn.Module) -> tuple[nn.Module, str]:
    """The user's network without the wrappers around it, such as adapters, and the path to it with a dot."""
    prefix = ""
    while [name for name, _ in network.named_children()] == ["network"] and not network._parameters:
        network, prefix = network.get_submodule("network"), f"{prefix}network."
    return network, prefix


def _name_as_inside(graph_module: fx.GraphModule, network: nn.Module) -> None:
    """Name parameters as the user's network does."""
    _, prefix = unwrap(network)
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith(prefix):
            node.meta[ORIGIN_KEY] = str(node.target).removeprefix(prefix)


class _Comparison(Enum):
    AGREES = auto()
    DIFFERS = auto()
    REFUSED = auto()  # the network itself does not take this size


def _compare(
    network: nn.Module, graph_module: fx.GraphModule, size: tuple[int, int], example: Tensor
) -> _Comparison:
    silhouettes = random_silhouettes(*size, tuple(example.shape[2:]))
    try:
        with torch.inference_mode():
            expected = network(silhouettes)
    except Exception:
        return _Comparison.REFUSED
    try:
        with torch.inference_mode():
            given = graph_module(silhouettes)
    except Exception:
        return _Comparison.DIFFERS
    if given.shape != expected.shape:
        return _Comparison.DIFFERS
    scale = expected.abs().max().clamp_min(1e-6)
    close = bool((given - expected).abs().max() <= TOLERANCE * scale)
    return _Comparison.AGREES if close else _Comparison.DIFFERS


def _must_pin(found: dict[tuple[int, int], _Comparison], axis: int, example: Tensor) -> bool:
    """Whether a free dimension must be fixed: the graph differs at another size, or all are refused."""
    own = (example.shape[0], example.shape[1])
    others = [
        result
        for size, result in found.items()
        if size[axis] != own[axis] and size[1 - axis] == own[1 - axis]
    ]
    return bool(others) and (
        _Comparison.DIFFERS in others or all(result is _Comparison.REFUSED for result in others)
    )

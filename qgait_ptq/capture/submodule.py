"""A submodule that is quantized alone, while the rest of the network runs in float.

This serves networks that cannot be captured completely. The inputs of a submodule are internal tensors of the
network. They are converted to sequences ``[n, s, ...]`` for the stages, and back.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from qgait_ptq.capture.captured import EXAMPLE_BATCH, EXAMPLE_FRAMES
from qgait_ptq.capture.own_copy import copy_network
from qgait_ptq.capture.program import unwrap
from qgait_ptq.capture.trace import embedding_network
from qgait_ptq.errors import CaptureError, ConfigError, first_line
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.graph.frame_inputs import join_inputs
from qgait_ptq.graph.frame_layout import FrameLayout
from qgait_ptq.graph.network_input import random_silhouettes
from qgait_ptq.graph.submodule_shapes import FramesAt, Replacement, Run, Shape, SubmoduleShapes

Size = tuple[int, int]  # sequences, frames


class SubmoduleAsNetwork(nn.Module):
    """A submodule as a network that takes sequences. Its layers keep their names in the complete network."""

    def __init__(self, submodule: nn.Module, name: str, shapes: SubmoduleShapes) -> None:
        super().__init__()
        # These names must differ from those of submodules.
        self._submodule_path, self._submodule_shapes = name, shapes
        *packages, last = name.split(".")
        holder: nn.Module = self
        for package in packages:
            inner = nn.Module()
            holder.add_module(package, inner)
            holder = inner
        holder.add_module(last, submodule)

    def forward(self, frames: Tensor) -> Tensor:
        """Map ``[n, s, ...]`` to the flattened output."""
        result = self.get_submodule(self._submodule_path)(self._submodule_shapes.given.from_sequences(frames))
        return self._submodule_shapes.flatten_result(result, frames.shape[0])


@dataclass(frozen=True)
class IsolatedSubmodule:
    """A network and one of its submodules.

    Attributes:
        host: network in eval mode with the embedding as its only output.
        name: module path of the submodule in the user's network.
        path: module path of the submodule in `host`.
        shapes: shapes of the submodule's input and output.
        frame_shape: shape of one frame of the submodule's input.
        frames: frame count, if the submodule accepts only one; None for any.
    """

    host: nn.Module
    name: str
    path: str
    shapes: SubmoduleShapes
    frame_shape: tuple[int, ...]
    frames: int | None

    @property
    def as_network(self) -> SubmoduleAsNetwork:
        """Return the submodule as a network."""
        return SubmoduleAsNetwork(self.host.get_submodule(self.path), self.name, self.shapes)

    def record(self, batch: Tensor) -> Tensor:
        """Return the submodule's input for a batch of the network, as sequences ``[n, s, ...]``."""
        with torch.inference_mode():
            given, _ = observe_call(self.host, self.path, self.name, batch)
        return self.shapes.given.to_sequences(given, batch.shape[0])

    def around(self, run: Run, counts: FrameCounts) -> nn.Module:
        """Return the network with `run` in place of the submodule.

        Args:
            run: takes sequences ``[n, s, ...]`` and gives what `as_network` gives.
            counts: frame counts that `run` takes.
        """
        host = copy.deepcopy(self.host)
        host.set_submodule(self.path, Replacement(run, self.shapes, counts))
        return host


def isolate(
    model: nn.Module,
    name: str,
    frame_shape: tuple[int, ...],
    frames: int | None = None,
    output: str | None = None,
    layout: FrameLayout | None = None,
) -> IsolatedSubmodule:
    """Find the input and output of a submodule by running the network.

    Args:
        model: network; it is not changed.
        name: module path of the submodule, without the path of an adapter.
        frame_shape: shape of a frame of the network.
        frames: frame count, for networks that accept only one.
        output: name of the embedding, for networks with several outputs.
        layout: layout of the inputs, for networks with several inputs.

    Raises:
        ConfigError: the network has no such module.
        CaptureError: the network does not run, the submodule is not called exactly once with one tensor to
            return one, or its frame axis is ambiguous.
    """
    network = copy_network(model).requires_grad_(False)
    names = [path for path, _ in unwrap(network)[0].named_modules() if path]
    if name not in names:
        nearest = ", ".join(get_close_matches(name, names, n=3, cutoff=0.0)) or "none"
        raise ConfigError(f"the network has no module {name!r}; similar names are {nearest}")
    host = embedding_network(join_inputs(network, layout), frame_shape, frames, output)
    submodule = unwrap(network)[0].get_submodule(name)
    path = next(path for path, module in host.named_modules() if module is submodule)
    observed = _observe_sizes(host, path, name, frame_shape, frames or EXAMPLE_FRAMES)
    given, result = next(iter(observed.values()))
    given_at = _find_frames({size: shapes[0] for size, shapes in observed.items()}, f"the input of {name}")
    result_at = _find_frames({size: shapes[1] for size, shapes in observed.items()}, f"the output of {name}")
    if given_at.axis is None or (given_at.axis == 0) != (result_at.axis == 0):
        (sequences, length), *_ = observed
        raise CaptureError(
            f"{name} takes {list(given)} and returns {list(result)} for {sequences} sequences of {length} "
            "frames; a submodule must process either single frames or complete sequences, so name another one"
        )
    shapes = SubmoduleShapes(given_at, result_at, _without_frames(result, result_at))
    fixed = None if given_at.axis == 0 else frames
    return IsolatedSubmodule(host, name, path, shapes, _without_frames(given, given_at), fixed)


def _observe_sizes(
    host: nn.Module, path: str, name: str, frame_shape: Shape, length: int
) -> dict[Size, tuple[Shape, Shape]]:
    """Return the shapes of input and output for several numbers of sequences and frames that run."""
    observed: dict[Size, tuple[Shape, Shape]] = {}
    for size in ((EXAMPLE_BATCH, length), (EXAMPLE_BATCH + 1, length), (EXAMPLE_BATCH, length + 4)):
        try:
            with torch.inference_mode():
                given, result = observe_call(host, path, name, random_silhouettes(*size, frame_shape))
        except CaptureError:
            raise
        except Exception as error:
            if observed:
                continue  # the network accepts one size only
            raise CaptureError(
                f"the network does not run on sequences {[*size, *frame_shape]} "
                f"({type(error).__name__}: {first_line(error)})"
            ) from error
        observed[size] = tuple(given.shape), tuple(result.shape)
    return observed


def observe_call(host: nn.Module, path: str, name: str, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input and output of a submodule while a network runs.

    Args:
        host: network to run.
        path: module path of the submodule in the network.
        name: name of the submodule in errors.
        batch: input of the network.

    Raises:
        CaptureError: the submodule is not called exactly once, or its input or output is not one tensor.
    """
    given: list[tuple[Any, ...]] = []
    results: list[Any] = []

    def keep_given(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        # A copy, because the submodule can write to its input.
        everything = (*arguments, *named.values())
        given.append(tuple(v.clone() if isinstance(v, Tensor) else v for v in everything))

    def keep_result(_: nn.Module, __: Any, result: Any) -> None:
        results.append(result)

    submodule = host.get_submodule(path)
    handles = (
        submodule.register_forward_pre_hook(keep_given, with_kwargs=True),
        submodule.register_forward_hook(keep_result),
    )
    try:
        host(batch.clone())  # a network can write to its input
    finally:
        for handle in handles:
            handle.remove()
    if len(results) != 1:
        raise CaptureError(f"{name} is called {len(results)} times in one pass; it must be called once")
    if len(given[0]) != 1 or not isinstance(given[0][0], Tensor) or not isinstance(results[0], Tensor):
        taken = ", ".join(type(value).__name__ for value in given[0])
        raise CaptureError(
            f"{name} takes ({taken}) and returns a {type(results[0]).__name__}; a submodule must take one "
            "tensor and return one"
        )
    return given[0][0], results[0]


def _find_frames(shapes: Mapping[Size, Shape], what: str) -> FramesAt:
    """Return the position of the frame axis in tensors of several sizes."""
    (_, length), first = next(iter(shapes.items()))
    if all(shape[0] == n * s and shape[1:] == first[1:] for (n, s), shape in shapes.items()):
        return FramesAt(0)
    if len(set(map(len, shapes.values()))) == 1 and all(shape[0] == n for (n, _), shape in shapes.items()):
        axes = range(1, len(first))
        if len({s for _, s in shapes}) > 1:
            candidates = [axis for axis in axes if len({shape[axis] for shape in shapes.values()}) > 1]
        else:  # the network accepts one frame count only: use the axis of that size, if any
            candidates = [axis for axis in axes if first[axis] == length]
        if len(candidates) <= 1:
            return FramesAt(candidates[0] if candidates else None)
    listed = ", ".join(str(list(shape)) for shape in shapes.values())
    raise CaptureError(f"the frame axis of {what} is ambiguous (shapes {listed}); name another submodule")


def _without_frames(shape: Shape, frames: FramesAt) -> Shape:
    return tuple(size for axis, size in enumerate(shape) if axis not in (0, frames.axis))

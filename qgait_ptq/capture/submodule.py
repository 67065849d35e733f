"""A part of a network that is quantized alone, while the rest runs as the user wrote it.

For networks of which not all can be captured. The part sees tensors of the network's own making; here they
are brought to sequences ``[n, s, ...]``, as the stages have them, and back.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from qgait_ptq.capture.own_copy import copy_network
from qgait_ptq.capture.trace import (
    EXAMPLE_BATCH,
    EXAMPLE_FRAMES,
    embedding_network,
    unwrap,
)
from qgait_ptq.errors import CaptureError, ConfigError, first_line
from qgait_ptq.graph.frame_layout import FrameLayout
from qgait_ptq.graph.frame_parts import join_inputs
from qgait_ptq.graph.network_input import random_silhouettes
from qgait_ptq.graph.submodule_shapes import FramesAt, PartShapes, Replacement, Run, Shape

Size = tuple[int, int]  # sequences, frames


class Part(nn.Module):
    """A submodule as a network that takes sequences; its layers keep the names they have in the whole."""

    def __init__(self, submodule: nn.Module, name: str, shapes: PartShapes) -> None:
        super().__init__()
        # Names that no submodule has.
        self._part_path, self._part_shapes = name, shapes
        *packages, last = name.split(".")
        holder: nn.Module = self
        for package in packages:
            inner = nn.Module()
            holder.add_module(package, inner)
            holder = inner
        holder.add_module(last, submodule)

    def forward(self, frames: Tensor) -> Tensor:
        """``[n, s, ...]`` to the flattened output."""
        result = self.get_submodule(self._part_path)(self._part_shapes.given.from_sequences(frames))
        return self._part_shapes.flatten_result(result, frames.shape[0])


@dataclass(frozen=True)
class IsolatedPart:
    """A network, and a part of it.

    Attributes:
        host: the network, giving the embedding alone, in eval mode.
        name: of the part, in the network that the user has.
        path: of the part, in `host`.
        shapes: of what it takes and gives.
        frame_shape: of one frame that it is given.
        frames: that it takes only; None where it may take any.
    """

    host: nn.Module
    name: str
    path: str
    shapes: PartShapes
    frame_shape: tuple[int, ...]
    frames: int | None

    @property
    def part(self) -> Part:
        """The part as a network of its own."""
        return Part(self.host.get_submodule(self.path), self.name, self.shapes)

    def record(self, batch: Tensor) -> Tensor:
        """What the part is given when the network sees sequences; as sequences ``[n, s, ...]``."""
        with torch.inference_mode():
            given, _ = observe_call(self.host, self.path, self.name, batch)
        return self.shapes.given.to_sequences(given, batch.shape[0])

    def around(self, run: Run) -> nn.Module:
        """The network with the part computed by `run`, which takes and gives what `Part` does."""
        host = copy.deepcopy(self.host)
        host.set_submodule(self.path, Replacement(run, self.shapes))
        return host


def isolate(
    model: nn.Module,
    name: str,
    frame_shape: tuple[int, ...],
    frames: int | None = None,
    output: str | None = None,
    layout: FrameLayout | None = None,
) -> IsolatedPart:
    """Find what a part of a network takes and gives, by running the network.

    Args:
        model: the network; it is left as it is.
        name: of the part, a module path; without the adapter's, where the network is in one.
        frame_shape: of the frames that the network takes.
        frames: for networks that take one frame count only.
        output: names the embedding, for networks that give several tensors.
        layout: for networks of several inputs.

    Raises:
        ConfigError: the network has no such module.
        CaptureError: the network does not run, or the part is not called once with one tensor to give one, or
            it is not clear where its frames lie.
    """
    network = copy_network(model).requires_grad_(False)
    names = [path for path, _ in unwrap(network)[0].named_modules() if path]
    if name not in names:
        nearest = ", ".join(get_close_matches(name, names, n=3, cutoff=0.0)) or "none"
        raise ConfigError(f"the network has no module {name!r}; the nearest are {nearest}")
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
            f"{name} takes {list(given)} and gives {list(result)} for {sequences} sequences of {length} "
            "frames; a part either treats each frame alone, or takes whole sequences; name another one"
        )
    shapes = PartShapes(given_at, result_at, _without_frames(result, result_at))
    fixed = None if given_at.axis == 0 else frames
    return IsolatedPart(host, name, path, shapes, _without_frames(given, given_at), fixed)


def _observe_sizes(
    host: nn.Module, path: str, name: str, frame_shape: Shape, length: int
) -> dict[Size, tuple[Shape, Shape]]:
    """Shapes of input and output for several numbers of sequences and frames, as far as they are taken."""
    observed: dict[Size, tuple[Shape, Shape]] = {}
    for size in ((EXAMPLE_BATCH, length), (EXAMPLE_BATCH + 1, length), (EXAMPLE_BATCH, length + 4)):
        try:
            with torch.inference_mode():
                given, result = observe_call(host, path, name, random_silhouettes(*size, frame_shape))
        except CaptureError:
            raise
        except Exception as error:
            if observed:
                continue  # one size only, it seems
            raise CaptureError(
                f"the network does not run on sequences {[*size, *frame_shape]} "
                f"({type(error).__name__}: {first_line(error)})"
            ) from error
        observed[size] = tuple(given.shape), tuple(result.shape)
    return observed


def observe_call(host: nn.Module, path: str, name: str, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a submodule while a network runs.

    Args:
        host: the network.
        path: of the submodule in it.
        name: of the submodule in errors.
        batch: what the network takes.

    Raises:
        CaptureError: it is not called, called again, or takes or gives something else than one tensor.
    """
    given: list[tuple[Any, ...]] = []
    results: list[Any] = []

    def keep_given(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        # A copy: the submodule may write into it.
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
        host(batch)
    finally:
        for handle in handles:
            handle.remove()
    if len(results) != 1:
        raise CaptureError(f"{name} is called {len(results)} times in one pass; a part is called once")
    if len(given[0]) != 1 or not isinstance(given[0][0], Tensor) or not isinstance(results[0], Tensor):
        taken = ", ".join(type(value).__name__ for value in given[0])
        raise CaptureError(
            f"{name} takes ({taken}) and gives a {type(results[0]).__name__}; a part takes one tensor and "
            "gives one"
        )
    return given[0][0], results[0]


def _find_frames(shapes: Mapping[Size, Shape], what: str) -> FramesAt:
    """Where the frames lie in tensors of several sizes."""
    (_, length), first = next(iter(shapes.items()))
    if all(shape[0] == n * s and shape[1:] == first[1:] for (n, s), shape in shapes.items()):
        return FramesAt(0)
    if len(set(map(len, shapes.values()))) == 1 and all(shape[0] == n for (n, _), shape in shapes.items()):
        axes = range(1, len(first))
        if len({s for _, s in shapes}) > 1:
            found = [axis for axis in axes if len({shape[axis] for shape in shapes.values()}) > 1]
        else:  # the network takes one frame count only: then the axis of that size, if any
            found = [axis for axis in axes if first[axis] == length]
        if len(found) <= 1:
            return FramesAt(found[0] if found else None)
    listed = ", ".join(str(list(shape)) for shape in shapes.values())
    raise CaptureError(f"it is not clear where frames lie in {what}, of shapes {listed}")


def _without_frames(shape: Shape, frames: FramesAt) -> Shape:
    return tuple(size for axis, size in enumerate(shape) if axis not in (0, frames.axis))

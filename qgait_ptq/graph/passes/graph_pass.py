"""GraphPass: a rewrite of an FX graph with a name and declared needs, and the runner that checks each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qgait_ptq.errors import CaptureError
from qgait_ptq.graph.attributes import remove_unused
from qgait_ptq.graph.conversion import in_double
from qgait_ptq.graph.places import PLACE_KEY, place_of
from qgait_ptq.graph.shapes import record_free_axes, record_shapes

RELATIVE_TOLERANCE = 1e-5  # of the largest value of the output


@dataclass(frozen=True)
class GraphPass:
    """An exact rewrite of an FX graph.

    Attributes:
        name: name of the pass in errors.
        rewrite: function that changes a graph in place. The runner removes nodes without users, and records
            the shape of every node on the first example before each pass.
        needs_free_axes: whether the runner also records the axes that depend on batch size or frame count.
    """

    name: str
    rewrite: Callable[[fx.GraphModule], None]
    needs_free_axes: bool = False


def run_passes(
    graph_module: fx.GraphModule,
    passes: Iterable[GraphPass],
    examples: Sequence[Tensor],
    outputs: Sequence[Tensor] | None = None,
) -> fx.GraphModule:
    """Run passes one after the other, in place, and check that the graph computes the same after each.

    Every pass that changes the graph is checked on the first example. The final result is checked on all
    examples.

    Args:
        graph_module: captured network.
        passes: rewrites in order.
        examples: silhouettes ``[n, s, h, w]`` of different batch sizes and frame counts. The shapes of the
            first are recorded in the nodes; its n is at least 2.
        outputs: outputs of the graph for the examples, if they are known; None runs the graph.

    Returns:
        The same graph module, with the shapes of the first example recorded.

    Raises:
        CaptureError: a pass changed the output by more than 1e-5 of its largest value, in float32 and in
            float64.
    """
    original = copy.deepcopy(graph_module)
    with torch.inference_mode():
        expected = outputs or [graph_module(silhouettes) for silhouettes in examples]
    record_shapes(graph_module, examples[0])
    free_axes_are_fresh = False
    effective: list[str] = []
    for graph_pass in passes:
        if graph_pass.needs_free_axes and not free_axes_are_fresh:
            record_free_axes(graph_module, _extremes(examples))
            free_axes_are_fresh = True
        before, nodes = _fingerprint(graph_module), set(graph_module.graph.nodes)
        graph_pass.rewrite(graph_module)
        _inherit_places(graph_module, nodes)
        remove_unused(graph_module)
        if _fingerprint(graph_module) == before:
            continue
        effective.append(graph_pass.name)
        free_axes_are_fresh = False
        output = record_shapes(graph_module, examples[0])
        _check(f"the pass {graph_pass.name}", graph_module, original, output, expected[0], examples[0])
    graph_module.recompile()
    for silhouettes, reference in zip(examples[1:], expected[1:], strict=True):
        with torch.inference_mode():
            output = graph_module(silhouettes)
        culprit = f"one of the passes {', '.join(effective)}"
        _check(culprit, graph_module, original, output, reference, silhouettes)
    return graph_module


def _extremes(examples: Sequence[Tensor]) -> list[Tensor]:
    """Return the first example, and those with the smallest and largest batch size and frame count."""
    kept = {0}
    for axis in (0, 1):
        sizes = [example.shape[axis] for example in examples]
        kept |= {sizes.index(min(sizes)), sizes.index(max(sizes))}
    return [examples[index] for index in sorted(kept)]


def _inherit_places(graph_module: fx.GraphModule, before: set[fx.Node]) -> None:
    """Give new nodes the source location of the node that they replace: it stands behind them, unused."""
    unused: set[fx.Node] = set()
    replaced = ""
    for node in reversed(graph_module.graph.nodes):
        if node in before:
            if node.op != "output" and unused.issuperset(node.users):
                unused.add(node)
            replaced = place_of(node) if node in unused else ""
        elif replaced and not place_of(node):
            node.meta[PLACE_KEY] = replaced


def _fingerprint(graph_module: fx.GraphModule) -> list[tuple[str, str, str, str]]:
    """Return all nodes with their arguments, to compare two states of a graph."""
    return [
        (node.name, str(node.target), str(node.args), str(node.kwargs)) for node in graph_module.graph.nodes
    ]


def _check(
    culprit: str,
    graph_module: fx.GraphModule,
    original: fx.GraphModule,
    output: Tensor,
    expected: Tensor,
    silhouettes: Tensor,
) -> None:
    """Refuse an output that differs from that of the captured network."""
    if output.shape != expected.shape:
        raise CaptureError(
            f"{culprit} changed the shape of the network's output from {list(expected.shape)} to "
            f"{list(output.shape)} on silhouettes {list(silhouettes.shape)}; please report this network"
        )
    difference, largest = float((output - expected).abs().max()), float(expected.abs().max())
    if not difference <= RELATIVE_TOLERANCE * largest:
        if _agree_in_double(graph_module, original, silhouettes):
            return
        raise CaptureError(
            f"{culprit} changed the network's output by {difference:.2e} (largest value {largest:.2e}) "
            f"on silhouettes {list(silhouettes.shape)}; please report this network"
        )


def _agree_in_double(rewritten: fx.GraphModule, original: fx.GraphModule, silhouettes: Tensor) -> bool:
    """Return whether both graphs compute the same in float64, so that a float32 difference is rounding."""
    with torch.inference_mode():
        output, expected = (in_double(graph)(silhouettes.double()) for graph in (rewritten, original))
    return bool((output - expected).abs().max() <= RELATIVE_TOLERANCE * expected.abs().max())

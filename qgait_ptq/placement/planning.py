"""The plan: a simplified graph of the network, annotated with all quantizers. It needs no data."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from qgait_ptq.capture.captured import Capture
from qgait_ptq.capture.own_copy import copy_network
from qgait_ptq.capture.submodule import isolate
from qgait_ptq.capture.trace import capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import ConfigError
from qgait_ptq.gait.opengait.adapter import check_labels_unread
from qgait_ptq.graph.annotation import BitWidths
from qgait_ptq.graph.frame_inputs import check_all_read, join_inputs
from qgait_ptq.graph.frame_layout import FrameLayout
from qgait_ptq.graph.passes import SIMPLIFICATION
from qgait_ptq.graph.passes.graph_pass import run_passes
from qgait_ptq.graph.shapes import record_shapes
from qgait_ptq.placement.annotate import annotate
from qgait_ptq.placement.layers import LayerPlan, list_layers
from qgait_ptq.placement.patterns import names_layer
from qgait_ptq.targets.registry import get_target
from qgait_ptq.targets.target import check_widths

REPORTED_FRAMES = 30  # sequence length for which multiply-accumulates are reported


def plan(
    model: nn.Module,
    frame_shape: tuple[int, ...],
    config: QuantConfig,
    *,
    frames: int | None = None,
    output: str | None = None,
    layout: FrameLayout | None = None,
    submodule: str | None = None,
    raw: bool = False,
) -> tuple[Capture, fx.GraphModule, list[LayerPlan]]:
    """Capture a network and determine what is quantized, without data.

    Args:
        model: network that takes ``[n, s, h, w]`` or ``[n, s, c, h, w]``.
        frame_shape: shape of a frame, ``(h, w)`` or ``(c, h, w)``.
        config: configuration with widths and target.
        frames: fixed frame count; None if the network takes several.
        output: name of the embedding, for networks with several outputs.
        layout: layout of frames ``(F,)``, for networks with several inputs.
        submodule: module path of the part to plan; None plans the whole network.
        raw: whether the input is other values than silhouettes.

    Returns:
        The capture, the simplified and annotated float graph, and its layers.

    Raises:
        CaptureError: the network cannot be captured.
        ConfigError: the configuration names layers that the network does not have.
    """
    if submodule is not None:
        isolated = isolate(model, submodule, frame_shape, frames, output, layout)
        return plan(isolated.as_network, isolated.frame_shape, config, frames=isolated.frames, raw=True)
    if raw and config.input_bits == 1:
        raise ConfigError("input_bits is 1, but the input of the network is not silhouettes")
    target, widths = get_target(config.target), bit_widths(config, raw=raw)
    check_widths(target, widths)
    network = join_inputs(copy_network(model), layout)
    captured = capture(network, frame_shape, frames, output)
    check_all_read(captured.graph_module, network)
    check_labels_unread(captured.graph_module)
    sizes = dict.fromkeys((captured.own_size, *captured.checked))
    examples, outputs = (
        [captured.example(*size) for size in sizes],
        [captured.outputs[size] for size in sizes],
    )
    passes = (*SIMPLIFICATION, *target.graph_passes)
    graph_module = run_passes(captured.graph_module, passes, examples, outputs).requires_grad_(False)
    annotate(graph_module, target.rules, widths)
    record_shapes(graph_module, captured.example(sequences=1, length=REPORTED_FRAMES))
    return captured, graph_module, list_layers(graph_module)


def bit_widths(config: QuantConfig, *, raw: bool = False) -> BitWidths:
    """Return the widths of a configuration for placement; `raw` as for `plan`."""
    return BitWidths(
        weight=config.weight_bits,
        activation=config.activation_bits,
        edge=config.edge_bits,
        input=config.input_bits,
        elementwise=config.elementwise_bits,
        weight_observer=config.weight_observer,
        activation_observer=config.observer,
        layers={name: (bits.weight_bits, bits.activation_bits) for name, bits in config.layers.items()},
        include=config.include,
        exclude=config.exclude,
        limit_pairs=config.weight_range == "safe",
        raw=raw,
    )


def width_notes(network: fx.GraphModule, layers: Sequence[LayerPlan], config: QuantConfig) -> list[str]:
    """Return a line for each layer whose input does not have the width that the configuration asks for.

    Args:
        network: annotated graph.
        layers: its layers.
        config: configuration with widths of single layers.
    """
    nodes = {node.name: node for node in network.graph.nodes}
    notes = []
    for layer in layers:
        node = nodes[layer.node]
        asked = [own.activation_bits for name, own in config.layers.items() if names_layer(name, node)]
        wanted = next((bits for bits in reversed(asked) if bits is not None), None)
        if wanted is not None and layer.activation_bits not in (None, wanted):
            notes.append(
                f"the input of {layer.name} has {layer.activation_bits} bits instead of {wanted}: another "
                "layer reads the same tensor at that width, or input_bits sets it"
            )
    return notes

"""Stage 0: ranges. Observers record the tensors of the float network and set scales and zero-points."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from qgait_ptq.calibration.additions import align_additions
from qgait_ptq.errors import CalibrationError
from qgait_ptq.graph.attributes import tensor_of
from qgait_ptq.graph.stored_weights import layer_name
from qgait_ptq.placement.quantized_layers import quantized_layers, weight_of, weight_only_weights
from qgait_ptq.quantizer.fake_quantize import FakeQuantize, set_observing
from qgait_ptq.quantizer.grid import smallest_scale
from qgait_ptq.quantizer.observers import MergeableObserver, Observer
from qgait_ptq.quantizer.pairs import widened_scale
from qgait_ptq.system.exchanging import exchange
from qgait_ptq.system.invariants import of_type, present
from qgait_ptq.system.processes import processes


def calibrate_ranges(graph_module: fx.GraphModule, batches: Iterable[Tensor]) -> fx.GraphModule:
    """Set the parameters of all quantizers from calibration data.

    The network runs in float while its tensors are observed. No batch is kept in memory. Observations of the
    processes of a run are merged where `can_share_batches` holds.

    Args:
        graph_module: graph with inserted quantizers; changed in place.
        batches: silhouettes ``[n, s, h, w]`` in [0, 1]; the share of this process, or all of them.

    Raises:
        CalibrationError: there is no batch, or a tensor is not finite. The error names the layer.
    """
    set_observing(graph_module, True)
    weights = _weight_quantizers(graph_module)
    for name, quantizer, weight in weights:
        if not torch.isfinite(weight).all():
            raise CalibrationError(
                f"layer {name}: its weights contain NaN or infinite values; check the checkpoint"
            )
        quantizer.observer(weight)
        quantizer.disable_observer()
    seen = 0
    with torch.inference_mode():
        for batch in batches:
            _observe(graph_module, batch)
            seen += 1
    if sum(exchange(seen)) == 0:
        raise CalibrationError("there is no calibration sequence; at least one is needed")
    if can_share_batches(graph_module):
        _merge_observers(graph_module)
    for name, quantizer in _quantizers(graph_module).items():
        quantizer.take_range()
        if not torch.isfinite(quantizer.scale).all():
            raise CalibrationError(f"{name}: its range on the calibration data is NaN or infinite")
    align_additions(graph_module)
    for _, quantizer, weight in weights:
        if quantizer.grid.pair_limit is not None:
            quantizer.set_scale(widened_scale(weight, quantizer.scale, quantizer.grid.pair_limit))
    _leave_room_for_bias(graph_module)
    set_observing(graph_module, False)
    return graph_module


def can_share_batches(graph_module: fx.GraphModule) -> bool:
    """Return whether processes can share the batches: no observer depends on the order of all batches."""
    return all(isinstance(observer, MergeableObserver) for observer in _activation_observers(graph_module))


def _activation_observers(graph_module: fx.GraphModule) -> list[Observer]:
    weights = {quantizer for _, quantizer, _ in _weight_quantizers(graph_module)}
    return [one.observer for one in _quantizers(graph_module).values() if one not in weights]


def _merge_observers(graph_module: fx.GraphModule) -> None:
    """Let the observers of each process have seen what those of all processes have."""
    own = [one for one in _activation_observers(graph_module) if isinstance(one, MergeableObserver)]
    everywhere = exchange([_on_cpu(observer) for observer in own])
    for number, observer in enumerate(own):
        for others in everywhere[: processes().rank] + everywhere[processes().rank + 1 :]:
            observer.merge(others[number])


def _on_cpu(observer: MergeableObserver) -> MergeableObserver:
    """Return a copy that processes with other GPUs can receive."""
    moved = copy.deepcopy(observer)
    of_type(moved, nn.Module).cpu()
    return moved


def _observe(graph_module: fx.GraphModule, batch: Tensor) -> None:
    try:
        embedding = graph_module(batch)
    except ValueError as error:
        raise CalibrationError(f"the float network failed on the calibration data: {error}") from error
    if not torch.isfinite(embedding).all():
        raise CalibrationError(
            "the float network gives NaN or infinite embeddings on the calibration data; "
            "check the checkpoint and the data"
        )


def _quantizers(graph_module: fx.GraphModule) -> dict[str, FakeQuantize]:
    return {n: module for n, module in graph_module.named_modules() if isinstance(module, FakeQuantize)}


def _weight_quantizers(graph_module: fx.GraphModule) -> list[tuple[str, FakeQuantize, Tensor]]:
    """Return the name of the layer, the quantizer, and the float values of each quantized weight."""
    return [
        *(
            (layer_name(layer.node), layer.weight_quantizer, weight_of(graph_module, layer))
            for layer in quantized_layers(graph_module)
        ),
        *(
            (layer_name(weight.node), weight.quantizer, weight.value(graph_module))
            for weight in weight_only_weights(graph_module)
        ),
    ]


def _leave_room_for_bias(graph_module: fx.GraphModule) -> None:
    """Raise the weight scales of channels whose bias would not fit into int32.

    Channels with weights near zero have a scale near zero. Batch norm folding can give such channels a bias
    of ordinary size, which must be a multiple of input scale × weight scale. A coarser grid does no harm
    there: the weights are negligible beside the bias.
    """
    for layer in quantized_layers(graph_module):
        if layer.bias_quantizer is None:
            continue
        bias = present(tensor_of(graph_module, layer.bias_parameter))
        inputs, weights = layer.input_quantizer(graph_module), layer.weight_quantizer
        needed = smallest_scale(bias, inputs.scale)
        weights.set_scale(torch.maximum(weights.scale, needed.to(weights.scale.dtype)))

"""Rules for the proof of `frame_independence`: when an operator treats each frame of its tensors alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import fx

from qgait_ptq.graph.frame_calls import (
    COMBINES,
    LOOKS,
    MOVES,
    UNKNOWN,
    FrameCall,
)
from qgait_ptq.graph.frame_inputs import FRAME_INPUT
from qgait_ptq.graph.operators import (
    BATCH_NORMS,
    CONCATENATIONS,
    CONVOLUTIONS,
    LEAKY_RECTIFIERS,
    MATRIX_PRODUCTS,
    MAX_POOLS,
    MAXIMA,
    aten,
    is_operator,
)
from qgait_ptq.graph.views import ModuleCall, WeightedLayer, argument, operands

Rule = Callable[[FrameCall], str | None]  # returns what is wrong


def _aligned(call: FrameCall) -> str | None:
    """Elementwise operators: frames meet frames of the same number."""
    same = all(frames.place == call.result.place for frames in call.given.values())
    return None if same else COMBINES


def _regrouped(call: FrameCall) -> str | None:
    """Reshapes: each frame keeps its values, and frames stay in order."""
    frames = call.only
    if frames is None or (is_operator(call.node, SQUEEZES) and frames.is_among(argument(call.node, "dim"))):
        return UNKNOWN
    return None if frames.surroundings == call.result.surroundings else COMBINES


def _moved(call: FrameCall) -> str | None:
    """Permutations of axes."""
    return None if call.only is not None else UNKNOWN


def _along_other_axes(call: FrameCall) -> str | None:
    """Operators along the axes that they name."""
    frames, name = call.only, "dims" if is_operator(call.node, REORDERINGS) else "dim"
    if frames is None:
        return UNKNOWN
    return without_axis(call.node) if frames.is_among(argument(call.node, name)) else None


def _concatenated(call: FrameCall) -> str | None:
    return COMBINES if call.result.is_among(argument(call.node, "dim")) else _aligned(call)


def _convolved(call: FrameCall) -> str | None:
    """Convolutions: frames are batches, or lie along an axis whose kernel sees one place."""
    layer, frames = WeightedLayer.of(call.node), call.only
    if layer is None or frames is None:
        return COMBINES
    spatial = len(layer.stride)
    if frames.from_right > spatial:
        return None if frames.from_right == spatial + 2 else COMBINES
    axis = spatial - frames.from_right
    kernel = call.shapes[layer.weight][0][2 + axis]
    return None if (kernel, layer.stride[axis], layer.padding[axis]) == (1, 1, 0) else COMBINES


def _linear(call: FrameCall) -> str | None:
    return COMBINES if call.only is None or call.only.from_right == 1 else None


def _multiplied(call: FrameCall) -> str | None:
    """Matrix products: frames are batches of both operands, rows of the first or columns of the second."""
    first, second = (call.given.get(operand) for operand in operands(call.node))
    if first is not None and second is not None:
        batches = first.place == second.place and first.from_right > 2
        return None if batches else COMBINES
    if first is not None:
        return COMBINES if first.from_right == 1 else None
    return COMBINES if second is None or second.from_right == 2 or len(second.shape) == 1 else None


def _attended(call: FrameCall) -> str | None:
    """Attention: frames are batches."""
    return COMBINES if call.result.from_right < 3 else _aligned(call)


def _summed_by_letters(call: FrameCall) -> str | None:
    """Einstein sums: the letter of the frames stays, and nothing else has it."""
    equation, tensors = argument(call.node, "equation"), argument(call.node, "tensors")
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = dict(zip(tensors, inputs.split(","), strict=True))
    if not arrow or "." in equation or len(terms) < len(tensors):
        return UNKNOWN
    letter = next(terms[node][frames.axis] for node, frames in call.given.items())
    counts = {node: term.count(letter) for node, term in terms.items() if letter in term}
    same = all(terms[node][frames.axis] == letter for node, frames in call.given.items())
    stays = same and letter in output and counts == dict.fromkeys(call.given, 1)
    return None if stays else COMBINES


def _pooled(call: FrameCall) -> str | None:
    """Pooling: the window sees one frame."""
    frames, axes = call.only, int(re.findall(r"(\d)d", str(call.node.target))[0])
    if frames is None:
        return UNKNOWN
    if frames.from_right > axes:
        return None
    if is_operator(call.node, ADAPTIVE_POOLS):
        return COMBINES
    axis = axes - frames.from_right
    kernel, stride, padding = (
        _at(argument(call.node, name), axis) for name in ("kernel_size", "stride", "padding")
    )
    # An empty stride is that of the kernel.
    return None if kernel == 1 and stride in (1, None) and padding == 0 else COMBINES


def _at(values: int | Sequence[int], axis: int) -> int | None:
    """Return the value of one axis from a list of one or several; None where the list is empty."""
    if isinstance(values, int) or not values:
        return values if isinstance(values, int) else None
    return values[axis] if len(values) > 1 else values[0]


def _normalised_by_channel(call: FrameCall) -> str | None:
    fixed = call.only is not None and call.only.axis != 1 and argument(call.node, "training") is False
    return None if fixed else COMBINES


def _normalised_over_last_axes(call: FrameCall) -> str | None:
    last = len(argument(call.node, "normalized_shape"))
    return None if call.only is not None and call.only.from_right > last else COMBINES


def _normalised_in_each_batch(call: FrameCall) -> str | None:
    return None if call.only is not None and call.only.axis == 0 else COMBINES


def _padded(call: FrameCall) -> str | None:
    frames, padding = call.only, argument(call.node, "pad")
    if frames is None:
        return UNKNOWN
    ends = padding[2 * frames.from_right - 2 : 2 * frames.from_right]  # from the last axis on
    return COMBINES if any(ends) else None


def _looked_up(call: FrameCall) -> str | None:
    """Tables: frames are among the indices, not in the table."""
    return None if list(call.given) == [argument(call.node, "indices")] else COMBINES


def _indexed(call: FrameCall) -> str | None:
    """Indices: those of later axes are fixed, and there are none up to the axis of the frames."""
    frames, indices = call.only, argument(call.node, "indices")
    return None if frames is not None and not any(indices[: frames.axis + 1]) else LOOKS


def _taken_apart(call: FrameCall) -> str | None:
    """One of several inputs ``[n, s, F]``."""
    return None if call.only is not None and call.only.axis == call.result.axis == 1 else UNKNOWN


EXPANSIONS = frozenset({aten.expand.default, aten.expand_as.default, aten.repeat.default})
SQUEEZES = frozenset({aten.squeeze.dim, aten.squeeze.dims})
REGROUPINGS = SQUEEZES | {
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.unsqueeze.default,
}
LOOKUPS = frozenset({aten.slice.Tensor, aten.select.int, aten.index_select.default, aten.index.Tensor})
REORDERINGS = frozenset({aten.flip.default, aten.roll.default})
ALONG_AXES = (
    MAXIMA
    | REORDERINGS
    | {
        aten.slice.Tensor,
        aten.select.int,
        aten.index_select.default,
        aten.softmax.int,
        aten._softmax.default,
        aten.log_softmax.int,
        aten.cumsum.default,
        aten.cumprod.default,
        aten.mean.dim,
        aten.sum.dim_IntList,
        aten.amin.default,
        aten.var.correction,
        aten.var.dim,
        aten.std.correction,
        aten.std.dim,
        aten.linalg_vector_norm.default,
        aten.norm.ScalarOpt_dim,
        aten.logsumexp.default,
        aten.prod.dim_int,
        aten.glu.default,
    }
)
ADAPTIVE_POOLS = frozenset(
    {
        aten.adaptive_avg_pool1d.default,
        aten.adaptive_avg_pool2d.default,
        aten.adaptive_avg_pool3d.default,
        aten.adaptive_max_pool1d.default,
        aten.adaptive_max_pool2d.default,
        aten.adaptive_max_pool3d.default,
    }
)
MEAN_POOLS = frozenset({aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default})
# Beside those that torch itself marks as pointwise. Torch 2.11 does not mark leaky ReLU.
ELEMENTWISE = {
    *EXPANSIONS,
    *LEAKY_RECTIFIERS,
    aten.alias.default,
    aten.contiguous.default,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten._to_copy.default,
    aten.type_as.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.prelu.default,
    aten.log_sigmoid.default,
    aten.where.ScalarSelf,
    aten.where.ScalarOther,
    aten.where.Scalar,
    aten.__and__.Tensor,
    aten.__or__.Tensor,
}
_TABLE: dict[frozenset[object], Rule] = {
    frozenset(ELEMENTWISE): _aligned,
    REGROUPINGS: _regrouped,
    frozenset({aten.permute.default, aten.transpose.int}): _moved,
    ALONG_AXES: _along_other_axes,
    CONCATENATIONS: _concatenated,
    CONVOLUTIONS: _convolved,
    frozenset({aten.linear.default}): _linear,
    MATRIX_PRODUCTS: _multiplied,
    frozenset({aten.scaled_dot_product_attention.default}): _attended,
    frozenset({aten.einsum.default}): _summed_by_letters,
    MAX_POOLS | MEAN_POOLS | ADAPTIVE_POOLS: _pooled,
    BATCH_NORMS: _normalised_by_channel,
    frozenset({aten.layer_norm.default}): _normalised_over_last_axes,
    frozenset({aten.group_norm.default, aten.instance_norm.default}): _normalised_in_each_batch,
    frozenset({aten.pad.default, aten.constant_pad_nd.default}): _padded,
    frozenset({aten.embedding.default}): _looked_up,
    frozenset({aten.index.Tensor}): _indexed,
    frozenset({FRAME_INPUT}): _taken_apart,
}
RULES: dict[object, Rule] = {target: rule for targets, rule in _TABLE.items() for target in targets}


def find_rule(node: fx.Node) -> Rule | None:
    """Return the rule of an operator, or of a quantizer; None where there is none."""
    if ModuleCall.of(node) is not None:
        return _aligned
    tags = getattr(node.target, "tags", [])
    pointwise = torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags
    return RULES.get(node.target, _aligned if pointwise else None)


def without_axis(node: fx.Node) -> str:
    """Return what an operator does that leaves no frames as they were."""
    if is_operator(node, LOOKUPS):
        return LOOKS
    return MOVES if is_operator(node, REORDERINGS) else COMBINES

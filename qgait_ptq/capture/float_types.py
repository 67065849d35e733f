"""Networks with layers in half or double precision, computed in float32.

All weights of a captured network are float32. A layer whose input the network converts to another type would
fail, or would compute in a type that runtimes have no kernels for. So the conversions of such a network have
no effect. Conversions away from layers, which only round, stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from qgait_ptq.graph.code_places import find_caller
from qgait_ptq.graph.operators import TRANSPOSED_CONVOLUTIONS, WEIGHTED

UNKNOWN_PLACE = "an exported program"  # whose lines are not known
OTHER_TYPES = (torch.float16, torch.bfloat16, torch.float64)
TENSOR_TYPES = ("HalfTensor", "BFloat16Tensor", "DoubleTensor")
CONVERSIONS = frozenset({Tensor.half, Tensor.bfloat16, Tensor.double})
WITH_PARAMETERS = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "prelu")
RECURRENT = (
    "lstm",
    "gru",
    "rnn_tanh",
    "rnn_relu",
    "lstm_cell",
    "gru_cell",
    "rnn_tanh_cell",
    "rnn_relu_cell",
)
LAYERS = frozenset(
    {
        functional.linear,
        functional.scaled_dot_product_attention,
        functional.multi_head_attention_forward,
        *(getattr(module, name) for module in (functional, torch) for name in WITH_PARAMETERS),
        *(getattr(torch, name) for name in RECURRENT),
        *(getattr(torch, f"conv{axes}d") for axes in (1, 2, 3)),
        *(getattr(torch, f"conv_transpose{axes}d") for axes in (1, 2, 3)),
        *WEIGHTED,
        *TRANSPOSED_CONVOLUTIONS,
    }
)
# Words of torch's errors where two types meet in a layer.
CONFLICTS = (
    "should be the same",
    "to have the same dtype",
    "must have the same dtype",
    "expected scalar type",
    "mixed dtype",
    "Type promoting not supported",
    "does not match weight dtype",
)


class LayerTypes(TorchFunctionMode):
    """Context that notes whether a layer gets another type than float32.

    Attributes:
        others: whether one does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.others = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function, and look at its tensors if it is a layer."""
        given = (*args, *(kwargs or {}).values())
        if func in LAYERS and any(isinstance(one, Tensor) and one.dtype in OTHER_TYPES for one in given):
            self.others = True
        return func(*args, **(kwargs or {}))


def has_other_types(network: nn.Module) -> bool:
    """Return whether a network holds weights or buffers in half or double precision."""
    return any(value.dtype in OTHER_TYPES for value in (*network.parameters(), *network.buffers()))


def is_type_conflict(error: BaseException) -> bool:
    """Return whether an error says that two types meet in a layer."""
    return any(words in str(error) for words in CONFLICTS)


class _ConversionsToFloat32(TorchFunctionMode):
    """Context in which conversions to other floating types give float32.

    Attributes:
        places: lines of these conversions, ``file:line``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function with float32 in place of other floating types."""
        kwargs = kwargs or {}
        named = any(_float32(one) is not one for one in (*args, *kwargs.values()))
        if func in CONVERSIONS or named:
            place = find_caller()
            self.places.add(f"{place.file}:{place.line}" if place else UNKNOWN_PLACE)
        if func in CONVERSIONS:
            return args[0].float()
        if not named:
            return func(*args, **kwargs)
        return func(*map(_float32, args), **{name: _float32(value) for name, value in kwargs.items()})


def _float32(value: Any) -> Any:
    """Return float32 for half and double precision, also by the names of `Tensor.type`; others unchanged."""
    if isinstance(value, torch.dtype):
        return torch.float32 if value in OTHER_TYPES else value
    is_name = isinstance(value, str | type) and str(value).rpartition(".")[2].rstrip("'>") in TENSOR_TYPES
    return torch.float32 if is_name else value


class WithoutConversions(nn.Module):
    """A network whose conversions to half or double precision have no effect.

    Attributes:
        network: the network.
        places: lines of the conversions that were met so far, ``file:line``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.places: set[str] = set()

    def forward(self, silhouettes: Tensor) -> Any:
        """Run the network, and add the lines of its conversions to ``places``."""
        with _ConversionsToFloat32() as conversions:
            output = self.network(silhouettes)
        self.places |= conversions.places
        return output


def dropped_conversions(network: nn.Module) -> tuple[str, ...]:
    """Return the lines of the conversions that had no effect while a network ran."""
    wrappers = (module for module in network.modules() if isinstance(module, WithoutConversions))
    return tuple(sorted({place for wrapper in wrappers for place in wrapper.places}))

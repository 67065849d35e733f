"""A copy of the user's network for capture: in eval mode, float32, on the CPU, with plain weights.

Weight normalization, spectral normalization, pruning and parametrizations compute a weight from other
tensors. The copy holds the computed weight. The user's network stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode

from qgait_ptq.capture.autocast_programs import compute_in_float32
from qgait_ptq.capture.quiet import quiet_torch
from qgait_ptq.capture.trace import set_to_inference
from qgait_ptq.errors import CaptureError, first_line

TRANSPARENT = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)  # call their ``module``
COMPILED = "_orig_mod"  # the module in what torch.compile returns
SHARDED = "torch.distributed.fsdp"
# Packages of modules with integer weights.
QUANTIZED = tuple(f"torch.{place}.quantized" for place in ("ao.nn", "ao.nn.intrinsic", "nn", "nn.intrinsic"))
FLOAT_NETWORK = "Quantize the float network instead: the one before it was quantized"


def copy_network(model: nn.Module) -> nn.Module:
    """Return a copy that a network can be captured from.

    Args:
        model: the user's network; it is left as it is.

    Raises:
        CaptureError: the network cannot be used, or cannot be copied.
    """
    check_usable(model)
    memo: dict[int, Any] = {}
    try:
        with quiet_torch(), _DetachedCopies():
            for module in reversed(list(model.modules())):
                inner = _wrapped(module)
                if inner is not None:
                    memo[id(module)] = copy.deepcopy(inner, memo)
            network: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:
        raise CaptureError(_explain_copy(model, error)) from error
    with quiet_torch():
        network = network.cpu().float()
    set_to_inference(network)
    compute_in_float32(network)
    compute_weights(network)
    return network


def without_wrapper(network: nn.Module) -> nn.Module:
    """Return the network inside of DataParallel, torch.compile and others that only call it."""
    inner = _wrapped(network)
    while inner is not None:
        network, inner = inner, _wrapped(inner)
    return network


def _wrapped(module: nn.Module) -> nn.Module | None:
    """The module that a wrapper calls; None where a module is no wrapper."""
    if isinstance(module, TRANSPARENT):
        return module.module
    compiled = module._modules.get(COMPILED)
    return compiled if compiled is not None and type(module).__name__ == "OptimizedModule" else None


def check_usable(network: Any) -> None:
    """Refuse what cannot be captured, with the name of the module and what to do.

    Raises:
        CaptureError: the network is no module, is scripted, has weights without values, or is quantized.
    """
    if not isinstance(network, nn.Module):
        raise CaptureError(
            f"the network is of type {type(network).__name__}, not a torch.nn.Module{_instead_of(network)}"
        )
    for name, module in network.named_modules():
        where = f"the module {name} of the network" if name else "the network"
        for is_refused, reason in REFUSALS:
            if is_refused(module):
                raise CaptureError(f"{where} ({type(module).__name__}) {reason}")


def _instead_of(given: Any) -> str:
    if isinstance(given, torch.export.ExportedProgram):
        return "; pass program.module()"
    return "; load or create the network first"


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    tensors = (*module._parameters.values(), *module._buffers.values())
    return (value for value in tensors if value is not None)


def _is_quantized(module: nn.Module) -> bool:
    place = type(module).__module__
    return any(place == package or place.startswith(f"{package}.") for package in QUANTIZED) or any(
        not torch.nn.parameter.is_lazy(value) and value.is_quantized for value in _own_tensors(module)
    )


def _is_sharded(module: nn.Module) -> bool:
    return type(module).__module__.startswith(SHARDED)


REFUSALS: tuple[tuple[Callable[[nn.Module], bool], str], ...] = (
    (
        lambda module: isinstance(module, torch.jit.ScriptModule),
        "is TorchScript (torch.jit.script or torch.jit.trace), which torch.export cannot capture. Pass the "
        "Python module that it was made of, after load_state_dict(scripted.state_dict())",
    ),
    (_is_quantized, f"is quantized already. {FLOAT_NETWORK}"),
    (
        lambda module: isinstance(module, FakeQuantizeBase),
        f"is a quantizer of torch.ao. {FLOAT_NETWORK}",
    ),
    (
        _is_sharded,
        "is split over processes (FSDP). Pass a network with the full state_dict",
    ),
    (
        lambda module: any(map(torch.nn.parameter.is_lazy, _own_tensors(module))),
        "has no weights yet: a lazy module gets them from its first input. Load trained weights, which also "
        "sets their shapes",
    ),
    (
        lambda module: any(value.is_meta for value in _own_tensors(module)),
        "is on the meta device and has no values. Create it on the CPU, or load weights with "
        "load_state_dict(…, assign=True)",
    ),
    (
        lambda module: any(hasattr(value, "__tensor_flatten__") for value in _own_tensors(module)),
        "has weights of a tensor subclass, such as quantized or distributed ones. Pass a network with "
        "plain tensors",
    ),
)


class _DetachedCopies(TorchFunctionMode):
    """Lets tensors that were computed with gradients be copied, as their values."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _explain_copy(model: nn.Module, error: Exception) -> str:
    """Name the attribute that cannot be copied."""
    reason = f"{type(error).__name__}: {first_line(error)}"
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                with quiet_torch(), _DetachedCopies():
                    copy.deepcopy(value, {id(other): other for other in model.modules()})
            except Exception:
                path, kind = ".".join(filter(None, ("network", name, attribute))), type(value).__name__
                return (
                    f"the network cannot be copied ({reason}) because of {path}, a {kind}; the toolkit works "
                    f"on a copy. Set {path} to None before, or give {type(module).__name__} a __getstate__ "
                    "without it"
                )
    return f"the network cannot be copied ({reason}); the toolkit works on a copy, made with copy.deepcopy"


def compute_weights(network: nn.Module) -> None:
    """Replace reparametrized weights by what they are computed to, in place, in eval mode.

    Raises:
        CaptureError: a weight cannot be replaced.
    """
    for name, module in list(network.named_modules()):
        try:
            for hook in reversed(list(module._forward_pre_hooks.values())):
                if isinstance(hook, WeightNorm):
                    remove_weight_norm(module, hook.name)
                elif isinstance(hook, SpectralNorm):
                    remove_spectral_norm(module, hook.name)
                elif isinstance(hook, prune.BasePruningMethod):
                    prune.remove(module, hook._tensor_name)
            if parametrize.is_parametrized(module):
                _remove_parametrizations(module)
        except Exception as error:
            raise CaptureError(
                f"the weights of {name or 'the network'} are computed (weight normalization, pruning or "
                f"another parametrization) and cannot be replaced by their values ({type(error).__name__}: "
                f"{first_line(error)}); remove the parametrization before"
            ) from error


def _remove_parametrizations(module: nn.Module) -> None:
    """Set all parametrized tensors of a module to their values.

    `parametrize.remove_parametrizations` changes the class of the module, which a copy shares with the module
    that it was copied from.
    """
    parametrizations = cast(nn.ModuleDict, module.parametrizations)
    trained = {name: bool(part._parameters) for name, part in parametrizations.items()}
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in trained}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        value = value.float() if value.is_floating_point() else value
        if trained[name]:
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(name, value)

"""Making a network of OpenGait without its trainer.

A network of OpenGait is its own trainer. The constructor of the trainer needs process groups, GPUs and data,
and calls ``build_network``. Here, a shorter constructor takes its place: it sets the attributes that code of
networks reads, and calls ``build_network``. Constructors of the networks themselves run as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

PACKAGE = "modeling"  # trainers are modules of this package; networks are in packages inside it
PREPARE = "inputs_pretreament"  # spelt as in OpenGait


class _NoLog:
    """A logger that logs nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def make_without_trainer(network_class: type[nn.Module], cfgs: Mapping[str, Any]) -> nn.Module:
    """Make a network as its constructor does, without the constructor of its trainer.

    Args:
        network_class: class of the network.
        cfgs: all sections of the configuration.
    """
    settings = copy.deepcopy(dict(cfgs))
    trainers = [base for base in network_class.__mro__ if _is_trainer(base) and "__init__" in vars(base)]
    if not trainers:
        network = network_class.__new__(network_class)
        _start(network, settings)
        return network
    with _short_constructors(trainers):
        return network_class(settings, False)


def own_preparation(network: nn.Module) -> str | None:
    """Return ``file:line`` of the code with which a network prepares its inputs; None for the trainer's code.

    OpenGait calls this code before ``forward``, on the CPU. It is not in the captured graph.
    """
    home = next((base for base in type(network).__mro__ if PREPARE in vars(base)), None)
    code = getattr(vars(home)[PREPARE], "__code__", None) if home is not None else None
    if home is None or code is None or _is_trainer(home):
        return None
    return f"{code.co_filename}:{code.co_firstlineno}"


def _start(network: nn.Module, cfgs: dict[str, Any], training: bool = False) -> None:
    """Set the attributes that the trainer sets before it builds the network, and build it."""
    nn.Module.__init__(network)
    evaluation = cfgs.get("evaluator_cfg") or {}
    attributes = {
        "cfgs": cfgs,
        "msg_mgr": _NoLog(),
        "iteration": 0,
        "engine_cfg": evaluation,
        "save_path": str(Path("output", str(evaluation.get("save_name", "")))),
    }
    for name, value in attributes.items():
        setattr(network, name, value)
    network.build_network(cfgs["model_cfg"])  # type: ignore[operator]


@contextmanager
def _short_constructors(trainers: list[type]) -> Iterator[None]:
    """Replace the constructors of trainers."""
    constructors = [trainer.__init__ for trainer in trainers]  # type: ignore[misc]
    try:
        for trainer in trainers:
            trainer.__init__ = _start  # type: ignore[misc]
        yield
    finally:
        for trainer, constructor in zip(trainers, constructors, strict=True):
            trainer.__init__ = constructor  # type: ignore[misc]


def _is_trainer(base: type) -> bool:
    return base.__module__.rpartition(".")[0] == PACKAGE

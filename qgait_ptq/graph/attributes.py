"""Reading and writing the parameters that a graph's ``get_attr`` nodes name."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

ORIGIN_KEY = "qgait.origin"


def attribute(module: nn.Module, path: str) -> Tensor:
    """Return the tensor at a dotted path."""
    owner, _, name = path.rpartition(".")
    value: Tensor = getattr(module.get_submodule(owner), name)
    return value


def tensor_of(graph_module: fx.GraphModule, node: object) -> Tensor | None:
    """Return the parameter or buffer that a node reads; None if its value is computed."""
    if isinstance(node, fx.Node) and node.op == "get_attr":
        value = attribute(graph_module, str(node.target))
        return value if isinstance(value, Tensor) else None
    return None


def origin(node: fx.Node) -> str:
    """Return the path of a parameter in the user's network, also if a rewrite replaced it."""
    return str(node.meta.get(ORIGIN_KEY, node.target))


def add_parameter(graph_module: fx.GraphModule, before: fx.Node, path: str, value: Tensor) -> fx.Node:
    """Register a new parameter and return a ``get_attr`` node for it, inserted before a node.

    If the path exists, a number is appended, so shared weights do not change for other layers. `origin` of
    the node is the path without the number.
    """
    owner_path, _, name = path.rpartition(".")
    owner = _make_owner(graph_module, owner_path)
    unique, count = name, 0
    while hasattr(owner, unique):
        count += 1
        unique = f"{name}_{count}"
    owner.register_parameter(unique, nn.Parameter(value.detach().contiguous(), requires_grad=False))
    with graph_module.graph.inserting_before(before):
        node = graph_module.graph.get_attr(f"{owner_path}.{unique}" if owner_path else unique)
    node.meta[ORIGIN_KEY] = path
    return node


def set_parameter(graph_module: fx.GraphModule, node: object, value: Tensor) -> None:
    """Overwrite the parameter that a ``get_attr`` node reads."""
    target = tensor_of(graph_module, node)
    if target is None:
        raise TypeError(f"{node} does not read a parameter")
    with torch.no_grad():
        target.copy_(value)


def shared_parameters(graph_module: fx.GraphModule) -> frozenset[str]:
    """Return the paths of parameters with several readers, which must not be rewritten for one of them."""
    readers: dict[str, int] = {}
    storages: dict[int, set[str]] = {}
    for node in graph_module.graph.nodes:
        value = tensor_of(graph_module, node)
        if value is not None:
            path = str(node.target)
            readers[path] = readers.get(path, 0) + len(node.users)
            storages.setdefault(value.data_ptr(), set()).add(path)
    tied = {path for paths in storages.values() if len(paths) > 1 for path in paths}
    return frozenset(path for path, count in readers.items() if count > 1) | tied


def remove_unused(graph_module: fx.GraphModule) -> None:
    """Remove nodes without users, and parameters and buffers without readers.

    The caller recompiles the graph module.
    """
    for node in reversed(graph_module.graph.nodes):
        if not node.users and node.op in ("get_attr", "call_function"):
            graph_module.graph.erase_node(node)
    used = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    for path, _ in [*graph_module.named_parameters(), *graph_module.named_buffers()]:
        if path not in used:
            owner, _, name = path.rpartition(".")
            delattr(graph_module.get_submodule(owner), name)
    graph_module.graph.lint()


def _make_owner(module: nn.Module, path: str) -> nn.Module:
    for name in filter(None, path.split(".")):
        if not hasattr(module, name):
            module.add_module(name, nn.Module())
        child = getattr(module, name)
        if not isinstance(child, nn.Module):
            raise TypeError(f"{path} cannot be created: {name} is not a module")
        module = child
    return module

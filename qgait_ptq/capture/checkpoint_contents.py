"""Contents of a training checkpoint: dictionaries and lists of tensors, and modules, by their keys."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qgait_ptq.capture.stand_ins import StandIn

TOP = "."  # the key of the file's top level
DEEPEST, MOST_CONTAINERS = 8, 1_000_000  # levels, dictionaries and lists of a file that are searched
AVERAGE_WORDS = frozenset({"ema", "modelema", "emamodel", "swa", "averaged", "averaging", "shadow", "polyak"})
MEAN_WORDS, OF_NETWORK = {"avg", "average"}, {"model", "net", "network", "weights", "state", "params"}
SOURCE_WORDS = frozenset({"online", "raw", "current"})  # what an average is made of
SHOWN, LONGEST_SHOWN = 4, 80  # names in a message, and characters of one

KeyPath = tuple[str, ...]
CONTAINERS = (dict, list, tuple, nn.Module, StandIn)


@dataclass(frozen=True)
class Entry:
    """A dictionary with tensors.

    Attributes:
        path: keys that lead to it.
        weights: its tensors.
        others: names of its other values, without dictionaries and lists.
    """

    path: KeyPath
    weights: dict[str, Tensor]
    others: tuple[str, ...] = ()

    @property
    def has_paths(self) -> bool:
        """Return whether a name is a path of modules, as the state of an optimizer has none."""
        return any("." in name for name in self.weights)


@dataclass(frozen=True)
class Contents:
    """Contents of a file.

    Attributes:
        entries: dictionaries with tensors, the outer ones first.
        unnamed: lengths of lists of tensors, by their path.
        modules: modules by their path; a file that is not trusted has none.
        pickled: names of classes of modules by their path, in a file whose classes are not read.
    """

    entries: tuple[Entry, ...]
    unnamed: Mapping[KeyPath, int]
    modules: Mapping[KeyPath, nn.Module]
    pickled: Mapping[KeyPath, str]


def search(content: Any, path: KeyPath = ()) -> Contents:
    """Find everything with tensors in what a file holds, which may contain itself.

    Args:
        content: of the file, or a part of it.
        path: keys that lead to the part.
    """
    entries: list[Entry] = []
    unnamed: dict[KeyPath, int] = {}
    modules: dict[KeyPath, nn.Module] = {}
    pickled: dict[KeyPath, str] = {}
    seen: set[int] = set()
    waiting = deque([(path, content)])
    while waiting and len(seen) < MOST_CONTAINERS:
        here, value = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, StandIn):
            if value.is_module:
                pickled[here] = value.stored_name
            continue
        if isinstance(value, nn.Module):
            modules[here] = value
            entries.append(Entry(here, dict(value.state_dict())))
            continue
        weights: dict[str, Tensor] = {}
        others: list[str] = []
        deep = len(here) < len(path) + DEEPEST
        for name, inner in children(value):
            if isinstance(inner, Tensor):
                weights[name] = inner
            elif not isinstance(inner, CONTAINERS):
                others.append(name)
            elif deep:
                waiting.append(((*here, name), inner))
        if weights and isinstance(value, dict):
            entries.append(Entry(here, weights, tuple(others)))
        elif weights and len(weights) == len(value):
            unnamed[here] = len(weights)
    return Contents(tuple(entries), unnamed, modules, pickled)


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """Names and values in a dictionary or a list; a dictionary of a file may hide its own methods."""
    if isinstance(value, dict):
        for name, inner in dict.items(value):
            if isinstance(name, str | int):
                yield str(name), inner
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield str(index), inner


def is_average(path: KeyPath) -> bool:
    """Return whether keys say that weights are an average over training steps, such as an EMA."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", ".".join(path))
    words = {part.lower() for part in parts}
    named = bool(words & AVERAGE_WORDS) or bool(words & MEAN_WORDS and words & OF_NETWORK)
    return named and not words & SOURCE_WORDS


def key_text(path: KeyPath) -> str:
    """A path as ``--checkpoint-key`` takes it."""
    return ".".join(path) or TOP


def listed(names: Sequence[str]) -> str:
    """Some names for a message."""
    shown = [name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…" for name in names[:SHOWN]]
    return ", ".join([*shown, *(["…"] if len(names) > SHOWN else [])]) or "none"

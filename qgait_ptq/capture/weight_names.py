"""Names of weights in a file, matched with those of a network.

Wrappers put components into names (``module.``, ``_orig_mod.``), anywhere and more than once. A network that
is an attribute of another module has a common prefix (``model.``). Both are removed only where the names are
then those of the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

# DataParallel and torch.compile, FSDP, activation checkpoints, and Lightning's Fabric.
WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
OPTIONAL = "num_batches_tracked"  # counters of batch norms, which old files lack
EXTRA_STATE = "_extra_state"
AVERAGED = "n_averaged"  # the counter of torch's AveragedModel, beside the weights
LONGEST = 1000  # characters of a name that is compared
MOST_PREFIXES = 20  # that are tried

Table = dict[str, str]  # name to compare → name as it is


@dataclass(frozen=True)
class NetworkNames:
    """Names that a network has.

    Attributes:
        shapes: of its weights by name; None where any is taken, as by lazy modules.
        modules: all of its modules.
    """

    shapes: Mapping[str, tuple[int, ...] | None]
    modules: tuple[str, ...]

    @cached_property
    def required(self) -> tuple[str, ...]:
        """Names that a file must have."""
        return tuple(name for name in self.shapes if not name.endswith(OPTIONAL))

    @cached_property
    def tables(self) -> tuple[tuple[Table, frozenset[str]], ...]:
        """Names to compare with, as they are and without wrappers, each with the first components."""
        return tuple(
            (reduce(self.shapes), frozenset(map(_top, (*reduce(self.shapes), *reduce(self.modules)))))
            for reduce in REDUCTIONS
        )


@dataclass(frozen=True)
class Match:
    """Assignment of a file's weights to those of a network.

    Attributes:
        names: names in the network → names in the file.
        prefix: that was removed from the names in the file, with its dot.
        wrappers: components of wrappers that were removed.
        missing: names in the network without a weight.
        unexpected: names in the file, of modules that the network has, without a place in it.
        misshaped: names in the network with a weight of another shape.
        left_out: first components of names in the file, of modules that the network does not have.
    """

    names: Mapping[str, str]
    prefix: str
    wrappers: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Return whether each weight has its place."""
        return bool(self.names) and not (self.missing or self.unexpected or self.misshaped)

    @property
    def removed(self) -> str:
        """Return the prefixes that were removed from names, as text; empty if there are none."""
        return " and ".join(repr(part) for part in (self.prefix, *self.wrappers) if part)


def names_of(network: nn.Module) -> NetworkNames:
    """Return the names of a network's weights and modules."""
    shapes = {
        name: None if torch.nn.parameter.is_lazy(value) else tuple(value.shape)
        for name, value in network.state_dict().items()
        if isinstance(value, Tensor) and not name.endswith(EXTRA_STATE)
    }
    return NetworkNames(shapes, tuple(name for name, _ in network.named_modules() if name))


def find_matches(expected: NetworkNames, weights: Mapping[str, Tensor]) -> list[Match]:
    """Ways in which weights could be those of a network, the best one first.

    Args:
        expected: of the network.
        weights: by the names in the file.
    """
    found: dict[tuple[str, ...], Match] = {}
    for reduce, (known, tops) in zip(REDUCTIONS, expected.tables, strict=True):
        given = reduce(weights)
        for prefix in _prefixes(known, given, len(expected.required)):
            match = _match(expected, weights, (known, given), prefix, tops)
            found.setdefault(tuple(match.names.values()), match)
    nothing = Match({}, "", (), expected.required, (), (), ())
    return sorted(found.values(), key=_faults) or [nothing]


def _faults(match: Match) -> tuple[bool, int, int]:
    """Sorts matches: those that fit, by few faults, without a prefix."""
    faults = len(match.missing) + len(match.unexpected) + len(match.misshaped)
    return not match.fits, faults, len(match.prefix)


def _unchanged(names: Iterable[str]) -> Table:
    return {name: name for name in names}


def without_wrappers(names: Iterable[str]) -> Table:
    """Return names by what they are without components of wrappers; those that would coincide stay."""
    short = {name: _shortened(name) for name in names}
    often = Counter(short.values())
    return {reduced if often[reduced] == 1 else name: name for name, reduced in short.items()}


def _shortened(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


REDUCTIONS = (_unchanged, without_wrappers)


def _prefixes(known: Table, given: Table, required: int) -> list[str]:
    """Prefixes under which all names of the network are found, or most of them."""
    counts: Counter[str] = Counter()
    for name in given:
        if len(name) <= LONGEST:
            counts.update(name[: len(name) - len(end)] for end in _ends(name) if end in known)
    likely = counts.most_common(MOST_PREFIXES)
    enough = [prefix for prefix, count in likely if count >= min(required, likely[0][1])]
    return list(dict.fromkeys([*([""] if "" in counts else []), *enough]))


def _ends(name: str) -> Iterator[str]:
    """``a.b.c``, ``b.c``, ``c``."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _match(
    expected: NetworkNames,
    weights: Mapping[str, Tensor],
    tables: tuple[Table, Table],
    prefix: str,
    tops: frozenset[str],
) -> Match:
    known, given = tables
    under = {name.removeprefix(prefix): own for name, own in given.items() if name.startswith(prefix)}
    names = {own: under[name] for name, own in known.items() if name in under}
    used = set(names.values())
    unused = {name: own for name, own in under.items() if own not in used}
    outside = [name for name in given if not name.startswith(prefix)]
    others = [*(_top(name) for name in unused if _top(name) not in tops), *map(_top, outside)]
    written = _as_written(next(iter(used), ""), prefix)
    return Match(
        names,
        written,
        _removed_wrappers(names, written),
        tuple(name for name in expected.required if name not in names),
        tuple(own for name, own in unused.items() if _top(name) in tops),
        tuple(
            own for own, name in names.items() if expected.shapes[own] not in (None, _shape(weights[name]))
        ),
        tuple(dict.fromkeys(name for name in others if name != AVERAGED)),
    )


def _shape(value: Tensor) -> tuple[int, ...]:
    """Shape of a tensor; nested ones have none."""
    return () if value.is_nested else tuple(value.shape)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _as_written(name: str, prefix: str) -> str:
    """The beginning of a name in a file that is `prefix` without the components of wrappers."""
    parts = name.split(".")
    for count in range(len(parts)):
        begin = ".".join(parts[:count])
        if f"{begin}." == prefix or f"{_shortened(begin)}." == prefix:
            return f"{begin}."
    return ""


def _removed_wrappers(names: Mapping[str, str], prefix: str) -> tuple[str, ...]:
    """Components of wrappers that names in a file have more often than those in the network."""
    removed: dict[str, None] = {}
    for own, name in names.items():
        more = Counter(name.removeprefix(prefix).split(".")) - Counter(own.split("."))
        removed.update(dict.fromkeys(f"{part}." for part in more if part in WRAPPERS))
    return tuple(removed)

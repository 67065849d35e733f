"""The weights of a training checkpoint that are taken.

Weights that fit the network are taken from the usual key, or from the one place where they are found. An
averaged copy (EMA) is taken if it is named, or if nothing else fits. Others that fit are mentioned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qgait_ptq.capture.checkpoint_contents import (
    TOP,
    Contents,
    KeyPath,
    children,
    is_average,
    key_text,
    listed,
    search,
)
from qgait_ptq.capture.checkpoint_messages import Candidate, Choice, describe_ambiguity, describe_misfit
from qgait_ptq.capture.weight_names import Match, NetworkNames, find_matches, without_wrappers
from qgait_ptq.errors import ModelError

MOST_COMPARED = 50  # candidates whose tensors are compared
WEIGHT_KEYS = ("model", "state_dict", "model_state_dict", "network")  # taken first, in this order
Accepts = Callable[[dict[str, Tensor]], bool]


def choose_weights(
    file: Path, content: Any, key: str | None, expected: NetworkNames, accepts: Accepts | None = None
) -> Choice:
    """Choose the weights for a network among those in a file.

    Args:
        file: named in errors.
        content: of the file.
        key: dotted path of the weights; None takes those at the usual key, or the only ones that fit.
        expected: names in the network.
        accepts: whether the network itself takes weights whose names do not match its own.

    Raises:
        ModelError: no weights fit, several do, or there is nothing at the key.
    """
    everything = contents = search(content)
    base: KeyPath = ()
    if key is not None:
        part, base = _follow(file, content, key, everything)
        contents = search(part, base)
        if key == TOP:
            contents = replace(contents, entries=tuple(e for e in contents.entries if e.path == base))
    found = _candidates(contents, expected)
    fitting = _distinct([candidate for candidate in found if candidate.match.fits])
    taken = _preferred(fitting, base, key is not None)
    if taken is None and len(fitting) > 1:
        raise ModelError(describe_ambiguity(file, fitting))
    if taken is None and accepts is not None:
        taken = _accepted(found, accepts)
    candidates = found if key is None else _candidates(everything, expected)
    if taken is None:
        best = max(found, key=_likeness, default=None)
        raise ModelError(describe_misfit(file, key, contents, best, candidates, expected))
    others = [other for other in _distinct([taken, *candidates]) if _is_other(other, taken)]
    return Choice(taken, tuple(others), everything)


def preferred_module(file: Path, paths: Sequence[KeyPath], key: str | None) -> KeyPath:
    """Choose among the modules of a trusted file.

    Args:
        file: named in errors.
        paths: of the modules.
        key: that the user named; None takes the one at the usual key, or the only one.

    Raises:
        ModelError: there is none at the key, or it is not clear which one to take.
    """
    usual: list[KeyPath] = [(name,) for name in WEIGHT_KEYS]
    raw = [path for path in paths if not is_average(path)]
    likely = [path for path in usual if path in raw] or (raw if len(raw) == 1 else [*paths])
    if key is not None:
        likely = [path for path in paths if key_text(path) == key]
    if likely and (len(likely) == 1 or likely[0] in usual):
        return likely[0]
    names = [key_text(path) for path in paths]
    raise ModelError(
        f"{file}: holds modules at {listed(names)}; choose one, such as --checkpoint-key {names[0]}"
    )


def _candidates(contents: Contents, expected: NetworkNames) -> list[Candidate]:
    """All ways to read dictionaries as weights of the network; at least one for each dictionary."""
    candidates = []
    for entry in contents.entries:
        matches = find_matches(expected, entry.weights)
        fitting = [match for match in matches if match.fits]
        candidates += [Candidate(entry, match, len(fitting) < 2) for match in fitting or matches[:1]]
    return candidates


def _is_other(candidate: Candidate, taken: Candidate) -> bool:
    """Return whether a candidate is another one than the one taken, and looks like weights."""
    apart = candidate is not taken and (candidate.match.fits or candidate.entry.path != taken.entry.path)
    return apart and candidate.looks_like_weights


def _likeness(candidate: Candidate) -> tuple[int, bool]:
    names, path = len(candidate.match.names) - len(candidate.match.misshaped), candidate.entry.path
    return names, len(path) == 1 and path[0] in WEIGHT_KEYS


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates without those of the same tensors as an earlier one."""
    kept: list[Candidate] = []
    if len(candidates) > MOST_COMPARED:
        return list(candidates)
    for candidate in candidates:
        if not candidate.match.fits or not any(_same_tensors(candidate, other) for other in kept):
            kept.append(candidate)
    return kept


def _same_tensors(one: Candidate, other: Candidate) -> bool:
    for own, name in one.match.names.items():
        first, second = one.entry.weights[name], other.entry.weights.get(other.match.names.get(own, ""))
        if second is None or (
            first is not second and (_place(first) is None or _place(first) != _place(second))
        ):
            return False
    return True


def _place(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return the place of a dense tensor in memory."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return None
    return tensor.data_ptr() if tensor.numel() else 0, tensor.dtype, tensor.shape, tensor.stride()


def _preferred(fitting: Sequence[Candidate], base: KeyPath, named: bool) -> Candidate | None:
    """The candidate to take; None where it is not clear.

    Args:
        fitting: candidates that fit.
        base: path of the part of the file that is looked at.
        named: whether the user named that part.
    """
    usual = [(*base, key) for key in WEIGHT_KEYS]
    raw = [candidate for candidate in fitting if named or not candidate.is_average]
    for path in (base, *usual) if named else (*usual, base):
        here = [candidate for candidate in raw if candidate.entry.path == path]
        whole = [candidate for candidate in here if not candidate.match.prefix]
        if whole or here:
            return whole[0] if whole else here[0] if len(here) == 1 else None
    only = fitting if len(fitting) == 1 else raw
    return only[0] if len(only) == 1 else None


def _accepted(found: Sequence[Candidate], accepts: Accepts) -> Candidate | None:
    """The first dictionary that the network itself takes, such as one with the names of an older version."""
    for candidate in found:
        weights = candidate.entry.weights
        for names in ({name: name for name in weights}, without_wrappers(weights)):
            if candidate.match.names and accepts({own: weights[name] for own, name in names.items()}):
                return Candidate(candidate.entry, Match(names, "", (), (), (), (), ()))
    return None


def _follow(file: Path, content: Any, key: str, everything: Contents) -> tuple[Any, KeyPath]:
    """The part of a file that a key names, and its path.

    Raises:
        ModelError: there is none.
    """
    found = (content, ()) if key == TOP else _step(content, key)
    if found is None:
        keys = [name for name, _ in children(content)]
        raise ModelError(
            f"{file}: no entry {key!r} (--checkpoint-key). Keys at the top: {listed(keys)}. Entries with "
            f"tensors: {listed([key_text(entry.path) for entry in everything.entries if entry.has_paths])}"
        )
    return found


def _step(value: Any, key: str) -> tuple[Any, KeyPath] | None:
    """Follow a dotted path; names in a file may have dots, and the end may be a prefix of names."""
    inside = dict(children(value))
    for name in sorted((name for name in inside if f"{key}.".startswith(f"{name}.")), key=len, reverse=True):
        if key == name:
            return inside[name], (name,)
        deeper = _step(inside[name], key.removeprefix(f"{name}."))
        if deeper is not None:
            return deeper[0], (name, *deeper[1])
    under = {name.removeprefix(f"{key}."): v for name, v in inside.items() if name.startswith(f"{key}.")}
    return (under, (key,)) if under else None

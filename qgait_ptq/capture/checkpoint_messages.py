"""Messages about the weights that were taken from a file, or why none were."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qgait_ptq.capture.checkpoint_contents import TOP, Contents, Entry, KeyPath, is_average, key_text, listed
from qgait_ptq.capture.weight_names import Match, NetworkNames

AVERAGED = "an averaged copy (EMA)"
# Lightning's WeightAveraging puts averages where the weights were, and these beside them.
LIGHTNING_CURRENT = ("current_model_state",)
# Ends of names that weight normalization, spectral normalization and pruning make.
PARAMETRIZED = ("_orig", "_mask", "_g", "_v", "_u", ".original", ".original0", ".original1")
SAVE_IT = "copy it into the network in the training code, and save the state_dict of the network"


@dataclass(frozen=True)
class Candidate:
    """A dictionary, and how its weights match those of the network.

    Attributes:
        entry: the dictionary.
        match: of names.
        alone: whether nothing else in the dictionary fits.
    """

    entry: Entry
    match: Match
    alone: bool = True

    @property
    def path(self) -> KeyPath:
        """Keys, and the prefix in the dictionary."""
        return (*self.entry.path, *self.match.prefix.split(".")[:-1])

    @property
    def key(self) -> str:
        """Return its key as in ``--checkpoint-key``."""
        return key_text(self.entry.path if self.alone else self.path)

    @property
    def looks_like_weights(self) -> bool:
        """Return whether the dictionary may be weights of any network."""
        return bool(self.match.names) or self.entry.has_paths

    @property
    def is_average(self) -> bool:
        """Return whether its name says that it is an averaged copy."""
        return is_average(self.path)


@dataclass(frozen=True)
class Choice:
    """The weights to take.

    Attributes:
        taken: them.
        others: other dictionaries of the file, and how they match.
        everything: in the file.
    """

    taken: Candidate
    others: tuple[Candidate, ...]
    everything: Contents

    @property
    def left_out(self) -> tuple[str, ...]:
        """Modules that the dictionary has weights of and the network has not."""
        entry = self.taken.entry
        named = {other.match.prefix.partition(".")[0] for other in self.others if other.entry is entry}
        return tuple(name for name in self.taken.match.left_out if name not in named)

    def notes(self, file: Path) -> list[str]:
        """Return notes about the choice for users, a sentence each."""
        taken, match = self.taken, self.taken.match
        notes = [
            f"weights taken from {_where(taken.entry.path)} of {file.name}"
            + (f", {AVERAGED}" if taken.is_average else "")
            + (f"; removed from their names: {match.removed}" if match.removed else "")
        ]
        if any(other.entry.path == LIGHTNING_CURRENT for other in self.others):
            notes.append("with Lightning's WeightAveraging, 'state_dict' is the average of the weights")
        notes += [_describe_other(other) for other in self.others if other.match.fits]
        notes += [
            _describe_unfit(other) for other in self.others if not other.match.fits and other.is_average
        ]
        notes += [
            f"also in the file: {name!r}, {AVERAGED} that does not match the network. To use it, {SAVE_IT}"
            for name in self.left_out
            if is_average((name,))
        ]
        notes += [
            f"also in the file: {count} averaged tensors without names at {key_text(path)!r}. To use them, "
            f"copy them into the network in the training code, and save its state_dict"
            for path, count in self.everything.unnamed.items()
            if is_average(path)
        ]
        unfit = [other.key for other in self.others if not other.match.fits and not other.is_average]
        if unfit:
            notes.append(f"entries with tensors that do not fit the network: {listed(unfit)}")
        if taken.entry.others:
            notes.append(
                f"values beside the weights that are no tensors are ignored: {listed(taken.entry.others)}"
            )
        return notes


def option(key: str) -> str:
    """The option that takes the weights at a key."""
    return f"--checkpoint-key {shlex.quote(key)}"


def describe_ambiguity(file: Path, fitting: Sequence[Candidate]) -> str:
    """Say that several entries fit."""
    return (
        f"{file}: {len(fitting)} entries hold weights that fit the network: "
        f"{listed([candidate.key for candidate in fitting])}. Choose one, such as {option(fitting[0].key)} "
        f"(checkpoint_key={fitting[0].key!r} in Python)"
    )


def describe_misfit(
    file: Path,
    key: str | None,
    contents: Contents,
    best: Candidate | None,
    candidates: Sequence[Candidate],
    expected: NetworkNames,
) -> str:
    """Say why no weights fit.

    Args:
        file: that was read.
        key: that the user named.
        contents: that were searched.
        best: the dictionary that comes closest; None where there is none.
        candidates: all dictionaries of the file.
        expected: names in the network.
    """
    if best is None:
        return f"{file}: no dictionary of tensors at {key!r}. {_advise_key(candidates)}"
    match, weights = best.match, best.entry.weights
    named = set(match.names.values())
    theirs = [name for name in weights if name not in named] or list(weights)
    misshaped = [
        f"{own} {list(weights[match.names[own]].shape)} instead of {list(expected.shapes[own] or ())}"
        for own in match.misshaped
    ]
    problems = "; ".join(
        f"{len(names)} {what} ({listed(names)})"
        for names, what in (
            (match.missing, f"of {len(expected.required)} missing"),
            (match.unexpected, "unexpected"),
            (misshaped, "of another shape"),
        )
        if names
    )
    own = match.missing or tuple(expected.shapes)
    return (
        f"{file}: the weights at {_where(best.entry.path)} do not fit the network: {problems}. "
        f"Names in the file: {listed(theirs)}; in the network: {listed(own)}"
        + (f"; removed from the names in the file: {match.removed}" if match.removed else "")
        + f". {_advise(best, candidates, expected)}"
    )


def _advise(best: Candidate, candidates: Sequence[Candidate], expected: NetworkNames) -> str:
    match = best.match
    if best.is_average and match.names and match.missing and not match.unexpected:
        return f"An averaged copy may hold a part of the weights only. To use it, {SAVE_IT}"
    if any(other.match.fits for other in candidates):
        return _advise_key(candidates)
    if not match.missing and not match.unexpected:
        return "Create the network with the sizes that it was trained with (--model-argument NAME=VALUE)"
    if any(name.endswith(PARAMETRIZED) for name in match.unexpected):
        return (
            "The file was saved with weight normalization, pruning or another parametrization. Create the "
            "network with it, too, in the factory; the toolkit removes it after loading"
        )
    if any(name.endswith(PARAMETRIZED) for name in match.missing):
        return (
            "The network has a parametrization that the file does not have; create it without, in the factory"
        )
    others = [o.key for o in candidates if o.entry is not best.entry and o.looks_like_weights]
    compare = (
        f". Other entries with tensors: {listed(others)}; {option('KEY')} compares one of them"
        if others
        else ""
    )
    return (
        "Create the network as it was trained (--factory, --model-argument). If only names differ, save the "
        f"weights again with the names in the network{compare}"
    )


def _advise_key(candidates: Sequence[Candidate]) -> str:
    fitting = [candidate.key for candidate in candidates if candidate.match.fits]
    if fitting:
        return f"These fit: {listed(fitting)}. Pass {option(fitting[0])}"
    others = [candidate.key for candidate in candidates if candidate.looks_like_weights]
    return f"Entries with tensors: {listed(others)}"


def _where(path: KeyPath) -> str:
    return repr(key_text(path)) if path and path != (TOP,) else "the top level"


def _describe_other(other: Candidate) -> str:
    what = f", {AVERAGED}" if other.is_average else ""
    return f"also in the file: {_where((other.key,))}{what}; to take it, pass {option(other.key)}"


def _describe_unfit(other: Candidate) -> str:
    faults = listed([*other.match.missing, *other.match.unexpected, *other.match.misshaped])
    return (
        f"also in the file: {other.key!r}, {AVERAGED} that does not fit the network as it is ({faults}). "
        f"To use it, {SAVE_IT}"
    )

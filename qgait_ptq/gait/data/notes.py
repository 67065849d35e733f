"""Notes about a data set: what is left out when it is read, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qgait_ptq.gait.data.names import printable

SHOWN_NAMES, SHOWN_LETTERS = 3, 60  # of a note: names, and letters of a name


@dataclass(frozen=True)
class Reason:
    """Why something is noted.

    Attributes:
        one: text for one case.
        many: text for several cases.
        is_used: whether the data are used in spite of the note.
    """

    one: str
    many: str
    is_used: bool = False


NO_FOLDER = Reason(
    "identity of the partition without a folder", "identities of the partition without a folder"
)
NOT_LISTED = Reason(
    "identity that the partition does not list", "identities that the partition does not list"
)
UNUSED_KEY = Reason(
    "entry of the partition that the protocol does not use",
    "entries of the partition that the protocol does not use",
)
NO_SEQUENCE = Reason("folder without a sequence", "folders without a sequence")
NO_PROBE = Reason("entry of PROBE_SET without a sequence", "entries of PROBE_SET without a sequence")
OTHER_CONDITION = Reason(
    "test sequence of a condition that the protocol does not use",
    "test sequences of conditions that the protocol does not use",
)
OTHER_MODALITY = Reason("array file of another modality", "array files of other modalities")
FRAME_BESIDE_ARRAY = Reason("png frame beside an array file", "png frames beside array files")
OTHER_IMAGE = Reason("image that needs conversion to png", "images that need conversion to png")
OTHER_FILE = Reason("file with an unknown suffix", "files with an unknown suffix")
OUTSIDE = Reason("file outside the view folders", "files outside the view folders")
TOO_DEEP = Reason("folder inside a view folder", "folders inside view folders")
BROKEN_LINK = Reason("broken link", "broken links")
FEWER_FILES = Reason(
    "view folder with fewer array files than others", "view folders with fewer array files than others", True
)
NOT_IN_GALLERY = Reason(
    "probe whose identity is not in the gallery", "probes whose identities are not in the gallery", True
)
NO_OTHER_VIEW = Reason(
    "probe whose identity has no gallery sequence of another view",
    "probes whose identities have no gallery sequence of another view",
    True,
)


@dataclass(frozen=True)
class _Group:
    """The cases of one reason: how many, and the names of the first."""

    count: int = 0
    names: tuple[str, ...] = ()

    def extended(self, other: _Group) -> _Group:
        names = dict.fromkeys((*self.names, *other.names))
        return _Group(self.count + other.count, tuple(names)[: SHOWN_NAMES + 1])


@dataclass(eq=False)
class DataNotes:
    """Notes about a data set, grouped by reason. Only the first names of a reason are kept.

    Example:
        >>> notes = DataNotes()
        >>> notes.add(NO_SEQUENCE, "003/nm-01/180")
        >>> notes.lines
        ['1 folder without a sequence (003/nm-01/180)']
    """

    groups: dict[Reason, _Group] = field(default_factory=dict)

    def add(self, reason: Reason, name: str) -> None:
        """Note one case.

        Args:
            reason: why it is noted.
            name: shown as an example. Equal names are shown once.
        """
        self._extend(reason, _Group(1, (name,)))

    def __add__(self, other: DataNotes) -> DataNotes:
        total = DataNotes(dict(self.groups))
        for reason, group in other.groups.items():
            total._extend(reason, group)
        return total

    @property
    def lines(self) -> list[str]:
        """One line for each reason."""
        return [_line(reason, group) for reason, group in self.groups.items()]

    @property
    def text(self) -> str:
        """All notes as sentences that follow a summary; empty if there are none."""
        found = {
            is_used: "; ".join(_line(r, group) for r, group in self.groups.items() if r.is_used is is_used)
            for is_used in (False, True)
        }
        left_out = f" Left out: {found[False]}." if found[False] else ""
        return left_out + (f" Please check: {found[True]}." if found[True] else "")

    def _extend(self, reason: Reason, group: _Group) -> None:
        self.groups[reason] = self.groups.get(reason, _Group()).extended(group)


def some_names(names: Sequence[str]) -> str:
    """Return the first names, shortened, for an error or a note."""
    shown = [printable(name if len(name) <= SHOWN_LETTERS else f"{name[:SHOWN_LETTERS]}…") for name in names]
    return ", ".join((*shown[:SHOWN_NAMES], "…") if len(shown) > SHOWN_NAMES else shown)


def _line(reason: Reason, group: _Group) -> str:
    text = reason.one if group.count == 1 else reason.many
    return f"{group.count} {text} ({some_names(group.names)})"

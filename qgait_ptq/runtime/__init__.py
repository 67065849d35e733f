"""Running a written file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgait_ptq.system.lazy import lazy_names

if TYPE_CHECKING:
    from qgait_ptq.runtime.embedder import LONGEST_PIECE
    from qgait_ptq.runtime.exact_sessions import open_session
    from qgait_ptq.runtime.exactness import describe_processor, saturates
    from qgait_ptq.runtime.matching import Matches
    from qgait_ptq.runtime.sessions import Session, open_unguarded, run_session
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "embedder": ("LONGEST_PIECE",),
            "exact_sessions": ("open_session",),
            "exactness": ("describe_processor", "saturates"),
            "matching": ("Matches",),
            "sessions": ("Session", "open_unguarded", "run_session"),
        },
    )

__all__ = [
    "LONGEST_PIECE",
    "Matches",
    "Session",
    "describe_processor",
    "open_session",
    "open_unguarded",
    "run_session",
    "saturates",
]

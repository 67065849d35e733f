"""Bags and coats of walkers in the conditions ``bg`` and ``cl``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Condition(StrEnum):
    """CASIA-B's walking conditions."""

    NORMAL = "nm"
    BAG = "bg"
    CLOTHES = "cl"


@dataclass(frozen=True)
class Coat:
    """A coat. Lengths in metres; `length` is the share of the thigh that it covers."""

    trunk_thickness: float
    sleeve_thickness: float
    length: float
    flare: float
    hood: bool


@dataclass(frozen=True)
class Bag:
    """A bag. Lengths in metres."""

    kind: str  # "backpack", "shoulder" or "hand"
    side: int  # +1 left, -1 right
    size: float
    forward: float
    up: float


Clothing = Coat | Bag | None


def sample_clothing(condition: Condition, rng: np.random.Generator) -> Clothing:
    """Draw the clothing of one trial: none, a bag or a coat."""
    if condition is Condition.CLOTHES:
        return Coat(
            trunk_thickness=float(rng.uniform(0.014, 0.042)),
            sleeve_thickness=float(rng.uniform(0.010, 0.026)),
            length=float(rng.uniform(0.35, 1.0)),
            flare=float(rng.uniform(0.01, 0.06)),
            hood=bool(rng.random() < 0.4),
        )
    if condition is Condition.BAG:
        return Bag(
            kind=str(rng.choice(["backpack", "shoulder", "hand"])),
            side=int(rng.choice([-1, 1])),
            size=float(rng.uniform(0.065, 0.105)),
            forward=float(rng.uniform(-0.06, 0.06)),
            up=float(rng.uniform(-0.06, 0.08)),
        )
    return None

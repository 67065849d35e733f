"""A population of walkers: splits of identities, and all sequences of one identity.

The same identity, trial, view and `WalkerSettings` give the same silhouettes on every machine, in any order
and in any process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.gait.walkers.body import build_body
from qgait_ptq.gait.walkers.camera import outline_distance, sample_camera
from qgait_ptq.gait.walkers.clothing import Condition, sample_clothing
from qgait_ptq.gait.walkers.kinematics import simulate_walk
from qgait_ptq.gait.walkers.normalise import normalise_silhouettes
from qgait_ptq.gait.walkers.person import sample_build, sample_gait_style, vary_for_trial
from qgait_ptq.gait.walkers.segmentation import segment
from qgait_ptq.gait.walkers.skeleton import Joint

VIEWS = tuple(range(0, 181, 18))  # degrees, as in CASIA-B
TRIALS = (  # as in CASIA-B: six normal walks, two with a bag, two in a coat
    *((Condition.NORMAL, number) for number in range(1, 7)),
    *((Condition.BAG, number) for number in range(1, 3)),
    *((Condition.CLOTHES, number) for number in range(1, 3)),
)


class Split(StrEnum):
    """Disjoint sets of identities."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    TEST = "test"
    DISTRACTOR = "distractor"  # more people for the gallery; they are never probes

    @property
    def first_identity(self) -> int:
        """Return the number of the first identity."""
        return FIRST_IDENTITY[self]


FIRST_IDENTITY = {Split.TRAIN: 0, Split.CALIBRATION: 10_000, Split.TEST: 20_000, Split.DISTRACTOR: 30_000}
LARGEST_SPLIT = 10_000


@dataclass(frozen=True)
class WalkerSettings:
    """Settings of the variation between walkers and of segmentation errors.

    Attributes:
        body_spread: variation of bodies between people; 1 is natural.
        gait_spread: variation of motion between people; 1 is natural.
        noise: strength of segmentation errors, see `segmentation.segment`.
        shortest: frames of the shortest sequence.
        longest: frames of the longest sequence.
    """

    body_spread: float = 1.2
    gait_spread: float = 1.6
    noise: float = 0.8
    shortest: int = 28
    longest: int = 44


@dataclass(frozen=True)
class WalkerLabel:
    """Label of a sequence."""

    identity: int
    condition: Condition
    number: int
    view: int  # degrees


def split_identities(split: Split, count: int) -> list[int]:
    """Return the first `count` identities of a split."""
    if not 1 <= count <= LARGEST_SPLIT:
        raise ValueError(f"a split has 1 to {LARGEST_SPLIT} identities, not {count}")
    first = split.first_identity
    return list(range(first, first + count))


def render_identity(
    identity: int,
    settings: WalkerSettings,
    trials: tuple[tuple[Condition, int], ...] = TRIALS,
    views_per_trial: int = len(VIEWS),
) -> Iterator[tuple[WalkerLabel, NDArray[np.uint8]]]:
    """Render the sequences of one identity.

    Args:
        identity: number of the identity.
        settings: settings of the population.
        trials: condition and number of each walk.
        views_per_trial: number of views of each walk, drawn at random from eleven.

    Yields:
        Label, and silhouettes ``[frames, 64, 64]`` in {0, 255}.
    """
    build = sample_build(identity, settings.body_spread)
    style = sample_gait_style(identity, settings.gait_spread)
    for condition, number in trials:
        rng = np.random.default_rng([identity, list(Condition).index(condition), number])
        trial_build = vary_for_trial(build, rng)
        clip = _cut(simulate_walk(style, trial_build, rng), settings, rng)
        capsules = build_body(clip, trial_build, style.stature, sample_clothing(condition, rng))
        centre = clip[:, Joint.PELVIS].mean(0)
        for view in sorted(rng.permutation(VIEWS)[:views_per_trial]):
            distance = outline_distance(capsules, centre, style.stature, sample_camera(view, rng))
            silhouettes = normalise_silhouettes(segment(distance, rng, settings.noise))
            yield WalkerLabel(identity, condition, number, int(view)), silhouettes


def _cut(
    clip: NDArray[np.float64], settings: WalkerSettings, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Cut a part of random length and position from the middle of a walk."""
    length = min(int(rng.integers(settings.shortest, settings.longest + 1)), len(clip))
    slack = len(clip) - length
    start = slack // 2 + int(rng.integers(-min(slack // 2, 8), min(slack // 2, 8) + 1))
    return clip[start : start + length]

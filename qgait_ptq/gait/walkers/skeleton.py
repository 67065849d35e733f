"""The walkers' skeleton: 18 joints, their order in an array, and the frame rate of a clip.

Axes in `walkers` are in metres: +x the walking direction, +y the walker's left, +z up. A clip is a float
array ``[frames, 18, 3]``.
"""

from __future__ import annotations

from enum import IntEnum

FRAMES_PER_SECOND = 30.0


class Joint(IntEnum):
    """Index of a joint in the second axis of a clip."""

    PELVIS = 0
    CHEST = 1
    NECK = 2
    HEAD = 3
    LEFT_SHOULDER = 4
    LEFT_ELBOW = 5
    LEFT_WRIST = 6
    RIGHT_SHOULDER = 7
    RIGHT_ELBOW = 8
    RIGHT_WRIST = 9
    LEFT_HIP = 10
    LEFT_KNEE = 11
    LEFT_ANKLE = 12
    LEFT_BALL = 13
    RIGHT_HIP = 14
    RIGHT_KNEE = 15
    RIGHT_ANKLE = 16
    RIGHT_BALL = 17


LEFT_ARM = (Joint.LEFT_SHOULDER, Joint.LEFT_ELBOW, Joint.LEFT_WRIST)
RIGHT_ARM = (Joint.RIGHT_SHOULDER, Joint.RIGHT_ELBOW, Joint.RIGHT_WRIST)
LEFT_LEG = (Joint.LEFT_HIP, Joint.LEFT_KNEE, Joint.LEFT_ANKLE, Joint.LEFT_BALL)
RIGHT_LEG = (Joint.RIGHT_HIP, Joint.RIGHT_KNEE, Joint.RIGHT_ANKLE, Joint.RIGHT_BALL)

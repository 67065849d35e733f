"""Body and clothes around the skeleton: tapered capsules for each frame.

A capsule is a line segment between two points with a radius at each end. `build_body` stacks all capsules, so
that the camera projects a complete clip at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.gait.walkers.clothing import Bag, Clothing, Coat
from qgait_ptq.gait.walkers.kinematics import smooth
from qgait_ptq.gait.walkers.person import Build
from qgait_ptq.gait.walkers.skeleton import LEFT_ARM, LEFT_LEG, RIGHT_ARM, RIGHT_LEG, Joint

Array = NDArray[np.float64]

REFERENCE_STATURE = 1.70  # metres; the radii below belong to a person of this height
UP = np.array([0.0, 0.0, 1.0])
FORWARD = np.array([1.0, 0.0, 0.0])


@dataclass(frozen=True)
class Capsules:
    """A body: ends ``[frames, capsules, 3]`` and radii ``[capsules]`` in metres."""

    start: Array
    end: Array
    start_radius: Array
    end_radius: Array


@dataclass
class _Body:
    """Collects capsules; `scale` is the stature relative to `REFERENCE_STATURE`."""

    clip: Array
    build: Build
    stature: float
    coat: Coat | None
    starts: list[Array] = field(default_factory=list)
    ends: list[Array] = field(default_factory=list)
    radii: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        build = self.build
        self.scale = self.stature / REFERENCE_STATURE
        self.girth = self.scale * build.girth
        self.leg_girth = self.scale * build.leg_girth * build.girth**0.5
        self.arm_girth = self.scale * build.arm_girth * build.girth**0.5
        self.cloth = self.coat.trunk_thickness if self.coat else 0.0
        self.sleeve = self.coat.sleeve_thickness if self.coat else 0.0
        self.chest_radius = 0.112 * self.girth * build.chest + self.cloth
        self.waist_radius = 0.100 * self.girth + self.cloth
        self.pelvis_radius = 0.108 * self.girth * build.seat + self.cloth

    def at(self, joint: Joint) -> Array:
        return self.clip[:, joint]

    def add(self, start: Array, end: Array, start_radius: float, end_radius: float) -> None:
        self.starts.append(start)
        self.ends.append(end)
        self.radii.append((start_radius, end_radius))

    def stacked(self) -> Capsules:
        radii = np.array(self.radii)
        return Capsules(np.stack(self.starts, 1), np.stack(self.ends, 1), radii[:, 0], radii[:, 1])


def build_body(clip: Array, build: Build, stature: float, clothing: Clothing) -> Capsules:
    """Return the body of a clip, with clothes and bag.

    Args:
        clip: joints in metres, ``[frames, 18, 3]``.
        build: proportions of the person.
        stature: height in metres.
        clothing: coat, bag or None.
    """
    body = _Body(clip, build, stature, clothing if isinstance(clothing, Coat) else None)
    _add_trunk(body)
    _add_head(body)
    for arm in (LEFT_ARM, RIGHT_ARM):
        _add_arm(body, arm)
    for leg in (LEFT_LEG, RIGHT_LEG):
        _add_leg(body, leg)
    if isinstance(clothing, Coat):
        _add_coat_skirt(body, clothing)
    elif isinstance(clothing, Bag):
        _add_bag(body, clothing)
    return body.stacked()


def _add_trunk(body: _Body) -> None:
    """Add the trunk: three columns for an elliptical cross-section, belly and seat."""
    build, height = body.build, body.stature
    pelvis, chest, neck = body.at(Joint.PELVIS), body.at(Joint.CHEST), body.at(Joint.NECK)
    hips = (body.at(Joint.LEFT_HIP), body.at(Joint.RIGHT_HIP))
    shoulders = (body.at(Joint.LEFT_SHOULDER), body.at(Joint.RIGHT_SHOULDER))
    for shoulder, hip in zip(shoulders, hips, strict=True):
        lateral = 0.62 * (shoulder - neck)
        top, middle = neck + lateral - 0.05 * height * UP, chest + lateral
        waist = pelvis + 0.75 * (hip - pelvis) + 0.05 * height * UP
        body.add(top, middle, 0.86 * body.chest_radius, body.chest_radius)
        body.add(middle, waist, 0.98 * body.chest_radius, body.waist_radius)
        body.add(waist, hip, body.waist_radius, body.pelvis_radius)
    body.add(chest, pelvis, body.chest_radius, body.pelvis_radius)
    if build.belly > 0.005:
        bulge, radius = build.belly * FORWARD, 0.9 * body.waist_radius
        body.add(0.6 * chest + 0.4 * pelvis + bulge, pelvis + 0.04 * height * UP + bulge, radius, radius)
    seat, radius = 0.025 * build.seat * FORWARD, 0.92 * body.pelvis_radius
    body.add(hips[0] - seat, hips[1] - seat, radius, radius)
    for shoulder in shoulders:
        body.add(
            neck - 0.035 * height * UP,
            shoulder,
            0.055 * body.girth + 0.8 * body.cloth,
            0.050 * body.arm_girth + body.cloth,
        )


def _add_head(body: _Body) -> None:
    build, scale = body.build, body.scale
    neck, head = body.at(Joint.NECK), body.at(Joint.HEAD)
    centre, radius = head + 0.02 * scale * UP, 0.070 * scale * build.head
    neck_radius = 0.052 * scale * build.neck
    body.add(neck - 0.02, head, neck_radius + 0.3 * body.cloth, 0.96 * neck_radius)
    body.add(
        centre - 0.035 * scale * UP + 0.012 * FORWARD,
        centre + 0.04 * scale * UP,
        0.93 * radius,
        1.04 * radius,
    )
    hair = build.hair
    if build.hair_style == 1:
        end = neck - 0.05 * FORWARD - 0.03 * hair * UP
        body.add(centre + 0.02 * UP - 0.03 * FORWARD, end, 1.02 * radius, 0.055 * scale)
    elif build.hair_style == 2:
        end = centre - 0.12 * hair * FORWARD - 0.05 * UP
        body.add(centre - 0.09 * hair * FORWARD, end, 0.036 * scale * hair, 0.028 * scale)
    elif build.hair_style == 3:
        body.add(centre + 0.02 * UP, centre + 0.03 * UP, 1.16 * radius * hair**0.5, 1.12 * radius * hair**0.5)


def _add_arm(body: _Body, arm: tuple[Joint, ...]) -> None:
    shoulder, elbow, wrist = (body.at(joint) for joint in arm)
    girth, sleeve = body.arm_girth, body.sleeve
    body.add(shoulder, elbow, 0.047 * girth + sleeve, 0.038 * girth + sleeve)
    body.add(elbow, wrist, 0.039 * girth + sleeve, 0.027 * girth + 0.8 * sleeve)
    hand = 0.085 * body.scale * _unit(wrist - elbow)
    body.add(wrist, wrist + hand, 0.030 * body.scale, 0.026 * body.scale)


def _add_leg(body: _Body, leg: tuple[Joint, ...]) -> None:
    hip, knee, ankle, ball = (body.at(joint) for joint in leg)
    girth, scale, calf = body.leg_girth, body.scale, body.build.calf
    body.add(hip, knee, 0.087 * girth, 0.056 * girth)
    calf_centre = knee + 0.33 * (ankle - knee) - 0.012 * FORWARD
    body.add(knee, calf_centre, 0.054 * girth, 0.058 * girth * calf)
    body.add(calf_centre, ankle, 0.057 * girth * calf, 0.036 * scale)
    toe_direction = _unit(_unit(ball - ankle) + 0.45 * UP)
    sole = -_unit(np.cross(np.cross(toe_direction, UP), toe_direction))
    heel = ankle - 0.045 * scale * toe_direction + 0.045 * scale * sole
    body.add(ankle, heel, 0.036 * scale, 0.034 * scale)
    body.add(heel, ball, 0.034 * scale, 0.030 * scale)
    body.add(ankle, ball, 0.036 * scale, 0.030 * scale)
    toes = 0.055 * scale * body.build.foot * toe_direction
    body.add(ball, ball + toes, 0.030 * scale, 0.022 * scale)


def _add_coat_skirt(body: _Body, coat: Coat) -> None:
    hems = []
    for hip_joint, knee_joint in ((LEFT_LEG[0], LEFT_LEG[1]), (RIGHT_LEG[0], RIGHT_LEG[1])):
        hip = body.at(hip_joint)
        hem = hip + coat.length * (body.at(knee_joint) - hip)
        hems.append(hem)
        body.add(hip, hem, 1.02 * body.pelvis_radius + 0.01, 0.075 * body.leg_girth + coat.flare)
    middle = (hems[0] + hems[1]) / 2
    body.add(body.at(Joint.PELVIS), middle, 1.05 * body.pelvis_radius, 0.085 * body.scale + coat.flare)
    if coat.hood:
        neck = body.at(Joint.NECK) - 0.06 * FORWARD
        body.add(neck + 0.01 * UP, neck - 0.01 * FORWARD - 0.06 * UP, 0.06, 0.07)


def _add_bag(body: _Body, bag: Bag) -> None:
    {"backpack": _add_backpack, "shoulder": _add_shoulder_bag, "hand": _add_hand_bag}[bag.kind](body, bag)


def _add_backpack(body: _Body, bag: Bag) -> None:
    chest, scale, size = body.at(Joint.CHEST), body.scale, bag.size
    top = chest + 0.10 * scale * UP - (0.10 + 0.75 * size) * FORWARD
    bottom = chest - (0.06 + 0.8 * size) * UP - (0.10 + 0.85 * size) * FORWARD
    half_width = np.array([0, 0.06 + 0.3 * size, 0])
    for shift in (half_width, -half_width, 0 * half_width):
        body.add(top + shift, bottom + shift, 0.8 * size, size)


def _add_shoulder_bag(body: _Body, bag: Bag) -> None:
    arm, leg = (LEFT_ARM, LEFT_LEG) if bag.side > 0 else (RIGHT_ARM, RIGHT_LEG)
    size = bag.size
    beside_hip = np.array([bag.forward - 0.02, bag.side * (0.12 + 0.5 * size), bag.up + 0.02])
    centre, half_length = body.at(leg[0]) + beside_hip, (0.07 + 0.5 * size) * FORWARD
    body.add(centre - half_length, centre + half_length, 0.8 * size, 0.8 * size)
    lower = centre - 0.09 * UP
    body.add(lower - half_length, lower + half_length, 0.75 * size, 0.75 * size)
    body.add(body.at(arm[0]) + 0.02 * UP, centre, 0.022, 0.022)


def _add_hand_bag(body: _Body, bag: Bag) -> None:
    wrist = body.at(LEFT_ARM[2] if bag.side > 0 else RIGHT_ARM[2])
    size = bag.size
    centre = smooth(wrist, 5) - (0.16 + size) * UP
    half_length = (0.06 + 0.45 * size) * FORWARD
    body.add(centre - half_length, centre + half_length, 0.7 * size, 0.7 * size)
    lower = centre - 0.08 * UP
    body.add(lower - half_length, lower + half_length, 0.8 * size, 0.8 * size)
    body.add(wrist - 0.05 * UP, centre, 0.02, 0.03)


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-6))

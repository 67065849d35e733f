"""Kinematics of a walk: the motion of 18 joints of a person who walks straight.

The legs follow the person's joint-angle curves. The pelvis height follows from the foot on the ground, and
its speed from the length of the steps. Trunk, head and arms follow the legs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.gait.walkers.person import CURVE_POINTS, Build, GaitStyle
from qgait_ptq.gait.walkers.skeleton import (
    FRAMES_PER_SECOND,
    LEFT_ARM,
    LEFT_LEG,
    RIGHT_ARM,
    RIGHT_LEG,
    Joint,
)

Array = NDArray[np.float64]

SIMULATION_RATE = 60.0  # hertz; twice the frame rate, so that the foot contact is smooth
FOOT_LENGTH = 0.075  # ankle to ball, in statures
GROUND_SHARPNESS = 30.0  # 1/metres, sharpness of the smooth minimum over the four ground points
SPEED_VARIATION = 0.08  # relative variation of the forward speed within a step


def simulate_walk(style: GaitStyle, build: Build, rng: np.random.Generator, seconds: float = 2.6) -> Array:
    """Simulate one walk of one person.

    Args:
        style: motion of the legs.
        build: body, varied for this trial.
        rng: generator for starting phase, speed and small irregularities of this trial.
        seconds: length of the walk in seconds.

    Returns:
        Joint positions in metres, ``[frames, 18, 3]`` at 30 frames a second.
    """
    time = np.arange(int(seconds * SIMULATION_RATE)) / SIMULATION_RATE
    phase = _stride_phase(style, time, rng)
    clip, lowest = _legs(style, build, phase, time, rng)
    _stand_on_ground(clip, lowest)
    _move_forward(clip, phase, time)
    clip[..., 1] -= style.lateral_sway * np.cos(2 * np.pi * (phase - 0.25))[:, None]
    clip = _resample(clip, time, FRAMES_PER_SECOND)
    _add_upper_body(clip, build, style.stature)
    return clip


def smooth(signal: Array, width: int) -> Array:
    """Apply a Hann filter along the first axis with edge padding. An even `width` becomes odd."""
    width |= 1
    window = np.hanning(width + 2)[1:-1]
    window /= window.sum()
    padding = ((width // 2, width // 2),) + ((0, 0),) * (signal.ndim - 1)
    views = np.lib.stride_tricks.sliding_window_view(np.pad(signal, padding, mode="edge"), width, axis=0)
    return np.asarray(views @ window)


def _stride_phase(style: GaitStyle, time: Array, rng: np.random.Generator) -> Array:
    """Return the phase of the left leg in strides, with a constant and a slow deviation of speed."""
    period = (1 + 0.035 * rng.standard_normal()) / style.stride_frequency
    wander = np.interp(time, np.linspace(0, time[-1], 6), rng.standard_normal(6))
    return np.asarray(rng.random() + time / period + 0.006 * wander)


def _legs(
    style: GaitStyle, build: Build, phase: Array, time: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return legs around a pelvis at the origin, and heights of the feet's lowest points ``[frames, 2]``."""
    amplitude = 1 + 0.035 * rng.standard_normal()
    offset = {name: 1.2 * rng.standard_normal() for name in ("hip", "knee", "ankle")}
    wobble = {
        name: np.interp(time, np.linspace(0, time[-1], 9), rng.standard_normal(9)) for name in ("hip", "knee")
    }
    clip = np.zeros((len(time), len(Joint), 3))
    lowest = np.empty((len(time), 2))
    for column, (side, leg) in enumerate(((1, LEFT_LEG), (-1, RIGHT_LEG))):
        leg_phase = phase + (0.0 if side > 0 else 0.5)
        asymmetry = style.amplitude_asymmetry**side
        hip = _angle(style.hip, leg_phase) * amplitude * asymmetry + offset["hip"] + wobble["hip"]
        hip = np.deg2rad(hip + (style.hip_asymmetry if side > 0 else 0.0))
        knee = _angle(style.knee, leg_phase) * amplitude + offset["knee"] + wobble["knee"]
        knee = np.deg2rad(np.clip(knee, 0, 90))
        ankle = np.deg2rad(_angle(style.ankle, leg_phase) + offset["ankle"])
        joints, lowest[:, column] = _one_leg(style, build, side, leg_phase, hip, knee, ankle)
        for joint, position in zip(leg, joints, strict=True):
            clip[:, joint] = position
    return clip, lowest


def _one_leg(
    style: GaitStyle, build: Build, side: int, phase: Array, hip: Array, knee: Array, ankle: Array
) -> tuple[tuple[Array, Array, Array, Array], Array]:
    """Return the joints of one leg (hip, knee, ankle, ball) and the height of its lowest point."""
    foot = FOOT_LENGTH * style.stature * build.foot
    rotation = np.deg2rad(style.pelvic_rotation) * np.cos(2 * np.pi * (phase + 0.04))
    obliquity = np.deg2rad(style.pelvic_obliquity) * np.cos(2 * np.pi * (phase - 0.35))
    half = style.hip_half_width
    hip_joint = _vectors(half * np.sin(rotation), side * half, half * np.sin(obliquity))
    # Adduction brings the feet from hip width to step width.
    adduction = side * (np.deg2rad(3.0) + (half - 1.5 * style.step_width) / (style.thigh + style.shank))
    thigh = _unit(_vectors(np.sin(hip), -np.sin(adduction), -np.cos(hip)))
    shank_angle = hip - knee
    shank = _unit(_vectors(np.sin(shank_angle), -np.sin(adduction), -np.cos(shank_angle)))
    knee_joint = hip_joint + thigh * style.thigh
    ankle_joint = knee_joint + shank * style.shank
    pitch, toe_out = shank_angle + ankle, side * np.deg2rad(style.toe_out)
    forward = np.cos(pitch) * np.cos(toe_out)
    ball = ankle_joint + foot * _vectors(forward, np.sin(toe_out), np.sin(pitch)) - [0, 0, 0.045]
    heel_height = ankle_joint[:, 2] - 0.05 * np.sin(pitch) - 0.07
    return (hip_joint, knee_joint, ankle_joint, ball), np.minimum(ball[:, 2], heel_height)


def _stand_on_ground(clip: Array, lowest: Array) -> None:
    """Lift the body so that the lower foot touches z = 0; a smooth minimum avoids a jerk at the change."""
    minimum = -np.log(np.exp(-GROUND_SHARPNESS * lowest).sum(1)) / GROUND_SHARPNESS
    clip[..., 2] += smooth(-minimum, 9)[:, None]


def _move_forward(clip: Array, phase: Array, time: Array) -> None:
    """Move the body two steps a stride; it is fastest when both feet are down (Winter 2009)."""
    feet = clip[:, [Joint.LEFT_ANKLE, Joint.RIGHT_ANKLE], 0]
    step_length = np.abs(feet[:, 0] - feet[:, 1]).max()
    speed = 2 * step_length * np.gradient(phase, time)
    speed *= 1 + SPEED_VARIATION * np.cos(4 * np.pi * phase)
    clip[..., 0] += (np.cumsum(speed) / SIMULATION_RATE)[:, None]


def _add_upper_body(clip: Array, build: Build, stature: float) -> None:
    """Add trunk, head and arms in place; each arm swings with the opposite thigh."""
    left_hip, right_hip = clip[:, Joint.LEFT_HIP], clip[:, Joint.RIGHT_HIP]
    pelvis = (left_hip + right_hip) / 2
    left_thigh = smooth(_swing_angle(clip, Joint.LEFT_HIP, Joint.LEFT_KNEE), 5)
    right_thigh = smooth(_swing_angle(clip, Joint.RIGHT_HIP, Joint.RIGHT_KNEE), 5)
    lean = np.deg2rad(build.trunk_lean)
    sway = 0.012 * build.trunk_sway * (left_thigh - right_thigh)
    trunk = 0.288 * stature * _vectors(np.sin(lean), sway, np.cos(lean))
    base = pelvis + [0, 0, 0.02 * stature]
    neck = base + 1.02 * trunk + [build.stoop, 0, 0]
    clip[:, Joint.PELVIS], clip[:, Joint.CHEST], clip[:, Joint.NECK] = pelvis, base + 0.52 * trunk, neck
    clip[:, Joint.HEAD] = neck + _vectors(build.head_forward, 0.3 * sway, 0.095 * stature)
    pelvis_yaw = np.arctan2(left_hip[:, 0] - right_hip[:, 0], left_hip[:, 1] - right_hip[:, 1])
    yaw = -0.5 * build.shoulder_counter_rotation * pelvis_yaw
    arms = (
        (1, LEFT_ARM, right_thigh, build.arm_swing),
        (-1, RIGHT_ARM, left_thigh, build.arm_swing * build.arm_asymmetry),
    )
    for side, arm, opposite_thigh, swing in arms:
        lateral = side * _vectors(np.sin(yaw), np.cos(yaw), 0.0)
        shoulder = neck + lateral * build.shoulder_half_width * stature - [0, 0, 0.035 * stature]
        lagged = smooth(np.roll(opposite_thigh, 1), 5)  # an arm follows the thigh by about one frame
        angle = np.deg2rad(build.arm_offset) + 0.9 * swing * lagged
        joints = (shoulder, *_one_arm(build, side, angle, shoulder, stature))
        for joint, position in zip(arm, joints, strict=True):
            clip[:, joint] = position


def _one_arm(build: Build, side: int, angle: Array, shoulder: Array, stature: float) -> tuple[Array, Array]:
    """Return elbow and wrist of an arm that hangs at `angle` (radians, forward positive)."""
    abduction = side * np.deg2rad(build.arm_abduction)
    upper = _vectors(np.sin(angle) * np.cos(abduction), np.sin(abduction), -np.cos(angle) * np.cos(abduction))
    elbow = shoulder + 0.172 * stature * upper
    flexion = np.clip(build.elbow_flexion + build.elbow_swing * np.rad2deg(angle), 4, 110)
    angle, abduction = angle + np.deg2rad(flexion), 0.3 * abduction
    lower = _vectors(np.sin(angle) * np.cos(abduction), np.sin(abduction), -np.cos(angle) * np.cos(abduction))
    return elbow, elbow + 0.155 * stature * lower


def _swing_angle(clip: Array, hip: Joint, knee: Joint) -> Array:
    """Return the angle of a thigh from the vertical in the sagittal plane in radians."""
    thigh = clip[:, knee] - clip[:, hip]
    return np.arctan2(thigh[:, 0], -thigh[:, 2])


def _angle(curve: Array, phase: Array) -> Array:
    """Return the value of a periodic curve of `CURVE_POINTS` samples at a phase in strides."""
    return np.interp((phase % 1) * CURVE_POINTS, np.arange(CURVE_POINTS + 1), np.append(curve, curve[0]))


def _resample(clip: Array, time: Array, rate: float) -> Array:
    """Interpolate a clip linearly to another frame rate."""
    instants = np.arange(0, time[-1], 1 / rate)
    flat = clip.reshape(len(clip), -1)
    columns = [np.interp(instants, time, flat[:, i]) for i in range(flat.shape[1])]
    return np.stack(columns, axis=1).reshape(len(instants), *clip.shape[1:])


def _vectors(x: Array | float, y: Array | float, z: Array | float) -> Array:
    """Stack components, some constant, to ``[frames, 3]``."""
    return np.stack(np.broadcast_arrays(x, y, z), axis=-1).astype(np.float64)


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))

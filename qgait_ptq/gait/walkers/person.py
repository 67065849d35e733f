"""Build and gait of one identity, drawn from its number.

A `Build` has the constant properties of the body, and a `GaitStyle` those of the motion. Both depend only on
the identity number. `vary_for_trial` adds changes from one walk to the next.

Means and proportions are textbook values: segment lengths as fractions of the stature from Drillis and
Contini (1966), sagittal joint-angle curves and pelvic rotation as in Winter, *Biomechanics and Motor
Control of Human Movement* (4th ed., 2009), and Perry and Burnfield, *Gait Analysis* (2nd ed., 2010).
The spreads between people are chosen for this project.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

BUILD_STREAM, GAIT_STREAM = 7919, 104729  # keep the two draws of one identity independent
LARGEST_DEVIATION = 2.2  # standard deviations, so that nobody looks unnatural
CURVE_POINTS = 200  # samples of a joint-angle curve over one stride
CURVE_HARMONICS = 7  # a walk has no more than about six harmonics of the stride frequency (Winter)

# Percent of the stride / 100 and degrees there: heel strike at 0, toe-off at about .62.
STRIDE_KEYS = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.58, 0.66, 0.74, 0.82, 0.9])
HIP_FLEXION = np.array([28, 25, 18, 9, 0, -8, -9, 2, 16, 26, 30.0])
KNEE_FLEXION = np.array([6, 17, 17, 9, 5, 9, 26, 52, 60, 42, 15.0])
ANKLE_DORSIFLEXION = np.array([0, -5, 1, 6, 9, 8, -8, -17, -6, 0, 1.0])


@dataclass(frozen=True)
class Build:
    """Body shape and carriage. Factors are relative to the mean, lengths in statures, angles in degrees."""

    shoulder_half_width: float
    hip_half_width: float
    head: float
    girth: float
    leg_girth: float
    calf: float
    arm_girth: float
    chest: float
    belly: float  # metres
    seat: float
    foot: float
    neck: float
    trunk_lean: float
    stoop: float  # metres
    head_forward: float  # metres
    arm_swing: float
    arm_offset: float
    elbow_flexion: float
    elbow_swing: float
    arm_abduction: float
    arm_asymmetry: float
    hair_style: int  # 0 short, 1 long, 2 tied, 3 full
    hair: float
    shoulder_counter_rotation: float
    trunk_sway: float


@dataclass(frozen=True)
class GaitStyle:
    """Stature, leg proportions and the legs' motion over one stride. Lengths in metres, angles in degrees."""

    stature: float
    thigh: float
    shank: float
    hip_half_width: float
    stride_frequency: float  # hertz
    step_width: float
    toe_out: float
    pelvic_rotation: float
    pelvic_obliquity: float
    lateral_sway: float
    hip: NDArray[np.float64]  # [CURVE_POINTS]
    knee: NDArray[np.float64]
    ankle: NDArray[np.float64]
    amplitude_asymmetry: float
    hip_asymmetry: float


class _Draw:
    """Normal draws that are clipped at `LARGEST_DEVIATION`. One spread scales all standard deviations."""

    def __init__(self, stream: int, identity: int, spread: float) -> None:
        self.rng = np.random.default_rng([stream, identity])
        self.spread = spread

    def __call__(self, mean: float, deviation: float) -> float:
        normal = np.clip(self.rng.standard_normal(), -LARGEST_DEVIATION, LARGEST_DEVIATION)
        return mean + deviation * self.spread * float(normal)


def sample_build(identity: int, spread: float = 1.0) -> Build:
    """Draw the build of one identity. The same number and spread give the same build."""
    draw = _Draw(BUILD_STREAM, identity, spread)
    return Build(
        shoulder_half_width=draw(0.118, 0.008),
        hip_half_width=draw(0.058, 0.005),
        head=draw(1, 0.05),
        girth=draw(1, 0.11),
        leg_girth=draw(1, 0.09),
        calf=draw(1, 0.10),
        arm_girth=draw(1, 0.10),
        chest=draw(1, 0.10),
        belly=max(0.0, draw(0.015, 0.018)),
        seat=draw(1, 0.10),
        foot=draw(1, 0.06),
        neck=draw(1, 0.08),
        trunk_lean=draw(3, 2.6),
        stoop=draw(0.02, 0.02),
        head_forward=draw(0.03, 0.018),
        arm_swing=float(np.clip(draw(0.72, 0.26), 0.1, 1.5)),
        arm_offset=draw(-2, 5),
        elbow_flexion=draw(24, 9),
        elbow_swing=draw(0.35, 0.2),
        arm_abduction=draw(9, 3.5),
        arm_asymmetry=draw(1, 0.15),
        hair_style=int(draw.rng.integers(0, 4)),
        hair=draw(1, 0.15),
        shoulder_counter_rotation=draw(1, 0.3),
        trunk_sway=draw(1, 0.3),
    )


def sample_gait_style(identity: int, spread: float = 1.0) -> GaitStyle:
    """Draw the gait of one identity. `spread` scales the motion but not the leg proportions."""
    body, motion = _Draw(GAIT_STREAM, identity, 1.0), _Draw(GAIT_STREAM + 1, identity, spread)
    stature = body(1.70, 0.09)
    # The keys move, so that phases differ between people and not only amplitudes.
    keys = np.sort((STRIDE_KEYS + 0.012 * spread * motion.rng.standard_normal(len(STRIDE_KEYS))) % 1.0)
    amplitude = motion(0.9, 0.12)

    def curve(mean_curve: NDArray[np.float64], deviation: float) -> NDArray[np.float64]:
        middle = mean_curve.mean()
        values = (mean_curve - middle) * amplitude * motion(1, 0.08) + middle + motion(0, 2.2)
        values = values + deviation * spread * motion.rng.standard_normal(len(mean_curve))
        return _periodic_curve(keys, values)

    return GaitStyle(
        stature=stature,
        thigh=stature * body(0.245, 0.008),
        shank=stature * body(0.246, 0.007),
        hip_half_width=stature * body(0.05, 0.004),
        stride_frequency=motion(0.92, 0.09),
        step_width=motion(0.03, 0.015),
        toe_out=motion(7, 4),
        pelvic_rotation=motion(5, 2.5),
        pelvic_obliquity=motion(3, 1.5),
        lateral_sway=motion(0.02, 0.008),
        hip=curve(HIP_FLEXION, 2.4),
        knee=curve(KNEE_FLEXION, 3.2),
        ankle=curve(ANKLE_DORSIFLEXION, 2.4),
        amplitude_asymmetry=motion(1, 0.03),
        hip_asymmetry=motion(0, 1.2),
    )


def vary_for_trial(build: Build, rng: np.random.Generator) -> Build:
    """Change carriage and the fit of clothes a little, as from one walk to the next."""
    return replace(
        build,
        trunk_lean=build.trunk_lean + 0.8 * rng.standard_normal(),
        arm_offset=build.arm_offset + 1.5 * rng.standard_normal(),
        elbow_flexion=build.elbow_flexion + 2.5 * rng.standard_normal(),
        arm_abduction=build.arm_abduction + 0.8 * rng.standard_normal(),
        head_forward=build.head_forward + 0.006 * rng.standard_normal(),
        arm_swing=build.arm_swing * (1 + 0.10 * rng.standard_normal()),
        girth=build.girth * (1 + 0.012 * rng.standard_normal()),
        leg_girth=build.leg_girth * (1 + 0.02 * rng.standard_normal()),
        chest=build.chest * (1 + 0.015 * rng.standard_normal()),
        arm_girth=build.arm_girth * (1 + 0.02 * rng.standard_normal()),
        arm_asymmetry=build.arm_asymmetry * (1 + 0.05 * rng.standard_normal()),
    )


def _periodic_curve(keys: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate a periodic curve and keep its low harmonics, so that it is as smooth as a walk."""
    phase = np.arange(CURVE_POINTS) / CURVE_POINTS
    curve = np.interp(phase, np.concatenate([keys - 1, keys, keys + 1]), np.tile(values, 3))
    spectrum = np.fft.rfft(curve)
    spectrum[CURVE_HARMONICS:] = 0
    return np.fft.irfft(spectrum, CURVE_POINTS)

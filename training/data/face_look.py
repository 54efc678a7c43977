# SPDX-License-Identifier: Apache-2.0
"""Appearance of a rendered face: person, light and camera, everything but the expression."""

from dataclasses import dataclass

import numpy as np

SKIN_TONES = ((255, 224, 196), (241, 194, 160), (224, 172, 130), (198, 140, 98), (150, 98, 66), (108, 70, 50))
HAIR_RGB = {
    "black": (32, 28, 30),
    "brown": (96, 58, 34),
    "blond": (214, 174, 96),
    "red": (176, 78, 30),
    "grey": (158, 158, 160),
}
IRIS_RGB = ((70, 44, 24), (92, 64, 30), (60, 100, 150), (70, 120, 80), (100, 110, 120))


@dataclass(frozen=True)
class Look:
    """The appearance of one person in one clip, sampled from the clip's own generator and so never reused."""

    # Colours, RGB.
    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    clothes: np.ndarray
    background: np.ndarray  # (2, 3): both ends of a gradient along gradient_angle, in radians
    gradient_angle: float
    # Lengths and positions in face coordinates; `aspect` is width / height of the face.
    aspect: float
    jaw: float
    eye_x: float
    eye_y: float
    eye_width: float
    eye_height: float
    brow_gap: float
    brow_thickness: float
    brow_slant: float
    nose_width: float
    nose_length: float
    mouth_y: float
    mouth_width: float
    lip_thickness: float
    side: float  # -1 or 1: the side of one-sided movements
    # Half the face height and the centre as fractions of the image side; (yaw, pitch, roll) in radians.
    scale: float
    center: np.ndarray
    pose: np.ndarray
    drift: np.ndarray  # (2, 3): amplitude and phase of the slow head movement
    blink_at: float  # time in 0..1, infinite without a blink
    light: np.ndarray
    gain: float
    noise: float  # standard deviation, in grey levels from 0 to 255
    occluder: tuple[float, ...] | None  # x and y in -1..1, diameter as a fraction of the image side, colour


def sample_look(rng, identity):
    woman = identity.gender == "woman"
    skin = np.array(SKIN_TONES[rng.integers(len(SKIN_TONES))]) * rng.uniform(0.92, 1.06)
    return Look(
        skin=skin,
        hair=np.array(HAIR_RGB[identity.hair_color]) * rng.uniform(0.85, 1.15),
        iris=np.array(IRIS_RGB[rng.integers(len(IRIS_RGB))]),
        lips=mix(skin * 0.82, (178, 44, 58), rng.uniform(0.35, 0.75) if woman else rng.uniform(0.2, 0.4)),
        clothes=rng.uniform(20, 235, 3),
        aspect=rng.uniform(0.76, 0.90),
        jaw=rng.uniform(0.10, 0.34) if woman else rng.uniform(0.0, 0.24),
        eye_x=rng.uniform(0.38, 0.45),
        eye_y=rng.uniform(-0.14, -0.06),
        eye_width=rng.uniform(0.20, 0.24),
        eye_height=rng.uniform(0.095, 0.12),
        brow_gap=rng.uniform(0.20, 0.26),
        brow_thickness=rng.uniform(0.035, 0.06) if woman else rng.uniform(0.055, 0.085),
        brow_slant=rng.uniform(-0.03, 0.03),
        nose_width=rng.uniform(0.13, 0.19),
        nose_length=rng.uniform(0.22, 0.30),
        mouth_y=rng.uniform(0.54, 0.60),
        mouth_width=rng.uniform(0.30, 0.37),
        lip_thickness=rng.uniform(0.05, 0.085),
        side=float(rng.choice((-1.0, 1.0))),
        **_sample_view(rng),
    )


def _sample_view(rng):
    """Samples what depends on camera, light and time rather than on the person."""
    angle = rng.uniform(0, 2 * np.pi)
    occluder = (
        *(rng.choice((-1.0, 1.0), 2) * rng.uniform(0.8, 1.0, 2)),
        rng.uniform(0.15, 0.35),
        *rng.uniform(0, 255, 3),
    )
    return {
        "background": rng.uniform(30, 235, (2, 3)),
        "gradient_angle": rng.uniform(0, 2 * np.pi),
        "scale": rng.uniform(0.37, 0.42),
        "center": 0.5 + rng.uniform(-0.05, 0.05, 2),
        "pose": rng.normal(0.0, (0.13, 0.07, 0.05)),
        "drift": np.stack([rng.normal(0.0, (0.05, 0.03, 0.03)), rng.uniform(0, 2 * np.pi, 3)]),
        "blink_at": rng.uniform(0.1, 0.9) if rng.random() < 0.4 else np.inf,
        "light": rng.uniform(0.0, 0.30) * np.array((np.cos(angle), np.sin(angle))),
        "gain": rng.uniform(0.75, 1.15),
        "noise": rng.uniform(1.5, 7.0),
        "occluder": occluder if rng.random() < 0.12 else None,
    }


def mix(start, end, share):
    return np.asarray(start) * (1.0 - share) + np.asarray(end) * share

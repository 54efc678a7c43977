# SPDX-License-Identifier: Apache-2.0
"""Specification of a rendered clip: movements over time, a person, a caption, and the targets derived from them."""

from dataclasses import dataclass, field

import numpy as np

from training.data.face_vocabulary import COMPONENT_NAMES, NEGATIVE_AFFECT_WEIGHTS, TONIC_COMPONENTS


@dataclass(frozen=True)
class Action:
    """One component over the clip; `start` and `duration` are fractions of the clip length.

    For "flash" they are the centre and the standard deviation; for periodic dynamics, the phase and the period.
    """

    component: str
    intensity: float
    dynamics: str
    start: float
    duration: float

    def curve(self, times):
        """Returns the intensity (T,) at `times` (T,) in 0..1; periodic dynamics range over -1..1, others over 0..1."""
        times = np.asarray(times, dtype=np.float64)
        if self.dynamics == "hold":
            shape = np.ones_like(times)
        elif self.dynamics == "flash":
            shape = np.exp(-0.5 * ((times - self.start) / self.duration) ** 2)
        elif self.dynamics in ("onset", "offset"):
            forward = times if self.dynamics == "onset" else 1.0 - times
            ramp = np.clip((forward - self.start) / self.duration, 0.0, 1.0)
            shape = ramp * ramp * (3.0 - 2.0 * ramp)
        else:
            wave = np.sin(2.0 * np.pi * (times / self.duration + self.start))
            shape = np.tanh(4.0 * wave) if self.dynamics == "dart" else wave
        return self.intensity * shape


@dataclass(frozen=True)
class Identity:
    """The attributes of the person that a caption can mention; others are sampled from the clip's own generator."""

    name: str
    gender: str
    hair_color: str
    hair_style: str
    glasses: bool
    beard: bool
    moustache: bool


@dataclass(frozen=True)
class ClipSpec:
    """The complete specification of one clip; `symptom_targets` defines `targets`."""

    clip_id: str
    identity: Identity
    label: str
    caption: str
    actions: tuple[Action, ...]
    targets: dict[str, float] = field(hash=False)
    rng_key: tuple[int, int, int]
    time_reversed: bool = False


def component_vector(spec):
    """Returns which of the 25 components occur in the clip: float32 (25,) of 0 and 1, in the order of `COMPONENTS`."""
    present = {action.component for action in spec.actions}
    return np.array([name in present for name in COMPONENT_NAMES], dtype=np.float32)


def symptom_targets(actions):
    """Computes three made-up continuous targets of a clip from the true intensities, independent of the person.

    They resemble symptom scores, for trying out regression; they are NOT clinical measures.
      expressivity         0..1  summed intensity of all components, averaged over time; 0 for a still face
      negative_affect      0..1  unpleasant minus pleasant components, averaged over time; 0.5 for a still face
      psychomotor_tension  0..1  tensed muscles plus the variation of intensities over time; 0 for a still face
    """
    times = np.linspace(0.0, 1.0, 33)
    curves = {action.component: action.curve(times) for action in actions}
    amount = {name: float(np.abs(curve).mean()) for name, curve in curves.items()}
    movement = sum(float(np.abs(np.diff(curve)).sum()) for curve in curves.values())
    tonic = sum(amount.get(name, 0.0) for name in TONIC_COMPONENTS)
    valence = sum(NEGATIVE_AFFECT_WEIGHTS.get(name, 0.0) * value for name, value in amount.items())
    return {
        "expressivity": float(1.0 - np.exp(-sum(amount.values()) / 1.5)),
        "negative_affect": float(0.5 + 0.5 * np.tanh(valence)),
        "psychomotor_tension": float(1.0 - np.exp(-(tonic + movement / 4.0) / 1.5)),
    }

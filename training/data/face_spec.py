# SPDX-License-Identifier: Apache-2.0
"""What a rendered clip is made of: movements over time, a person, a caption, and the targets that follow from them."""

from dataclasses import dataclass, field

import numpy as np

from training.data.face_vocabulary import COMPONENT_NAMES, NEGATIVE_AFFECT_WEIGHTS, TONIC_COMPONENTS


@dataclass(frozen=True)
class Action:
    """One component over the clip; `start` and `duration` are shares of the clip's length.

    For "flash" they are the centre and the standard deviation, for the periodic dynamics the phase and the period.
    """

    component: str
    intensity: float
    dynamics: str
    start: float
    duration: float

    def curve(self, times):
        """Intensity (T,) at `times` (T,) in 0..1; in -1..1 for the periodic dynamics, else in 0..1."""
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
    """What a caption can say about the person; the rest of the face is drawn from the clip's own generator."""

    name: str
    gender: str
    hair_color: str
    hair_style: str
    glasses: bool
    beard: bool
    moustache: bool


@dataclass(frozen=True)
class ClipSpec:
    """Everything needed to draw one clip; `targets` are defined in `symptom_targets`."""

    clip_id: str
    identity: Identity
    label: str
    caption: str
    actions: tuple[Action, ...]
    targets: dict[str, float] = field(hash=False)
    rng_key: tuple[int, int, int]
    time_reversed: bool = False


def component_vector(spec):
    """Which of the 25 components occur in the clip: float32 (25,) of 0 and 1, in the order of `COMPONENTS`."""
    present = {action.component for action in spec.actions}
    return np.array([name in present for name in COMPONENT_NAMES], dtype=np.float32)


def symptom_targets(actions):
    """Three made-up continuous targets of a clip, computed from the true intensities and not from who moves.

    They look like symptom scores so that regression can be tried out; they are NOT clinical measures.
      expressivity         0..1  how much the face does: summed intensity, averaged over time; 0 for a still face
      negative_affect      0..1  unpleasant against pleasant components, averaged over time; 0.5 for a still face
      psychomotor_tension  0..1  tensed muscles plus how much the intensities move in time; 0 for a still face
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

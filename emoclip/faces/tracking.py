# SPDX-License-Identifier: Apache-2.0
"""Tracking of faces through a video, with a number for each person."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .boxes import Face, area, check_boxes, check_frame, crop_face

# Weights of the middle of a face in `describe_face`: its surroundings describe the place more than the person.
_MIDDLE = np.exp(-((np.mgrid[:64, :64] - 31.5) ** 2).sum(axis=0) / (2 * 16**2))


def describe_face(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Describes the look of a face by edge directions and colours, weighted to its middle: `(1024,)`, norm 1.

    It tells the few people of one scene apart. It is not face recognition: in other light, from another side or much
    closer, a person gets another look, and people who look alike may be taken for one.
    """
    crop = crop_face(frame, box, margin=0.1, size=64)
    down, right = np.gradient(np.sqrt(crop.mean(axis=2) / 255))
    direction = (np.arctan2(down, right) % np.pi * 8 / np.pi).astype(int) % 8
    place = (np.arange(64)[:, None] // 8 * 8 + np.arange(64) // 8) * 8 + direction
    edges = np.bincount(place.ravel(), np.hypot(down, right).ravel(), minlength=512).reshape(64, 8)
    strength = np.linalg.norm(edges, axis=1, keepdims=True)
    edges = np.sqrt(edges / (strength + np.median(strength) + 1e-6))  # or a strong outline would be all that counts
    edges = (edges - edges.mean()) * _MIDDLE[4::8, 4::8].reshape(64, 1)
    red, green, blue = (crop // 32).astype(int).reshape(-1, 3).T
    colours = np.sqrt(np.bincount(red * 64 + green * 8 + blue, _MIDDLE.ravel(), minlength=512))
    parts = [part.ravel() / max(np.linalg.norm(part), 1e-6) for part in (edges, colours)]
    return (np.concatenate(parts) / np.sqrt(2)).astype(np.float32)


@dataclass(eq=False)
class _Person:
    number: int
    looks: np.ndarray  # (k, D)
    box: np.ndarray
    time: float
    shot: int


@dataclass(eq=False)
class FaceTracker:
    """Assigns every face of a video to a person: 0, 1, ... in the order of first appearance.

    Within a shot a person is followed by position and look, and after a gap or a cut found again by look alone. Memory
    is bounded: people seen longest ago are forgotten, and return under a new number; no number is used twice.
    """

    # Similarity of two looks from which a person is found again. Of some 180 faces of one film, as they were and on
    # plain backdrops, 95 in 100 were more similar to an earlier look of theirs, 1 in 100 to another person's.
    same_person: float = 0.67
    position_weight: float = 0.4  # what full overlap with the person's last box adds to it
    max_gap: float = 1.0  # seconds after which the last box no longer counts
    start_score: float = 0.5  # a box with a lower score only continues a track, within the shot and `max_gap`
    max_people: int = 100  # remembered
    max_looks: int = 12  # of each
    # (frame, box) -> vector of norm 1; a face recognition network can replace it, with a same_person of its own
    describe: Callable[[np.ndarray, np.ndarray], np.ndarray] = describe_face

    def __post_init__(self):
        self.people: list[_Person] = []  # the one seen last comes last
        self.num_people, self.shot, self._last_frame = 0, 0, None  # people and shots counted since the start

    def update(self, frame: np.ndarray, boxes: np.ndarray, time: float) -> list[Face]:
        """Returns the faces of the next frame: the boxes `(n, 5)` that belong to a person. `time` is in seconds."""
        check_frame(frame)
        boxes = check_boxes(boxes, frame)
        self._notice_cut(frame)
        looks = np.array([self.describe(frame, box) for box in boxes])
        owners = self._match(boxes, looks, time)
        for index in np.argsort(-boxes[:, 4], kind="stable"):
            if index not in owners and boxes[index, 4] >= self.start_score:
                owners[index] = _Person(self.num_people, looks[:0], boxes[index], time, self.shot)
                self.num_people += 1
        for index, person in owners.items():
            person.box, person.time, person.shot = boxes[index], time, self.shot
            person.looks = _with_look(person.looks, looks[index], self.max_looks)
        seen = list(owners.values())
        self.people = ([person for person in self.people if person not in seen] + seen)[-self.max_people :]
        return [Face(owners[i].number, boxes[i, :4], float(boxes[i, 4])) for i in sorted(owners)]

    def _match(self, boxes: np.ndarray, looks: np.ndarray, time: float) -> dict[int, _Person]:
        """Matches boxes to people, most similar pairs first; returns index of a box -> person."""
        pairs = [
            (likeness + self.position_weight * self._nearness(person, boxes[index], time), index, person)
            for person in self.people
            for index, likeness in enumerate((looks @ person.looks.T).max(axis=1) if len(boxes) else ())
        ]
        owners: dict[int, _Person] = {}
        for likeness, index, person in sorted(pairs, key=lambda pair: -pair[0]):
            if likeness >= self.same_person and index not in owners and person not in owners.values():
                owners[index] = person
        return owners

    def _nearness(self, person: _Person, box: np.ndarray, time: float) -> float:
        """Returns the overlap with the person's last box, 0 if that is too old, -1 if this cannot be the person."""
        is_sure = box[4] >= self.start_score
        if person.shot != self.shot or not 0 <= time - person.time <= self.max_gap:
            return 0.0 if is_sure else -1.0
        if (np.abs(box[:4] - person.box[:4]) > (2 if is_sure else 0.5) * (box[2:4] - box[:2]).max()).any():
            return -1.0
        inner = np.concatenate([np.maximum(box[:2], person.box[:2]), np.minimum(box[2:4], person.box[2:4])])
        return area(inner) / (area(box) + area(person.box) - area(inner))

    def _notice_cut(self, frame: np.ndarray) -> None:
        # Pattern and brightness: 0.05-0.35 and 0.4-0.55 at a film's cuts. A fast camera's false cut costs little.
        step = max(1, min(frame.shape[:2]) // 180)
        small = np.asarray(Image.fromarray(frame[::step, ::step]).resize((16, 16), Image.Resampling.BOX), dtype=float)
        if self._last_frame is not None:
            now, before = small - small.mean(), self._last_frame - self._last_frame.mean()
            likeness = (now * before).sum() / max(np.linalg.norm(now) * np.linalg.norm(before), 1e-6)
            change = np.abs(small - self._last_frame).sum() / max((small + self._last_frame).sum(), 1e-6)
            self.shot += bool(likeness < 0.5 and change > 0.2)
        self._last_frame = small


def _with_look(looks: np.ndarray, look: np.ndarray, most: int) -> np.ndarray:
    """Adds a new look; drops the one most similar to another if there are too many."""
    if len(looks) and (looks @ look).max() > 0.9:
        return looks
    looks = np.concatenate([looks, look[None]])
    alike = looks @ looks.T - 2 * np.eye(len(looks))
    return looks if len(looks) <= most else np.delete(looks, alike.max(axis=1).argmax(), axis=0)


__all__ = ["FaceTracker", "describe_face"]

# SPDX-License-Identifier: Apache-2.0
"""Boxes of faces in a frame: checked, chosen, and cropped the way the data sets' clips are cropped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, eq=False)  # eq: arrays do not compare to one bool
class Face:
    """A face in one frame: the person's number, `(x0, y0, x1, y1)` in pixels, and the detector's score."""

    person: int
    box: np.ndarray
    score: float


def check_frame(frame: np.ndarray) -> None:
    """Raises `ValueError` unless `frame` is `(H, W, 3)`, uint8, and has pixels."""
    is_array = isinstance(frame, np.ndarray)
    if not is_array or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
        found = f"{frame.dtype} of shape {frame.shape}" if is_array else f"a {type(frame).__name__}"
        raise ValueError(f"a frame must be an array (height, width, 3), uint8, RGB, not grey or RGBA, but is {found}")


def check_boxes(boxes, frame: np.ndarray, name: str = "the detector") -> np.ndarray:
    """Returns boxes `(n, 5)`, float32, clipped to the frame, without those less than a pixel wide or high."""
    boxes = np.array(boxes, dtype=np.float32)
    boxes = boxes.reshape(0, 5) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise ValueError(f"{name} must give faces as (n, 5): x0, y0, x1, y1, score; but gave shape {boxes.shape}")
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:4] < boxes[:, :2]).any(axis=1)
    if wrong.any():
        raise ValueError(f"{name} gave {boxes[wrong][0]}, but must give finite x0, y0, x1, y1, score, and x0 <= x1")
    boxes[:, :4] = np.clip(boxes[:, :4], 0, np.tile(frame.shape[1::-1], 2))
    return boxes[(boxes[:, 2:4] - boxes[:, :2]).min(axis=1) >= 1]


def crop_face(frame: np.ndarray, box: np.ndarray, margin: float = 0.15, size: int | None = None) -> np.ndarray:
    """Crops a square `(S, S, 3)`, uint8, around the centre of a box, repeating the edge pixels outside the frame.

    The data sets' clips are squares that one face fills from the hair to below the chin (DFEW's: 224 x 224 pixels).
    Detectors' boxes begin at forehead or brows, so `margin`, a share of the longer side, is added on each side; 0.15
    was chosen by eye. Faces are not aligned, as most of the data sets' are. `size` resizes the square.
    """
    check_frame(frame)
    x0, y0, x1, y1 = (float(value) for value in np.ravel(box)[:4])
    side = max(1, round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)))
    rows = np.arange(side) + round((y0 + y1 - side) / 2)
    columns = np.arange(side) + round((x0 + x1 - side) / 2)
    crop = frame.take(rows, axis=0, mode="clip").take(columns, axis=1, mode="clip")  # the nearest pixel, outside
    return crop if size is None else np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC))


def choose_faces(faces: Sequence[Face], which: str | Callable[[list[Face]], list[Face]] = "all") -> list[Face]:
    """Filters the faces of one frame: "all", the "largest" (not always of the same person), or by a callable."""
    if callable(which):
        return list(which(list(faces)))
    if which not in ("all", "largest"):
        raise ValueError(f"which faces must be 'all', 'largest' or a callable, but is {which!r}")
    return list(faces) if which == "all" else sorted(faces, key=lambda face: area(face.box))[-1:]


def area(box: np.ndarray) -> float:
    """Returns the area of a box in pixels, 0 if it is inverted."""
    return float(np.prod(np.clip(box[2:4] - box[:2], 0, None)))


__all__ = ["Face", "check_boxes", "check_frame", "choose_faces", "crop_face"]

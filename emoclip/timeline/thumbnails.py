# SPDX-License-Identifier: Apache-2.0
"""JPEG thumbnails of the people in a video: creating them, and decoding them as untrusted data."""

import io

import numpy as np
from PIL import Image

_LONGEST_SIDE = 112  # pixels
_MOST_THUMBNAILS = 8  # per person; at least half as many, evenly spaced, for a person who stays long enough


class Thumbnails:
    """A collection of a few thumbnails per person, spread over the time that the person is seen."""

    def __init__(self):
        self.kept: dict[int, list[tuple[float, bytes]]] = {}  # person -> (time, JPEG)
        self._pauses: dict[int, float] = {}  # person -> seconds between thumbnails

    def offer(self, person: int, time: float, pixels: np.ndarray):
        kept, pause = self.kept.setdefault(person, []), self._pauses.setdefault(person, 0.5)
        if kept and time - kept[-1][0] < pause:
            return
        image, file = Image.fromarray(pixels), io.BytesIO()
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        image.save(file, format="JPEG", quality=85)
        kept.append((time, file.getvalue()))
        if len(kept) > _MOST_THUMBNAILS:
            del kept[1::2]
            self._pauses[person] *= 2


def thumbnail_pixels(picture: bytes) -> np.ndarray:
    """Returns the pixels `(H, W, 3)`, uint8, RGB, of a thumbnail made by `Thumbnails`.

    Raises:
        ValueError: it is not a JPEG, is damaged, or has more than 112 pixels per side.
    """
    try:
        # JPEG only: for some other formats Pillow runs external programs, e.g. Ghostscript for EPS.
        with Image.open(io.BytesIO(picture), formats=("JPEG",)) as image:
            if max(image.size) > _LONGEST_SIDE:  # checked before decoding
                raise ValueError(f"it has {image.width} x {image.height} pixels, but at most {_LONGEST_SIDE} a side")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"it is no JPEG, or damaged ({error})") from None


__all__ = ["Thumbnails", "thumbnail_pixels"]

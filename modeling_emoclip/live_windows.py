# SPDX-License-Identifier: Apache-2.0
"""The last seconds of a live video: embeddings of its frames, each encoded once, and the scores of who is in them.

Shapes: P people, T frames of a window, D embedding width.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from .frame_sampling import segment_middle
from .video_frames import Crop, FaceCrops, frames_of_window

_HALF_A_TICK = 1e-6  # seconds; times are sums of fractions


class Frame(NamedTuple):
    number: int  # of the push, from 1
    time: float  # seconds
    pixels: np.ndarray  # (H, W, 3), uint8, RGB


class WindowScorer:
    """Frames -> scores of the people in them; keeps the embeddings of the last `window` seconds, and no frame.

    Args:
        pipe, window, faces, no_face, detector: see `EmotionStream`.
        options: of a call of the pipeline.
    """

    def __init__(
        self, pipe, window: float, faces: str | Callable, no_face: str, detector: str | Callable, options: dict
    ):
        self.pipe, self.window = pipe, window
        _, self.forward_options, self.score_options = pipe._sanitize_parameters(**options)
        processor = pipe.processor.video_processor
        self.face_crops = FaceCrops(processor.size, faces, no_face, detector)
        self.num_frames = frames_of_window(processor, window)
        self.embeds: dict[int, deque[tuple[float, torch.Tensor]]] = {}  # person -> (time, (D,))
        with torch.no_grad(), pipe.device_placement():
            pipe.class_embeds(self.forward_options["texts_by_label"])  # now, and not when the first frame is here

    def add(self, frame: Frame) -> list[int]:
        """Encodes a frame; returns who is in it."""
        crops = self.face_crops(frame)
        for crop, embed in zip(crops, self._encode(crops), strict=True):
            of_person = self.embeds.setdefault(crop.person, deque(maxlen=self.num_frames))
            of_person.append((frame.time, embed))
        for person, of_person in list(self.embeds.items()):
            while of_person and of_person[0][0] <= frame.time - self.window + _HALF_A_TICK:
                of_person.popleft()
            if not of_person:
                del self.embeds[person]
        return [crop.person for crop in crops]

    def scores(self, people: list[int]) -> list[tuple[int, list[dict[str, Any]], int]]:
        """Of each person: number, scores, and the frames that they are of."""
        if not people:
            return []
        counts = [len(self.embeds[person]) for person in people]
        frame_embeds = torch.stack(
            [
                torch.stack([self.embeds[person][index][1] for index in segment_middle(count, self.num_frames)])
                for person, count in zip(people, counts, strict=True)
            ]
        )  # (P, T, D)
        logits = self.pipe.forward({"frame_embeds": frame_embeds}, **self.forward_options)["logits_per_video"]
        rows = [{"logits_per_video": logits[row : row + 1]} for row in range(len(people))]
        scores = [self.pipe.postprocess(row, **self.score_options) for row in rows]
        return list(zip(people, scores, counts, strict=True))

    @torch.no_grad()
    def _encode(self, crops: list[Crop]) -> list[torch.Tensor]:
        if not crops:
            return []
        processor = self.pipe.processor.video_processor
        options = {"do_sample_frames": False, "return_tensors": "pt"}
        pixels = torch.cat([processor(crop.pixels[None], **options)["pixel_values_videos"][0] for crop in crops])
        with self.pipe.device_placement():
            return list(self.pipe.encode_frames(pixels))


__all__ = ["Frame", "WindowScorer"]

# SPDX-License-Identifier: Apache-2.0
"""Crops of faces from frames, always of one size; and one person's face from a clip of whole frames."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata

from emoclip.video.sources import in_memory_frames
from modeling_emoclip.video_inputs import is_in_memory, select_frames, split_batch
from modeling_emoclip.video_reading import read_video

from .boxes import choose_faces, crop_face
from .detection import load_face_detector
from .tracking import FaceTracker

WHOLE_FRAME = -1  # the "person" of frames without a face that are scored as a whole
NO_FACE_POLICIES = ("nothing", "frame")
FACE_CHOICES = ("none", "largest")  # for a clip


@dataclass
class Crop:
    """A face, or a whole frame."""

    person: int
    box: np.ndarray  # (4,)
    pixels: np.ndarray | None  # (H, W, 3); None once it is encoded
    embed: torch.Tensor | None = None  # (D,)


class FaceCropper:
    """Crops each person in a frame, always to the same size; see `pipe.timeline` for the arguments.

    Args:
        size: `size` of the video processor.
    """

    def __init__(
        self, size, faces: str | Callable = "all", no_face: str = "nothing", detector: str | Callable = "auto"
    ):
        for name, value, known in (
            ("faces", faces, ("all", "largest", "none")),
            ("no_face", no_face, NO_FACE_POLICIES),
        ):
            if not callable(value) and value not in known:
                raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(known)}")
        self.which, self.no_face, self.tracker = faces, no_face, FaceTracker()
        self.size = size["shortest_edge"] or max(size["height"], size["width"])
        self._detect = None if faces == "none" else load_face_detector(detector)
        name = self._detect and self._detect.name
        self.settings = {"faces": "callback" if callable(faces) else faces, "no_face": no_face, "detector": name}

    def reset(self) -> None:
        """Forgets all people, before the first frame of another video."""
        self.tracker = FaceTracker()

    def __call__(self, frame: np.ndarray, time: float) -> list[Crop]:
        """Returns the crops of a frame `(H, W, 3)`, uint8, RGB, at a time in seconds."""
        height, width = frame.shape[:2]
        box = np.array([0, 0, width, height], dtype=np.float32)
        if self._detect is None:
            return [Crop(0, box, frame)]
        people = self.tracker.update(frame, self._detect(frame), time)
        crops = [
            Crop(face.person, np.asarray(face.box), crop_face(frame, face.box, size=self.size))
            for face in choose_faces(people, self.which)
        ]
        return crops or [Crop(WHOLE_FRAME, box, frame)] * (self.no_face == "frame")


def check_face_choice(faces: str | Callable) -> None:
    """Raises a ValueError unless `faces` selects one face of a clip."""
    if faces == "all":
        raise ValueError("faces is 'all', but a clip has one answer: 'largest', or timeline() for everybody's")
    if not callable(faces) and faces not in FACE_CHOICES:
        raise ValueError(f"faces is {faces!r}, but must be one of {', '.join(FACE_CHOICES)}, or a function")


def crop_clip_to_face(
    video: Any, processor, faces: str | Callable, detector: str | Callable
) -> tuple[BatchFeature, VideoMetadata]:
    """Crops the frames that the processor samples to the person whose face is largest, over all of them.

    Args:
        video: one video, as in a call of the pipeline.
        processor: `EmoCLIPVideoProcessor`.
        faces: `"largest"`, or a function that filters the faces of a frame first.
        detector: see `pipe.timeline`.

    Returns:
        The processor's output for the crops, with `frame_mask (1, T)`, false where the person is not seen, and
        `face_found (1, 1)`; if that is false, the frames are whole. And the metadata of the video.
    """
    crop_faces = FaceCropper(processor.size, "all" if faces == "largest" else faces, "nothing", detector)
    frames, metadata = _sampled_frames(video, processor)
    times = metadata.frames_indices / (metadata.fps or 25)
    found = [crop_faces(pixels, times[step]) for step, pixels in enumerate(frames)]
    crops = _of_largest_person(found) or dict(enumerate(frames))
    pixels = np.zeros((len(frames), *next(iter(crops.values())).shape), dtype=np.uint8)
    for step, crop in crops.items():
        pixels[step] = crop
    inputs = processor(pixels, do_sample_frames=False, return_tensors="pt")
    inputs["frame_mask"] = torch.tensor([[step in crops for step in range(len(frames))]])
    inputs["face_found"] = torch.tensor([[any(found)]])
    return inputs, metadata


def _sampled_frames(video: Any, processor) -> tuple[list[np.ndarray], VideoMetadata]:
    """Returns the frames that the processor samples from one video, `(H, W, 3)`, uint8, RGB each, and its metadata."""
    rng = None if processor.seed is None else np.random.default_rng(processor.seed)

    def choose_frames(metadata: VideoMetadata) -> np.ndarray:
        return processor.sample_frames(metadata, fps=processor.fps, rng=rng)

    (video,), name = split_batch(video), "the video"
    if is_in_memory(video):
        frames, metadata = select_frames(video, VideoMetadata(total_num_frames=len(video)), choose_frames, name)
    else:
        frames, metadata = read_video(video, choose_frames, name, processor.video_limits, processor.guard_decoding)
    return in_memory_frames(frames, name), metadata


def _of_largest_person(found: list[list[Crop]]) -> dict[int, np.ndarray]:
    """Returns step -> crop of the person with the largest sum of areas."""
    crops, areas = defaultdict(dict), defaultdict(float)
    for step, in_frame in enumerate(found):
        for crop in in_frame:
            crops[crop.person][step] = crop.pixels
            areas[crop.person] += float(np.prod(crop.box[2:] - crop.box[:2]))
    return crops[max(areas, key=areas.get)] if areas else {}


__all__ = ["FaceCropper", "check_face_choice", "crop_clip_to_face"]

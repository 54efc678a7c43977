# SPDX-License-Identifier: Apache-2.0
"""A clip that nobody has cropped -> the frames that the model reads, each cropped to the face of one person.

Of a few frames of a clip; `timeline.py` follows everybody through all frames.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata

from .frame_sequence import GridFrame
from .video_frames import Crop, FaceCrops, in_memory_frames

WHOSE = ("none", "largest")


def check_whose(faces: str | Callable) -> None:
    """Raises `ValueError` unless `faces` says which one face of a clip counts."""
    if faces == "all":
        raise ValueError("faces is 'all', but a clip has one answer: 'largest', or timeline() for everybody's")
    if not callable(faces) and faces not in WHOSE:
        raise ValueError(f"faces is {faces!r}, but must be one of {', '.join(WHOSE)}, or a function")


def face_clip(
    video: Any, processor, faces: str | Callable, detector: str | Callable
) -> tuple[BatchFeature, list[VideoMetadata]]:
    """Of the person whose face is largest, over all frames that the processor chooses.

    Args:
        video: one, as of the pipeline.
        processor: `EmoCLIPVideoProcessor`.
        faces: `"largest"`, or a function that leaves some faces of a frame out.
        detector: see `pipe.timeline`.

    Returns:
        What the processor returns of the crops, `frame_mask (1, T)`, false where the person is not seen, and
        `face_found (1, 1)`; where that is false, the frames are whole. And the metadata of the video, in a list.
    """
    face_crops = FaceCrops(processor.size, "all" if faces == "largest" else faces, "nothing", detector)
    (frames,), (metadata,) = processor.sample_videos(video)
    frames = in_memory_frames(frames, "the video")
    times = metadata.frames_indices / (metadata.fps or 25)
    found = [face_crops(GridFrame(step, times[step], pixels, True)) for step, pixels in enumerate(frames)]
    crops = _of_largest(found) or dict(enumerate(frames))
    pixels = np.zeros((len(frames), *next(iter(crops.values())).shape), dtype=np.uint8)
    for step, crop in crops.items():
        pixels[step] = crop
    inputs = processor(pixels, do_sample_frames=False, return_tensors="pt")
    inputs["frame_mask"] = torch.tensor([[step in crops for step in range(len(frames))]])
    inputs["face_found"] = torch.tensor([[any(found)]])
    return inputs, [metadata]


def _of_largest(found: list[list[Crop]]) -> dict[int, np.ndarray]:
    """Step -> crop of the person with the largest sum of areas."""
    crops, areas = defaultdict(dict), defaultdict(float)
    for step, in_frame in enumerate(found):
        for crop in in_frame:
            crops[crop.person][step] = crop.pixels
            areas[crop.person] += float(np.prod(crop.box[2:] - crop.box[:2]))
    return crops[max(areas, key=areas.get)] if areas else {}


__all__ = ["WHOSE", "check_whose", "face_clip"]

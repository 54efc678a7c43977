# SPDX-License-Identifier: Apache-2.0
"""Opening a video of any supported kind for iteration over its frames, and cropping the faces in them."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from transformers.video_utils import VideoMetadata

from .faces import FaceTracker, choose_faces, crop_face, load_face_detector
from .frame_sequence import HIGHEST_GRID_RATE, FileFrames, FrameSequence, GridFrame, TimedFrame
from .video_decoding import _open_image, _resolve
from .video_guard import GuardedFrames
from .video_inputs import channels_first, is_in_memory, is_rescaled, select_frames, split_batch
from .video_limits import VideoLimits, make_limits

NOBODY = -1  # the "person" of frames without a face, when these are scored as a whole
NO_FACE = ("nothing", "frame")


def check_number(name: str, value: Any) -> None:
    """Raises `ValueError` unless `value` is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not value > 0:
        raise ValueError(f"{name} is {value!r}, but must be a number above 0")


def check_fps(value: Any) -> None:
    """Raises `ValueError` unless `value` is a finite number above 0."""
    check_number("fps", value)
    if value == math.inf:
        raise ValueError("fps is inf, but must be finite")


def frames_of_window(processor, window: float) -> int:
    """Returns the number of frames that the video processor samples from a window in seconds."""
    return max(1, round(window * processor.fps)) if processor.fps else processor.num_frames


def check_window(processor, window: float) -> None:
    """Raises `ValueError` unless `window` is finite, above 0 and long enough for the processor's frames."""
    check_number("window", window)
    if window == math.inf:
        raise ValueError("window is inf s, but must be finite")
    num_frames = frames_of_window(processor, window)
    if num_frames > window * HIGHEST_GRID_RATE:
        raise ValueError(
            f"window is {window:g} s, but must be at least {num_frames / HIGHEST_GRID_RATE:g} s: its frames, "
            f"{num_frames} here, are at most {HIGHEST_GRID_RATE:,} a second"
        )


def open_frames(
    video: Any, fps: float | None = None, limits: dict | VideoLimits | None = None, guarded: bool = True
) -> FrameSequence:
    """Opens one video for iteration over its frames in order of time.

    Args:
        video: anything that the pipeline accepts as one video.
        fps: frames per second of a folder or list of frames, which has no time stamps; files have them.
        limits: `VideoLimits`, or a dict of the fields that differ from the defaults.
        guarded: decode files in a separate process, see `read_video`.

    Raises:
        FileNotFoundError, ValueError: the video does not exist, or frames need `fps`.
        VideoDecodeError: a `ValueError`: there is no video stream, or a limit is exceeded.
    """
    videos, limits, name = split_batch(video), make_limits(limits), "the video"
    if len(videos) != 1:
        raise ValueError(f"one video is taken at a time, but {len(videos)} are given")
    if is_in_memory(videos[0]):
        return _ListedFrames(in_memory_frames(videos[0], name), name, limits, fps)
    source, name = _resolve(videos[0], name)
    if isinstance(source, list):
        return _ListedFrames(source, name, limits, fps)
    return (GuardedFrames if guarded else FileFrames)(source, name, limits)


class _ListedFrames(FrameSequence):
    """A video given as frames in memory or as paths of images."""

    def __init__(self, source: list[np.ndarray] | list[str], name: str, limits: VideoLimits, fps: float | None):
        super().__init__(source, name, limits)
        if fps is None:
            raise ValueError(f"{name} is made of frames without time stamps: give fps, their number per second")
        check_fps(fps)
        self.fps, self.duration = fps, len(source) / fps
        limits.check_length(name, len(source), self.duration)

    def _timed(self) -> Iterator[TimedFrame]:
        for index, frame in enumerate(self.source):
            yield TimedFrame(index / self.fps, (index + 1) / self.fps, partial(self._loaded, frame))

    def _loaded(self, frame: np.ndarray | str) -> np.ndarray:
        return np.asarray(_open_image(frame, self.limits)) if isinstance(frame, str) else frame


def progress_bar(frames: FrameSequence, name: str, is_shown: bool) -> tqdm:
    """Creates a progress bar in whole seconds of video; a duration that exceeds the limits is not shown as total."""
    is_known = frames.duration and 0 < frames.duration <= frames.limits.max_seconds < math.inf
    total = round(frames.duration) if is_known else None
    return tqdm(total=total, unit="s", desc=os.path.basename(name), disable=not is_shown)


@dataclass
class Crop:
    """The crop of a face, or a whole frame."""

    person: int
    box: np.ndarray  # (4,)
    pixels: np.ndarray | torch.Tensor | None  # (H, W, 3), then preprocessed for the model, then None once encoded
    embed: torch.Tensor | None = None  # (D,)


class FaceCrops:
    """A callable that crops each person in a frame to a fixed size; see `pipe.timeline` for the arguments."""

    def __init__(
        self, size, faces: str | Callable = "all", no_face: str = "nothing", detector: str | Callable = "auto"
    ):
        for name, value, known in (("faces", faces, ("all", "largest", "none")), ("no_face", no_face, NO_FACE)):
            if not callable(value) and value not in known:
                raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(known)}")
        self.which, self.no_face, self.tracker = faces, no_face, FaceTracker()
        self.size = size["shortest_edge"] or max(size["height"], size["width"])
        self._detect = None if faces == "none" else load_face_detector(detector)
        name = self._detect and self._detect.name
        self.settings = {"faces": "callback" if callable(faces) else faces, "no_face": no_face, "detector": name}

    def start_again(self) -> None:
        """Resets the face tracker, so that the next frame is the first of a new video."""
        self.tracker = FaceTracker()

    def __call__(self, frame: GridFrame) -> list[Crop]:
        height, width = frame.pixels.shape[:2]
        whole_frame = np.array([0, 0, width, height], dtype=np.float32)
        if self._detect is None:
            return [Crop(0, whole_frame, frame.pixels)]
        people = self.tracker.update(frame.pixels, self._detect(frame.pixels), frame.time)
        crops = [
            Crop(face.person, np.asarray(face.box), crop_face(frame.pixels, face.box, size=self.size))
            for face in choose_faces(people, self.which)
        ]
        return crops or [Crop(NOBODY, whole_frame, frame.pixels)] * (self.no_face == "frame")


def in_memory_frames(video: Any, name: str) -> list[np.ndarray]:
    """Converts a video in memory to a list of frames, each `(H, W, 3)`, uint8, RGB."""
    frames, _ = select_frames(video, VideoMetadata(total_num_frames=len(video)), None, name)
    frames = channels_first(frames, None, name)
    if is_rescaled(frames):
        frames = frames * 255
    frames = frames.clamp(0, 255).round().byte() if frames.is_floating_point() else frames
    frames = frames.expand(-1, 3, -1, -1) if frames.shape[1] == 1 else frames[:, :3]
    return [frame.permute(1, 2, 0).numpy() for frame in frames]


__all__ = [
    "HIGHEST_GRID_RATE",
    "NOBODY",
    "NO_FACE",
    "Crop",
    "FaceCrops",
    "check_fps",
    "check_number",
    "check_window",
    "frames_of_window",
    "in_memory_frames",
    "open_frames",
    "progress_bar",
]

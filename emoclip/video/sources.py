# SPDX-License-Identifier: Apache-2.0
"""Opening whatever the pipeline takes as one video as a sequence of all its frames."""

import math
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from huggingface_hub.utils import tqdm
from transformers.video_utils import VideoMetadata

from modeling_emoclip.video_inputs import channels_first, is_in_memory, is_rescaled, select_frames, split_batch
from modeling_emoclip.video_limits import VideoLimits, make_limits
from modeling_emoclip.video_reading import open_image, resolve_source

from .frames import HIGHEST_RATE, FileFrames, FrameSequence, TimedFrame
from .guarded_frames import GuardedFrames


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
    """Returns the number of frames that the video processor samples from a window of so many seconds."""
    return max(1, round(window * processor.fps)) if processor.fps else processor.num_frames


def check_window(processor, window: float) -> None:
    """Raises `ValueError` unless `window` is a finite number above 0 that has room for the processor's frames."""
    check_number("window", window)
    if window == math.inf:
        raise ValueError("window is inf s, but must be finite")
    num_frames = frames_of_window(processor, window)
    if num_frames > window * HIGHEST_RATE:
        raise ValueError(
            f"window is {window:g} s, but must be at least {num_frames / HIGHEST_RATE:g} s: its frames, "
            f"{num_frames} here, are at most {HIGHEST_RATE:,} a second"
        )


def open_frames(
    video: Any, fps: float | None = None, limits: dict | VideoLimits | None = None, guarded: bool = True
) -> FrameSequence:
    """Opens one video as a sequence of its frames in the order of time.

    Args:
        video: any input that the pipeline accepts as one video.
        fps: frames per second of a folder or list of frames, which has no time stamps; files have them.
        limits: see `VideoLimits`; or its fields that differ from the defaults.
        guarded: decode files in a process of their own, see `read_video`.

    Raises:
        FileNotFoundError, ValueError: no such video, frames without `fps`.
        VideoDecodeError: a `ValueError`: no video stream, more than a limit allows.
    """
    videos, limits, name = split_batch(video), make_limits(limits), "the video"
    if len(videos) != 1:
        raise ValueError(f"one video is taken at a time, but {len(videos)} are given")
    if is_in_memory(videos[0]):
        return _ListedFrames(in_memory_frames(videos[0], name), name, limits, fps)
    source, name = resolve_source(videos[0], name)
    if isinstance(source, list):
        return _ListedFrames(source, name, limits, fps)
    return (GuardedFrames if guarded else FileFrames)(source, name, limits)


class _ListedFrames(FrameSequence):
    """A sequence of frames in memory, or of paths to images."""

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
        return np.asarray(open_image(frame, self.limits)) if isinstance(frame, str) else frame


def progress_bar(frames: FrameSequence, name: str, is_shown: bool) -> tqdm:
    """Returns a progress bar in seconds of video, with a total if the header gives a plausible one."""
    is_known = frames.duration and 0 < frames.duration <= frames.limits.max_seconds < math.inf
    total = round(frames.duration) if is_known else None
    return tqdm(total=total, unit="s", desc=os.path.basename(name), disable=not is_shown)


def in_memory_frames(video: Any, name: str) -> list[np.ndarray]:
    """Converts the frames of a video in memory to `(H, W, 3)`, uint8, RGB each."""
    frames, _ = select_frames(video, VideoMetadata(total_num_frames=len(video)), None, name)
    frames = channels_first(frames, None, name)
    if is_rescaled(frames):
        frames = frames * 255
    frames = frames.clamp(0, 255).round().byte() if frames.is_floating_point() else frames
    frames = frames.expand(-1, 3, -1, -1) if frames.shape[1] == 1 else frames[:, :3]
    return [frame.permute(1, 2, 0).numpy() for frame in frames]


__all__ = ["open_frames", "progress_bar"]

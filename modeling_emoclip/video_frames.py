# SPDX-License-Identifier: Apache-2.0
"""Every frame of a video once, in the order of time, and the faces in it; length costs no memory.

Times are seconds as a player counts them. `video_decoding.py` is for a few frames of a clip, this is for all of them.
"""

import heapq
import itertools
import os
import re
import time as clock
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import av
import numpy as np
import torch
from huggingface_hub.utils import tqdm
from PIL import Image
from transformers.video_utils import VideoMetadata

from .faces import FaceTracker, choose_faces, crop_face, load_face_detector
from .video_decoding import _open_image, _resolve
from .video_inputs import channels_first, is_in_memory, is_rescaled, select_frames, split_batch
from .video_limits import VideoDecodeError, VideoLimits, make_limits
from .video_streams import _UNREADABLE, _opened, _upright

NOBODY = -1  # the "person" of frames without a face, where they are scored as a whole
NO_FACE = ("nothing", "frame")
_OUT_OF_ORDER = 4  # frames that wait to be sorted: some files show 0 2 1 3
_LONGEST_FRAME = 3600  # seconds; a slide may stay long, but a longer jump is a damaged time stamp
_CUT_OFF = 1.0  # a stream that ends so many seconds before its header says is not whole
_HALF_A_TICK = 1e-6  # of the finest clock in use; times are sums of fractions


@dataclass(frozen=True)
class TimedFrame:
    time: float  # seconds
    end: float  # when the next frame comes
    pixels: Any  # (H, W, 3), uint8, upright; anything that `VideoFrames` turns into that while nobody has asked


@dataclass(frozen=True)
class GridFrame:
    step: int  # 0, 1, 2, ...
    time: float  # seconds, the middle of the step
    pixels: np.ndarray  # (H, W, 3), uint8, RGB, upright
    is_new: bool  # False: the same frame as a step before, held


class VideoFrames:
    """The frames of one video; iterating decodes it from its beginning.

    Args:
        video: whatever the pipeline takes as one video.
        fps: frames per second of a folder or list of frames, which has no time stamps; files have them.
        limits: what the video may cost, see `VideoLimits`, or the fields of it that differ from the defaults; its
            `time_limit` is for each frame here. What is too long, but does not say so, is read as far as it may be.

    Attributes:
        name: path, or "the video".
        source: path or bytes of a file, else a list of frames.
        fps: frames per second, on average.
        duration: seconds that the header promises; `None` if it does not say.
        size: (width, height), upright, once a frame was seen.
        start, end: seconds, of what was seen.

    Raises:
        FileNotFoundError, ValueError: no such video, frames without `fps`.
        VideoDecodeError: a `ValueError`: no video stream, more than a limit allows; while iterating, a video of which
            no frame decodes.
    """

    # Files are read in this process, by PyAV: docs/reliability.md says what that may cost.
    def __init__(self, video: Any, fps: float | None = None, limits: dict | VideoLimits | None = None):
        videos = split_batch(video)
        if len(videos) != 1:
            raise ValueError(f"one video is taken at a time, but {len(videos)} are given")
        self.limits = make_limits(limits)
        self.name, self.size, self.start, self.end = "the video", None, 0.0, 0.0
        self.fps, self._frames, self.source, self._faults = 25.0, None, None, []
        if is_in_memory(videos[0]):
            self._frames = in_memory_frames(videos[0], self.name)
        else:
            self.source, self.name = _resolve(videos[0], self.name)
            self._frames = self.source if isinstance(self.source, list) else None
        if self._frames is None:
            self.duration = self._promised_duration()
        elif not fps or fps <= 0:
            raise ValueError(f"{self.name} is made of frames without time stamps: give fps, their number per second")
        else:
            self.fps, self.duration = fps, len(self._frames) / fps
        self.limits.check_length(self.name, len(self._frames or ()), self.duration)

    @property
    def error(self) -> str | None:
        """What was wrong with the video, if the last iteration missed its end or had to leave frames out."""
        if not self._faults:
            return None
        of = f" of {self.duration:.1f} s" if self.duration else ""
        return f"{self.name}: {'; '.join(self._faults)} ({self.end - self.start:.1f} s{of} were read)"

    def on_grid(self, rate: float) -> Iterator[GridFrame]:
        """The frame on screen at the middle of each of `rate` equal steps per second, from the first frame on.

        The steps of a whole video are the segments of `frame_sampling.segment_middle`. A very short one has one step.
        """
        step, first = 0, None
        for frame in self:
            first, pixels = first or frame, None
            while (time := self.start + (step + 0.5) / rate) < frame.end - _HALF_A_TICK:
                is_new, pixels = pixels is None, self.pixels_of(frame) if pixels is None else pixels
                yield GridFrame(step, time, pixels, is_new)
                step += 1
        if step == 0:
            yield GridFrame(0, self.start, self.pixels_of(first), True)

    def __iter__(self) -> Iterator[TimedFrame]:
        """Frames as they follow each other on screen."""
        self._faults, held = [], None
        frames = self._listed() if self._frames is not None else _in_order(self._decoded(), self._faults)
        for number, frame in enumerate(frames):
            if held is None:
                self.start = frame.time
            elif number >= self.limits.max_frames or frame.time - self.start > self.limits.max_seconds:
                self._faults.append("it is longer than max_frames or max_seconds, the rest is left out")
                break
            elif frame.time - held.time > _LONGEST_FRAME:
                self._faults.append(f"time jumps from {held.time:.1f} s to {frame.time:.1f} s, the rest is left out")
                break
            else:
                yield replace(held, end=frame.time)
            held = frame
        if held is None:
            raise VideoDecodeError(f"{self.name} {_UNREADABLE} (no frame decodes)")
        self.end = held.end
        yield held
        if self.duration and self.duration - (self.end - self.start) > _CUT_OFF:
            self._faults.append("it is cut off")

    def progress_bar(self, name: str, is_shown: bool) -> tqdm:
        """In whole seconds of video."""
        total = round(self.duration) if self.duration else None
        return tqdm(total=total, unit="s", desc=os.path.basename(name), disable=not is_shown)

    def pixels_of(self, frame: TimedFrame) -> np.ndarray:
        """`(H, W, 3)`, uint8, RGB, upright, of the size of the first frame that was asked for."""
        like = [] if self.size is None else [np.broadcast_to(np.uint8(0), (*self.size[::-1], 3))]
        pixels = frame.pixels
        if isinstance(pixels, str):
            pixels = np.asarray(_open_image(pixels, self.limits))
        if isinstance(pixels, av.VideoFrame):
            pixels = _upright(pixels, like)
        elif like and pixels.shape != like[0].shape:
            pixels = np.asarray(Image.fromarray(pixels).resize(self.size, Image.Resampling.BICUBIC))
        self.size = pixels.shape[1::-1]
        return np.ascontiguousarray(pixels)

    def _listed(self) -> Iterator[TimedFrame]:
        for index, frame in enumerate(self._frames):
            yield TimedFrame(index / self.fps, (index + 1) / self.fps, frame)

    def _decoded(self) -> Iterator[TimedFrame]:
        damaged, end, since = 0, None, clock.monotonic()
        try:
            with _opened(self.source, self.name, self.limits) as (container, stream):
                zero = (container.start_time or 0) / av.time_base
                for packet in container.demux(stream):
                    try:
                        frames = packet.decode()
                        damaged += packet.is_corrupt or any(frame.is_corrupt for frame in frames)
                    except av.error.InvalidDataError:
                        frames, damaged = [], damaged + 1
                    if not frames and clock.monotonic() - since > self.limits.time_limit:
                        raise VideoDecodeError(f"{self.name}: no frame within {self.limits.time_limit:g} s")
                    for frame in frames:
                        time = (end or 0.0) if frame.pts is None else float(frame.pts * frame.time_base) - zero
                        end = time + (float(frame.duration * frame.time_base) if frame.duration else 1 / self.fps)
                        yield TimedFrame(time, end, frame)
                        since = clock.monotonic()  # not counting what others do with the frame
        except av.error.FFmpegError as error:
            if end is None:
                raise VideoDecodeError(f"{self.name} {_UNREADABLE} ({error.strerror})") from None
            self._faults.append(f"it cannot be read further ({error.strerror})")
        if damaged and end is not None:
            self._faults.append(f"{damaged} of its packets damaged")

    def _promised_duration(self) -> float | None:
        try:
            with _opened(self.source, self.name, self.limits) as (container, stream):
                self.fps = float(stream.average_rate or stream.guessed_rate or self.fps)
                if stream.duration:
                    return float(stream.duration * stream.time_base)
                if clock := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):  # Matroska
                    hours, minutes, seconds = map(float, clock.groups())
                    first = float((stream.start_time or 0) * stream.time_base)
                    return 3600 * hours + 60 * minutes + seconds - first
                if container.duration and len(container.streams) == 1:
                    return container.duration / av.time_base
        except av.error.FFmpegError as error:
            raise VideoDecodeError(f"{self.name} {_UNREADABLE} ({error.strerror})") from None
        return None


@dataclass
class Crop:
    """A face, or a whole frame."""

    person: int
    box: np.ndarray  # (4,)
    pixels: np.ndarray | torch.Tensor | None  # (H, W, 3), then as the model takes it, then None: it is encoded
    embed: torch.Tensor | None = None  # (D,)


class FaceCrops:
    """Frame -> a crop of each person in it, always of the same size; see `pipe.timeline` for the arguments."""

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


def _in_order(frames: Iterator[TimedFrame], faults: list[str]) -> Iterator[TimedFrame]:
    """Sorted by time; frames that come too late to be sorted are left out, and `faults` then says so."""
    waiting, last, late, count = [], -np.inf, 0, 0
    for frame in itertools.chain(frames, [None] * _OUT_OF_ORDER):
        if frame is not None:
            count += 1
            heapq.heappush(waiting, (frame.time, count, frame))
            if len(waiting) <= _OUT_OF_ORDER:
                continue
        if waiting:
            time, _, earliest = heapq.heappop(waiting)
            if time > last:
                yield earliest
            late += time <= last
            last = max(time, last)
    if late:
        faults.append(f"{late} of {count} frames left out, their time stamps run backwards")


def in_memory_frames(video: Any, name: str) -> list[np.ndarray]:
    """Frames of a video in memory, each `(H, W, 3)`, uint8, RGB."""
    frames, _ = select_frames(video, VideoMetadata(total_num_frames=len(video)), None, name)
    frames = channels_first(frames, None, name)
    if is_rescaled(frames):
        frames = frames * 255
    frames = frames.clamp(0, 255).round().byte() if frames.is_floating_point() else frames
    frames = frames.expand(-1, 3, -1, -1) if frames.shape[1] == 1 else frames[:, :3]
    return [frame.permute(1, 2, 0).numpy() for frame in frames]


__all__ = ["NOBODY", "Crop", "FaceCrops", "GridFrame", "TimedFrame", "VideoFrames", "in_memory_frames"]

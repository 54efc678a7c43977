# SPDX-License-Identifier: Apache-2.0
"""Iteration over all frames of a video in order of time, with memory independent of its length, and sound copying.

Times are in seconds as a player shows them. `video_streams.py` reads a few frames of a clip, this module all frames.

The guarded process (video_worker.py) imports this file too, so it must not import torch or transformers.
"""

import contextlib
import heapq
import itertools
import re
import time as clock
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO

import av
import numpy as np

from .video_limits import VideoDecodeError, VideoLimits
from .video_streams import (
    _UNREADABLE,
    _opened,
    _pixel_aspect,
    _sized,
    _upright,
    has_no_times,
    sane_duration,
    sane_rate,
)

_OUT_OF_ORDER = 4  # frames buffered for sorting: some files have the order 0 2 1 3
LONGEST_FRAME = 3600  # seconds; slides may last long, but a longer jump means a damaged time stamp
_CUT_OFF = 1.0  # seconds; a stream that ends this long before the duration in its header is incomplete
# Steps per second. Bounds the cost of a wrong rate; Matroska and FLV time stamps are in milliseconds, so no video
# distinguishes more frames.
HIGHEST_GRID_RATE = 1000.0
_HALF_A_TICK = 1e-6  # seconds, for the finest clock in use; times are sums of fractions
_SOUND = ("aac", "mp3", "mp3float", "ac3", "eac3", "opus", "libopus")  # codecs that MP4 supports


@dataclass(frozen=True)
class TimedFrame:
    time: float  # seconds
    end: float  # seconds, the time of the next frame
    pixels: Callable[[], np.ndarray]  # -> (H, W, 3), uint8, RGB, upright; a function since not all are converted


@dataclass(frozen=True)
class GridFrame:
    step: int  # 0, 1, 2, ...
    time: float  # seconds, the middle of the step
    pixels: np.ndarray  # (H, W, 3), uint8, RGB, upright
    is_new: bool  # False: the same frame as in the previous step


class FrameSequence:
    """The frames of one video; each iteration starts from the beginning.

    The frames of `_timed` are restricted to the limits and end at a jump in time.

    Attributes:
        source: path or bytes of a file, or a list of frames.
        name: path, or "the video".
        limits: resource limits of the video; `time_limit` applies to each frame here. A video that is too long, but
            whose header does not say so, is read up to the limit.
        fps: average frames per second.
        duration: seconds according to the header; `None` if it does not say.
        size: (width, height), upright, set by the first frame; frames of another size are resized to it.
        start, end: seconds, the time span that was read.
    """

    def __init__(self, source: str | bytes | list, name: str, limits: VideoLimits):
        self.source, self.name, self.limits = source, name, limits
        self.fps: float = 25.0
        self.duration: float | None = None
        self.size: tuple[int, int] | None = None
        self.start = self.end = 0.0
        self.faults: list[str] = []  # in the last iteration

    @property
    def error(self) -> str | None:
        """Describes what is wrong with the video, if the last iteration missed its end or skipped frames."""
        if not self.faults:
            return None
        of = f" of {self.duration:.1f} s" if self.duration else ""
        return f"{self.name}: {'; '.join(self.faults)} ({self.end - self.start:.1f} s{of} were read)"

    def on_grid(self, rate: float) -> Iterator[GridFrame]:
        """Yields the frame on screen at the middle of each of `rate` equal steps per second, from the first frame on.

        Over a whole video the steps are the segments of `frame_sampling.segment_middle`. A very short video has one.

        Raises:
            ValueError: `rate` is not above 0, or is more than `HIGHEST_GRID_RATE`.
        """
        check_grid_rate(rate)
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
        """Yields the frames in display order. Raises `VideoDecodeError` if there is none."""
        self.faults, held, since = [], None, clock.monotonic()
        for number, frame in enumerate(self._timed()):
            if held is None:
                self.start = frame.time
            elif clock.monotonic() - since > self.limits.whole_time_limit:
                self.faults.append(f"{self.limits.whole_time_limit:g} s were over, the rest is left out")
                break
            elif number >= self.limits.max_frames or frame.time - self.start > self.limits.max_seconds:
                self.faults.append("it is longer than max_frames or max_seconds, the rest is left out")
                break
            elif frame.time - held.time > LONGEST_FRAME:
                self.faults.append(f"time jumps from {held.time:.1f} s to {frame.time:.1f} s, the rest is left out")
                break
            else:
                self.end = frame.time
                yield replace(held, end=frame.time)
            held = frame
        if held is None:
            raise VideoDecodeError(f"{self.name} {_UNREADABLE} (no frame decodes)")
        # The duration of the last frame is as untrusted as the rest of the file.
        self.end = min(held.end, held.time + LONGEST_FRAME, max(held.time, self.start + self.limits.max_seconds))
        yield replace(held, end=self.end)
        if self.duration and self.duration - (self.end - self.start) > _CUT_OFF:
            self.faults.append("it is cut off")

    def pixels_of(self, frame: TimedFrame) -> np.ndarray:
        """Returns `(H, W, 3)`, uint8, RGB, upright, in the size of the first frame that was requested."""
        pixels = frame.pixels()
        if self.size is None:
            self.limits.check_size(self.name, *pixels.shape[1::-1])  # the header may differ
        pixels = _sized(pixels, self.size)
        self.size = pixels.shape[1::-1]
        return np.ascontiguousarray(pixels)

    def copy_sound(self, path: str | BinaryIO) -> bool:
        """Copies the first audio stream that MP4 supports to an MP4 file; returns whether there is one."""
        return False

    def _timed(self) -> Iterator[TimedFrame]:
        """Yields frames in order of time, each with the end given by its file."""
        raise NotImplementedError


class FileFrames(FrameSequence):
    """The frames of a file, decoded in this process by PyAV.

    Args:
        watch: wraps the iterable of the packets of the file and yields them one by one.

    Raises:
        VideoDecodeError: there is no video stream, or a limit is exceeded; while iterating, no frame decodes.
    """

    def __init__(
        self, source: str | bytes, name: str, limits: VideoLimits, watch: Callable[[Iterable], Iterator] = iter
    ):
        super().__init__(source, name, limits)
        self.watch, self.duration = watch, self._promised_duration()
        limits.check_length(name, 0, self.duration)

    def copy_sound(self, path: str | BinaryIO) -> bool:
        with _opened(self.source, self.name, self.limits) as (original, _):
            known = [stream for stream in original.streams.audio if stream.codec_context is not None]
            streams = [stream for stream in known if stream.codec_context.name in _SOUND]
            if not streams:
                return False
            zero = round((original.start_time or 0) / av.time_base / streams[0].time_base)
            with av.open(path, "w", format="mp4") as container, contextlib.suppress(av.error.FFmpegError):
                copy = container.add_stream_from_template(streams[0])
                for packet in self.watch(original.demux(streams[0])):
                    if None not in (packet.pts, packet.dts):
                        packet.stream, packet.pts, packet.dts = copy, packet.pts - zero, packet.dts - zero
                        container.mux(packet)
        return True

    def _timed(self) -> Iterator[TimedFrame]:
        return _in_order(self._decoded(), self.faults)

    def _decoded(self) -> Iterator[TimedFrame]:
        damaged, end, since = 0, None, clock.monotonic()
        try:
            with _opened(self.source, self.name, self.limits) as (container, stream):
                zero, aspect = (container.start_time or 0) / av.time_base, _pixel_aspect(stream)
                is_counted = has_no_times(container, stream)
                for packet in self.watch(container.demux(stream)):
                    try:
                        frames = packet.decode()
                        damaged += packet.is_corrupt or any(frame.is_corrupt for frame in frames)
                    except av.error.InvalidDataError:
                        frames, damaged = [], damaged + 1
                    if not frames and clock.monotonic() - since > self.limits.time_limit:
                        if end is None:
                            raise VideoDecodeError(f"{self.name}: no frame within {self.limits.time_limit:g} s")
                        self.faults.append(f"no further frame within {self.limits.time_limit:g} s")
                        break
                    for frame in frames:
                        is_timed = frame.pts is not None and not is_counted
                        time = float(frame.pts * frame.time_base) - zero if is_timed else end or 0.0
                        end = time + (float(frame.duration * frame.time_base) if frame.duration else 1 / self.fps)
                        yield TimedFrame(time, end, partial(_upright, frame, aspect))
                        since = clock.monotonic()  # excludes the consumer's time
        except av.error.FFmpegError as error:
            if end is None:
                raise VideoDecodeError(f"{self.name} {_UNREADABLE} ({error.strerror})") from None
            self.faults.append(f"it cannot be read further ({error.strerror})")
        if damaged and end is not None:
            self.faults.append(f"{damaged} of its packets damaged")

    def _promised_duration(self) -> float | None:
        try:
            with _opened(self.source, self.name, self.limits) as (container, stream):
                self.fps = sane_rate(stream.average_rate) or sane_rate(stream.guessed_rate) or self.fps
                if stream.duration:
                    return sane_duration(float(stream.duration * stream.time_base))
                if clock := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):  # Matroska
                    hours, minutes, seconds = map(float, clock.groups())
                    first = float((stream.start_time or 0) * stream.time_base)
                    return sane_duration(3600 * hours + 60 * minutes + seconds - first)
                if container.duration and len(container.streams) == 1:
                    return sane_duration(container.duration / av.time_base)
        except av.error.FFmpegError as error:
            raise VideoDecodeError(f"{self.name} {_UNREADABLE} ({error.strerror})") from None
        return None


def check_grid_rate(rate: float) -> None:
    """Raises `ValueError` for a rate that `FrameSequence.on_grid` does not accept."""
    if not 0 < rate <= HIGHEST_GRID_RATE:
        raise ValueError(f"{rate:g} steps per second are asked for, but must be more than 0 and at most 1,000")


def _in_order(frames: Iterator[TimedFrame], faults: list[str]) -> Iterator[TimedFrame]:
    """Sorts frames by time. Frames that come too late to be sorted are dropped and reported in `faults`."""
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


__all__ = [
    "HIGHEST_GRID_RATE",
    "LONGEST_FRAME",
    "FileFrames",
    "FrameSequence",
    "GridFrame",
    "TimedFrame",
    "check_grid_rate",
]

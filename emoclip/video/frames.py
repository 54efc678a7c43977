# SPDX-License-Identifier: Apache-2.0
"""All frames of a video, once and in the order of time, in constant memory; and a copy of its sound.

Times are seconds as a player counts them. `modeling_emoclip.video_streams` decodes a few frames of a clip.

The guarded process (worker.py) imports this file too, so it imports neither torch nor transformers.
"""

import contextlib
import heapq
import itertools
import math
import re
import time as clock
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO

import av
import numpy as np

from modeling_emoclip.video_limits import VideoDecodeError, VideoLimits
from modeling_emoclip.video_streams import (
    UNREADABLE,
    has_no_times,
    opened,
    pixel_aspect,
    resized,
    sane_rate,
    upright,
)

_OUT_OF_ORDER = 4  # frames buffered for sorting: some files show 0 2 1 3
LONGEST_FRAME = 3600  # seconds; a slide may stay long, but a longer jump is a damaged time stamp
_CUT_OFF = 1.0  # seconds; a stream that ends so long before its header says is not whole
# Steps per second. It bounds what a wrong number can cost; the clocks of Matroska and FLV count milliseconds.
HIGHEST_RATE = 1000.0
EPSILON = 1e-6  # seconds; times are sums of fractions
_SOUND = ("aac", "mp3", "mp3float", "ac3", "eac3", "opus", "libopus")  # what MP4 can hold


@dataclass(frozen=True)
class TimedFrame:
    time: float  # seconds
    end: float  # when the next frame comes
    load: Callable[[], np.ndarray]  # makes the pixels (H, W, 3), uint8, RGB, upright; many frames are never loaded


@dataclass(frozen=True)
class GridFrame:
    step: int  # 0, 1, 2, ...
    time: float  # seconds, the middle of the step
    pixels: np.ndarray  # (H, W, 3), uint8, RGB, upright
    is_new: bool  # False: the frame of the step before is still on screen


class FrameSequence:
    """Base of frame sequences, which iterate over one video from its beginning.

    The frames from `_timed` are kept within the limits and end where time jumps.

    Attributes:
        source: path or bytes of a file, or a list of frames.
        name: path, or "the video".
        limits: limits for the video; `time_limit` applies to each frame. A video that is too long, against its header,
            is read up to the limit.
        fps: average frames per second.
        duration: seconds that the header promises; `None` if it does not say.
        size: (width, height), upright, after the first frame; other frames are resized to it.
        start, end: seconds of the frames that were read.
        warnings: what was wrong with the video in the last iteration.
    """

    def __init__(self, source: str | bytes | list, name: str, limits: VideoLimits):
        self.source, self.name, self.limits = source, name, limits
        self.fps: float = 25.0
        self.duration: float | None = None
        self.size: tuple[int, int] | None = None
        self.start = self.end = 0.0
        self.warnings: list[str] = []

    @property
    def error(self) -> str | None:
        """What was wrong with the video, if the last iteration missed its end or left frames out."""
        if not self.warnings:
            return None
        of = f" of {self.duration:.1f} s" if self.duration else ""
        return f"{self.name}: {'; '.join(self.warnings)} ({self.end - self.start:.1f} s{of} were read)"

    def resample(self, rate: float) -> Iterator[GridFrame]:
        """Yields the frame on screen at the middle of each of `rate` equal steps per second, from the first frame on.

        The steps of a whole video are the segments of `frame_sampling.segment_middle`. A very short video has one.

        Raises:
            ValueError: `rate` is not above 0 and at most `HIGHEST_RATE`.
        """
        check_rate(rate)
        step, first = 0, None
        for frame in self:
            first, pixels = first or frame, None
            while (time := self.start + (step + 0.5) / rate) < frame.end - EPSILON:
                is_new, pixels = pixels is None, self.pixels_of(frame) if pixels is None else pixels
                yield GridFrame(step, time, pixels, is_new)
                step += 1
        if step == 0:
            yield GridFrame(0, self.start, self.pixels_of(first), True)

    def __iter__(self) -> Iterator[TimedFrame]:
        """Yields frames in the order they are shown. Raises a VideoDecodeError if there is none."""
        self.warnings, held, since = [], None, clock.monotonic()
        for number, frame in enumerate(self._timed()):
            if held is None:
                self.start = frame.time
            elif clock.monotonic() - since > self.limits.whole_time_limit:
                self.warnings.append(f"{self.limits.whole_time_limit:g} s were over, the rest is left out")
                break
            elif number >= self.limits.max_frames or frame.time - self.start > self.limits.max_seconds:
                self.warnings.append("it is longer than max_frames or max_seconds, the rest is left out")
                break
            elif frame.time - held.time > LONGEST_FRAME:
                self.warnings.append(f"time jumps from {held.time:.1f} s to {frame.time:.1f} s, the rest is left out")
                break
            else:
                self.end = frame.time
                yield replace(held, end=frame.time)
            held = frame
        if held is None:
            raise VideoDecodeError(f"{self.name} {UNREADABLE} (no frame decodes)")
        # The length that the file gives the last frame may be wrong.
        self.end = min(held.end, held.time + LONGEST_FRAME, max(held.time, self.start + self.limits.max_seconds))
        yield replace(held, end=self.end)
        if self.duration and self.duration - (self.end - self.start) > _CUT_OFF:
            self.warnings.append("it is cut off")

    def pixels_of(self, frame: TimedFrame) -> np.ndarray:
        """Returns the pixels `(H, W, 3)`, uint8, RGB, upright, in the size of the first frame that was loaded."""
        pixels = frame.load()
        if self.size is None:
            self.limits.check_size(self.name, *pixels.shape[1::-1])  # the header may be wrong
        pixels = resized(pixels, self.size)
        self.size = pixels.shape[1::-1]
        return np.ascontiguousarray(pixels)

    def copy_sound(self, path: str | BinaryIO) -> bool:
        """Copies the first audio stream that MP4 can hold into an MP4 file; returns whether there is one."""
        return False

    def _timed(self) -> Iterator[TimedFrame]:
        """Yields frames in the order of time, each with the end that the file gives it."""
        raise NotImplementedError


class FileFrames(FrameSequence):
    """The frames of a file, decoded in this process by PyAV.

    Args:
        watch: takes the packets of the file and yields them one by one.

    Raises:
        VideoDecodeError: no video stream, more than a limit allows; while iterating, a video without a frame.
    """

    def __init__(
        self, source: str | bytes, name: str, limits: VideoLimits, watch: Callable[[Iterable], Iterator] = iter
    ):
        super().__init__(source, name, limits)
        self.watch, self.duration = watch, self._promised_duration()
        limits.check_length(name, 0, self.duration)

    def copy_sound(self, path: str | BinaryIO) -> bool:
        with opened(self.source, self.name, self.limits) as (original, _):
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
        return _in_order(self._decoded(), self.warnings)

    def _decoded(self) -> Iterator[TimedFrame]:
        damaged, end, since = 0, None, clock.monotonic()
        try:
            with opened(self.source, self.name, self.limits) as (container, stream):
                zero, aspect = (container.start_time or 0) / av.time_base, pixel_aspect(stream)
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
                        self.warnings.append(f"no further frame within {self.limits.time_limit:g} s")
                        break
                    for frame in frames:
                        is_timed = frame.pts is not None and not is_counted
                        time = float(frame.pts * frame.time_base) - zero if is_timed else end or 0.0
                        end = time + (float(frame.duration * frame.time_base) if frame.duration else 1 / self.fps)
                        yield TimedFrame(time, end, partial(upright, frame, aspect))
                        since = clock.monotonic()  # not counting what others do with the frame
        except av.error.FFmpegError as error:
            if end is None:
                raise VideoDecodeError(f"{self.name} {UNREADABLE} ({error.strerror})") from None
            self.warnings.append(f"it cannot be read further ({error.strerror})")
        if damaged and end is not None:
            self.warnings.append(f"{damaged} of its packets damaged")

    def _promised_duration(self) -> float | None:
        try:
            with opened(self.source, self.name, self.limits) as (container, stream):
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
            raise VideoDecodeError(f"{self.name} {UNREADABLE} ({error.strerror})") from None
        return None


def sane_duration(seconds: float) -> float | None:
    """Returns a duration in seconds, or `None` for a number that no video has."""
    return float(seconds) if math.isfinite(seconds) and seconds > 0 else None


def check_rate(rate: float) -> None:
    """Raises a ValueError for a rate that `FrameSequence.resample` does not accept."""
    if not 0 < rate <= HIGHEST_RATE:
        raise ValueError(f"{rate:g} steps per second are asked for, but must be more than 0 and at most 1,000")


def _in_order(frames: Iterator[TimedFrame], warnings: list[str]) -> Iterator[TimedFrame]:
    """Sorts frames by time; leaves out those that come too late to be sorted, with an entry in `warnings`."""
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
        warnings.append(f"{late} of {count} frames left out, their time stamps run backwards")


__all__ = ["FileFrames", "FrameSequence", "GridFrame", "TimedFrame"]

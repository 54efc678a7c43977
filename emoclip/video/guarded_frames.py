# SPDX-License-Identifier: Apache-2.0
"""All frames of a video file, decoded in a guarded process (see modeling_emoclip/video_guard.py)."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

import modeling_emoclip
from modeling_emoclip.video_guard import Readers, check, checked_frames, distrusting, is_number
from modeling_emoclip.video_limits import VideoDecodeError, VideoLimits

from .frames import LONGEST_FRAME, FrameSequence, GridFrame, TimedFrame, check_rate

_HERE = Path(__file__).parent
_PACKAGES = {"modeling_emoclip": str(Path(modeling_emoclip.__file__).parent)}
_PACKAGES |= {"emoclip": str(_HERE.parent), "emoclip.video": str(_HERE)}
FRAME_READERS = Readers(_PACKAGES, "emoclip.video.worker.FrameWorker")


class GuardedFrames(FrameSequence):
    """`FileFrames` of frames.py, decoded in another process.

    That process decodes the next frame while the caller works on the last one. If it crashes, or takes longer than
    `limits.time_limit` for a frame, the frames read so far are kept, and `error` says what happened.

    Raises:
        VideoDecodeError, RuntimeError: see `read_guarded`; while iterating, only before the first frame.
    """

    def __init__(self, source: str | bytes, name: str, limits: VideoLimits):
        super().__init__(source, name, limits)
        with FRAME_READERS.reader(limits) as reader, distrusting(name):
            ((facts, _),) = reader.answers("facts", source, name, limits)
            check(is_number(facts["fps"]) and facts["fps"] > 0, facts)
            check(facts["duration"] is None or (is_number(facts["duration"]) and facts["duration"] > 0), facts)
        self.fps, self.duration = facts["fps"], facts["duration"]

    def resample(self, rate: float) -> Iterator[GridFrame]:
        check_rate(rate)
        for frame, pixels in self._frames(rate):
            yield GridFrame(frame["step"], frame["time"], pixels, frame["is_new"])

    def __iter__(self) -> Iterator[TimedFrame]:
        for frame, pixels in self._frames(None):
            yield TimedFrame(frame["time"], frame["end"], lambda pixels=pixels: pixels)

    def copy_sound(self, path: str | BinaryIO) -> bool:
        with FRAME_READERS.reader(self.limits) as reader, distrusting(self.name):
            ((answer, data),) = reader.answers("sound", self.source, self.name, self.limits)
            check(answer["is_there"] in (True, False), answer)
        if answer["is_there"] and isinstance(path, str):
            Path(path).write_bytes(data)
        elif answer["is_there"]:
            path.write(data)
        return answer["is_there"]

    def _frames(self, rate: float | None) -> Iterator[tuple[dict, np.ndarray]]:
        self.warnings, pixels, number, since = [], None, 0, time.monotonic()
        # One frame more than there can be; a finer grid has more steps.
        most = self.limits.max_frames if rate is None else rate * (self.limits.max_seconds + LONGEST_FRAME)
        with FRAME_READERS.reader(self.limits) as reader:
            try:
                answers = reader.answers("frames", self.source, self.name, self.limits, rate=rate, size=self.size)
                for message, data in answers:
                    with distrusting(self.name):
                        number += "frame" in message
                        check(number <= most + 1, f"{number} frames")
                        pixels = self._checked(message, data, pixels, rate)
                    if "frame" in message:
                        yield message["frame"], pixels
                    if pixels is not None and time.monotonic() - since > self.limits.whole_time_limit:
                        self.warnings = [f"{self.limits.whole_time_limit:g} s were over, the rest is left out"]
                        return
                with distrusting(self.name):
                    warnings = message["warnings"]
                    check(isinstance(warnings, list) and all(isinstance(one, str) for one in warnings), warnings)
                self.warnings = warnings
            except VideoDecodeError as error:
                if pixels is None:
                    raise
                self.warnings = [str(error).removeprefix(f"{self.name} ")]

    def _checked(self, message: dict, data: np.ndarray, pixels: np.ndarray | None, rate: float | None) -> np.ndarray:
        """Takes span and size from an answer to "frames"; returns the pixels of its frame."""
        start, end = message["span"]
        check(is_number(start) and is_number(end) and start <= end, message["span"])
        self.start, self.end = start, end
        if "shape" in message:
            pixels = checked_frames(message["shape"], data, 3)
            self.limits.check_size(self.name, *pixels.shape[1::-1])
            self.size = pixels.shape[1::-1]
        if "frame" in message:
            frame = message["frame"]
            names = ("time", "end") if rate is None else ("time", "step", "is_new")
            check(set(frame) == set(names) and all(map(is_number, (frame["time"], frame[names[1]]))), frame)
            check(rate is None or frame["is_new"] in (True, False), frame)
            check(pixels is not None, "a frame without pixels")
        return pixels


__all__ = ["GuardedFrames"]

# SPDX-License-Identifier: Apache-2.0
"""The guarded process for all frames of a file; it imports neither torch nor transformers."""

import io
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from modeling_emoclip.video_worker import Worker

from .frames import FileFrames


class FrameWorker(Worker):
    """Adds requests for the header, all frames and the sound of a file."""

    def facts(self) -> tuple[dict, Any]:
        """Reads what the header says of all frames."""
        frames = FileFrames(self.source, self.name, self.limits)
        return {"fps": frames.fps, "duration": frames.duration}, b""

    def frames(self, rate: float | None, size: tuple[int, int] | None) -> tuple[dict, Any]:
        """Sends all frames, or those on a grid, one by one; a frame that stays on screen is not sent again."""
        frames = FileFrames(self.source, self.name, self.limits, self._watched)
        frames.size, self.last_told = size and tuple(size), time.monotonic()
        if rate is None:
            for frame in frames:
                self._tell_frame(frames, {"time": frame.time, "end": frame.end}, frames.pixels_of(frame))
        else:
            for frame in frames.resample(rate):
                about = {"step": frame.step, "time": frame.time, "is_new": frame.is_new}
                self._tell_frame(frames, about, frame.pixels if frame.is_new else None)
        return {"warnings": frames.warnings, "span": (frames.start, frames.end)}, b""

    def sound(self) -> tuple[dict, Any]:
        """Sends the sound as the bytes of a file, since this process cannot write one."""
        file, self.last_told = io.BytesIO(), time.monotonic()
        is_there = FileFrames(self.source, self.name, self.limits, self._watched).copy_sound(file)
        return {"is_there": is_there}, file.getbuffer()

    def _tell_frame(self, frames: FileFrames, frame: dict, pixels: np.ndarray | None) -> None:
        about = {"frame": frame, "span": (frames.start, frames.end)}
        if pixels is None:
            self._tell(about)
        else:
            self._tell(about | {"shape": pixels.shape}, pixels)

    def _watched(self, packets: Iterable) -> Iterator:
        """Tells the caller, who waits for the next frame of a coarse grid, that there is progress."""
        for packet in packets:
            yield packet
            if time.monotonic() - self.last_told > self.limits.time_limit / 10:
                self._tell({"is_alive": True})

    def _tell(self, message: dict, data: Any = b"") -> None:
        self.tell(message, data)
        self.last_told = time.monotonic()


__all__ = ["FrameWorker"]

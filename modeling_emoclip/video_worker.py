# SPDX-License-Identifier: Apache-2.0
"""The guarded process: reads videos for another one, and may crash, or be too slow, without taking that one along.

`video_guard.py` starts it and talks to it over two pipes. It imports neither torch nor transformers, and so is there
in a fraction of a second and takes little memory. Nothing is pickled: a message is JSON, and may have bytes behind it.
Before it opens a file it gives up what it does not need (video_rights.py).
"""

import faulthandler
import io
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np

from .frame_sequence import FileFrames
from .video_limits import VideoDecodeError, VideoLimits
from .video_rights import give_up_rights, limit_memory
from .video_streams import VideoFacts, read_stream

_LENGTHS = struct.Struct("<QQ")  # of the JSON, and of the bytes behind it
_LONGEST_TEXT = 2**26  # bytes of JSON; the longest honest one lists the place of each of `max_frames` frames


def send(pipe: BinaryIO, message: dict[str, Any], data: Any = b"") -> None:
    """`data` is anything with contiguous bytes."""
    text, data = json.dumps(message).encode(), memoryview(data).cast("B")
    for part in (_LENGTHS.pack(len(text), len(data)), text, data):
        part = memoryview(part)
        while part:
            part = part[pipe.write(part) :]


def receive(
    pipe: BinaryIO, most_bytes: float = float("inf"), wait: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], np.ndarray]:
    """Reads a message and its bytes, `(n,)`, uint8.

    Args:
        most_bytes: that a message may have behind it; no memory is taken for more.
        wait: returns once there is something to read, or raises an error.

    Raises:
        EOFError: the other side is gone.
        ValueError: what it sent is no message.
    """
    text_length, data_length = _LENGTHS.unpack(_read(pipe, _LENGTHS.size, wait))
    if text_length > _LONGEST_TEXT or data_length > most_bytes:
        raise ValueError(f"a message of {text_length:,} + {data_length:,} bytes is too long")
    message = json.loads(_read(pipe, text_length, wait).tobytes())
    if not isinstance(message, dict):
        raise ValueError(f"a message is a {type(message).__name__}")
    return message, _read(pipe, data_length, wait)


def _read(pipe: BinaryIO, length: int, wait: Callable[[], None]) -> np.ndarray:
    data = np.empty(length, dtype=np.uint8)
    rest = memoryview(data)
    while rest:
        wait()
        count = pipe.readinto(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return data


def serve() -> None:
    """Answers what is asked on standard input, until that ends."""
    asked, answers = (os.fdopen(os.dup(number), mode, 0) for number, mode in ((0, "rb"), (1, "wb")))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):  # decoders print, and what they print is no answer
        os.dup2(nowhere, number)
    give_up_rights()  # before there is a second thread: user namespaces are for processes of one
    messages: SimpleQueue = SimpleQueue()
    threading.Thread(target=_listen, args=(asked, messages), daemon=True).start()
    send(answers, {"is_ready": True})
    while True:
        request, data = messages.get()
        _Work(request, data, messages, answers, _TimeLimit(nowhere)).do(request["wanted"], request["how"])


def _listen(asked: BinaryIO, messages: SimpleQueue) -> None:
    """Who asks may be killed while a video is read, and nobody shall be left behind then."""
    try:
        while True:
            messages.put(receive(asked))
    except (EOFError, OSError):
        os._exit(0)


class _TimeLimit:
    """Ends the process, also within C code that never comes back or holds Python's lock: a thread of C's does it."""

    def __init__(self, nowhere: int):
        self.nowhere, self.left, self.start = nowhere, 0.0, 0.0

    def begin(self, seconds: float) -> None:
        self.left, self.start = seconds, time.monotonic()
        faulthandler.dump_traceback_later(max(seconds, 1e-3), exit=True, file=self.nowhere)

    def pause(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.left -= time.monotonic() - self.start


class _Work:
    """What one request wants. It is answered by messages, of which the last says that it is the last."""

    def __init__(
        self, request: dict, data: np.ndarray, messages: SimpleQueue, answers: BinaryIO, time_limit: _TimeLimit
    ):
        self.source = data.tobytes() if request["path"] is None else request["path"]
        self.name, self.limits = request["name"], VideoLimits(**request["limits"])
        self.messages, self.answers, self.time_limit = messages, answers, time_limit
        self.last_told = time.monotonic()

    def do(self, wanted: str, how: dict) -> None:
        """`wanted` is one of the four methods after this one, `how` are its arguments."""
        work = {"clip": self.clip, "facts": self.facts, "frames": self.frames, "sound": self.sound}[wanted]
        data = b""
        limit_memory(self.limits, keeps_frames=wanted == "clip")
        self.time_limit.begin(self.limits.time_limit)
        try:
            answer, data = work(**how)
        except VideoDecodeError as error:
            answer = {"error": str(error)}
        except Exception as error:  # whatever else a decoder raises, memory that is not there included
            answer = {"error": f"{self.name} cannot be read: {type(error).__name__} {error}"}
        finally:
            self.time_limit.pause()
        send(self.answers, answer | {"is_last": True}, data)

    def clip(self) -> tuple[dict, Any]:
        """A few frames, which the caller chooses."""
        decoded = read_stream(self.source, self._choice, self.name, self.limits)
        about = {"places": decoded.places.tolist(), "backend": decoded.backend, "shape": decoded.distinct.shape}
        return about | {"decoded": asdict(decoded.facts)}, np.ascontiguousarray(decoded.distinct)

    def facts(self) -> tuple[dict, Any]:
        """What the header says of all frames."""
        frames = FileFrames(self.source, self.name, self.limits)
        return {"fps": frames.fps, "duration": frames.duration}, b""

    def frames(self, rate: float | None, size: tuple[int, int] | None) -> tuple[dict, Any]:
        """All frames, or those on a grid, one after another; a frame that is held is not sent again."""
        frames = FileFrames(self.source, self.name, self.limits, self._watched)
        frames.size = size and tuple(size)
        if rate is None:
            for frame in frames:
                self._tell_frame(frames, {"time": frame.time, "end": frame.end}, frames.pixels_of(frame))
        else:
            for frame in frames.on_grid(rate):
                about = {"step": frame.step, "time": frame.time, "is_new": frame.is_new}
                self._tell_frame(frames, about, frame.pixels if frame.is_new else None)
        return {"faults": frames.faults, "span": (frames.start, frames.end)}, b""

    def sound(self) -> tuple[dict, Any]:
        """As the bytes of a file: this process cannot write one."""
        file = io.BytesIO()
        is_there = FileFrames(self.source, self.name, self.limits, self._watched).copy_sound(file)
        return {"is_there": is_there}, file.getbuffer()

    def _tell_frame(self, frames: FileFrames, frame: dict, pixels: np.ndarray | None) -> None:
        about = {"frame": frame, "span": (frames.start, frames.end)}
        if pixels is None:
            self._tell(about)
        else:
            self._tell(about | {"shape": pixels.shape}, pixels)

    def _watched(self, packets: Iterable) -> Iterator:
        """Whoever waits for the next of a slow grid shall hear that there is work."""
        for packet in packets:
            yield packet
            if time.monotonic() - self.last_told > self.limits.time_limit / 10:
                self._tell({"is_alive": True})

    def _tell(self, message: dict, data: Any = b"") -> None:
        """The time limit begins anew, and does not run while the caller is slow to listen."""
        self.time_limit.pause()
        send(self.answers, message, data)
        self.last_told = time.monotonic()
        self.time_limit.begin(self.limits.time_limit)

    def _choice(self, facts: VideoFacts) -> np.ndarray:
        self.time_limit.pause()
        send(self.answers, {"facts": asdict(facts)})
        _, indices = self.messages.get()
        self.time_limit.begin(self.time_limit.left)
        return indices.view(np.int64)


__all__ = ["receive", "send", "serve"]

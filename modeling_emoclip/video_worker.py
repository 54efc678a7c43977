# SPDX-License-Identifier: Apache-2.0
"""The guarded process: reads videos for another one, and may crash, or be too slow, without taking that one along.

`video_guard.py` starts it and talks to it over two pipes. It imports neither torch nor transformers, and so is there
in a fraction of a second and takes little memory. Nothing is pickled: a message is JSON, and may have bytes behind it.
"""

import faulthandler
import json
import os
import struct
import threading
import time
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np

from .video_limits import VideoDecodeError, VideoLimits
from .video_streams import VideoFacts, read_stream

_LENGTHS = struct.Struct("<QQ")  # of the JSON, and of the bytes behind it


def send(pipe: BinaryIO, message: dict[str, Any], data: Any = b"") -> None:
    """`data` is anything with contiguous bytes."""
    text, data = json.dumps(message).encode(), memoryview(data).cast("B")
    for part in (_LENGTHS.pack(len(text), len(data)), text, data):
        part = memoryview(part)
        while part:
            part = part[pipe.write(part) :]


def receive(pipe: BinaryIO) -> tuple[dict[str, Any], np.ndarray]:
    """A message and its bytes, `(n,)`, uint8. Raises an EOFError when the other side is gone."""
    text_length, data_length = _LENGTHS.unpack(_read(pipe, _LENGTHS.size))
    return json.loads(_read(pipe, text_length).tobytes()), _read(pipe, data_length)


def _read(pipe: BinaryIO, length: int) -> np.ndarray:
    data = np.empty(length, dtype=np.uint8)
    rest = memoryview(data)
    while rest:
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
    messages: SimpleQueue = SimpleQueue()
    threading.Thread(target=_listen, args=(asked, messages), daemon=True).start()
    send(answers, {"is_ready": True})
    while True:
        _answer(*messages.get(), messages, answers, _TimeLimit(nowhere))


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


def _answer(request: dict, data: np.ndarray, messages: SimpleQueue, answers: BinaryIO, clock: _TimeLimit) -> None:
    limits = VideoLimits(**request["limits"])

    def choose_frames(facts: VideoFacts) -> np.ndarray:
        clock.pause()
        send(answers, {"facts": asdict(facts)})
        _, indices = messages.get()
        clock.begin(clock.left)
        return indices.view(np.int64)

    source = data.tobytes() if request["path"] is None else request["path"]
    clock.begin(limits.time_limit)
    try:
        decoded = read_stream(source, choose_frames, request["name"], limits)
    except VideoDecodeError as error:
        return send(answers, {"error": str(error)})
    except Exception as error:  # whatever else a decoder raises, memory that is not there included
        return send(answers, {"error": f"{request['name']} cannot be read: {type(error).__name__} {error}"})
    finally:
        clock.pause()
    about = {"places": decoded.places.tolist(), "backend": decoded.backend, "shape": decoded.distinct.shape}
    send(answers, about | {"decoded": asdict(decoded.facts)}, np.ascontiguousarray(decoded.distinct))


__all__ = ["receive", "send", "serve"]

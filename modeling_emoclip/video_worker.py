# SPDX-License-Identifier: Apache-2.0
"""The guarded process, which decodes videos for another one and can crash or hang without harm to it.

`video_guard.py` starts it and talks to it over two pipes. Without torch it starts in a fraction of a second and takes
little memory. Nothing is pickled: a message is JSON, perhaps with bytes behind it.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import re
import signal
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np

from .video_limits import VideoDecodeError, VideoLimits
from .video_streams import VideoFacts, read_stream

try:
    import resource
except ImportError:  # Windows
    resource = None

_LENGTHS = struct.Struct("<QQ")  # of the JSON, and of the bytes behind it
_LONGEST_TEXT = 2**20  # bytes of JSON
# From <linux/sched.h> and <linux/prctl.h>.
_NEW_USER, _NEW_NETWORK, _NO_NEW_PRIVILEGES = 0x10000000, 0x40000000, 38
# A decoder holds up to 16 reference frames and some in work, of 1.5 to 4 bytes a pixel, and the frame as RGB.
_BYTES_PER_PIXEL = 64
_SPARE_BYTES = 2**30  # for libraries and small files, whatever the limits are


def send(pipe: BinaryIO, message: dict[str, Any], data: Any = b"") -> None:
    """Writes a message, and `data` behind it: any object with contiguous bytes."""
    text, data = json.dumps(message).encode(), memoryview(data).cast("B")
    for part in (_LENGTHS.pack(len(text), len(data)), text, data):
        part = memoryview(part)
        while part:
            part = part[pipe.write(part) :]


def receive(
    pipe: BinaryIO, most_bytes: float = float("inf"), wait: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], np.ndarray]:
    """Reads a message and at most so many bytes behind it, `(n,)`, uint8; `wait` returns once there is something.

    Raises:
        EOFError: the other side is gone.
        ValueError: it is no message, or has more bytes, for which no memory is allocated.
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


class Worker:
    """Answers requests from standard input, until that ends. A request is the name of a method with its arguments."""

    keeps_frames = ("clip",)  # requests that hold all their frames at once

    def serve(self) -> None:
        asked, self.answers = (os.fdopen(os.dup(number), mode, 0) for number, mode in ((0, "rb"), (1, "wb")))
        self.devnull = os.open(os.devnull, os.O_RDWR)
        for number in range(3):  # decoders print, and what they print is no answer
            os.dup2(self.devnull, number)
        give_up_rights()  # before there is a second thread: user namespaces are for processes of one
        self.messages: SimpleQueue = SimpleQueue()
        threading.Thread(target=self._listen, args=(asked,), daemon=True).start()
        send(self.answers, {"is_ready": True})
        while True:
            request, data = self.messages.get()
            self.source = data.tobytes() if request["path"] is None else request["path"]
            self.name, self.limits = request["name"], VideoLimits(**request["limits"])
            self._answer(request["wanted"], request["how"])

    def _listen(self, asked: BinaryIO) -> None:
        """Ends this process with its parent, even while it reads a video."""
        try:
            while True:
                self.messages.put(receive(asked))
        except (EOFError, OSError):
            os._exit(0)

    def _answer(self, wanted: str, how: dict[str, Any]) -> None:
        data = b""
        limit_memory(self.limits, wanted in self.keeps_frames)
        self.start_clock()
        try:
            answer, data = getattr(self, wanted)(**how)
        except VideoDecodeError as error:
            answer = {"error": str(error)[:4000]}
        except Exception as error:  # any other error of a decoder, such as MemoryError
            answer = {"error": f"{self.name} cannot be read: {type(error).__name__} {error}"[:4000]}
        faulthandler.cancel_dump_traceback_later()
        send(self.answers, answer | {"is_last": True}, data)

    def start_clock(self) -> None:
        """Ends this process after `time_limit`, also within C code that never returns or holds Python's lock."""
        faulthandler.dump_traceback_later(max(self.limits.time_limit, 1e-3), exit=True, file=self.devnull)

    def tell(self, message: dict[str, Any], data: Any = b"") -> None:
        """Sends a message; the time limit starts anew, and does not run while the caller is slow to read."""
        faulthandler.cancel_dump_traceback_later()
        send(self.answers, message, data)
        self.start_clock()

    def clip(self) -> tuple[dict, Any]:
        """Decodes the frames that the caller chooses."""
        decoded = read_stream(self.source, self._ask_caller_for_frames, self.name, self.limits)
        return {"backend": decoded.backend, "shape": decoded.frames.shape}, np.ascontiguousarray(decoded.frames)

    def _ask_caller_for_frames(self, facts: VideoFacts) -> np.ndarray:
        faulthandler.cancel_dump_traceback_later()
        send(self.answers, {"facts": asdict(facts)})
        _, indices = self.messages.get()
        self.start_clock()
        return indices.view(np.int64)


def give_up_rights() -> None:
    """Gives up writing files, core dumps, new privileges and, on Linux, the network, as far as the system allows."""
    if resource is not None:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails, instead of ending the process
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a libc without these calls
            libc = ctypes.CDLL(None)
            libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
            # An empty network of its own. Without root that takes a user namespace; with root there must be none, or
            # other users' files could not be read.
            libc.unshare(_NEW_NETWORK if os.geteuid() == 0 else _NEW_USER | _NEW_NETWORK)


def limit_memory(limits: VideoLimits, keeps_frames: bool) -> None:
    """Limits, on Linux, this process's memory to what reading needs, with all frames at once if it keeps them."""
    if resource is None or sys.platform != "linux":
        return
    most = _own_bytes() + _SPARE_BYTES + int(_BYTES_PER_PIXEL * limits.max_pixels)
    if keeps_frames:
        most += 2 * int(limits.max_bytes)  # one by one, and then as one array
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, ValueError, OverflowError):
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


@cache
def _own_bytes() -> int:
    """Returns what this process had mapped before its first video."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(re.search(r"VmSize:\s+(\d+)", status)[1]) * 1024

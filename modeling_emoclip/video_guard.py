# SPDX-License-Identifier: Apache-2.0
"""Reading videos in processes that may crash or hang, since a damaged file can make any decoder do so.

Each thread that reads has a process of its own, which stays for the next video. They are made by `subprocess`: with
`multiprocessing` the workers of a `DataLoader` could have none, and the caller's modules would be imported in them.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from weakref import WeakSet

import numpy as np

from .video_limits import VideoDecodeError, VideoLimits
from .video_streams import ChooseFrames, Decoded, VideoFacts, ask_for_frames
from .video_worker import receive, send

# The folder may be one that the Hub's code was copied to, under a name that is no module's; only this file's
# neighbours are imported from it, not what its __init__.py would.
_START = (
    "import json, sys, types; folder, sys.path[:] = json.loads(sys.argv[1]); "
    "package = sys.modules['guarded'] = types.ModuleType('guarded'); package.__path__ = [folder]; "
    "from guarded.video_worker import serve; serve()"
)
_GRACE = 1.0  # seconds for a process to end


def read_guarded(source: str | bytes, choose_frames: ChooseFrames, name: str, limits: VideoLimits) -> Decoded:
    """`read_stream` of video_streams.py, in another process.

    Raises:
        VideoDecodeError: also if that process crashed or took longer than `limits.time_limit`.
        RuntimeError: no process can be started here.
    """
    reader = _take()
    try:
        return reader.read(source, choose_frames, name, limits)
    finally:
        _put_back(reader)


class _Reader:
    """A process that reads one video at a time."""

    def __init__(self):
        arguments = json.dumps([str(Path(__file__).parent), sys.path])
        # One thread each: numpy is there for its arrays only.
        env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE) | {"stderr": subprocess.DEVNULL, "bufsize": 0}
        # In a session of its own Ctrl-C does not reach it; it ends when its pipe does, however its parent ends.
        self.process = None
        try:
            command = [sys.executable, "-I", "-c", _START, arguments]
            self.process = subprocess.Popen(command, env=env, start_new_session=True, **pipes)
            receive(self.process.stdout)
        except (EOFError, OSError) as error:
            code = self.end()
            raise RuntimeError(
                f"{sys.executable!r} cannot be started to read a video in a process of its own ({error or code}); "
                "with guarded=False it is read in this one"
            ) from None
        except BaseException:  # Ctrl-C
            self.end()
            raise
        self.is_idle = True

    def read(self, source: str | bytes, choose_frames: ChooseFrames, name: str, limits: VideoLimits) -> Decoded:
        self.is_idle, start = False, time.monotonic()
        is_path = isinstance(source, str)
        request = {"path": source if is_path else None, "name": str(name), "limits": asdict(limits)}
        try:
            send(self.process.stdin, request, b"" if is_path else source)
            message, data = self._answer(limits)
            while "facts" in message:
                chosen = ask_for_frames(choose_frames, VideoFacts(**message["facts"]), name)
                send(self.process.stdin, {}, chosen)
                message, data = self._answer(limits)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            code, seconds = self.end(), time.monotonic() - start
            raise VideoDecodeError(f"{name} {_what_happened(code, seconds, limits)}") from None
        self.is_idle = True
        if "error" in message:
            raise VideoDecodeError(message["error"])
        frames, places = data.reshape(message["shape"]), np.array(message["places"])
        return Decoded(frames, places, chosen, VideoFacts(**message["decoded"]), message["backend"])

    def _answer(self, limits: VideoLimits) -> tuple[dict, np.ndarray]:
        """The process ends itself when time is over; one that waits for a dead network drive cannot even do that."""
        if hasattr(select, "poll"):
            pipe = select.poll()
            pipe.register(self.process.stdout, select.POLLIN)
            if not pipe.poll(1000 * (limits.time_limit + _GRACE)):
                raise EOFError
        return receive(self.process.stdout)

    def end(self) -> int | None:
        """The exit code, if there is one: an end of the process's own is not overtaken."""
        if self.process is None:
            return None
        self.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(_GRACE)
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE)
        return None

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()


def _what_happened(code: int | None, seconds: float, limits: VideoLimits) -> str:
    if code is None or (code == 1 and seconds >= limits.time_limit):
        return f"was not read within {limits.time_limit:g} s: its decoder was ended"
    if code >= 0:
        return f"ended its decoder (exit code {code})"
    try:
        number = f"{-code}, {signal.Signals(-code).name}"
    except ValueError:
        number = str(-code)
    why = "; a system without memory does so" if number.endswith("SIGKILL") else ""
    return f"crashed its decoder (signal {number}{why})"


_lock = threading.Lock()
_idle: list[_Reader] = []
_all: WeakSet[_Reader] = WeakSet()


def _take() -> _Reader:
    while True:
        with _lock:
            reader = _idle.pop() if _idle else None
        if reader is None:
            reader = _Reader()
            _all.add(reader)
        if reader.process.poll() is None:  # else somebody ended it while it had nothing to do
            return reader
        reader.close()


def _put_back(reader: _Reader) -> None:
    if not reader.is_idle:
        return reader.end()
    with _lock:
        _idle.append(reader)


def _forget() -> None:
    """After a fork: the processes are the parent's; a copy of their pipes would keep them alive when it is gone."""
    global _lock
    _lock = threading.Lock()
    for reader in _all:
        reader.close()
        reader.process.returncode = 0  # nothing to wait for here
    _idle.clear()
    _all.clear()


def _end_all() -> None:
    while _idle:
        _idle.pop().end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(_end_all)


__all__ = ["read_guarded"]

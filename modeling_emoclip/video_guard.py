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
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from weakref import WeakSet

import numpy as np

from .frame_sequence import FrameSequence, GridFrame, TimedFrame
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
    with _reader() as reader:
        for message, data in reader.answers("clip", source, name, limits):
            if "facts" in message:
                chosen = ask_for_frames(choose_frames, VideoFacts(**message["facts"]), name)
                reader.say({}, chosen)
            else:
                frames, places = data.reshape(message["shape"]), np.array(message["places"])
                decoded = Decoded(frames, places, chosen, VideoFacts(**message["decoded"]), message["backend"])
    return decoded


class GuardedFrames(FrameSequence):
    """`FileFrames` of frame_sequence.py, decoded in another process.

    It decodes the next frame while the caller works on the last. If it crashes, or takes longer than
    `limits.time_limit` for a frame, what was read so far is kept, and `error` says what happened.

    Raises:
        VideoDecodeError, RuntimeError: see `read_guarded`; while iterating, only before the first frame.
    """

    def __init__(self, source: str | bytes, name: str, limits: VideoLimits):
        super().__init__(source, name, limits)
        with _reader() as reader:
            ((facts, _),) = reader.answers("facts", source, name, limits)
        self.fps, self.duration = facts["fps"], facts["duration"]

    def on_grid(self, rate: float) -> Iterator[GridFrame]:
        for frame, pixels in self._frames(rate):
            yield GridFrame(frame["step"], frame["time"], pixels, frame["is_new"])

    def __iter__(self) -> Iterator[TimedFrame]:
        for frame, pixels in self._frames(None):
            yield TimedFrame(frame["time"], frame["end"], lambda pixels=pixels: pixels)

    def copy_sound(self, path: str) -> bool:
        with _reader() as reader:
            ((answer, _),) = reader.answers("sound", self.source, self.name, self.limits, path=path)
        return answer["is_there"]

    def _frames(self, rate: float | None) -> Iterator[tuple[dict, np.ndarray]]:
        self.faults, pixels = [], None
        with _reader() as reader:
            try:
                for message, data in reader.answers(
                    "frames", self.source, self.name, self.limits, rate=rate, size=self.size
                ):
                    self.start, self.end = message["span"]
                    if "shape" in message:
                        pixels = data.reshape(message["shape"])
                        self.size = pixels.shape[1::-1]
                    if "frame" in message:
                        yield message["frame"], pixels
                self.faults = message["faults"]
            except VideoDecodeError as error:
                if pixels is None:
                    raise
                self.faults = [str(error).removeprefix(f"{self.name} ")]


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
                "guarded=False, or guard_decoding=False of the video processor, reads it in this one"
            ) from None
        except BaseException:  # Ctrl-C
            self.end()
            raise
        self.is_idle = True

    def answers(
        self, wanted: str, source: str | bytes, name: str, limits: VideoLimits, **how
    ) -> Iterator[tuple[dict, np.ndarray]]:
        """To one request, see `_Work` of video_worker.py: messages, and their bytes."""
        self.is_idle, is_path = False, isinstance(source, str)
        about = {"path": source if is_path else None, "name": str(name), "limits": asdict(limits)}
        self.say({"wanted": wanted, "how": how} | about, b"" if is_path else source)
        while not self.is_idle:
            message, data = self._answer(name, limits)
            self.is_idle = message.pop("is_last", False)
            if "error" in message:
                raise VideoDecodeError(message["error"])
            if "is_alive" not in message:
                yield message, data

    def say(self, message: dict, data: bytes | np.ndarray) -> None:
        with contextlib.suppress(BrokenPipeError):  # then there is no answer, and why is found out there
            send(self.process.stdin, message, data)

    def _answer(self, name: str, limits: VideoLimits) -> tuple[dict, np.ndarray]:
        """The process ends itself when time is over; one that waits for a dead network drive cannot even do that."""
        try:
            if hasattr(select, "poll"):
                pipe = select.poll()
                pipe.register(self.process.stdout, select.POLLIN)
                if not pipe.poll(1000 * (limits.time_limit + _GRACE)):
                    raise EOFError
            return receive(self.process.stdout)
        except (EOFError, ConnectionResetError):
            raise VideoDecodeError(f"{name} {_what_happened(self.end(), limits)}") from None

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


def _what_happened(code: int | None, limits: VideoLimits) -> str:
    if code in (None, 1):  # 1 is faulthandler's
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


@contextlib.contextmanager
def _reader() -> Iterator[_Reader]:
    """One that is idle, or a new one; what was not read to its end is not waited for."""
    reader = _take()
    try:
        yield reader
    finally:
        _put_back(reader)


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


__all__ = ["GuardedFrames", "read_guarded"]

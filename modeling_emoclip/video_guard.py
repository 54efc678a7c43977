# SPDX-License-Identifier: Apache-2.0
"""Reading videos in processes that may crash or hang, since a damaged file can make any decoder do so.

Each thread that reads has a process of its own, which stays for the next video. They are made by `subprocess`: with
`multiprocessing` the workers of a `DataLoader` could have none, and the caller's modules would be imported in them.
"""

import atexit
import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakSet

import numpy as np

from .frame_sequence import LONGEST_FRAME, FrameSequence, GridFrame, TimedFrame, check_grid_rate
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
_LONGEST_START = 10.0  # seconds until a process is there, at least; a third of one, but machines are busy
_MOST_IDLE = 4  # processes that wait for the next video, of some 70 MB each
# Nothing of the caller's that a decoder has no use for, as tokens.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "TMP", "TEMP")
_ENVIRONMENT += ("SYSTEMROOT", "WINDIR")  # without which Python does not start on Windows


class _WrongAnswer(VideoDecodeError):
    """The process says what a sound one never says: it is ended."""


def read_guarded(source: str | bytes, choose_frames: ChooseFrames, name: str, limits: VideoLimits) -> Decoded:
    """`read_stream` of video_streams.py, in another process.

    Raises:
        VideoDecodeError: also if that process crashed or took longer than `limits.time_limit`.
        RuntimeError: no process can be started here.
    """
    chosen = decoded = None
    with _reader(limits) as reader:
        for message, data in reader.answers("clip", source, name, limits):
            if "facts" in message:
                with _believing_nothing(name):
                    facts = _facts(message["facts"], limits)
                chosen = ask_for_frames(choose_frames, facts, name)
                reader.say({}, chosen)
            else:
                with _believing_nothing(name):
                    decoded = _decoded(message, data, chosen, limits)
    if decoded is None:
        raise _WrongAnswer(f"{name} cannot be read: its decoder gave no frames")
    return decoded


@contextlib.contextmanager
def _believing_nothing(name: str) -> Iterator[None]:
    """Turns what goes wrong with an answer of the process into a `_WrongAnswer`."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, VideoDecodeError):
            raise
        why = f"{type(error).__name__}: {error}"
        raise _WrongAnswer(f"{name} cannot be read: its decoder's answer makes no sense ({why})") from None


def _check(holds: bool, what: Any) -> None:
    if not holds:
        raise ValueError(f"{what!r:.100}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _facts(fields: dict, limits: VideoLimits) -> VideoFacts:
    facts = VideoFacts(**fields)
    for value in (facts.fps, facts.duration, facts.width, facts.height):
        _check(value is None or (_is_number(value) and value >= 0), fields)
    _check(type(facts.total_num_frames) is int and 0 < facts.total_num_frames <= limits.max_frames, fields)
    return facts


def _decoded(message: dict, data: np.ndarray, chosen: np.ndarray, limits: VideoLimits) -> Decoded:
    """The last answer to "clip"."""
    _check(set(message) == {"shape", "places", "decoded", "backend"} and chosen is not None, sorted(message))
    frames, places = _frames(message["shape"], data, 4), np.array(message["places"])
    _check(places.shape == chosen.shape and places.dtype.kind == "i", message["places"])
    _check(places.min() >= 0 and places.max() < len(frames), message["places"])
    _check(isinstance(message["backend"], str), message["backend"])
    return Decoded(frames, places, chosen, _facts(message["decoded"], limits), message["backend"])


def _frames(shape: list[int], data: np.ndarray, ndim: int) -> np.ndarray:
    _check(isinstance(shape, list) and len(shape) == ndim and shape[-1] == 3, shape)
    _check(all(type(length) is int and length > 0 for length in shape), shape)
    return data.reshape(shape)


class GuardedFrames(FrameSequence):
    """`FileFrames` of frame_sequence.py, decoded in another process.

    It decodes the next frame while the caller works on the last. If it crashes, or takes longer than
    `limits.time_limit` for a frame, what was read so far is kept, and `error` says what happened.

    Raises:
        VideoDecodeError, RuntimeError: see `read_guarded`; while iterating, only before the first frame.
    """

    def __init__(self, source: str | bytes, name: str, limits: VideoLimits):
        super().__init__(source, name, limits)
        with _reader(limits) as reader, _believing_nothing(name):
            ((facts, _),) = reader.answers("facts", source, name, limits)
            _check(_is_number(facts["fps"]) and facts["fps"] > 0, facts)
            _check(facts["duration"] is None or (_is_number(facts["duration"]) and facts["duration"] > 0), facts)
        self.fps, self.duration = facts["fps"], facts["duration"]

    def on_grid(self, rate: float) -> Iterator[GridFrame]:
        check_grid_rate(rate)
        for frame, pixels in self._frames(rate):
            yield GridFrame(frame["step"], frame["time"], pixels, frame["is_new"])

    def __iter__(self) -> Iterator[TimedFrame]:
        for frame, pixels in self._frames(None):
            yield TimedFrame(frame["time"], frame["end"], lambda pixels=pixels: pixels)

    def copy_sound(self, path: str | BinaryIO) -> bool:
        with _reader(self.limits) as reader, _believing_nothing(self.name):
            ((answer, data),) = reader.answers("sound", self.source, self.name, self.limits)
            _check(answer["is_there"] in (True, False), answer)
        if answer["is_there"] and isinstance(path, str):
            Path(path).write_bytes(data)
        elif answer["is_there"]:
            path.write(data)
        return answer["is_there"]

    def _frames(self, rate: float | None) -> Iterator[tuple[dict, np.ndarray]]:
        self.faults, pixels, number, since = [], None, 0, time.monotonic()
        # A frame more than there can be; a grid has the more steps, the finer it is.
        most = self.limits.max_frames if rate is None else rate * (self.limits.max_seconds + LONGEST_FRAME)
        with _reader(self.limits) as reader:
            try:
                answers = reader.answers("frames", self.source, self.name, self.limits, rate=rate, size=self.size)
                for message, data in answers:
                    with _believing_nothing(self.name):
                        number += "frame" in message
                        _check(number <= most + 1, f"{number} frames")
                        pixels = self._checked(message, data, pixels, rate)
                    if "frame" in message:
                        yield message["frame"], pixels
                    if pixels is not None and time.monotonic() - since > self.limits.whole_time_limit:
                        self.faults = [f"{self.limits.whole_time_limit:g} s were over, the rest is left out"]
                        return
                with _believing_nothing(self.name):
                    faults = message["faults"]
                    _check(isinstance(faults, list) and all(isinstance(fault, str) for fault in faults), faults)
                self.faults = faults
            except VideoDecodeError as error:
                if pixels is None:
                    raise
                self.faults = [str(error).removeprefix(f"{self.name} ")]

    def _checked(self, message: dict, data: np.ndarray, pixels: np.ndarray | None, rate: float | None) -> np.ndarray:
        """Takes over the span and size that an answer to "frames" tells; returns the pixels of its frame."""
        start, end = message["span"]
        _check(_is_number(start) and _is_number(end) and start <= end, message["span"])
        self.start, self.end = start, end
        if "shape" in message:
            pixels = _frames(message["shape"], data, 3)
            self.limits.check_size(self.name, *pixels.shape[1::-1])
            self.size = pixels.shape[1::-1]
        if "frame" in message:
            frame = message["frame"]
            names = ("time", "end") if rate is None else ("time", "step", "is_new")
            _check(set(frame) == set(names) and all(map(_is_number, (frame["time"], frame[names[1]]))), frame)
            _check(rate is None or frame["is_new"] in (True, False), frame)
            _check(pixels is not None, "a frame without pixels")
        return pixels


class _Reader:
    """A process that reads one video at a time."""

    def __init__(self, limits: VideoLimits):
        # Of other entries than texts, Python passes over; notebooks have some.
        arguments = json.dumps([str(Path(__file__).parent), [entry for entry in sys.path if isinstance(entry, str)]])
        env = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # One thread each: numpy is there for its arrays only.
        env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE) | {"stderr": subprocess.DEVNULL, "bufsize": 0}
        # In a session of its own Ctrl-C does not reach it; it ends when its pipe does, however its parent ends.
        self.process = None
        try:
            if not sys.executable or getattr(sys, "frozen", False):  # a frozen app would start itself
                raise OSError("it is no Python")
            command = [sys.executable, "-I", "-B", "-c", _START, arguments]  # B: nothing is written beside the code
            self.process = subprocess.Popen(command, env=env, start_new_session=True, **pipes)
            receive(self.process.stdout, 0, self._until(max(limits.time_limit, _LONGEST_START)))
        except (EOFError, OSError, ValueError) as error:
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
        # Bytes of a frame, or of all that are wanted at once.
        most_bytes = 3 * limits.max_pixels if wanted == "frames" else limits.max_bytes
        # A slow grid is waited for while there are signs of life, but no longer than the longest video lasts.
        patience = time.monotonic() + max(limits.time_limit, limits.max_seconds)
        while not self.is_idle:
            message, data = self._answer(name, limits, most_bytes, patience)
            if "is_alive" in message:
                continue
            self.is_idle = message.pop("is_last", False) is True
            if "error" in message:
                raise VideoDecodeError(str(message["error"]))
            yield message, data
            patience = time.monotonic() + max(limits.time_limit, limits.max_seconds)

    def say(self, message: dict, data: bytes | np.ndarray) -> None:
        with contextlib.suppress(BrokenPipeError):  # then there is no answer, and why is found out there
            send(self.process.stdin, message, data)

    def _answer(self, name: str, limits: VideoLimits, most_bytes: float, patience: float) -> tuple[dict, np.ndarray]:
        """The process ends itself when time is over; one that waits for a dead network drive cannot even do that."""
        seconds = min(limits.time_limit + _GRACE, patience - time.monotonic())
        try:
            with _believing_nothing(name):
                return receive(self.process.stdout, most_bytes, self._until(seconds))
        except (EOFError, ConnectionResetError):
            raise VideoDecodeError(f"{name} {_what_happened(self.end(), limits)}") from None

    def _until(self, seconds: float) -> Callable[[], None]:
        """Returns a function that waits for bytes of the process, and raises an `EOFError` when the time is over."""
        end = time.monotonic() + seconds
        if not hasattr(select, "poll"):  # Windows: there the process ends itself
            return lambda: None
        pipe = select.poll()
        pipe.register(self.process.stdout, select.POLLIN)

        def wait() -> None:
            left = end - time.monotonic()
            if left <= 0 or not pipe.poll(1000 * left):
                raise EOFError(f"no answer within {seconds:.0f} s")

        return wait

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
def _reader(limits: VideoLimits) -> Iterator[_Reader]:
    """One that is idle, or a new one; what was not read to its end is not waited for."""
    reader = _take(limits)
    try:
        yield reader
    except _WrongAnswer:
        reader.is_idle = False
        raise
    finally:
        _put_back(reader)


def _take(limits: VideoLimits) -> _Reader:
    while True:
        with _lock:
            reader = _idle.pop() if _idle else None
        if reader is None:
            reader = _Reader(limits)
            _all.add(reader)
        if reader.process.poll() is None:  # else somebody ended it while it had nothing to do
            return reader
        reader.close()


def _put_back(reader: _Reader) -> None:
    if not reader.is_idle:
        return reader.end()
    with _lock:
        if len(_idle) < _MOST_IDLE:
            return _idle.append(reader)
    reader.end()


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

# SPDX-License-Identifier: Apache-2.0
"""Decoding in processes that can crash or hang, since a damaged file can make any decoder do so.

Each thread that reads has a process of its own, which stays for the next video. `subprocess` starts them: with
`multiprocessing` the workers of a `DataLoader` could have none, and would import the caller's modules. A process may
be taken over by the file that it reads, so that its answers are checked before they are used.
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
from typing import Any
from weakref import WeakSet

import numpy as np

from .video_limits import VideoDecodeError, VideoLimits
from .video_streams import ChooseFrames, Decoded, VideoFacts
from .video_worker import receive, send

# This folder may hold a copy of the Hub's code, under a name that is no module's. Packages are stubs, so that only the
# worker's modules are imported, and not those of an __init__.py.
_START = (
    "import importlib, json, sys, types; packages, module, worker, sys.path[:] = json.loads(sys.argv[1])\n"
    "for name, folder in packages.items():\n"
    "    sys.modules[name] = types.ModuleType(name); sys.modules[name].__path__ = [folder]\n"
    "getattr(importlib.import_module(module), worker)().serve()"
)
_SHUTDOWN_SECONDS = 1.0
_LONGEST_START = 10.0  # seconds until a process is there, at least; usually a third of one, but machines are busy
_MOST_IDLE = 4  # processes that wait for the next video, of some 70 MB each
# All that a decoder may see of the environment, which can hold tokens; Python on Windows needs the last two.
_ENVIRONMENT = "PATH LD_LIBRARY_PATH LANG LC_ALL LC_CTYPE TZ TMPDIR TMP TEMP SYSTEMROOT WINDIR".split()


class WrongAnswer(VideoDecodeError):
    """Error for an answer that no intact process gives; the process is ended."""


def read_guarded(source: str | bytes, choose_frames: ChooseFrames, name: str, limits: VideoLimits) -> Decoded:
    """Runs `read_stream` of video_streams.py in another process.

    Raises:
        VideoDecodeError: see there; also if that process crashes or takes longer than `limits.time_limit`.
        RuntimeError: no process can be started here.
    """
    facts = wanted = decoded = None
    with CLIP_READERS.reader(limits) as reader:
        for message, data in reader.answers("clip", source, name, limits):
            if "facts" in message:
                with distrusting(name):
                    facts = _checked_facts(message["facts"], limits)
                wanted = choose_frames(facts)
                reader.send({}, wanted)
            else:
                with distrusting(name):
                    check(set(message) == {"shape", "backend"} and wanted is not None, sorted(message))
                    frames = checked_frames(message["shape"], data, 4)
                    check(len(frames) == len(wanted) and isinstance(message["backend"], str), message)
                decoded = Decoded(frames, facts, message["backend"])
    if decoded is None:
        raise WrongAnswer(f"{name} cannot be read: its decoder gave no frames")
    return decoded


@contextlib.contextmanager
def distrusting(name: str) -> Iterator[None]:
    """Turns errors from a process's answer into `WrongAnswer`."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, VideoDecodeError):
            raise
        why = f"{type(error).__name__}: {error}"
        raise WrongAnswer(f"{name} cannot be read: its decoder's answer makes no sense ({why})") from None


def check(holds: bool, value: Any) -> None:
    """Raises a ValueError that shows the value unless the condition holds."""
    if not holds:
        raise ValueError(f"{value!r:.100}")


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def checked_frames(shape: Any, data: np.ndarray, ndim: int) -> np.ndarray:
    """Returns the pixels `(..., H, W, 3)` of an answer."""
    check(isinstance(shape, list) and len(shape) == ndim and shape[-1] == 3, shape)
    check(all(type(length) is int and length > 0 for length in shape), shape)
    return data.reshape(shape)


def _checked_facts(fields: dict, limits: VideoLimits) -> VideoFacts:
    facts = VideoFacts(**fields)
    for value in (facts.fps, facts.duration, facts.width, facts.height):
        check(value is None or (is_number(value) and value >= 0), fields)
    check(type(facts.total_num_frames) is int and 0 < facts.total_num_frames <= limits.max_frames, fields)
    return facts


class Reader:
    """A process that reads one video at a time: `Readers` explains its arguments."""

    def __init__(self, packages: dict[str, str], worker: str, limits: VideoLimits):
        module, _, worker = worker.rpartition(".")
        # Python skips entries of its path that are no texts; notebooks have some.
        arguments = json.dumps([packages, module, worker, [entry for entry in sys.path if isinstance(entry, str)]])
        env = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # numpy only holds arrays there
        pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE) | {"stderr": subprocess.DEVNULL, "bufsize": 0}
        self.process, self.is_idle = None, True
        try:
            if not sys.executable or getattr(sys, "frozen", False):  # a frozen app would start itself
                raise OSError("it is no Python")
            command = [sys.executable, "-I", "-B", "-c", _START, arguments]  # B: nothing is written beside the code
            # In a session of its own Ctrl-C does not reach it; it ends when its pipe does.
            self.process = subprocess.Popen(command, env=env, start_new_session=True, **pipes)
            receive(self.process.stdout, 0, self._waiting(max(limits.time_limit, _LONGEST_START)))
        except (EOFError, OSError, ValueError) as error:
            code = self.end()
            raise RuntimeError(
                f"{sys.executable!r} cannot be started to read a video in a process of its own ({error or code}); "
                "guarded=False, or guard_decoding=False of the video processor, reads it in this one"
            ) from None
        except BaseException:  # Ctrl-C
            self.end()
            raise

    def answers(
        self, wanted: str, source: str | bytes, name: str, limits: VideoLimits, **how
    ) -> Iterator[tuple[dict, np.ndarray]]:
        """Sends a request to a method of the `Worker`, and yields its answers: messages, and the bytes behind them."""
        self.is_idle, is_path = False, isinstance(source, str)
        about = {"path": source if is_path else None, "name": str(name), "limits": asdict(limits)}
        self.send({"wanted": wanted, "how": how} | about, b"" if is_path else source)
        # Bytes of one frame, or of all that are wanted at once.
        most_bytes = 3 * limits.max_pixels if wanted == "frames" else limits.max_bytes
        # Signs of life are waited for, but no longer than the longest video lasts.
        patience = time.monotonic() + max(limits.time_limit, limits.max_seconds)
        while not self.is_idle:
            seconds = min(limits.time_limit + _SHUTDOWN_SECONDS, patience - time.monotonic())
            try:
                with distrusting(name):
                    message, data = receive(self.process.stdout, most_bytes, self._waiting(seconds))
            except (EOFError, ConnectionResetError):
                raise VideoDecodeError(f"{name} {_describe_exit(self.end(), limits)}") from None
            if "is_alive" in message:
                continue
            self.is_idle = message.pop("is_last", False) is True
            if "error" in message:
                raise VideoDecodeError(str(message["error"]))
            yield message, data
            patience = time.monotonic() + max(limits.time_limit, limits.max_seconds)

    def send(self, message: dict[str, Any], data: Any = b"") -> None:
        """Sends a message; a process that has ended is found when its answer is read."""
        with contextlib.suppress(BrokenPipeError):
            send(self.process.stdin, message, data)

    def _waiting(self, seconds: float) -> Callable[[], None]:
        """Returns a function that waits for bytes of the process, and raises an EOFError once the time is over."""
        end = time.monotonic() + seconds
        if not hasattr(select, "poll"):  # Windows: the process's own clock must do, but on a dead network drive
            return lambda: None
        pipe = select.poll()
        pipe.register(self.process.stdout, select.POLLIN)

        def wait() -> None:
            left = end - time.monotonic()
            if left <= 0 or not pipe.poll(1000 * left):
                raise EOFError(f"no answer within {seconds:.0f} s")

        return wait

    def end(self) -> int | None:
        """Ends the process; returns its exit code if it ended by itself."""
        if self.process is None:
            return None
        self.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(_SHUTDOWN_SECONDS)
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_SHUTDOWN_SECONDS)
        return None

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()


def _describe_exit(code: int | None, limits: VideoLimits) -> str:
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


class Readers:
    """The processes of one kind of worker: idle ones are reused, and none is shared with a forked process.

    Args:
        packages: name -> folder of the packages that a process may import from.
        worker: `module.Class` of its `Worker`.
    """

    def __init__(self, packages: dict[str, str], worker: str):
        self.packages, self.worker = packages, worker
        self.idle: list[Reader] = []
        self.all: WeakSet[Reader] = WeakSet()
        self._lock = threading.Lock()
        atexit.register(self.end_all)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    @contextlib.contextmanager
    def reader(self, limits: VideoLimits) -> Iterator[Reader]:
        """Lends an idle process, or a new one. One that has not answered a request to its end is ended."""
        reader = self._take(limits)
        try:
            yield reader
        except WrongAnswer:
            reader.is_idle = False
            raise
        finally:
            self._release(reader)

    def _take(self, limits: VideoLimits) -> Reader:
        while True:
            with self._lock:
                reader = self.idle.pop() if self.idle else None
            if reader is None:
                reader = Reader(self.packages, self.worker, limits)
                self.all.add(reader)
            if reader.process.poll() is None:  # otherwise something ended it while it was idle
                return reader
            reader.close()

    def _release(self, reader: Reader) -> None:
        with self._lock:
            if reader.is_idle and len(self.idle) < _MOST_IDLE:
                return self.idle.append(reader)
        reader.end()

    def _forget(self) -> None:
        """Leaves the processes to the parent after a fork: copies of their pipes would keep them alive without it."""
        self._lock = threading.Lock()
        for reader in self.all:
            reader.close()
            reader.process.returncode = 0  # nothing to wait for here
        self.idle.clear()
        self.all.clear()

    def end_all(self) -> None:
        """Ends the idle processes."""
        while self.idle:
            self.idle.pop().end()


CLIP_READERS = Readers({"guarded": str(Path(__file__).parent)}, "guarded.video_worker.Worker")

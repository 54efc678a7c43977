# SPDX-License-Identifier: Apache-2.0
"""Checks that clips can be decoded, in worker processes that are killed when a damaged file hangs or crashes them.

`concurrent.futures` cannot kill one process without losing the whole pool, and a signal handler does not run while C
code is executing. So each process has its own pipe, and one that misses its deadline is killed and replaced.
"""

import hashlib
import importlib
import multiprocessing
import os
import signal
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing import resource_tracker
from queue import SimpleQueue
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

# Imports torch, which takes seconds: loaded only in the workers, and once in the fork server that they come from.
DECODER = "modeling_emoclip.video_reading"
PRELOADED = ["training.data.doctor", DECODER]
# Rule of thumb for face crops, based on DFEW's, which are all 224 x 224: most clips have one small size with an aspect
# ratio of at most 5:4. Film frames are at least 4:3 wide, and their sizes vary within a data set.
LARGEST_CROP = 512
MOST_STRETCHED = 1.25


class Failure(NamedTuple):
    """The reason why a clip cannot be used."""

    kind: str
    """One of "empty", "unreadable", "hanging" and "crashing"."""
    reason: str


class ClipFacts(NamedTuple):
    """Sizes and number of frames of a clip."""

    file_sizes: tuple[int, ...]
    """Sizes in bytes of the images or of the single video file, sorted."""
    num_frames: int | None = None
    width: int | None = None
    height: int | None = None


def measure_clip(path: str) -> ClipFacts | Failure:
    """Measures the files of a clip without opening them."""
    sizes = []
    for file in _files_of(path):
        size = os.path.getsize(file)
        if size == 0 and os.path.isfile(file):
            return Failure("empty", f"{file} has 0 bytes")
        sizes.append(size)
    if not sizes:
        return Failure("empty", f"{path} holds no image ({', '.join(_decoder().IMAGE_SUFFIXES)})")
    return ClipFacts(tuple(sorted(sizes)), len(sizes) if os.path.isdir(path) else None)


def open_clip(path: str) -> ClipFacts | Failure:
    """Decodes the first, middle and last frame of a clip; a truncated file has no last frame."""
    facts = measure_clip(path)
    if isinstance(facts, Failure):
        return facts
    try:
        frames, metadata = _decoder().read_video(path, _first_middle_last, guarded=False)  # this process is guarded
    except Exception as error:  # decoders raise anything; one damaged file must not stop the check of the others
        return Failure("unreadable", str(error) or repr(error))
    return facts._replace(num_frames=metadata.total_num_frames, height=frames.shape[1], width=frames.shape[2])


def hash_clip(path: str) -> str | Failure:
    """Hashes the content of a clip; for a folder, the images without their names."""
    digests = []
    for file in _files_of(path):
        digest = hashlib.sha256()
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _files_of(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    with os.scandir(path) as entries:
        images = [entry for entry in entries if _decoder().is_image_path(entry.name)]
    return [image.path for image in images if not image.name.startswith(".")]


def _decoder() -> ModuleType:
    return importlib.import_module(DECODER)


def _first_middle_last(metadata) -> np.ndarray:
    last = metadata.total_num_frames - 1
    return np.unique([0, last // 2, last])


def find_duplicates(facts: dict[str, ClipFacts], num_workers: int, time_limit: float) -> list[list[str]]:
    """Returns groups of clips with identical content, reading only clips whose file sizes match."""
    candidates = _groups({path: fact.file_sizes for path, fact in facts.items()})
    paths = [path for group in candidates for path in group]
    digests = run_all(hash_clip, paths, num_workers, time_limit, "comparing clips of one size")
    return _groups({path: digest for path, digest in digests.items() if isinstance(digest, str)})


def _groups(keys: dict[str, Any]) -> list[list[str]]:
    """Groups the paths that have the same key, leaving out unique ones."""
    groups: dict[Any, list[str]] = {}
    for path, key in sorted(keys.items()):
        groups.setdefault(key, []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def describe_frames(facts: Iterable[ClipFacts]) -> dict:
    """Summarizes frame sizes and clip lengths, and guesses whether the clips are face crops (see `LARGEST_CROP`)."""
    facts = [fact for fact in facts if fact.width]
    if not facts:
        return {"opened": 0}
    sizes = Counter((fact.width, fact.height) for fact in facts)
    (width, height), commonest = sizes.most_common(1)[0]
    first_sizes = ", ".join(f"{w}x{h} ({number:,})" for (w, h), number in sizes.most_common(3))
    squarish = max(width, height) <= MOST_STRETCHED * min(width, height)
    are_crops = squarish and max(width, height) <= LARGEST_CROP and commonest > len(facts) / 2
    lengths = [fact.num_frames for fact in facts]
    lengths = {"min": min(lengths), "median": statistics.median(lengths), "max": max(lengths)}
    return {
        "opened": len(facts),
        "sizes": {f"{w}x{h}": number for (w, h), number in sizes.most_common()},
        "num_frames": lengths,
        "look": "face crops" if are_crops else "whole frames",
        "summary": f"{first_sizes}{', ...' if len(sizes) > 3 else ''}; "
        "{min} to {max} frames, median {median:g}".format(**lengths),
    }


class _Worker:
    """A process that runs functions on clips, started on the first call and restarted after it was killed."""

    def __init__(self, time_limit: float):
        self.time_limit = time_limit
        self.process = None
        self.is_stopped = False

    def run(self, function: Callable, path: str):
        """Runs a function on a clip and returns its value, or a `Failure` if it times out or crashes."""
        if self.process is None:
            self._start()
        if self.is_stopped:  # `stop` was called during the start
            self.kill()
        try:
            self.pipe.send((function, path))
            if self.pipe.poll(self.time_limit):
                return self.pipe.recv()
            failure = Failure("hanging", f"{path} was not read within {self.time_limit:g} s")
        except (EOFError, OSError):
            self.process.join(1)
            failure = Failure("crashing", f"{path} ended the decoder (exit code {self.process.exitcode})")
        self.kill()
        self.pipe.close()
        self.process = None
        return failure

    def stop(self):
        """Stops the worker permanently; a pending `run` returns a `Failure`."""
        self.is_stopped = True
        self.kill()

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.join(1)  # no longer: a process blocked on a dead network drive cannot be killed

    def _start(self):
        # Importing torch in a fresh process takes 5 s; the fork server does it once. The server has opened no video
        # either, which matters because decord does not survive a fork.
        has_server = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if has_server else "spawn")
        context.set_forkserver_preload(PRELOADED)
        self.pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self.process = process
        self.pipe.recv()  # waits for the imports, which must not count towards the time limit of a clip


def _serve(pipe):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _decoder()
    pipe.send("ready")
    while True:
        try:
            function, path = pipe.recv()
        except EOFError:  # the parent process has ended
            return
        try:
            answer = function(path)
        except OSError as error:
            answer = Failure("unreadable", str(error))
        pipe.send(answer)


def run_all(function: Callable, paths: list[str], num_workers: int, time_limit: float, title: str) -> dict[str, Any]:
    """Runs a function on all clips and returns path -> value or `Failure`; Ctrl-C kills all worker processes."""
    if not paths:
        return {}
    workers = [_Worker(time_limit) for _ in range(max(1, min(num_workers, len(paths))))]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def run(path: str):
        worker = idle.get()
        try:
            return worker.run(function, path)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(len(workers), initializer=_leave_ctrl_c_to_the_main_thread)
    try:
        futures = {threads.submit(run, path): path for path in paths}
        progress = tqdm(as_completed(futures), title, len(futures), unit="clip")
        values = {futures[future]: future.result() for future in progress}
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.stop()
    return {path: values[path] for path in paths}


def _leave_ctrl_c_to_the_main_thread():
    """Blocks SIGINT in this thread and the processes it starts; else the fork server would print a traceback."""
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # otherwise the fork server starts it, which unblocks the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])

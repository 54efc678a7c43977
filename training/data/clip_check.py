# SPDX-License-Identifier: Apache-2.0
"""Opens clips in processes that can be killed, since one damaged file can hang a decoder for good, or crash it.

`concurrent.futures` cannot end one process without giving up all of them, and a signal in the process itself is not
delivered while C code runs; so each process has a pipe, and who does not answer in time is killed and replaced.
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

# Imported in workers only, and once in what they are forks of: it imports torch, which takes seconds.
DECODER = "modeling_emoclip.video_reading"
PRELOADED = ["training.data.doctor", DECODER]
# A rule of thumb for face crops, made from DFEW's, which are all 224 x 224: one size, small, and squarish, up to 5:4;
# the frames of films are at least 4:3, and the clips of a set have many sizes.
LARGEST_CROP = 512
MOST_STRETCHED = 1.25


class Failure(NamedTuple):
    """Why a clip is of no use."""

    kind: str
    """ "empty", "unreadable", "hanging" or "crashing"."""
    reason: str


class ClipFacts(NamedTuple):
    """What a clip is like."""

    file_sizes: tuple[int, ...]
    """In bytes, sorted; of the images, or of the one video file."""
    num_frames: int | None = None
    width: int | None = None
    height: int | None = None


def measure_clip(path: str) -> ClipFacts | Failure:
    """Sizes of the files, none of which is opened."""
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
    """Decodes the first, the middle and the last frame: a file that is cut off lacks the last."""
    facts = measure_clip(path)
    if isinstance(facts, Failure):
        return facts
    try:
        frames, metadata = _decoder().read_video(path, _first_middle_last, guarded=False)  # this process is guarded
    except Exception as error:  # whatever a decoder raises: a damaged file must not end the check of the others
        return Failure("unreadable", str(error) or repr(error))
    return facts._replace(num_frames=metadata.total_num_frames, height=frames.shape[1], width=frames.shape[2])


def hash_clip(path: str) -> str | Failure:
    """The same for clips with the same bytes; for folders, with the same images under whatever names."""
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
    """Groups of clips with the same content; only clips whose files have the same sizes are read."""
    candidates = _groups({path: fact.file_sizes for path, fact in facts.items()})
    paths = [path for group in candidates for path in group]
    digests = run_all(hash_clip, paths, num_workers, time_limit, "comparing clips of one size")
    return _groups({path: digest for path, digest in digests.items() if isinstance(digest, str)})


def _groups(keys: dict[str, Any]) -> list[list[str]]:
    """Paths that share their key with another."""
    groups: dict[Any, list[str]] = {}
    for path, key in sorted(keys.items()):
        groups.setdefault(key, []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def describe_frames(facts: Iterable[ClipFacts]) -> dict:
    """Sizes, lengths, and whether these are face crops; see LARGEST_CROP for the rule."""
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
    """A process that calls functions; it is started when there is something to do, and again after it was killed."""

    def __init__(self, time_limit: float):
        self.time_limit = time_limit
        self.process = None
        self.is_stopped = False

    def run(self, function: Callable, path: str):
        """The function's value, or a `Failure` if it takes too long or crashes."""
        if self.process is None:
            self._start()
        if self.is_stopped:  # while it was starting
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
        """For good; whoever waits for a value gets a `Failure`."""
        self.is_stopped = True
        self.kill()

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.join(1)  # not longer: a process that waits for a dead network drive does not even die

    def _start(self):
        # A fresh process would import torch for 5 s. A fork server has done so once, and has opened no video, which
        # matters: decord does not survive a fork.
        has_server = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if has_server else "spawn")
        context.set_forkserver_preload(PRELOADED)
        self.pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self.process = process
        self.pipe.recv()  # its imports are done: the time limit is for the clip


def _serve(pipe):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _decoder()
    pipe.send("ready")
    while True:
        try:
            function, path = pipe.recv()
        except EOFError:  # who asked is gone
            return
        try:
            answer = function(path)
        except OSError as error:
            answer = Failure("unreadable", str(error))
        pipe.send(answer)


def run_all(function: Callable, paths: list[str], num_workers: int, time_limit: float, title: str) -> dict[str, Any]:
    """Path -> the function's value or a `Failure`; on Ctrl-C all processes are ended."""
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
    """Processes started from this thread inherit it, the fork server too, which would print a traceback otherwise."""
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # otherwise the fork server starts it, and then the signal is let in again
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])

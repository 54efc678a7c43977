# SPDX-License-Identifier: Apache-2.0
"""Zero-shot scores for live video: from a webcam, a network camera, a file, or frames pushed one by one."""

import math
import threading
import time as clock
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from emoclip.faces.crops import FaceCropper
from emoclip.timeline.windows import PersonWindows, logit_scale_and_bias, score_windows
from emoclip.video.frames import EPSILON
from emoclip.video.sources import check_window, frames_of_window
from modeling_emoclip.frame_sampling import check_counts, segment_middle
from modeling_emoclip.label_scoring import CandidateLabels, make_label_scorer

from .sources import as_pixels, frames_of


class Frame(NamedTuple):
    number: int  # of the push, from 1
    time: float  # seconds
    pixels: np.ndarray  # (H, W, 3), uint8, RGB


class LiveScores(NamedTuple):
    """The scores of one person at the time of one frame."""

    time: float  # seconds, time stamp of the newest frame in the window
    person: int  # 0, 1, ... by first appearance
    scores: list[dict[str, Any]]  # in the format of the pipeline
    frames_used: int  # in the window: few at the start, when frames are dropped, or when a face is rarely visible
    dropped: int  # frames dropped since the stream was created


class EmotionStream:
    """A live video stream whose labels are scored repeatedly on a sliding window of the last seconds.

    Frames are sampled evenly in time at the rate at which the checkpoint reads a window. A worker thread encodes each
    of them once. If it is too slow, the oldest waiting frames are dropped and counted, so scores always reflect the
    latest frames and memory is bounded.

    ```python
    >>> with EmotionStream(pipe, ["amused", "bored", "tense"]) as stream:
    ...     for now in stream.run(0):  # the first webcam; or "rtsp://...", a file, an iterable of frames
    ...         print(f"{now.time:.1f} s, person {now.person}: {now.scores[0]}, {now.dropped} frames dropped")
    ```

    To supply frames yourself, `push` them and call `scores()` or pass a `callback`. A stream is for one source.

    Args:
        pipe: `ZeroShotVideoClassificationPipeline`.
        candidate_labels, hypothesis_template, options: arguments of a pipeline call.
        window: length of the window in seconds.
        every: number of pushed frames from one result to the next.
        faces, no_face, detector: as in `pipe.timeline`, but with the `"largest"` face by default. Each person in the
            newest frame is scored on the frames of the window that show them.
        drop: `False` uses no thread and drops no frame: `push` blocks until the frame is processed, and results depend
            only on the frames and their times.
        max_waiting: maximum number of frames waiting for the worker.
        callback: called with each `LiveScores` in the worker thread; an exception in it ends the stream.

    Attributes:
        dropped: number of sampled frames dropped because the model could not keep up.

    Raises:
        ValueError: the labels or arguments are invalid.
    """

    def __init__(
        self,
        pipe,
        candidate_labels: CandidateLabels,
        hypothesis_template: str | None = None,
        *,
        window: float = 2.0,
        every: int = 1,
        faces: str | Callable = "largest",
        no_face: str = "nothing",
        detector: str | Callable = "auto",
        drop: bool = True,
        max_waiting: int = 2,
        callback: Callable[[LiveScores], Any] | None = None,
        **options,
    ):
        check_window(pipe.processor.video_processor, window)
        check_counts(every=every, max_waiting=max_waiting)
        if callback is not None and not callable(callback):
            raise ValueError(f"callback is {callback!r}, but must be a function")
        self.pipe, self.window, self.every, self.drop = pipe, window, every, drop
        self.max_waiting, self.callback, self.dropped = max_waiting, callback, 0
        self._scorer = make_label_scorer(pipe.model.config, candidate_labels, hypothesis_template, **options)
        processor = pipe.processor.video_processor
        self._people = PersonWindows(pipe, FaceCropper(processor.size, faces, no_face, detector))
        self._num_frames = frames_of_window(processor, window)
        self._step = window / self._num_frames
        with pipe.device_placement():
            pipe.class_embeds(self._scorer.texts)  # now, and not when the first frame comes
        self._num_pushed = self._next_result = 0
        self._started, self._last_time, self._due = clock.monotonic(), None, None
        self._changed = threading.Condition()  # guards the attributes below
        self._waiting: deque[Frame] = deque()
        self._newest: list[LiveScores] = []
        self._num_results, self._error = 0, None
        self._is_busy = self._is_reading = self._is_closed = False
        self._worker = threading.Thread(target=self._work, name="EmotionStream", daemon=True) if drop else None
        if self._worker:
            self._worker.start()

    def __enter__(self) -> "EmotionStream":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Stops the worker after its current frame and discards waiting frames."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._worker and self._worker is not threading.current_thread():  # a callback may call close()
            self._worker.join()

    def push(self, frame: np.ndarray | Image.Image, time: float | None = None) -> None:
        """Queues a copy of a frame and returns at once; with `drop=False`, returns after encoding and scoring it.

        Args:
            frame: `(H, W, 3)`, uint8, RGB, or a PIL image.
            time: seconds, not less than that of the previous frame; `None` means now.

        Raises:
            ValueError: the frame is invalid, time runs backwards, or is missing with `drop=False`.
            RuntimeError: the stream is closed.
            Exception: any error in the worker.
        """
        pixels = as_pixels(frame)
        if time is None:
            if not self.drop:
                raise ValueError("with drop=False results depend on the frames' times: give time")
            time = clock.monotonic() - self._started
        if not math.isfinite(time):
            raise ValueError(f"time is {time} s, but must be finite")
        self._take(float(time), pixels.copy)

    def scores(self) -> list[LiveScores]:
        """Returns the newest result, one entry per person; empty before the first result or if no face is visible.

        Raises:
            Exception: any error in the worker.
        """
        with self._changed:
            self._raise_error()
            return list(self._newest)

    def run(self, source: Any, fps: float | None = None) -> Iterator[LiveScores]:
        """Pushes the frames of a source and yields results; a slow consumer skips some and gets the newest.

        Args:
            source: number of a webcam (needs OpenCV); an address, e.g. rtsp://... or http://...; anything that the
                pipeline accepts as one video, played at its own speed (with `drop=False` as fast as the model
                allows); or an iterable of frames, read as fast as it yields them.
            fps: frames per second of a source without time stamps. Required for a list, folder or array; without it,
                frames of an iterable are timed by the clock, which `drop=False` does not allow.

        Raises:
            OSError, ValueError: the source cannot be opened, or reading it fails.
            ImportError: the source is a webcam and OpenCV is not installed.
            Exception: any error in the worker or in the iterable.
        """
        stop, processor, seen = threading.Event(), self.pipe.processor.video_processor, self._num_results
        frames = frames_of(source, fps, self.drop, stop, processor.video_limits, processor.guard_decoding)
        if not self.drop:
            for time, get_pixels in frames:
                self._take(time, get_pixels)
                if self._num_results != seen:
                    seen = self._num_results
                    yield from self._newest
            return
        self._is_reading = True
        reader = threading.Thread(target=self._read, args=(frames, stop), name="EmotionStream source", daemon=True)
        reader.start()
        try:
            while (seen_and_newest := self._wait_for_news(seen)) is not None:
                seen, newest = seen_and_newest
                yield from newest
        finally:
            stop.set()
            reader.join(timeout=1.0)  # a reader that waits for a camera ends by itself

    def _wait_for_news(self, seen: int) -> tuple[int, list[LiveScores]] | None:
        """Waits for more than `seen` results; returns their number and the newest, or `None` if none will come."""

        def is_over():
            return self._is_closed or not (self._is_reading or self._is_busy or self._waiting)

        with self._changed:
            while not (self._num_results != seen or self._error or is_over()):
                self._changed.wait(timeout=1.0)  # without a timeout Ctrl-C is blocked on Windows
            self._raise_error()
            return (self._num_results, self._newest) if self._num_results != seen else None

    def _read(self, frames: Iterator, stop: threading.Event) -> None:
        """Runs the reader thread of a source."""
        try:
            for time, get_pixels in frames:
                if stop.is_set() or self._is_closed:
                    break
                self._take(time, get_pixels)
        except Exception as error:
            if not self._is_closed:
                self._fail(error)
        finally:
            with self._changed:
                self._is_reading = False
                self._changed.notify_all()

    def _take(self, time: float, get_pixels: Callable[[], np.ndarray]) -> None:
        """Processes or queues a frame if the next sample is due."""
        with self._changed:
            self._raise_error()
            if self._is_closed:
                raise RuntimeError("the stream is closed")
        if self._last_time is not None and time < self._last_time:
            raise ValueError(f"a frame of {time} s comes after one of {self._last_time} s: a stream is for one source")
        self._last_time = time
        self._num_pushed += 1
        self._due = time if self._due is None else self._due
        if time < self._due - EPSILON:
            return
        self._due = (self._due if time - self._due < self._step else time) + self._step
        frame = Frame(self._num_pushed, time, get_pixels())
        if not self.drop:
            self._process(frame)
            return
        with self._changed:
            self._waiting.append(frame)
            while len(self._waiting) > self.max_waiting:
                self._waiting.popleft()
                self.dropped += 1
            self._changed.notify_all()

    def _work(self) -> None:
        """Runs the worker thread."""
        try:
            while True:
                with self._changed:
                    self._is_busy = False
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._waiting or self._is_closed)
                    if self._is_closed:
                        return
                    frame, self._is_busy = self._waiting.popleft(), True
                self._process(frame)
        except Exception as error:
            self._fail(error)

    def _process(self, frame: Frame) -> None:
        people = self._add(frame)
        if frame.number < self._next_result:
            return
        self._next_result = frame.number + self.every
        newest = [
            LiveScores(frame.time, person, scores, frames_used, self.dropped)
            for person, scores, frames_used in self._scores(people)
        ]
        with self._changed:
            self._newest = newest
            self._num_results += 1
            self._changed.notify_all()
        for one in newest if self.callback else []:
            self.callback(one)

    def _add(self, frame: Frame) -> list[int]:
        """Encodes a frame and forgets those before the window; returns who is in it."""
        with self.pipe.device_placement():
            crops = self._people.push(frame.pixels, frame.time, frame.time)
            self._people.encode()
        self._people.forget(frame.time - self.window + EPSILON, most=self._num_frames)
        return [crop.person for crop in crops]

    def _scores(self, people: list[int]) -> list[tuple[int, list[dict[str, Any]], int]]:
        """Scores people; returns the number, scores and frames used of each."""
        if not people:
            return []
        seen = [list(self._people.seen[person].values()) for person in people]
        windows = [[crops[index] for index in segment_middle(len(crops), self._num_frames)] for crops in seen]
        with self.pipe.device_placement():
            scores = score_windows(
                self.pipe, self._scorer, self._people.pool(windows), *logit_scale_and_bias(self.pipe.model)
            )
        ranked = [self._scorer.ranked(row.tolist()) for row in scores]
        return list(zip(people, ranked, map(len, seen), strict=True))

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = self._error or error
            self._is_busy = False
            self._waiting.clear()
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


__all__ = ["EmotionStream", "LiveScores"]

# SPDX-License-Identifier: Apache-2.0
"""Time lines of videos of any length: the scores of any labels for each person and each window of time.

Shapes: W windows, C labels, D embedding width, T frames of a window.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from emoclip.alignment import alignment, check_text, embed_texts
from emoclip.faces.crops import WHOLE_FRAME, Crop, FaceCropper
from emoclip.video.frames import EPSILON, HIGHEST_RATE, FrameSequence, GridFrame
from emoclip.video.sources import check_number, check_window, frames_of_window, open_frames, progress_bar
from modeling_emoclip.frame_sampling import check_counts, segment_middle
from modeling_emoclip.label_scoring import UNCERTAIN, CandidateLabels, LabelScorer, make_label_scorer
from modeling_emoclip.video_limits import make_limits

from .files import check_names, stretches, to_csv, to_json, to_pandas, to_srt, to_vtt
from .folder import load, save
from .pictures import annotate, plot
from .thumbnails import Thumbnails
from .windows import PersonWindows, logit_scale_and_bias, score_windows

_PROBE = "a face"  # its embedding tells whether a model has the text encoder that a time line was made with
_MOST_STEPS = 64  # after which windows are made, even if there is nothing to encode


class Moment(NamedTuple):
    """A result of `EmotionTimeline.search`."""

    person: int
    start: float  # seconds
    end: float
    score: float  # cosine of the text and the best window


@dataclass(eq=False, repr=False)
class EmotionTimeline:
    """The result of `pipe.timeline`. Each row is one window of one person; rows are in the order of time.

    Scores are the pipeline's: by default the softmax over the given labels. They compare these labels with each other,
    and are not probabilities that a person feels anything. Times are seconds, as a player shows them. Boxes are x0,
    y0, x1, y1 in pixels of the upright frame.

    ```python
    >>> timeline = pipe.timeline("talk.mp4", candidate_labels=["amused", "bored", "tense"])
    >>> timeline.plot("talk.png")
    >>> timeline.search("trying not to laugh", top=3)
    >>> timeline.rescore(["proud", "ashamed"]).to_csv("talk.csv")
    ```"""

    video: str  # path, or "the video"
    labels: list[str]
    scores: np.ndarray  # (W, C)
    embeds: np.ndarray  # (W, D), unit length
    person: np.ndarray  # (W,)
    start: np.ndarray  # (W,)
    end: np.ndarray  # (W,)
    box: np.ndarray  # (W, 4), mean over the window
    num_frames_seen: np.ndarray  # (W,), frames of the window with the person
    tracks: np.ndarray  # (number of encoded faces, 6): time, person, box
    thumbnails: dict[int, list[tuple[float, bytes]]]  # person -> (time, JPEG)
    span: tuple[float, float]  # first and last second that was seen
    size: tuple[int, int]  # width and height of the upright frame
    window: float  # seconds; the video's length, if that is shorter
    stride: float  # seconds
    num_frames: int  # T
    faces: str  # "all", "largest", "none" (not looked for: the whole frame) or "callback"
    no_face: str  # for frames without a face: "nothing", or "frame" (the whole frame, as person WHOLE_FRAME)
    detector: str | None
    error: str | None  # what was wrong with the video, if anything
    logit_scale: float
    logit_bias: float
    probe: np.ndarray  # (D,)
    temperature: float = 1.0  # how scores were made, as the next two
    multi_label: bool = False
    abstain_below: float | None = None  # the answer is "uncertain" if no score reaches it
    names: dict[int, str] = field(default_factory=dict)  # person -> name in files and pictures, set by the user
    pipe: Any = None  # pipeline that encodes new texts; not saved

    to_pandas, to_json, to_csv, to_srt, to_vtt = to_pandas, to_json, to_csv, to_srt, to_vtt
    save, load, plot, annotate, stretches = save, classmethod(load), plot, annotate, stretches
    alignment = alignment

    def __len__(self) -> int:
        return len(self.person)

    def __repr__(self) -> str:
        faces = {None: "faces not looked for", True: "faces found", False: "no face found"}[self.face_found]
        return (
            f"EmotionTimeline({self.video!r}, {self.span[0]:.1f} to {self.span[1]:.1f} s, {len(self)} windows of "
            f"{self.window:g} s, {len(self.people)} people, {faces}{'' if self.complete else ', NOT COMPLETE'})"
        )

    @property
    def complete(self) -> bool:
        """Whether the whole video was read without damage; otherwise `error` says what happened."""
        return self.error is None

    @property
    def face_found(self) -> bool | None:
        """Whether a face was found; `None` if none was looked for."""
        return None if self.faces == "none" else bool((self.tracks[:, 1] != WHOLE_FRAME).any())

    @property
    def people(self) -> list[int]:
        """People with a window, those with most windows first."""
        people, windows = np.unique(self.person, return_counts=True)
        return people[np.argsort(-windows, kind="stable")].tolist()

    def name_of(self, person: int) -> str:
        check_names(self.names)
        whole_frame = person == WHOLE_FRAME or self.faces == "none"
        return self.names.get(person, "whole frame" if whole_frame else f"person {person}")

    def answers(self, scores: np.ndarray) -> np.ndarray:
        """Returns the index of the highest of each row of scores `(n, C)`, or -1 if it is below `abstain_below`."""
        return np.where(scores.max(axis=1) < (self.abstain_below or 0), -1, scores.argmax(axis=1))

    def answer_name(self, index: int) -> str:
        """Returns the name of an entry of `answers`."""
        return UNCERTAIN if index < 0 else self.labels[index]

    def rescore(
        self,
        candidate_labels: CandidateLabels,
        hypothesis_template: str | None = None,
        pipe: Any = None,
        **options,
    ) -> "EmotionTimeline":
        """Scores the same windows with other labels, without reading the video again.

        Args:
            candidate_labels, hypothesis_template: as in a call of the pipeline.
            options: `temperature`, `multi_label` and `abstain_below`, as in a call of the pipeline.
            pipe: a pipeline with the text encoder that made the time line; needed after `load`.
        """
        pipe = self.checked(pipe)
        scorer = make_label_scorer(pipe.model.config, candidate_labels, hypothesis_template, **options)
        scored = _score_fields(pipe, scorer, self.embeds, self.logit_scale, self.logit_bias)
        return replace(self, **scored, names=dict(self.names), pipe=pipe)

    def search(self, text: str | Sequence[str], top: int = 10, pipe: Any = None) -> list[Moment]:
        """Finds the moments that are most similar to a text, or to the mean of several texts, best first.

        Neighbouring windows of a person form one moment while they stay above the middle between the best of them and
        the mean of all windows. Moments of a person do not overlap.
        """
        check_text("text", text)
        check_counts(top=top)
        (text_embed,) = embed_texts(self.checked(pipe), text)
        cosine, moments = self.embeds @ text_embed, []
        taken = np.zeros(len(self), dtype=bool)
        for best in np.argsort(-cosine, kind="stable"):
            if taken[best] or len(moments) == top:
                continue
            rows = np.flatnonzero(self.person == self.person[best])
            is_high = (cosine[rows] >= (cosine[best] + cosine.mean()) / 2) & ~taken[rows]
            is_joined = is_high[:-1] & is_high[1:] & (self.end[rows[:-1]] >= self.start[rows[1:]])
            run = next(run for run in np.split(rows, np.flatnonzero(~is_joined) + 1) if best in run)
            start, end = float(self.start[run[0]]), float(self.end[run[-1]])
            taken[rows[(self.start[rows] < end) & (self.end[rows] > start)]] = True
            moments.append(Moment(int(self.person[best]), start, end, float(cosine[best])))
        return moments

    def checked(self, pipe: Any) -> Any:
        """Returns `pipe`, or the time line's; raises a ValueError if it cannot encode texts for this time line."""
        pipe = pipe or self.pipe
        if pipe is None:
            raise ValueError("a loaded timeline cannot encode texts: give pipe=, a pipeline with its model")
        (probe,) = embed_texts(pipe, _PROBE)
        if probe.shape != self.probe.shape or probe @ self.probe < 0.999:  # 16 and 32 bits differ by less
            raise ValueError(f"pipe has another text encoder than the model that made the timeline of {self.video}")
        return pipe


@dataclass(frozen=True)
class TimelineOptions:
    """How a time line is made: see `pipe.timeline`."""

    window: float = 2.0
    stride: float = 1.0
    faces: Any = "all"
    no_face: str = "nothing"
    detector: Any = "auto"
    fps: float | None = None
    batch_size: int = 32
    progress: bool = True

    def __post_init__(self):
        check_counts(batch_size=self.batch_size)
        check_number("stride", self.stride)
        check_number("window", self.window)
        if self.stride > self.window:
            raise ValueError(
                f"window is {self.window} s and stride {self.stride} s, but 0 < stride <= window must hold"
            )


@torch.no_grad()
def make_timeline(pipe, video: Any, scorer: LabelScorer, options: TimelineOptions) -> EmotionTimeline:
    """Makes the time line of one video: see `pipe.timeline`."""
    processor = pipe.processor.video_processor
    # What is longer is not read, and a window may be infinite.
    window = min(options.window, make_limits(processor.video_limits).max_seconds)
    check_window(processor, window)
    frames = open_frames(video, options.fps, processor.video_limits, processor.guard_decoding)
    crop_faces = FaceCropper(processor.size, options.faces, options.no_face, options.detector)
    with progress_bar(frames, frames.name, options.progress) as bar, pipe.device_placement():
        builder = _TimelineBuilder(pipe, crop_faces, _Grid(window, options.stride, processor), options.batch_size)
        builder.read(frames, bar)
        span, error = (frames.start, frames.end), frames.error
        # Known only now, since the header may be silent or wrong. Reading less than a window again costs little, and
        # gives the frames of a short video that `segment_middle` takes of a clip.
        if 0 < (length := span[1] - span[0]) < window - EPSILON:
            grid = _Grid(length, options.stride, processor)
            builder = _TimelineBuilder(pipe, crop_faces, grid, options.batch_size)
            builder.read(frames, bar, most_steps=grid.num_frames)
            error = frames.error or error
        builder.flush_windows(is_last=True)
    columns = builder.columns(*span)
    scale, bias = logit_scale_and_bias(pipe.model)
    return EmotionTimeline(
        video=frames.name,
        span=span,
        size=frames.size,
        error=error,
        logit_scale=scale,
        logit_bias=bias,
        probe=embed_texts(pipe, _PROBE)[0],
        pipe=pipe,
        **columns,
        **builder.grid.settings,
        **crop_faces.settings,
        **_score_fields(pipe, scorer, columns["embeds"], scale, bias),
    )


def _score_fields(pipe, scorer: LabelScorer, embeds: np.ndarray, scale: float, bias: float) -> dict[str, Any]:
    """Returns the fields of a time line that hold its scores `(W, C)` and how they were made."""
    how = {name: getattr(scorer, name) for name in ("temperature", "multi_label", "abstain_below")}
    return {"labels": list(scorer.labels), "scores": score_windows(pipe, scorer, embeds, scale, bias), **how}


class _Grid:
    """Equal steps of time, and windows of them."""

    def __init__(self, window: float, stride: float, processor):
        self.num_frames = frames_of_window(processor, window)  # steps of a window
        self.rate = min(self.num_frames / window, HIGHEST_RATE)  # steps per second; a frame may last no time
        self.stride = min(max(1, round(min(stride, window) * self.rate)), self.num_frames)  # steps between windows
        self.settings = {"window": window, "stride": self.stride / self.rate, "num_frames": self.num_frames}


class _TimelineBuilder:
    """Builds the columns of a time line from frames on a grid of time.

    Memory does not grow with the video, but for D numbers of each window and a box of each encoded face.
    """

    def __init__(self, pipe, crop_faces: FaceCropper, grid: _Grid, batch_size: int):
        self.people, self.grid, self.num_frames = PersonWindows(pipe, crop_faces, batch_size), grid, grid.num_frames
        self.num_steps = self.next_start = 0
        self.new_tracks: list[tuple] = []
        self.rows = [np.empty((0, 7))]  # parts of the time line: person, first step, frames seen, box
        self.embeds = [self.people.pool([])]
        self.tracks = [np.empty((0, 6))]
        self.thumbnails = Thumbnails()

    def read(self, frames: FrameSequence, bar, most_steps: float = math.inf):
        """Reads the frames of a video on the grid, from its beginning, or the first `most_steps` of them."""
        self.people.crop_faces.reset()
        bar.reset()
        for frame in itertools.takewhile(lambda frame: frame.step < most_steps, frames.resample(self.grid.rate)):
            self.add(frame)
            bar.update(int(frame.time - frames.start) - bar.n)

    def add(self, frame: GridFrame):
        """Adds the frame of the next step."""
        if frame.is_new:
            for crop in self.people.push(frame.pixels, frame.time, frame.step):
                self.thumbnails.offer(crop.person, frame.time, crop.pixels)
        else:
            self.people.hold(frame.step)
        self.new_tracks += [(frame.time, crop.person, *crop.box) for crop in self.people.newest]
        self.num_steps = frame.step + 1
        if len(self.people) >= self.people.batch_size or self.num_steps % _MOST_STEPS == 0:
            self.flush_windows()

    def flush_windows(self, is_last: bool = False):
        """Makes the windows that end by now, and at the end of the video one more if its end is not covered."""
        self.people.encode()
        length = min(self.num_frames, self.num_steps) if is_last else self.num_frames
        starts = list(range(self.next_start, self.num_steps - length + 1, self.grid.stride))
        if is_last and (self.num_steps - length) % self.grid.stride:
            starts.append(self.num_steps - length)
        slots = segment_middle(length, self.num_frames)  # every step once, unless the video is shorter than a window
        windows: list[list[Crop | None]] = []
        for start in starts:
            for person, crops in sorted(self.people.seen.items()):
                num_seen = sum(start + step in crops for step in range(length))
                if num_seen and 2 * num_seen >= length:
                    windows.append([crops.get(start + slot) for slot in slots])
                    box = np.mean([crop.box for crop in windows[-1] if crop is not None], axis=0)
                    self.rows.append(np.array([[person, start, num_seen, *box]]))
        self.embeds.append(self.people.pool(windows))
        self.next_start = starts[-1] + self.grid.stride if starts else self.next_start
        self.people.forget(min(self.next_start, self.num_steps - self.num_frames))
        self.tracks.append(np.array(self.new_tracks, dtype=float).reshape(-1, 6))
        self.new_tracks = []

    def columns(self, start: float, end: float) -> dict[str, Any]:
        """Returns the columns of the time line of a video from `start` to `end`."""
        rows, embeds, tracks = map(np.concatenate, (self.rows, self.embeds, self.tracks))
        person, first_step, num_seen = rows[:, :3].T.astype(int)
        window_start = start + first_step / self.grid.rate
        return {
            "embeds": embeds,
            "person": person,
            "start": window_start,
            "end": np.minimum(window_start + self.num_frames / self.grid.rate, end),
            "box": rows[:, 3:],
            "num_frames_seen": num_seen,
            "tracks": tracks,
            "thumbnails": {one: self.thumbnails.kept[one] for one in np.unique(person).tolist()},
        }


__all__ = ["EmotionTimeline", "Moment", "TimelineOptions", "make_timeline"]

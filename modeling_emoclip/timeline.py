# SPDX-License-Identifier: Apache-2.0
"""A long video -> for each person and each window of time the scores of any labels; every frame is encoded once.

Shapes: W windows, C labels, D embedding width, T frames of a window.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from .alignment import alignment, check_text
from .frame_sampling import check_counts, segment_middle
from .frame_sequence import HIGHEST_GRID_RATE, FrameSequence, GridFrame
from .prompts import embed_texts
from .scores import UNCERTAIN, Scoring, make_scoring
from .thumbnails import Thumbnails
from .timeline_files import check_names, stretches, to_csv, to_json, to_pandas, to_srt, to_vtt
from .timeline_folder import load, save
from .timeline_pictures import annotate, plot
from .video_frames import (
    NOBODY,
    Crop,
    FaceCrops,
    check_number,
    check_window,
    frames_of_window,
    open_frames,
    progress_bar,
)
from .video_limits import make_limits

_PROBE = "a face"  # its embedding tells whether a model has the text encoder that a timeline was made with
_MOST_STEPS = 64  # between windows, also where there is nothing to encode
_HALF_A_TICK = 1e-6  # seconds; times are sums of fractions


class Moment(NamedTuple):
    person: int
    start: float  # seconds
    end: float
    score: float  # cosine of the text and the best window


@dataclass(eq=False, repr=False)
class EmotionTimeline:
    """What `pipe.timeline` returns. One row is one window of one person; rows are in the order of time.

    Scores are the pipeline's: by default the softmax over the given labels. They compare these labels with each other,
    and are no probabilities that a person feels anything. Times are seconds, as a player shows them. Boxes are x0, y0,
    x1, y1, pixels of the upright frame.

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
    num_frames_seen: np.ndarray  # (W,), frames of the window that show the person
    tracks: np.ndarray  # (number of encoded faces, 6): time, person, box
    thumbnails: dict[int, list[tuple[float, bytes]]]  # person -> (time, JPEG)
    span: tuple[float, float]  # first and last second that was seen
    size: tuple[int, int]  # width and height of the upright frame
    window: float  # seconds; the video's length, if that is shorter
    stride: float  # seconds
    num_frames: int  # T
    faces: str  # "all", "largest", "none" (not looked for: the whole frame) or "callback"
    no_face: str  # frames without a face: "nothing", or "frame" (the whole frame is NOBODY's)
    detector: str | None
    error: str | None  # what was wrong with the video, if anything
    logit_scale: float
    logit_bias: float
    probe: np.ndarray  # (D,)
    temperature: float = 1.0  # of the scores, as the next two
    multi_label: bool = False  # each label by itself
    abstain_below: float | None = None  # where no score reaches it, the answer is "uncertain"
    names: dict[int, str] = field(default_factory=dict)  # person -> name in files and pictures, yours to set
    pipe: Any = None  # the pipeline that encodes new texts; not saved

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
        """Whether the whole video was read without damage; if not, `error` says what happened."""
        return self.error is None

    @property
    def face_found(self) -> bool | None:
        """Whether any face was found; `None` if none was looked for."""
        return None if self.faces == "none" else bool((self.tracks[:, 1] != NOBODY).any())

    @property
    def people(self) -> list[int]:
        """Persons with a window, those with most of them first."""
        people, windows = np.unique(self.person, return_counts=True)
        return people[np.argsort(-windows, kind="stable")].tolist()

    def name_of(self, person: int) -> str:
        check_names(self.names)
        whole_frame = person == NOBODY or self.faces == "none"
        return self.names.get(person, "whole frame" if whole_frame else f"person {person}")

    def answers(self, scores: np.ndarray) -> np.ndarray:
        """Of each row of scores `(n, C)` the index of the highest, -1 if it is less than `abstain_below`: `(n,)`."""
        return np.where(scores.max(axis=1) < (self.abstain_below or 0), -1, scores.argmax(axis=1))

    def answer_name(self, index: int) -> str:
        """Of an entry of `answers`."""
        return UNCERTAIN if index < 0 else self.labels[index]

    def rescore(
        self,
        candidate_labels: Sequence[str] | Mapping[str, str | Sequence[str]],
        hypothesis_template: str | None = None,
        pipe: Any = None,
        **options,
    ) -> "EmotionTimeline":
        """The same windows with the scores of other labels; the video is not read again.

        Args:
            candidate_labels, hypothesis_template: as of the pipeline; so are `options`: `temperature`, `multi_label`,
                `abstain_below`.
            pipe: a pipeline with the text encoder that the timeline was made with; needed after `load`.
        """
        pipe = self.checked(pipe)
        scoring = make_scoring(pipe.model.config, candidate_labels, hypothesis_template, **options)
        scored = _scored(pipe, scoring, self.embeds, self.logit_scale, self.logit_bias)
        return replace(self, **scored, names=dict(self.names), pipe=pipe)

    def search(self, text: str | Sequence[str], top: int = 10, pipe: Any = None) -> list[Moment]:
        """The moments that are most like a text, or like the mean of several; the best first.

        Neighbouring windows of a person are one moment while they stay above half the height between the best of them
        and the mean of all windows. No two moments of a person overlap.
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
        """`pipe`, or that of the timeline; raises `ValueError` if it cannot encode texts for it."""
        pipe = pipe or self.pipe
        if pipe is None:
            raise ValueError("a loaded timeline cannot encode texts: give pipe=, a pipeline with its model")
        (probe,) = embed_texts(pipe, _PROBE)
        if probe.shape != self.probe.shape or probe @ self.probe < 0.999:  # 16 and 32 bits differ by less
            raise ValueError(f"pipe has another text encoder than the model that made the timeline of {self.video}")
        return pipe


@torch.no_grad()
def make_timeline(
    pipe,
    video,
    candidate_labels,
    hypothesis_template,
    scoring_options,
    *,
    window,
    stride,
    fps,
    batch_size,
    progress,
    **how,
) -> EmotionTimeline:
    """`pipe.timeline`; `scoring_options` are of `make_scoring`, and `how` is of `FaceCrops`."""
    check_counts(batch_size=batch_size)
    check_number("stride", stride)
    check_number("window", window)
    if stride > window:
        raise ValueError(f"window is {window} s and stride {stride} s, but 0 < stride <= window must hold")
    model, processor = pipe.model, pipe.processor.video_processor
    scoring = make_scoring(model.config, candidate_labels, hypothesis_template, **scoring_options)
    # What is longer is not read, and a window may be endless.
    window = min(window, make_limits(processor.video_limits).max_seconds)
    check_window(processor, window)
    frames = open_frames(video, fps, processor.video_limits, processor.guard_decoding)
    face_crops = FaceCrops(processor.size, **how)
    with progress_bar(frames, frames.name, progress) as bar, pipe.device_placement():
        maker = _TimelineMaker(pipe, face_crops, _Grid(window, stride, processor), batch_size)
        maker.read(frames, bar)
        span, error = (frames.start, frames.end), frames.error
        # Known only now: the header of a file may say nothing of its length, or lie. To read less than a window again
        # costs little, and so a short video's frames are those that `segment_middle` takes of a clip.
        if 0 < (length := span[1] - span[0]) < window - _HALF_A_TICK:
            maker = _TimelineMaker(pipe, face_crops, _Grid(length, stride, processor), batch_size)
            maker.read(frames, bar, most_steps=maker.num_frames)
            error = frames.error or error
        maker.make_windows(is_last=True)
    columns = maker.columns(*span)
    settings = {**maker.grid.settings, **face_crops.settings}
    about = {"video": frames.name, "span": span, "size": frames.size, "error": error}
    scale, bias = float(model.logit_scale.exp()), 0.0 if model.logit_bias is None else float(model.logit_bias)
    scored = _scored(pipe, scoring, columns["embeds"], scale, bias) | {"logit_scale": scale, "logit_bias": bias}
    return EmotionTimeline(**columns, **settings, **about, **scored, probe=embed_texts(pipe, _PROBE)[0], pipe=pipe)


@torch.no_grad()
def _scored(pipe, scoring: Scoring, embeds: np.ndarray, logit_scale: float, logit_bias: float) -> dict[str, Any]:
    """The fields of a timeline that say what its scores `(W, C)` are."""
    class_embeds = pipe.class_embeds(scoring.texts).float().cpu()
    scores = scoring.scores(torch.from_numpy(embeds) @ class_embeds.T * logit_scale + logit_bias).numpy()
    how = {name: getattr(scoring, name) for name in ("temperature", "multi_label", "abstain_below")}
    return {"labels": list(scoring.labels), "scores": scores, **how}


class _Grid:
    """Equal steps of time, and windows of them."""

    def __init__(self, window: float, stride: float, processor):
        self.num_frames = frames_of_window(processor, window)  # steps of a window
        self.rate = min(self.num_frames / window, HIGHEST_GRID_RATE)  # steps per second; a frame may last no time
        self.stride = min(max(1, round(min(stride, window) * self.rate)), self.num_frames)  # steps between windows
        self.settings = {"window": window, "stride": self.stride / self.rate, "num_frames": self.num_frames}


class _TimelineMaker:
    """Turns frames on a grid of time into windows of people.

    It holds what waits to be encoded and the embeddings that a coming window can need, and so no more for a longer
    video. What stays of a window is D numbers; of an encoded face, its box.
    """

    def __init__(self, pipe, face_crops: FaceCrops, grid: _Grid, batch_size: int):
        self.model, self.processor, self.face_crops = pipe.model, pipe.processor.video_processor, face_crops
        self.encode_frames, self.batch_size = pipe.encode_frames, batch_size
        self.grid, self.num_frames, self.stride = grid, grid.num_frames, grid.stride
        self.num_steps = self.next_start = 0
        self.crops: list[Crop] = []  # in the newest frame
        self.waiting: list[Crop] = []  # to be encoded
        self.seen: dict[int, dict[int, Crop]] = {}  # person -> step -> crop
        self.new_tracks: list[tuple] = []
        self.rows = [np.empty((0, 7))]  # parts of the timeline: person, first step, frames seen, box
        self.embeds = [np.empty((0, pipe.model.config.projection_dim), dtype=np.float32)]
        self.tracks = [np.empty((0, 6))]
        self.thumbnails = Thumbnails()

    def read(self, frames: FrameSequence, bar, most_steps: float = math.inf):
        """Takes the frames of a video on the grid, from its beginning; of more than `most_steps` the first."""
        self.face_crops.start_again()
        bar.reset()
        for frame in itertools.takewhile(lambda frame: frame.step < most_steps, frames.on_grid(self.grid.rate)):
            self.add(frame)
            bar.update(int(frame.time - frames.start) - bar.n)

    def add(self, frame: GridFrame):
        if frame.is_new:
            self.crops = self.face_crops(frame)
            for crop in self.crops:
                self.thumbnails.offer(crop.person, frame.time, crop.pixels)
                clip = self.processor(crop.pixels[None], do_sample_frames=False, return_tensors="pt")
                crop.pixels = clip["pixel_values_videos"][0, 0]
            self.waiting += self.crops
        for crop in self.crops:
            self.seen.setdefault(crop.person, {})[frame.step] = crop
            self.new_tracks.append((frame.time, crop.person, *crop.box))
        self.num_steps = frame.step + 1
        if len(self.waiting) >= self.batch_size or self.num_steps % _MOST_STEPS == 0:
            self.make_windows()

    def make_windows(self, is_last: bool = False):
        """Those that end by now; at the end of the video one more for what no other covers."""
        self._encode()
        length = min(self.num_frames, self.num_steps) if is_last else self.num_frames
        starts = list(range(self.next_start, self.num_steps - length + 1, self.stride))
        if is_last and (self.num_steps - length) % self.stride:
            starts.append(self.num_steps - length)
        slots = segment_middle(length, self.num_frames)  # every step once, unless the video is shorter than a window
        windows = []
        for start in starts:
            for person, crops in sorted(self.seen.items()):
                num_seen = sum(start + step in crops for step in range(length))
                if num_seen and 2 * num_seen >= length:
                    windows.append(([crops.get(start + slot) for slot in slots], person, start, num_seen))
        for first in range(0, len(windows), self.batch_size):
            self._embed(windows[first : first + self.batch_size])
        self.next_start = starts[-1] + self.stride if starts else self.next_start
        self._forget(min(self.next_start, self.num_steps - self.num_frames))

    def _encode(self):
        for first in range(0, len(self.waiting), self.batch_size):
            batch = self.waiting[first : first + self.batch_size]
            embeds = self.encode_frames(torch.stack([crop.pixels for crop in batch]))
            for crop, embed in zip(batch, embeds, strict=True):
                crop.pixels, crop.embed = None, embed
        self.waiting = []

    def _embed(self, windows: list[tuple[list[Crop | None], int, int, int]]):
        frame_mask = torch.tensor([[crop is not None for crop in crops] for crops, *_ in windows])  # (B, T)
        embeds = [crop.embed for crops, *_ in windows for crop in crops if crop is not None]
        frame_embeds = embeds[0].new_zeros(*frame_mask.shape, len(embeds[0]))  # (B, T, D)
        frame_embeds[frame_mask.to(frame_embeds.device)] = torch.stack(embeds)
        pooled = self.model.get_video_features(frame_embeds=frame_embeds, frame_mask=frame_mask).pooler_output
        boxes = [np.mean([crop.box for crop in crops if crop is not None], axis=0) for crops, *_ in windows]
        self.rows.append(np.column_stack([[window[1:] for window in windows], boxes]))
        self.embeds.append(torch.nn.functional.normalize(pooled, dim=-1).float().cpu().numpy())

    def _forget(self, before: int):
        """Steps that no coming window has."""
        for person, crops in list(self.seen.items()):
            self.seen[person] = {step: crop for step, crop in crops.items() if step >= before}
            if not self.seen[person]:
                del self.seen[person]
        self.tracks.append(np.array(self.new_tracks, dtype=float).reshape(-1, 6))
        self.new_tracks = []

    def columns(self, start: float, end: float) -> dict[str, Any]:
        """Of a video from `start` to `end`."""
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


__all__ = ["EmotionTimeline", "Moment", "make_timeline"]

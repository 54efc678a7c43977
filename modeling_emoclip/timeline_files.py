# SPDX-License-Identifier: Apache-2.0
"""A timeline as tables, subtitles and a folder that holds all of it; each file appears at once whole, or not at all.

Functions whose first argument is a timeline are methods of `EmotionTimeline`.
"""

import contextlib
import csv
import io
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .typed_text import csv_cell, srt_text, vtt_text
from .video_frames import NOBODY

_ARRAYS = ("scores", "embeds", "person", "start", "end", "box", "num_frames_seen", "tracks", "probe")
_ABOUT = "video labels span size window stride num_frames faces no_face detector error temperature".split()
_ABOUT += "multi_label abstain_below logit_scale logit_bias names".split()
_LARGEST_THUMBNAIL = 1024  # pixels; ours are far smaller
_VERSION = 2  # of what `save` writes


class Stretch(NamedTuple):
    person: int
    start: float  # seconds
    end: float
    label: str  # has the highest score all the way, or "uncertain"
    score: float  # its mean


def cells(timeline, person: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a person, and from when to when each stands for the time: windows overlap, cells do not.

    A cell reaches halfway to the next window; where there is no next one, as far as the person is seen.
    """
    rows = np.flatnonzero(timeline.person == person)
    window_start, window_end = timeline.start[rows], timeline.end[rows]
    seen, half_a_step = timeline.tracks[timeline.tracks[:, 1] == person, 0], timeline.window / timeline.num_frames / 2
    first = seen[np.searchsorted(seen, window_start)] - half_a_step
    last = seen[np.searchsorted(seen, window_end) - 1] + half_a_step
    begin, end = np.maximum(window_start, first), np.minimum(window_end, last)
    middle = (window_start + window_end) / 2
    joined = np.flatnonzero(np.diff(window_start) < 1.5 * timeline.stride)
    end[joined] = begin[joined + 1] = (middle[joined] + middle[joined + 1]) / 2
    return rows, begin, end


def stretches(timeline, person: int) -> list[Stretch]:
    """The times through which one label of a person has the highest score."""
    found: list[Stretch] = []
    answers = timeline.answers(timeline.scores)
    for row, begin, end in zip(*cells(timeline, person), strict=True):
        label, score = timeline.answer_name(answers[row]), float(timeline.scores[row].max())
        before = found[-1] if found else None
        if before and before.label == label and before.end == begin:
            lengths = (begin - before.start, end - begin)
            score = float(np.average([before.score, score], weights=lengths))
            found[-1] = Stretch(person, before.start, float(end), label, score)
        else:
            found.append(Stretch(person, float(begin), float(end), label, score))
    return found


def to_pandas(timeline):
    """One row for each window: see `to_csv`."""
    try:
        import pandas
    except ImportError:
        raise ImportError("to_pandas needs pandas: pip install pandas, or use to_csv or to_json") from None
    return pandas.DataFrame(_columns(timeline))


def to_csv(timeline, path: str | Path | None = None) -> str:
    """One row for each window. Returns the text; writes it, if a path is given. The columns are

    person, start, end (seconds), face_found, num_frames_seen (of the window), x0, y0, x1, y1 (mean box), label (the
    answer: the one with the highest score, or "uncertain") and `score_LABEL` for each label. A label that a
    spreadsheet would take for a formula begins with `'`.
    """
    columns, text = _columns(timeline), io.StringIO()
    columns["label"] = list(map(csv_cell, columns["label"]))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return _write(text.getvalue(), path)


def to_json(timeline, path: str | Path | None = None) -> str:
    """What is known but for embeddings and thumbnails: about the video, people, their windows and boxes."""
    about = {name: value for name, value in _about(timeline).items() if name not in ("thumbnail_times", "version")}
    people = []
    for person in timeline.people:
        track = timeline.tracks[timeline.tracks[:, 1] == person]
        boxes = np.round(np.delete(track, 1, axis=1), 3).tolist()  # time, x0, y0, x1, y1
        people.append({"person": person, "name": timeline.name_of(person), "boxes": boxes})
    columns, scores = _columns(timeline), timeline.scores.tolist()
    columns = {name: column for name, column in columns.items() if not name.startswith("score_")}
    columns["scores"] = [dict(zip(timeline.labels, row, strict=True)) for row in scores]
    windows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    about |= {"complete": timeline.complete, "face_found": timeline.face_found}
    return _write(json.dumps({**about, "people": people, "windows": windows}, ensure_ascii=False, indent=1), path)


def to_srt(timeline, path: str | Path | None = None) -> str:
    """Subtitles: one cue for each stretch of time with the same highest label of a person."""
    cues = []
    for number, (start, end, name, label) in enumerate(_cues(timeline), start=1):
        cues.append(f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{srt_text(name)}: {srt_text(label)}\n")
    return _write("\n".join(cues), path)


def to_vtt(timeline, path: str | Path | None = None) -> str:
    """As `to_srt`, in WebVTT, with the person as voice."""
    cues = ["WEBVTT\n"]
    for start, end, *texts in _cues(timeline):
        name, label = map(vtt_text, texts)
        cues.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n<v {name}>{name}: {label}</v>\n")
    return _write("\n".join(cues), path)


def save(timeline, folder: str | Path) -> Path:
    """All but the pipeline, as `timeline.json` and `timeline.safetensors` in a folder; `load` reads it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(getattr(timeline, name)) for name in _ARRAYS}
    for person, kept in timeline.thumbnails.items():
        for number, (_, picture) in enumerate(kept):
            tensors[f"thumbnail.{person}.{number}"] = np.frombuffer(picture, dtype=np.uint8)
    with written(folder / "timeline.safetensors") as unfinished:
        save_file(tensors, unfinished)
    _write(json.dumps(_about(timeline), ensure_ascii=False, indent=1), folder / "timeline.json")
    return folder


def load(cls, folder: str | Path, pipe: Any = None):
    """A timeline that `save` wrote. It needs no model; `search` and `rescore` then take a pipeline, here or there.

    Raises:
        FileNotFoundError, ValueError: the folder holds no timeline, or one that is not whole.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / "timeline.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "timeline.safetensors")
    except (ValueError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no timeline, or a damaged one: {error}") from None
    try:
        fields = _checked(about, tensors)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder} does not hold what this version of the package writes: {error!r}") from None
    return cls(**fields, pipe=pipe)


def _checked(about: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The fields of a timeline, from what somebody's files hold: they are all there, no others, and fit together."""
    if about.pop("version") != _VERSION:
        raise ValueError("it is of another version")
    if unknown := set(about) - {*_ABOUT, "thumbnail_times"}:
        raise ValueError(f"timeline.json has the unknown {', '.join(sorted(unknown))}")
    num_windows, num_labels = len(tensors["person"]), len(about["labels"])
    shapes = {"scores": (num_windows, num_labels), "box": (num_windows, 4), "tracks": (len(tensors["tracks"]), 6)}
    shapes |= {name: (num_windows,) for name in ("person", "start", "end", "num_frames_seen")}
    shapes |= {"embeds": (num_windows, len(tensors["probe"])), "probe": (len(tensors["probe"]),)}
    for name, shape in shapes.items():
        if tensors[name].shape != shape or not np.isfinite(tensors[name]).all():
            raise ValueError(
                f"{name} of timeline.safetensors has the shape {tensors[name].shape}, but must be {shape}, and finite"
            )
    thumbnails = {}
    for person, times in about["thumbnail_times"].items():
        pictures = [tensors[f"thumbnail.{person}.{number}"] for number in range(len(times))]
        for picture in pictures:
            with Image.open(io.BytesIO(picture.tobytes()), formats=["JPEG"]) as image:  # of others PIL starts programs
                if max(image.size) > _LARGEST_THUMBNAIL:
                    raise ValueError(f"a thumbnail of person {person} has {image.width} x {image.height} pixels")
        thumbnails[int(person)] = [(float(time), one.tobytes()) for time, one in zip(times, pictures, strict=True)]
    texts = [*about["labels"], about["video"], *about["names"].values()]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"labels, video and names must be texts, but are {texts!r:.200}")
    fields = {name: about[name] for name in _ABOUT} | {name: tensors[name] for name in _ARRAYS}
    fields |= {"names": {int(person): name for person, name in about["names"].items()}, "thumbnails": thumbnails}
    (first, last), (width, height) = about["span"], about["size"]
    return fields | {"span": (float(first), float(last)), "size": (int(width), int(height))}


@contextlib.contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` if nothing goes wrong, Ctrl-C included, and else leaves nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Short, since `path` may have the longest name there can be; and another one in each thread.
    suffix = path.suffix if len(path.suffix) < 10 else ""  # tells libraries the format
    unfinished = path.with_name(f".unfinished.{uuid.uuid4().hex}{suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def text_as_typed() -> Iterator[None]:
    """Within it matplotlib takes no text for a formula: `$` is a dollar.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib.figure
    except ImportError:
        raise ImportError("plot needs matplotlib: pip install matplotlib") from None
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        yield


def _write(text: str, path: str | Path | None) -> str:
    if path is not None:
        with written(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="\n")
    return text


def _columns(timeline) -> dict[str, list]:
    columns = {name: getattr(timeline, name).tolist() for name in ("person", "start", "end")}
    found = (timeline.person != NOBODY) & (timeline.faces != "none")
    columns |= {"face_found": found.tolist(), "num_frames_seen": timeline.num_frames_seen.tolist()}
    columns |= dict(zip(("x0", "y0", "x1", "y1"), timeline.box.T.tolist(), strict=True))
    columns["label"] = list(map(timeline.answer_name, timeline.answers(timeline.scores)))
    return columns | dict(zip(map("score_{}".format, timeline.labels), timeline.scores.T.tolist(), strict=True))


def _about(timeline) -> dict[str, Any]:
    times = {person: [time for time, _ in kept] for person, kept in timeline.thumbnails.items()}
    return {"version": _VERSION, **{name: getattr(timeline, name) for name in _ABOUT}, "thumbnail_times": times}


def _cues(timeline) -> list[tuple[float, float, str, str]]:
    """(start, end, name, label), by time."""
    found = [stretch for person in timeline.people for stretch in stretches(timeline, person)]
    return [
        (one.start, one.end, timeline.name_of(one.person), one.label)
        for one in sorted(found, key=lambda one: (round(one.start, 3), one.person))
        if round(one.end, 3) > max(round(one.start, 3), 0)
    ]


def _clock(seconds: float, point: str) -> str:
    milliseconds = max(0, round(1000 * seconds))
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"

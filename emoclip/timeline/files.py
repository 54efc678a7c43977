# SPDX-License-Identifier: Apache-2.0
"""Export of a timeline to tables and subtitles; files are written atomically.

Functions whose first argument is a timeline are methods of `EmotionTimeline`.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emoclip.faces.crops import WHOLE_FRAME
from emoclip.files import write_text
from emoclip.typed_text import csv_cell, srt_text, vtt_text


class Stretch(NamedTuple):
    person: int
    start: float  # seconds
    end: float
    label: str  # highest-scoring label throughout, or "uncertain"
    score: float  # mean score of the label


def cells(timeline, person: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rows of a person, and the start and end of each row's cell: windows overlap, cells do not.

    A cell reaches halfway to the next window or, if there is none, as far as the person is seen.
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
    """Returns the stretches of time during which one label of a person has the highest score."""
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
    """Returns a `pandas.DataFrame` with one row per window and the columns of `to_csv`."""
    try:
        import pandas
    except ImportError:
        raise ImportError("to_pandas needs pandas: pip install pandas, or use to_csv or to_json") from None
    return pandas.DataFrame(_columns(timeline))


def to_csv(timeline, path: str | Path | None = None) -> str:
    """Returns CSV text with one row per window, and writes it if a path is given.

    The columns are person, start, end (seconds), face_found, num_frames_seen (in the window), x0, y0, x1, y1 (mean
    box), label (the label with the highest score, or "uncertain") and `score_LABEL` for each label. A label that
    spreadsheets would interpret as a formula is prefixed with `'`.
    """
    columns, text = _columns(timeline), io.StringIO()
    columns["label"] = list(map(csv_cell, columns["label"]))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(csv_cell, columns))
    writer.writerows(zip(*columns.values(), strict=True))
    return write_text(text.getvalue(), path)


def to_json(timeline, path: str | Path | None = None) -> str:
    """Returns JSON with all data but embeddings and thumbnails: video, people, windows, boxes. Writes it to `path`."""
    about, people = about_timeline(timeline), []
    for person in timeline.people:
        track = timeline.tracks[timeline.tracks[:, 1] == person]
        boxes = np.round(np.delete(track, 1, axis=1), 3).tolist()  # time, x0, y0, x1, y1
        people.append({"person": person, "name": timeline.name_of(person), "boxes": boxes})
    columns, scores = _columns(timeline), timeline.scores.tolist()
    columns = {name: column for name, column in columns.items() if not name.startswith("score_")}
    columns["scores"] = [dict(zip(timeline.labels, row, strict=True)) for row in scores]
    windows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    about |= {"complete": timeline.complete, "face_found": timeline.face_found}
    return write_text(json.dumps({**about, "people": people, "windows": windows}, ensure_ascii=False, indent=1), path)


def to_srt(timeline, path: str | Path | None = None) -> str:
    """Returns SubRip subtitles with one cue per stretch of a person, and writes them if a path is given."""
    cues = []
    for number, (start, end, *texts) in enumerate(_cues(timeline), start=1):
        name, label = map(srt_text, texts)
        cues.append(f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{name}: {label}\n")
    return write_text("\n".join(cues), path)


def to_vtt(timeline, path: str | Path | None = None) -> str:
    """Returns the subtitles of `to_srt` as WebVTT, with the person as the voice."""
    cues = ["WEBVTT\n"]
    for start, end, *texts in _cues(timeline):
        name, label = map(vtt_text, texts)
        cues.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n<v {name}>{name}: {label}</v>\n")
    return write_text("\n".join(cues), path)


def _columns(timeline) -> dict[str, list]:
    columns = {name: getattr(timeline, name).tolist() for name in ("person", "start", "end")}
    found = (timeline.person != WHOLE_FRAME) & (timeline.faces != "none")
    columns |= {"face_found": found.tolist(), "num_frames_seen": timeline.num_frames_seen.tolist()}
    columns |= dict(zip(("x0", "y0", "x1", "y1"), timeline.box.T.tolist(), strict=True))
    columns["label"] = list(map(timeline.answer_name, timeline.answers(timeline.scores)))
    return columns | dict(zip(map("score_{}".format, timeline.labels), timeline.scores.T.tolist(), strict=True))


def check_names(names: dict[int, str]) -> None:
    """Raises `ValueError` unless `names` maps person numbers to non-empty strings."""
    for person, name in names.items():
        if isinstance(person, bool) or not isinstance(person, (int, np.integer)):
            raise ValueError(f"names has {person!r}, but its keys must be numbers of persons")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"names[{person}] is {name!r}, but must be a text")


def about_timeline(timeline) -> dict[str, Any]:
    """Returns all fields of the timeline except arrays and thumbnails."""
    names = "video labels span size window stride num_frames faces no_face detector error".split()
    names += "temperature multi_label abstain_below logit_scale logit_bias".split()
    check_names(timeline.names)
    persons = {int(person): name for person, name in timeline.names.items()}
    return {name: getattr(timeline, name) for name in names} | {"names": persons}


def _cues(timeline) -> list[tuple[float, float, str, str]]:
    """Returns the cues `(start, end, name, label)`, sorted by time."""
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

# SPDX-License-Identifier: Apache-2.0
"""Saving a timeline to a folder and loading it; loaded files are untrusted, so all their content is validated.

Shapes: W windows, C labels, D embedding width, N encoded faces.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from emoclip.faces.crops import NO_FACE_POLICIES, WHOLE_FRAME
from emoclip.files import write_text, written

from .files import about_timeline, check_names
from .thumbnails import thumbnail_pixels

_VERSION = 2  # of the format that `save` writes
_ABOUT, _TENSORS = "timeline.json", "timeline.safetensors"
_ARRAYS = {  # shape, and whether the dtype is an integer
    "scores": ("WC", False),
    "embeds": ("WD", False),
    "person": ("W", True),
    "start": ("W", False),
    "end": ("W", False),
    "box": ("W4", False),
    "num_frames_seen": ("W", True),
    "tracks": ("N6", False),
    "probe": ("D", False),
}
_DTYPES = {False: ("F16", "F32", "F64"), True: ("I32", "I64")}
_HUGE = 1e12  # bound for seconds, pixels and logits; larger values cannot be plotted
_PERSON = re.compile(r"-1|\d{1,9}")


def save(timeline, folder: str | Path) -> Path:
    """Saves all but the pipeline as `timeline.json` and `timeline.safetensors` in `folder`; `load` reads them."""
    folder = Path(folder)
    times = {person: [time for time, _ in kept] for person, kept in timeline.thumbnails.items()}
    about = {"version": _VERSION, **about_timeline(timeline), "thumbnail_times": times}
    tensors = {name: np.ascontiguousarray(getattr(timeline, name)) for name in _ARRAYS}
    for person, kept in timeline.thumbnails.items():
        for number, (_, picture) in enumerate(kept):
            tensors[f"thumbnail.{person}.{number}"] = np.frombuffer(picture, dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    with written(folder / _TENSORS) as unfinished:
        save_file(tensors, unfinished)
    write_text(json.dumps(about, ensure_ascii=False, indent=1), folder / _ABOUT)
    return folder


def load(cls, folder: str | Path, pipe: Any = None):
    """Loads a timeline written by `save`. It needs no model; `search` and `rescore` need a `pipe`, here or there.

    Raises:
        FileNotFoundError, ValueError: the folder holds no timeline or an invalid one; the message names the file and
            the error.
    """
    about = _read_about(Path(folder) / _ABOUT)
    times = about.pop("thumbnail_times")
    arrays, thumbnails = _read_tensors(Path(folder) / _TENSORS, times)
    timeline = cls(**about, **arrays, thumbnails=thumbnails, pipe=pipe)
    try:
        _check_arrays(timeline)
    except ValueError as error:
        raise ValueError(f"{Path(folder) / _TENSORS}: {error}") from None
    return timeline


def _is_number(value: Any, least: float = -_HUGE) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= _HUGE


def _is_count(value: Any) -> bool:
    return _is_number(value, 1) and isinstance(value, int)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any, is_part: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, list) and length in (None, len(value)) and all(map(is_part, value))


def _is_by_person(value: Any, is_part: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(_PERSON.fullmatch, value)) and all(map(is_part, value.values()))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "version": (lambda value: True, "known"),  # checked first
    "video": (_is_text, "a text"),
    "labels": (lambda value: _is_list(value, _is_text) and 0 < len(value) == len(set(value)), "a list of labels"),
    "span": (lambda value: _is_list(value, _is_number, 2) and value[0] <= value[1], "two times"),
    "size": (lambda value: _is_list(value, _is_count, 2), "a width and a height"),
    "window": (lambda value: _is_number(value, 1e-12), "seconds"),
    "stride": (lambda value: _is_number(value, 1e-12), "seconds"),
    "num_frames": (_is_count, "a whole number from 1"),
    "faces": (lambda value: value in ("all", "largest", "none", "callback"), "all, largest, none or callback"),
    "no_face": (lambda value: value in NO_FACE_POLICIES, " or ".join(NO_FACE_POLICIES)),
    "detector": (lambda value: value is None or _is_text(value), "a text or null"),
    "error": (lambda value: value is None or _is_text(value), "a text or null"),
    "temperature": (lambda value: _is_number(value, 1e-12), "a number above 0"),
    "multi_label": (lambda value: isinstance(value, bool), "true or false"),
    "abstain_below": (lambda value: value is None or (_is_number(value, 0) and value <= 1), "0 to 1, or null"),
    "logit_scale": (_is_number, "a number"),
    "logit_bias": (_is_number, "a number"),
    "names": (lambda value: _is_by_person(value, _is_text), "texts by the number of a person"),
    "thumbnail_times": (
        lambda value: _is_by_person(value, lambda times: _is_list(times, _is_number)),
        "lists of times by the number of a person",
    ),
}


def _read_about(file: Path) -> dict[str, Any]:
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
        raise ValueError(f"{file} is no JSON, or damaged ({type(error).__name__}: {error})") from None
    if not isinstance(about, dict) or about.get("version") != _VERSION:
        raise ValueError(f"{file} is not what this version of the package writes")
    if wrong := sorted(set(about) ^ set(_FIELDS)):
        raise ValueError(f"{file}: {', '.join(wrong)[:200]} is missing, or unknown to this version of the package")
    for name, (is_right, what) in _FIELDS.items():
        if not is_right(about[name]):
            raise ValueError(f"{file}: {name} is {repr(about[name])[:200]}, but must be {what}")
    del about["version"]
    for name in ("names", "thumbnail_times"):
        about[name] = {int(person): value for person, value in about[name].items()}
    try:
        check_names(about["names"])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    about["span"], about["size"] = tuple(about["span"]), tuple(about["size"])
    return about


def _read_tensors(file: Path, times: dict[int, list[float]]) -> tuple[dict[str, np.ndarray], dict[int, list]]:
    """Reads and validates the arrays by name, and the `(time, JPEG)` thumbnails of each person."""
    pictures = {
        f"thumbnail.{person}.{number}": (person, time)
        for person, of_person in times.items()
        for number, time in enumerate(of_person)
    }
    arrays, thumbnails = {}, {person: [] for person in times}
    try:
        with safe_open(file, framework="np") as tensors:
            if wrong := sorted(set(tensors.keys()) ^ {*_ARRAYS, *pictures}):
                raise ValueError(f"{file} is not of the same timeline as {_ABOUT}; missing or unknown: {wrong[0]}")
            for name in (*_ARRAYS, *pictures):  # thumbnails of a person in order of time
                found = tensors.get_slice(name)
                shape, is_whole = _ARRAYS.get(name, ("N", None))
                known = _DTYPES.get(is_whole, ("U8",))
                if len(found.get_shape()) != len(shape) or found.get_dtype() not in known:
                    raise ValueError(
                        f"{file}: {name} is {found.get_dtype()} of shape {tuple(found.get_shape())}, but must be "
                        f"{' or '.join(known)} of shape ({', '.join(shape)})"
                    )
                if name in _ARRAYS:
                    arrays[name] = tensors.get_tensor(name)
                    continue
                person, time = pictures[name]
                thumbnails[person].append((time, _checked_picture(tensors.get_tensor(name).tobytes(), file, name)))
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged, or no safetensors file ({error})") from None
    return arrays, thumbnails


def _checked_picture(picture: bytes, file: Path, name: str) -> bytes:
    try:
        thumbnail_pixels(picture)
    except ValueError as error:
        raise ValueError(f"{file}: {name} cannot be taken for a thumbnail: {error}") from None
    return picture


def _check_arrays(timeline) -> None:
    """Raises `ValueError` unless shapes and values are consistent, as all methods require."""
    lengths = {"W": len(timeline.person), "C": len(timeline.labels), "D": len(timeline.probe), "4": 4, "6": 6}
    for name, (shape, _) in _ARRAYS.items():
        array, expected = getattr(timeline, name), [lengths.get(axis, len(timeline.tracks)) for axis in shape]
        if array.shape != tuple(expected):
            raise ValueError(f"{name} has the shape {array.shape}, but must have {tuple(expected)}")
        if not (np.abs(array) <= _HUGE).all():
            raise ValueError(f"{name} has values that are not finite, or are huge")
    checks = {
        "scores": (timeline.scores >= 0) & (timeline.scores <= 1 + 1e-6),
        "person": timeline.person >= WHOLE_FRAME,
        "num_frames_seen": (timeline.num_frames_seen >= 1) & (timeline.num_frames_seen <= timeline.num_frames),
        "end": timeline.end >= timeline.start,
        "box": _are_in_frame(timeline.box, timeline.size),
        "tracks": _are_in_frame(timeline.tracks[:, 2:], timeline.size),
    }
    for name, is_right in checks.items():
        if not is_right.all():
            raise ValueError(f"{name} has values that cannot be")
    for person in np.unique(timeline.person):
        start = timeline.start[timeline.person == person]
        seen = timeline.tracks[timeline.tracks[:, 1] == person, 0]
        if (np.diff(start) < 0).any() or (np.diff(seen) < 0).any() or not len(seen) or seen[-1] < start[-1]:
            raise ValueError(f"start and tracks of person {person} do not follow each other in time")


def _are_in_frame(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns whether each of the boxes `(n, 4)` lies in the frame, within a pixel for rounding: `(n,)`."""
    return ((boxes >= -1) & (boxes <= np.tile(size, 2) + 1)).all(axis=1) & (boxes[:, :2] <= boxes[:, 2:]).all(axis=1)


__all__ = ["load", "save"]

# SPDX-License-Identifier: Apache-2.0
"""Clips as lists name them, settings of the builders that read such lists, and what is checked of all clips."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import datasets

from .clip_lists import file_identity, our_spelling

MAX_PROBLEMS_SHOWN = 10
TOGETHER = "all splits together"  # beside the splits, where official numbers are given


@dataclass
class ExpressionVideosConfig(datasets.BuilderConfig):
    """What a data set is built from.

    Args:
        fold: of cross-validation; 0 where the set has no folds. Given by the configuration's name.
        label_order: what the labels 0, 1, ... of a list mean, if not the official order and if no file beside the
            list says it, as label_index.txt.
        media: "faces" or "videos" where a folder holds both the face crops and the whole videos; by default the
            crops, on which both papers work.
        on_error: "raise", or "skip" to leave clips out that are missing, empty or of another number of frames than
            listed, with a warning. What is wrong with a list itself is an error in any case.
        allow_outside: whether a clip may lie outside `data_dir`, by `..`, an absolute path or a link. A list is often
            somebody else's, and what it names is read, copied and perhaps published.
        verify: whether the lists must have the official numbers of clips, as far as these are known. Clips that are
            skipped count, since they are listed.
    """

    fold: int = 0
    label_order: list[str] | None = None
    media: str | None = None
    on_error: str = "raise"
    allow_outside: bool = False
    verify: bool = True

    def __post_init__(self):
        super().__post_init__()
        allowed_values = {"on_error": ("raise", "skip"), "media": (None, "faces", "videos"), "verify": (True, False)}
        for name, allowed in allowed_values.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be one of {allowed}")
        order = [our_spelling(name) for name in self.label_order or []]
        if len(set(order)) < len(order):
            raise ValueError(f"label_order names a class twice: {self.label_order}")


class Clip(NamedTuple):
    """A line of a list and what it names."""

    clip_id: str
    label: str
    media: str  # a video file, or a folder with one image for each frame; empty if there is none
    source: str  # file and line, for messages
    columns: dict = {}  # those that only this data set has
    num_frames: int | None = None  # counted in a folder; of a video file what the list says, if it does


class Repeated(NamedTuple):
    """What the lists of one configuration have twice: a clip, or the group of clips of two splits."""

    what: str  # "clip", "file" or "group"
    name: str
    split: str
    source: str
    first_split: str
    first_source: str

    def __str__(self):
        message = f"{self.source}: {self.what} {self.name!r} is in {self.first_source} already"
        if self.split == self.first_split:
            return message
        return f"{message}, which is {self.first_split}; a model that is tested on {self.split} must not have seen it"


def count_clips(clips: dict[str, list[Clip]], split: str) -> Counter:
    """Label, or "all" -> number of the clips of a split, or of all splits TOGETHER."""
    rows = [clip for name, some in clips.items() if split in (name, TOGETHER) for clip in some]
    return Counter(clip.label for clip in rows) + Counter({"all": len(rows)})


def repeated(clips: dict[str, list[Clip]]) -> Iterator[Repeated]:
    """Clips that are listed twice, by name or by file, and groups (clips of one person or film) of several splits."""
    first: dict[tuple[str, object], tuple[str, str]] = {}
    for split, clip in ((split, clip) for split, rows in clips.items() for clip in rows):
        here = (split, clip.source)
        for what, name, key in (("clip", clip.clip_id, clip.clip_id), ("file", clip.media, file_identity(clip.media))):
            if key and (place := first.setdefault((what, key), here)) != here:
                yield Repeated(what, name, *here, *place)
                break
        group = clip.columns.get("group")
        place = first.setdefault(("group", group), here) if group else here
        if place[0] != split and first.setdefault((f"group in {split}", group), here) == here:  # told once
            yield Repeated("group", group, *here, *place)


def listing(title: str, problems: list[str]) -> str:
    """A message with the first problems and the number of all."""
    if not problems:
        return title
    shown = problems[:MAX_PROBLEMS_SHOWN]
    more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
    return "\n".join([f"{title}, {len(problems)} in all:", *shown, *more])

# SPDX-License-Identifier: Apache-2.0
"""Listed clips, the configuration of the builders that read lists, and checks on all clips of a data set."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import datasets

from .clip_lists import file_identity, our_spelling

MAX_PROBLEMS_SHOWN = 10
TOGETHER = "all splits together"  # a key next to the splits, for official numbers


@dataclass
class ExpressionVideosConfig(datasets.BuilderConfig):
    """The configuration of a builder that reads lists of clips.

    Args:
        fold: cross-validation fold, determined by the configuration name; 0 if the data set has no folds.
        label_order: the classes of the labels 0, 1, ... in a list. Needed if they are not in the official order and
            no file next to the list, such as label_index.txt, maps them.
        media: "faces" or "videos" if a folder holds both face crops and whole videos. Default: the crops, which both
            papers use.
        on_error: "raise", or "skip" to leave out clips that are missing, empty or not of the listed number of frames,
            with a warning. Errors in the lists themselves are always raised.
        allow_outside: whether a clip may be outside `data_dir`, through `..`, an absolute path or a link. Lists often
            come from third parties, and the files they name are read, copied and possibly published.
        verify: whether the lists must have the official numbers of clips, where these are known. Skipped clips count,
            because they are listed.
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
    """A clip in a list, with its media and label."""

    clip_id: str
    label: str
    media: str  # a video file or a folder with one image per frame; empty if not found
    source: str  # file and line, for messages
    columns: dict = {}  # values of the columns specific to the data set
    num_frames: int | None = None  # counted in a folder; for a video file, the listed number if any


class Repeated(NamedTuple):
    """A repetition in the lists of one configuration: a clip or file listed twice, or a group in two splits."""

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
    """Counts the clips of a split, or of all splits for TOGETHER: label or "all" -> number."""
    rows = [clip for name, some in clips.items() if split in (name, TOGETHER) for clip in some]
    return Counter(clip.label for clip in rows) + Counter({"all": len(rows)})


def repeated(clips: dict[str, list[Clip]]) -> Iterator[Repeated]:
    """Yields clips listed twice, by name or by file, and groups (clips of one person or film) in several splits."""
    first: dict[tuple[str, object], tuple[str, str]] = {}
    for split, clip in ((split, clip) for split, rows in clips.items() for clip in rows):
        here = (split, clip.source)
        for what, name, key in (("clip", clip.clip_id, clip.clip_id), ("file", clip.media, file_identity(clip.media))):
            if key and (place := first.setdefault((what, key), here)) != here:
                yield Repeated(what, name, *here, *place)
                break
        group = clip.columns.get("group")
        place = first.setdefault(("group", group), here) if group else here
        if place[0] != split and first.setdefault((f"group in {split}", group), here) == here:  # reported once
            yield Repeated("group", group, *here, *place)


def listing(title: str, problems: list[str]) -> str:
    """Formats a message with the first problems and their total number."""
    if not problems:
        return title
    shown = problems[:MAX_PROBLEMS_SHOWN]
    more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
    return "\n".join([f"{title}, {len(problems)} in all:", *shown, *more])

# SPDX-License-Identifier: Apache-2.0
"""Builder for your own clips: a folder with `metadata.csv` or `metadata.jsonl`, as in `datasets`' videofolder format.

    OwnVideos(data_dir="/data/mine")

    /data/mine/metadata.csv         file_name,label,caption,tension
    /data/mine/train/smile.mp4      train/smile.mp4,happiness,a smile slowly appears,0.1

`file_name` is required: a video file, or a folder with one image per frame. `label`, `caption`, `clip_id`, `group`
(clips of one person or film, kept together when a validation part is split off) and `split` are optional. A numeric
column is a target and needs a number on every line. The split is taken from the column `split`, else from the first
folder of `file_name` or the folder of the metadata file (train, validation or val, test), else it is train. A clip or
group must not be in two splits. The table must be UTF-8, or UTF-16 like Excel's "Unicode text", with commas or tabs.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import datasets

from .clip_lists import path_parts, read_text
from .expression_videos import ExpressionVideos
from .listed_clips import Clip, ExpressionVideosConfig

SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
TEXT_COLUMNS = ("caption", "group")
OWN_COLUMNS = {"file_name", "split", "label", "clip_id", "video", "frames", "fold", "num_frames", *TEXT_COLUMNS}


class Row(NamedTuple):
    """A line of a metadata file."""

    values: dict[str, str]
    clip_id: str
    media: str
    split: str
    source: str  # file and line, for messages


@dataclass
class OwnVideosConfig(ExpressionVideosConfig):
    """The common configuration plus `labels`, the order of the labels; default: alphabetical."""

    labels: list[str] | None = None


class OwnVideos(ExpressionVideos):
    """A folder of clips with a table of their labels, captions and targets.

    The features come from the table; an invalid table raises `ValueError`, with file, line and value, at creation.
    """

    BUILDER_CONFIG_CLASS = OwnVideosConfig
    BUILDER_CONFIGS = [OwnVideosConfig(name="default")]
    TITLE = "OwnVideos"
    LICENSE = ""
    LABELS = ()
    SPLITS = ("train", "validation", "test")

    @cached_property
    def table(self) -> list[Row]:
        """Returns the rows of all metadata files; an empty list if there is no folder."""
        if self.config.data_dir is None or not Path(self.config.data_dir).expanduser().is_dir():
            return []
        root = self.root()
        return [row for path in self.annotation_files() for row in _read_metadata(path, root, self.ENCODINGS)]

    def root(self):
        if self.config.data_dir is None:
            raise FileNotFoundError("OwnVideos needs data_dir=FOLDER, with a metadata.csv or metadata.jsonl in it")
        return super().root()

    def annotation_files(self):
        root = self.root()
        found = [path for prefix in ("", "*/") for path in sorted(root.glob(f"{prefix}metadata.*"))]
        return [path for path in found if path.suffix.lower() in (".csv", ".jsonl")]

    def media_paths(self):
        yield from (row.media for row in self.table)

    @cached_property
    def media_column(self):
        first = next(filter(os.path.exists, self.media_paths()), None)
        return "frames" if first and os.path.isdir(first) else "video"

    def label_names(self):
        first_rows = {row.values["label"]: row for row in reversed(self.table) if row.values.get("label")}
        if self.config.labels is None:
            return sorted(first_rows)
        for label, row in first_rows.items():
            if label not in self.config.labels:
                raise ValueError(f"{row.source}: label {label!r} is not among labels={self.config.labels}")
        return list(self.config.labels)

    @cached_property
    def target_names(self) -> list[str]:
        """Returns the names of the numeric columns."""
        names = dict.fromkeys(name for row in self.table for name in row.values if name not in OWN_COLUMNS)
        return [name for name in names if self._is_target(name)]

    def _is_target(self, name: str) -> bool:
        numbers = [row for row in self.table if _is_number(row.values.get(name))]
        for row in self.table if numbers else []:
            if not _is_number(row.values.get(name)):
                raise ValueError(
                    f"{row.source}: {name} is {row.values.get(name, '')!r}, but a number in {numbers[0].source}; "
                    "a target must be a number on every line"
                )
        return bool(numbers)

    def extra_features(self):
        present = {name for row in self.table for name in row.values}
        texts = {name: datasets.Value("string") for name in TEXT_COLUMNS if name in present}
        return texts | {name: datasets.Value("float32") for name in self.target_names}

    def _info(self):
        info = super()._info()
        if not self.label_names():  # captions or targets only
            del info.features["label"]
        return info

    def required_splits(self):
        return tuple(dict.fromkeys(row.split for row in self.table)) or ("train",)

    def unchecked_clips(self, problems):
        if not self.annotation_files():
            raise FileNotFoundError(f"no metadata.csv or metadata.jsonl in {self.root()}, nor in a folder of it")
        has_labels = bool(self.label_names())
        for values, clip_id, media, split, source in self.table:
            label = values.get("label")
            if has_labels and not label:
                problems.append(f"{source}: there is no label, but other clips have one")
                continue
            columns = {name: values.get(name, "") for name in TEXT_COLUMNS if name in self.info.features}
            columns |= {name: float(values[name]) for name in self.target_names}
            yield split, Clip(clip_id, label, media, source, columns)

    def _generate_examples(self, clips):
        for key, row in super()._generate_examples(clips):
            yield key, {name: row[name] for name in self.info.features}


def _read_metadata(path: Path, root: Path, encodings: tuple[str, ...]) -> Iterator[Row]:
    text = read_text(path, encodings)
    for number, values in _read_csv(text, path) if path.suffix.lower() == ".csv" else _read_jsonl(text, path):
        source = f"{path}, line {number}"
        values = {name.strip(): "" if value is None else str(value).strip() for name, value in values.items()}
        if not values.get("file_name"):
            raise ValueError(f"{source}: no file_name; the columns are {', '.join(values)}")
        values["file_name"] = file_name = os.path.normpath(values["file_name"].replace("\\", "/"))
        first = path_parts(file_name)[0] if path.parent == root else path.parent.name
        split = values.get("split") or (first if first.lower() in SPLITS else "train")
        if split.lower() not in SPLITS:
            raise ValueError(f"{source}: split is {split!r}, but must be one of {', '.join(SPLITS)}")
        # Tables in several folders may each list a 1.mp4.
        name = file_name if path.parent == root else os.path.join(path.parent.name, file_name)
        clip_id = values.get("clip_id") or "/".join(path_parts(name))
        yield Row(values, clip_id, os.path.join(path.parent, file_name), SPLITS[split.lower()], source)


def _read_csv(text: str, path: Path) -> Iterator[tuple[int, dict]]:
    delimiter = "\t" if "\t" in text.lstrip().partition("\n")[0] else ","
    # strict: otherwise an unclosed quote would swallow lines
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{path}, line {reader.line_num}: more values than columns: {row[None]}; quotes missing?"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num + 1}: {error}") from None  # the row's first line


def _read_jsonl(text: str, path: Path) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object but {line.strip()!r}")
        yield number, row


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or ""))
    except ValueError:
        return False

# SPDX-License-Identifier: Apache-2.0
"""One's own clips: a folder with `metadata.csv` or `metadata.jsonl`, as `datasets`' videofolder convention has it.

    OwnVideos(data_dir="/data/mine")

    /data/mine/metadata.csv         file_name,label,caption,tension
    /data/mine/train/smile.mp4      train/smile.mp4,happiness,a smile slowly appears,0.1

`file_name` is required: a video file, or a folder with one image for each frame. `label`, `caption`, `clip_id`, `group`
(clips of one person or film, kept together when a validation part is cut off) and `split` are optional; a column whose
every value is a number is a target. The split is the column `split`, otherwise the first folder of `file_name` or of
the metadata file (train, validation or val, test), otherwise train.
"""

import csv
import io
import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets

from .expression_videos import Clip, ExpressionVideos, ExpressionVideosConfig, check_media, listing, read_text

SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
TEXT_COLUMNS = ("caption", "group")


@dataclass
class OwnVideosConfig(ExpressionVideosConfig):
    """As for every set, and `labels`: their order; by default alphabetical."""

    labels: list[str] | None = None


class OwnVideos(ExpressionVideos):
    """A folder of clips with a table of what is known of them."""

    BUILDER_CONFIG_CLASS = OwnVideosConfig
    BUILDER_CONFIGS = [OwnVideosConfig(name="default")]
    TITLE = "OwnVideos"
    LICENSE = ""
    LABELS = ()
    SPLITS = ("train", "validation", "test")

    @cached_property
    def table(self) -> list[dict]:
        """Every row of the metadata files: its columns as text, `path`, `split` and `source`."""
        root = self.root()
        files = [path for prefix in ("", "*/") for path in sorted(root.glob(f"{prefix}metadata.*"))]
        files = [path for path in files if path.suffix in (".csv", ".jsonl")]
        if not files:
            raise FileNotFoundError(f"there is no metadata.csv or metadata.jsonl in {root}, nor in a folder of it")
        return [row for path in files for row in _read_metadata(path, root)]

    def _known(self) -> list[dict]:
        return self.table if self.config.data_dir and Path(self.config.data_dir).is_dir() else []

    @cached_property
    def media_column(self):
        return "frames" if any(os.path.isdir(row["path"]) for row in self._known()[:1]) else "video"

    def watched_paths(self):
        root = self.root()
        yield from sorted([*root.glob("metadata.*"), *root.glob("*/metadata.*")])

    def label_names(self):
        found = {row["label"] for row in self._known() if row.get("label")}
        if self.config.labels is None:
            return sorted(found)
        if unknown := sorted(found - set(self.config.labels)):
            raise ValueError(f"labels is {self.config.labels}, but the clips also have {unknown}")
        return list(self.config.labels)

    @cached_property
    def target_names(self) -> list[str]:
        """Columns that hold numbers only."""
        own = {"file_name", "path", "source", "split", "label", "clip_id", "num_frames", *TEXT_COLUMNS}
        names = dict.fromkeys(name for row in self._known() for name in row if name not in own)
        return [name for name in names if all(_is_number(row.get(name)) for row in self._known())]

    def extra_features(self):
        present = {name for row in self._known() for name in row}
        texts = {name: datasets.Value("string") for name in TEXT_COLUMNS if name in present}
        return texts | {name: datasets.Value("float32") for name in self.target_names}

    def _info(self):
        info = super()._info()
        if not self.label_names():  # captions or targets only
            del info.features["label"]
        return info

    def read_clips(self):
        clips, problems = {split: [] for split in self.SPLITS}, []
        has_labels = bool(self.label_names())
        for row in self.table:
            try:
                clips[row["split"]].append(self._own_clip(row, has_labels))
            except ValueError as error:
                problems.append(str(error))
        if problems and self.config.on_error == "skip":
            datasets.logging.get_logger(__name__).warning(listing("clips left out", problems))
        elif problems:
            raise ValueError(listing(f"{self.root()} cannot be built", problems))
        return clips

    def _own_clip(self, row: dict, has_labels: bool) -> Clip:
        if has_labels and not row.get("label"):
            raise ValueError(f"{row['source']}: there is no label, but other clips have one")
        columns = {name: row.get(name, "") for name in TEXT_COLUMNS if name in self.info.features}
        columns |= {name: float(row[name]) for name in self.target_names}
        media = str(row["path"])
        if not os.path.exists(media):
            raise ValueError(f"{row['source']}: file_name {row['file_name']!r} does not exist")
        clip_id = row.get("clip_id") or str(Path(row["file_name"]).with_suffix(""))
        return check_media(Clip(clip_id, row.get("label"), media, row["source"], columns), len(self.table))

    def _generate_examples(self, clips):
        for key, row in super()._generate_examples(clips):
            yield key, {name: row[name] for name in self.info.features}


def _read_metadata(path: Path, root: Path):
    text = read_text(path).lstrip("\ufeff")
    if path.suffix == ".csv":
        rows = [(number, row) for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=2)]
    else:
        rows = [(number, _parse(line, path, number)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, row in rows:
        source = f"{path}, line {number}"
        row = {name: "" if value is None else str(value).strip() for name, value in row.items() if name}
        if not row.get("file_name"):
            raise ValueError(f"{source}: no file_name; the columns are {', '.join(row)}")
        first = Path(row["file_name"]).parts[0] if path.parent == root else path.parent.name
        split = row.get("split") or (first if first.lower() in SPLITS else "train")
        if split.lower() not in SPLITS:
            raise ValueError(f"{source}: split is {split!r}, but must be one of {', '.join(SPLITS)}")
        yield row | {"path": path.parent / row["file_name"], "split": SPLITS[split.lower()], "source": source}


def _parse(line: str, path: Path, number: int) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number} is not a JSON object but {line.strip()!r}")
    return row


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or ""))
    except ValueError:
        return False

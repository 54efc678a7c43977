# SPDX-License-Identifier: Apache-2.0
"""Lists of clips as they circulate, and folders with clips: how to find and how to read them."""

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # all that read_video takes for frames
HIDDEN = (".", "__MACOSX", "@eaDir")  # what macOS and network drives leave behind
INTEGER = re.compile(r"-?[0-9]+")
PATH_FRAMES_LABEL = re.compile(r"(.*\S)[\s,]+(-?[0-9]+)[\s,]+(-?[0-9]+)")  # the field's common line
# The sets' own spellings of the seven basic emotions, which become MAFW's nouns: one name for one expression
# everywhere, so that a model trained on one set is asked the same texts on another.
SPELLINGS = {
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "happy": "happiness",
    "sad": "sadness",
    "surprised": "surprise",
}


class Line(NamedTuple):
    """A line of a list, taken apart."""

    path: str
    label: str
    num_frames: str | None
    rest: list[str]
    source: str
    counts_from_zero: bool  # a number as label, as it does in the field's common `path frames label` lists


def our_spelling(label: str) -> str:
    """`Happy` -> `happiness`; a compound `a_b` part by part."""
    return "_".join(SPELLINGS.get(part, part) for part in label.strip().lower().split("_"))


def path_parts(path: str) -> list[str]:
    """Folders and name of a path, of Windows too, without the suffix of a video; dots in other names are kept."""
    parts = [part for part in path.replace("\\", "/").split("/") if part] or [""]
    stem, suffix = os.path.splitext(parts[-1])
    return [*parts[:-1], stem if suffix.lower() in VIDEO_SUFFIXES else parts[-1]]


def find(root: Path, patterns: list[str]) -> Iterator[list[Path]]:
    """What matches a pattern in any case below a folder, then one and two folders deeper; best pattern first."""
    for pattern in patterns:
        in_any_case = re.sub("[A-Za-z]", lambda letter: f"[{letter[0].lower()}{letter[0].upper()}]", pattern)
        for prefix in ("", "*/", "*/*/"):
            found = sorted(root.glob(prefix + in_any_case))
            yield [path for path in found if not any(p.startswith(HIDDEN) for p in path.relative_to(root).parts)]


def read_list(path: Path) -> Iterator[Line]:
    """Lines of a list: tabs, commas or blanks between columns, UTF-8 or GBK, any line ends, a header or none."""
    lines = enumerate(re.split(r"\r\n|\r|\n", read_text(path)), start=1)
    lines = [(f"{path}, line {number}", split_line(text)) for number, text in lines if text.strip()]
    for index, (source, columns) in enumerate(lines):
        if index == 0 and "label" in map(str.lower, columns[1:]):
            continue  # a header
        if len(columns) < 2 or not columns[0]:
            raise ValueError(f"{source}: {' '.join(columns)!r} is neither `path label` nor `path frames label`")
        if len(columns) == 3 and all(INTEGER.fullmatch(column) for column in columns[1:]):
            yield Line(columns[0], columns[2], columns[1], [], source, True)
        else:
            yield Line(columns[0], columns[1], None, columns[2:], source, False)


def split_line(text: str) -> list[str]:
    """The columns of a line. Paths may have blanks, captions commas."""
    if "\t" in text:
        columns = text.split("\t")
    elif common := PATH_FRAMES_LABEL.fullmatch(text.strip()):
        columns = common.groups()
    else:
        columns = next(csv.reader([text])) if "," in text else text.rsplit(maxsplit=1)
    columns = [column.strip() for column in columns]
    return [column.strip('"') for column in columns[:2]] + columns[2:]


def read_text(path: Path) -> str:
    """The text of a UTF-8 or GBK file; a `ValueError` names the first line that is neither."""
    content = path.read_bytes()
    for encoding in ("utf-8", "gb18030"):  # gb18030 contains GBK
        try:
            return content.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            value = content[error.start : error.end]
    raise ValueError(f"{path}, line {line}: the bytes {value!r} are neither UTF-8 nor GBK text")


def list_media(folder: Path | str, depth: int = 1) -> Iterator[str]:
    """Video files and folders `depth` levels below a folder, in the order of their names."""
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.path, entry.is_dir()) for entry in entries)
    for name, path, is_folder in found:
        if name.startswith(HIDDEN):
            continue
        if depth > 1 and is_folder:
            yield from list_media(path, depth - 1)
        elif depth == 1 and (is_folder or name.lower().endswith(VIDEO_SUFFIXES)):
            yield path


def count_images(folder: str) -> int:
    """Images directly in a folder."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(HIDDEN)]
    return sum(name.lower().endswith(IMAGE_SUFFIXES) for name in names)


def is_clip(path: str) -> bool:
    """Whether a path is a file, or a folder with images."""
    return not os.path.isdir(path) or count_images(path) > 0


def leads_outside(path: str, folder: str) -> str | None:
    """Where a clip, or an image in its folder, really lies, if that is outside a folder.

    Args:
        folder: without links, with a separator at the end.
    """
    paths = [path]
    if os.path.isdir(path):
        with os.scandir(path) as entries:
            paths += [entry.path for entry in entries if entry.is_symlink()]
    return next((place for place in map(os.path.realpath, paths) if not place.startswith(folder)), None)

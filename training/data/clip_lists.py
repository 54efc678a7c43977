# SPDX-License-Identifier: Apache-2.0
"""Functions that find and read list files and clip folders in the layouts in which the data sets circulate."""

import codecs
import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # those that read_video accepts as frames
ENCODING_NAMES = {"utf-8": "UTF-8", "utf-16": "UTF-16", "gb18030": "GBK"}  # gb18030 contains GBK
HIDDEN = (".", "__MACOSX", "@eaDir")  # left behind by macOS and network drives
INTEGER = re.compile(r"-?[0-9]+")
PATH_FRAMES_LABEL = re.compile(r"(.*\S)[\s,]+(-?[0-9]+)[\s,]+(-?[0-9]+)")  # the usual line in this field
# The data sets' own names of the seven basic emotions -> MAFW's nouns. Each expression has one name in all data sets,
# so that a model trained on one set gets the same class texts on another.
SPELLINGS = {
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "happy": "happiness",
    "sad": "sadness",
    "surprised": "surprise",
}
# Column names used in the headers of circulating lists, by priority: `id` is the label in `path,id`, but the path in
# `id,label`.
HEADERS = {
    "label": ("label", "labels", "emotion", "class", "label_id", "class_id", "id"),
    "path": ("path", "video_path", "video_name", "video", "file_name", "filename", "file", "clip", "name", "id"),
    "frames": ("frames", "num_frames", "nframes", "n_frames", "frame_num", "number_of_frames"),
}
# Files next to a list that map numbers to class names; the misspelled name does occur.
LABEL_FILES = ("label_index.txt", "id_to_calss.txt", "id_to_class.txt")


class LabelFile(NamedTuple):
    """Mapping from the label numbers in a folder's lists to class names."""

    path: Path
    names: dict[int, str]

    def name_of(self, line: "Line") -> str:
        """Returns the class name of a line with a numeric label; raises `ValueError` if the number is not mapped."""
        if int(line.label) not in self.names:
            raise ValueError(f"{line.source}: label {line.label} is not in {self.path}; it has {sorted(self.names)}")
        return self.names[int(line.label)]


class Line(NamedTuple):
    """The parsed fields of one line of a list."""

    path: str
    label: str
    num_frames: str | None
    rest: list[str]
    source: str
    counts_from_zero: bool  # whether numeric labels start at 0, as in the usual `path frames label` lists
    label_file: LabelFile | None = None


def our_spelling(label: str) -> str:
    """Normalizes a label, e.g. `Happy` -> `happiness`; converts each part of a compound `a_b`."""
    return "_".join(SPELLINGS.get(part, part) for part in label.strip().lower().split("_"))


def path_parts(path: str) -> list[str]:
    """Splits a POSIX or Windows path into its parts and removes a video suffix; other dots in names are kept."""
    parts = [part for part in path.replace("\\", "/").split("/") if part] or [""]
    stem, suffix = os.path.splitext(parts[-1])
    return [*parts[:-1], stem if suffix.lower() in VIDEO_SUFFIXES else parts[-1]]


def find(root: Path, patterns: list[str]) -> Iterator[list[Path]]:
    """Yields the case-insensitive matches of each pattern in a folder, then one and two levels deeper."""
    for pattern in patterns:
        in_any_case = re.sub("[A-Za-z]", lambda letter: f"[{letter[0].lower()}{letter[0].upper()}]", pattern)
        for prefix in ("", "*/", "*/*/"):
            found = sorted(root.glob(prefix + in_any_case))
            yield [path for path in found if not any(p.startswith(HIDDEN) for p in path.relative_to(root).parts)]


def read_list(path: Path, encodings: tuple[str, ...]) -> Iterator[Line]:
    """Reads the lines of a list; columns may be separated by tabs, commas or blanks, and a header is optional."""
    lines = enumerate(re.split(r"\r\n|\r|\n", read_text(path, encodings)), start=1)
    lines = [(f"{path}, line {number}", text) for number, text in lines if text.strip()]
    header = Header.read(lines[0][1]) if lines else None
    label_file = read_label_files(path.parent, encodings)
    for source, text in lines[header is not None :]:
        line = (header and header.line(text, source)) or plain_line(text, source)
        yield line._replace(label_file=label_file)


class Header(NamedTuple):
    """The header line of a list: separator and column names."""

    separator: str
    names: list[str]
    columns: dict[str, int]

    @classmethod
    def read(cls, text: str) -> "Header | None":
        """Parses a header; returns `None` if the line is not one, but a clip with its label."""
        separator = next((mark for mark in "\t," if mark in text), " ")
        names = [name.strip().lower() for name in split_columns(text, separator)]
        columns: dict[str, int] = {}
        for meaning, spellings in HEADERS.items():
            free = [name for name in spellings if name in names and names.index(name) not in columns.values()]
            if free:
                columns[meaning] = names.index(free[0])
        if "label" not in columns or ("path" not in columns and columns["label"] == 0):
            return None
        return cls(separator, names, {"path": 0} | columns)

    def line(self, text: str, source: str) -> Line | None:
        """Parses a line by column name; returns `None` if its columns differ from a header in the plain order."""
        values = [value.strip().strip('"') for value in split_columns(text, self.separator)]
        path, label, frames = (self.columns.get(meaning) for meaning in ("path", "label", "frames"))
        if len(values) != len(self.names):
            if [path, frames, label] == [0, 1, 2] or [path, label] == [0, 1]:
                return None
            raise ValueError(f"{source}: {len(values)} columns, but the header names {', '.join(self.names)}")
        if not values[path]:
            raise ValueError(f"{source}: the column {self.names[path]} is empty")
        rest = [value for number, value in enumerate(values) if number not in (path, label, frames)]
        num_frames = None if frames is None else values[frames]
        return Line(values[path], values[label], num_frames, rest, source, num_frames is not None)


def plain_line(text: str, source: str) -> Line:
    """Parses a line without header, `path label ...` or `path frames label`."""
    columns = split_line(text)
    if len(columns) < 2 or not columns[0]:
        raise ValueError(f"{source}: {' '.join(columns)!r} is neither `path label` nor `path frames label`")
    if len(columns) == 3 and all(INTEGER.fullmatch(column) for column in columns[1:]):
        return Line(columns[0], columns[2], columns[1], [], source, True)
    return Line(columns[0], columns[1], None, columns[2:], source, False)


def split_line(text: str) -> list[str]:
    """Splits a line into columns; paths may contain blanks, and captions commas."""
    if "\t" in text:
        columns = text.split("\t")
    elif common := PATH_FRAMES_LABEL.fullmatch(text.strip()):
        columns = common.groups()
    else:
        columns = split_columns(text, ",") if "," in text else text.rsplit(maxsplit=1)
    columns = [column.strip() for column in columns]
    return [column.strip('"') for column in columns[:2]] + columns[2:]


def split_columns(text: str, separator: str) -> list[str]:
    """Splits a line at each separator; commas inside quotes do not count."""
    if separator == ",":
        return next(csv.reader([text], skipinitialspace=True))
    return text.split("\t" if separator == "\t" else None)


def label_files(folder: Path) -> list[Path]:
    """Returns the files of a folder that map label numbers to class names."""
    return [folder / name for name in LABEL_FILES if (folder / name).is_file()]


def read_label_files(folder: Path, encodings: tuple[str, ...]) -> LabelFile | None:
    """Reads the label files of a folder; raises `ValueError` for a malformed line or one that contradicts another."""
    names: dict[int, str] = {}
    for path in label_files(folder):
        for number, text in enumerate(read_text(path, encodings).splitlines(), start=1):
            fields = [field for field in re.split(r"[\s,:]+", text) if field]
            numbers = [field for field in fields if INTEGER.fullmatch(field)]
            if not fields:
                continue
            if len(fields) != 2 or len(numbers) != 1:
                raise ValueError(f"{path}, line {number}: {text.strip()!r} is not the name of a class and its number")
            key, name = int(numbers[0]), our_spelling(next(field for field in fields if field not in numbers))
            if names.setdefault(key, name) != name or list(names.values()).count(name) > 1:
                raise ValueError(f"{path}, line {number}: {text.strip()!r} contradicts another line: {names}")
    return LabelFile(path, names) if names else None


def read_text(path: Path, encodings: tuple[str, ...]) -> str:
    """Reads text in one of some encodings, or UTF-16 with a byte order mark; `ValueError` names the first bad line."""
    # The encoding is not guessed: most bytes also decode in a wrong one, to text that was never written.
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # Excel's "Unicode text", PowerShell
        encodings = ("utf-16",)
    for encoding in encodings:
        try:
            text = content.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            value = content[error.start : error.end]
            continue
        if "\0" in text:
            line, value = text[: text.index("\0")].count("\n") + 1, b"\0"
            break
        return text
    known = " nor ".join(ENCODING_NAMES[encoding] for encoding in encodings)
    known = f"neither {known}" if " nor " in known else f"not {known}"
    raise ValueError(
        f"{path}, line {line}: the bytes {value!r} are {known} text; save the file as UTF-8 (in Excel: CSV UTF-8)"
    )


def list_media(folder: Path | str, depth: int = 1) -> Iterator[str]:
    """Yields the video files and folders `depth` levels below a folder, sorted by name."""
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
    """Counts the images directly in a folder."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(HIDDEN)]
    return sum(name.lower().endswith(IMAGE_SUFFIXES) for name in names)


def is_clip(path: str) -> bool:
    """Returns whether a path is a file or a folder with images."""
    return not os.path.isdir(path) or count_images(path) > 0


def check_media(path: str, is_folder: bool, num_frames: int | None, root: str | None) -> int | None:
    """Checks a clip and returns its number of frames: counted for a folder of images, as listed for a video file.

    Args:
        is_folder: whether the clips of this data set are folders of images rather than files.
        num_frames: the listed number, if any.
        root: the resolved folder that clips must be in, with a trailing separator; `None` to allow any location.

    Raises:
        ValueError: the clip is missing, outside `root`, empty, or not of the expected kind or length.
    """
    if not os.path.exists(path):
        raise ValueError(f"there is no {path}")
    if root is not None and (place := leads_outside(path, root)) is not None:
        raise ValueError(
            f"{path} leads to {place}, outside {root}; allowed with allow_outside=True "
            "(data.options.allow_outside=true in a recipe)"
        )
    if os.path.isdir(path) != is_folder:
        what = "file, but folders" if is_folder else "folder, but files"
        raise ValueError(f"{path} is a {what} are expected, as for other clips")
    found = count_images(path) if is_folder else None
    if found == 0 or (not is_folder and os.path.getsize(path) == 0):
        raise ValueError(f"{path} {'holds no image' if is_folder else 'is empty'}")
    if is_folder and num_frames not in (None, found):
        raise ValueError(f"{num_frames} frames, but {path} holds {found}")
    return found if is_folder else num_frames


def file_identity(path: str) -> tuple[int, int] | None:
    """Returns a key that is equal for all links and paths to the same file or folder; `None` if it does not exist."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def leads_outside(path: str, folder: str) -> str | None:
    """Returns the resolved path of a clip, or of an image in it, that is outside `folder`; `None` if there is none.

    Args:
        folder: a resolved path with a trailing separator.
    """
    paths = [path]
    if os.path.isdir(path):
        with os.scandir(path) as entries:
            paths += [entry.path for entry in entries if entry.is_symlink()]
    return next((place for place in map(os.path.realpath, paths) if not place.startswith(folder)), None)

# SPDX-License-Identifier: Apache-2.0
"""Lists of clips as they circulate, and folders with clips: how to find and how to read them."""

import codecs
import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # all that read_video takes for frames
ENCODING_NAMES = {"utf-8": "UTF-8", "utf-16": "UTF-16", "gb18030": "GBK"}  # gb18030 contains GBK
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
# What the columns of lists are called in the headers that circulate, best first: `path,id` is a clip and its label,
# `id,label` too.
HEADERS = {
    "label": ("label", "labels", "emotion", "class", "label_id", "class_id", "id"),
    "path": ("path", "video_path", "video_name", "video", "file_name", "filename", "file", "clip", "name", "id"),
    "frames": ("frames", "num_frames", "nframes", "n_frames", "frame_num", "number_of_frames"),
}
# Files beside a list that say which class a number is; the second spelling circulates.
LABEL_FILES = ("label_index.txt", "id_to_calss.txt", "id_to_class.txt")


class LabelFile(NamedTuple):
    """What numbers mean in the lists of a folder."""

    path: Path
    names: dict[int, str]

    def name_of(self, line: "Line") -> str:
        """The class of a line whose label is a number; a `ValueError` if the file has no such number."""
        if int(line.label) not in self.names:
            raise ValueError(f"{line.source}: label {line.label} is not in {self.path}; it has {sorted(self.names)}")
        return self.names[int(line.label)]


class Line(NamedTuple):
    """A line of a list, taken apart."""

    path: str
    label: str
    num_frames: str | None
    rest: list[str]
    source: str
    counts_from_zero: bool  # a number as label, as it does in the field's common `path frames label` lists
    label_file: LabelFile | None = None


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


def read_list(path: Path, encodings: tuple[str, ...]) -> Iterator[Line]:
    """Lines of a list: tabs, commas or blanks between columns, any line ends, a header or none."""
    lines = enumerate(re.split(r"\r\n|\r|\n", read_text(path, encodings)), start=1)
    lines = [(f"{path}, line {number}", text) for number, text in lines if text.strip()]
    header = Header.read(lines[0][1]) if lines else None
    label_file = read_label_files(path.parent, encodings)
    for source, text in lines[header is not None :]:
        line = (header and header.line(text, source)) or plain_line(text, source)
        yield line._replace(label_file=label_file)


class Header(NamedTuple):
    """The first line of a list, if it names the columns."""

    separator: str
    names: list[str]
    columns: dict[str, int]

    @classmethod
    def read(cls, text: str) -> "Header | None":
        """None if the line is no header, but a clip with its label."""
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
        """A line taken apart by its columns' names; None if it has others than the header, which is in plain order."""
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
    """`path label` with whatever follows, or `path frames label`."""
    columns = split_line(text)
    if len(columns) < 2 or not columns[0]:
        raise ValueError(f"{source}: {' '.join(columns)!r} is neither `path label` nor `path frames label`")
    if len(columns) == 3 and all(INTEGER.fullmatch(column) for column in columns[1:]):
        return Line(columns[0], columns[2], columns[1], [], source, True)
    return Line(columns[0], columns[1], None, columns[2:], source, False)


def split_line(text: str) -> list[str]:
    """The columns of a line. Paths may have blanks, captions commas."""
    if "\t" in text:
        columns = text.split("\t")
    elif common := PATH_FRAMES_LABEL.fullmatch(text.strip()):
        columns = common.groups()
    else:
        columns = split_columns(text, ",") if "," in text else text.rsplit(maxsplit=1)
    columns = [column.strip() for column in columns]
    return [column.strip('"') for column in columns[:2]] + columns[2:]


def split_columns(text: str, separator: str) -> list[str]:
    """At every tab, blank, or comma outside quotes."""
    if separator == ",":
        return next(csv.reader([text], skipinitialspace=True))
    return text.split("\t" if separator == "\t" else None)


def label_files(folder: Path) -> list[Path]:
    """Those that say what the numbers of the lists in a folder mean."""
    return [folder / name for name in LABEL_FILES if (folder / name).is_file()]


def read_label_files(folder: Path, encodings: tuple[str, ...]) -> LabelFile | None:
    """What the numbers mean; a `ValueError` for a line that is not a name and a number, or contradicts another."""
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
    """The text of a file in one of some encodings, or in UTF-16 with its mark; a `ValueError` names the first line
    that is in none. No encoding is guessed: most bytes mean something in most encodings, but not what was written."""
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


def check_media(path: str, is_folder: bool, num_frames: int | None, root: str | None) -> int | None:
    """The number of images in the folder that a clip is, or of a video file what its list says.

    Args:
        is_folder: whether the clips of this set are folders of images; otherwise they are files.
        num_frames: as listed, if it is.
        root: the folder that clips must lie in, without links, with a separator at the end; None if they may lie
            anywhere.

    Raises:
        ValueError: the clip is not there, lies elsewhere, is empty, or not what is expected.
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
    """The same for every link to a file or folder and every spelling of its path; None if it is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


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

# SPDX-License-Identifier: Apache-2.0
"""Base class of the builders for licensed data sets: finds and reads the lists, finds the clips, and checks both.

The builders next to this file also work as loading scripts of `datasets` 3.x, which copies only a script and the files
that it imports directly. So this file imports only those modules of the package that every builder imports too. It
opens no video; that is left to `training.data.doctor`.
"""

import hashlib
import inspect
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import datasets

from .clip_lists import (
    INTEGER,
    Line,
    check_media,
    find,
    is_clip,
    label_files,
    list_media,
    our_spelling,
    path_parts,
    read_list,
)
from .listed_clips import TOGETHER, Clip, ExpressionVideosConfig, count_clips, listing, repeated

COUNTS_ADVICE = """\
Copy the authors' lists again; `python -m training.data.doctor` says more. Labels that are numbered in another order
need label_order. To build what is listed all the same: verify=False (in a recipe data.options.verify=false, in an
evaluation --options verify=false)"""


class ExpressionVideos(datasets.GeneratorBasedBuilder):
    """Base class of builders for labelled face videos that the user got from the authors of a data set.

    A subclass defines the classes, and the names of lists and clip folders in the copies that circulate. The builder
    searches the user's folder for these names, ignoring case, up to two folders deep.

    Raises, while building:
        FileNotFoundError: no `data_dir`, or no lists or clips in it; the message names the patterns searched for.
        ValueError: the lists are invalid; the message has file, line and value. Nothing is kept.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = ExpressionVideosConfig
    TITLE: ClassVar[str]
    HOMEPAGE: ClassVar[str] = ""
    CITATION: ClassVar[str] = ""
    LICENSE: ClassVar[str] = "research only, by agreement with the authors; no part may be passed on"
    LABELS: ClassVar[tuple[str, ...]]  # in the official order, normalized by `our_spelling`
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "test")
    FIRST_LABEL: ClassVar[int] = 0  # number of the first class in the authors' own lists
    # Patterns of the folders with the clips, best first, and the depth of the clips below such a folder.
    FACE_FOLDERS: ClassVar[tuple[str, ...]] = ()
    VIDEO_FOLDERS: ClassVar[tuple[str, ...]] = ()
    MEDIA_DEPTH: ClassVar[int] = 1
    # Configuration -> split or TOGETHER -> official number of clips, or label -> official number of its clips.
    SIZES: ClassVar[dict[str, dict[str, int]]] = {}
    CLASS_COUNTS: ClassVar[dict[str, dict[str, dict[str, int]]]] = {}
    COUNTS_ADVICE: ClassVar[str] = COUNTS_ADVICE
    ENCODINGS: ClassVar[tuple[str, ...]] = ("utf-8",)  # encodings of lists, tried in this order

    def __init__(self, *args, hash=None, **kwargs):
        super().__init__(*args, hash=hash, **kwargs)
        # `datasets` names the cache after the folder, not its content, and would serve outdated rows after a list has
        # changed. The second call is needed because the lists are known only once the configuration exists.
        super().__init__(*args, hash=self._digest(hash), **kwargs)

    # To be overridden by subclasses.

    def list_patterns(self, split: str) -> list[str]:
        """Returns the patterns of files that may list a split, best first."""
        raise NotImplementedError

    def fold_patterns(self, split: str) -> list[str]:
        """Returns patterns of lists named like `DFEW_set_1_train.txt`; fold 1 must not match a name with 16."""
        names = [f"set{gap}{self.config.fold}[!0-9]" for gap in ("?", "")]
        orders = [order for name in names for order in (f"*{name}*{split}*", f"*{split}*{name}*")]
        return [order + suffix for suffix in ("txt", "csv") for order in orders]

    def clip_key(self, path: str) -> str:
        """Returns a key that is equal for a listed path and the file it refers to, regardless of their folders."""
        return path_parts(path)[-1]

    def columns_of(self, line: Line, label: str) -> dict:
        """Returns the values of `extra_features` for a line with a label."""
        return {}

    def extra_features(self) -> dict:
        """Returns the columns that are specific to this data set."""
        return {}

    def label_names(self) -> list[str]:
        """Returns the class names of the `label` column, in order."""
        return list(self.LABELS)

    # Common to all data sets that consist of lists and a folder with clips.

    def _info(self):
        self._check_config()
        is_video = self.media_column == "video"
        features = {
            self.media_column: datasets.Video(decode=False) if is_video else datasets.Value("string"),
            "label": datasets.ClassLabel(names=self.label_names()),
            **self.extra_features(),
            "clip_id": datasets.Value("string"),
            "fold": datasets.Value("int32"),
            "num_frames": datasets.Value("int32"),  # null for a video file if the list has no number
        }
        return datasets.DatasetInfo(
            description=self.__doc__,
            features=datasets.Features(features),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            license=self.LICENSE,
            version=self.VERSION,
        )

    def _check_config(self):
        self.config.__post_init__()  # `datasets` sets the user's options without calling it
        preset = self.builder_configs.get(self.config.name)
        names = ("fold", "kind")
        if preset is None or any(getattr(preset, name, 0) != getattr(self.config, name, 0) for name in names):
            raise ValueError(f"choose the fold by config_name, one of {', '.join(self.builder_configs)}")
        if unknown := {our_spelling(name) for name in self.config.label_order or []} - set(self.label_names()):
            raise ValueError(f"label_order has {sorted(unknown)}; allowed: {', '.join(self.label_names())}")

    def _split_generators(self, dl_manager):
        clips = self.read_clips()
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"clips": rows}) for split, rows in clips.items() if rows
        ]

    def _generate_examples(self, clips):
        for clip in clips:
            row = {self.media_column: clip.media, "label": clip.label, **clip.columns}
            row |= {"clip_id": clip.clip_id, "fold": self.config.fold, "num_frames": clip.num_frames}
            yield clip.clip_id, row

    def read_clips(self) -> dict[str, list[Clip]]:
        """Returns split -> checked clips; `on_error="skip"` leaves out unusable ones with a warning."""
        listed: dict[str, list[Clip]] = {split: [] for split in self.SPLITS}
        clips, problems, unusable = {split: [] for split in self.SPLITS}, [], []
        for split, clip in self.unchecked_clips(problems):
            listed[split].append(clip)
            try:
                clips[split].append(self._check_media(clip))
            except ValueError as error:
                unusable.append(str(error))
        # One file may be two clips of the same split, with two ids and two captions.
        problems += [str(one) for one in repeated(listed) if one.what == "clip" or one.split != one.first_split]
        title = f"{self.TITLE} in {self.root()}"
        if problems or (unusable and self.config.on_error == "raise"):
            raise ValueError(listing(f"{title} cannot be built", problems + unusable))
        if empty := [split for split in self.required_splits() if not clips[split]]:
            raise ValueError(listing(f"{title} has no clips of {', '.join(empty)}", unusable))
        if self.config.verify and (wrong := [what for _, what in self.wrong_counts(listed)]):
            counts = listing(f"{title} cannot be built: {self.config.name} has other numbers of clips", wrong)
            raise ValueError(f"{counts}\n{self.COUNTS_ADVICE}")
        if unusable:
            datasets.logging.get_logger(__name__).warning(listing(f"{self.TITLE}: clips left out", unusable))
        return clips

    def official_counts(self, split: str) -> dict[str, int]:
        """Returns label or "all" -> official number of clips in a split or TOGETHER, as far as known."""
        size = self.SIZES.get(self.config.name, {}).get(split)
        counts = {} if size is None else {"all": size}
        return counts | self.CLASS_COUNTS.get(self.config.name, {}).get(split, {})

    def wrong_counts(self, clips: dict[str, list[Clip]]) -> Iterator[tuple[str, str]]:
        """Yields the deviations from the official numbers: split or TOGETHER, and a message."""
        for split in (*clips, TOGETHER):
            counts = count_clips(clips, split)
            for label, number in self.official_counts(split).items():
                if counts[label] != number:
                    yield split, f"{split}, {label}: {counts[label]:,} clips, official {number:,}"

    def required_splits(self) -> tuple[str, ...]:
        """Returns the splits that must not be empty."""
        return self.SPLITS

    def unchecked_clips(self, problems: list[str]) -> Iterator[tuple[str, Clip]]:
        """Yields the split and clip of every line; adds the errors of invalid lines to `problems`."""
        root, media = self.root(), {}
        for path in self.media_paths():
            media.setdefault(self.clip_key(path), path)  # a folder of frames has priority over a video of that name
        for split in self.SPLITS:
            for line in self.read_lines(root, split):
                try:
                    yield split, self._clip(line, media)
                except ValueError as error:
                    problems.append(str(error))

    def _clip(self, line: Line, media: dict[str, str]) -> Clip:
        label, key = self.read_label(line), self.clip_key(line.path)
        if line.num_frames is not None and not line.num_frames.isdecimal():
            raise ValueError(f"{line.source}: the number of frames is {line.num_frames!r}, but must be a number")
        num_frames = int(line.num_frames) if line.num_frames else None
        return Clip(key, label, media.get(key, ""), line.source, self.columns_of(line, label), num_frames)

    def _check_media(self, clip: Clip) -> Clip:
        """Checks a clip and fills in the number of images of a folder; raises `ValueError` if the clip is unusable."""
        if not clip.media:
            raise ValueError(f"{clip.source}: there is no {clip.clip_id!r} in {self.media_folder}")
        real_root = None if self.config.allow_outside else self.real_root
        try:
            found = check_media(clip.media, self.media_column == "frames", clip.num_frames, real_root)
        except ValueError as error:
            raise ValueError(f"{clip.source}: {error}") from None
        return clip._replace(num_frames=found)

    def read_lines(self, root: Path, split: str) -> Iterator[Line]:
        """Finds the list of a split and yields its parsed lines."""
        found = self.find_list(self.list_patterns(split), f"the {split} clips")
        if found is None:
            raise FileNotFoundError(
                f"{self.TITLE}: no list of the {split} clips of {self.config.name} found below {root}; "
                f"looked for {', '.join(self.list_patterns(split))}"
            )
        yield from read_list(found, self.ENCODINGS)

    def find_list(self, patterns: list[str], what: str) -> Path | None:
        """Returns the list that matches the best pattern; raises `ValueError` if several differ in content."""
        for matches in find(self.root(), patterns):
            files = [path for path in matches if path.is_file()]
            if len({path.read_bytes() for path in files}) > 1:
                raise ValueError(f"{self.TITLE}: which lists {what}? Keep one of {', '.join(map(str, files))}")
            if files:
                return files[0]
        return None

    def annotation_files(self) -> list[Path]:
        """Returns the files from which the rows are read."""
        found = [self.find_list(self.list_patterns(split), f"the {split} clips") for split in self.SPLITS]
        return [file for path in found if path is not None for file in (path, *label_files(path.parent))]

    def root(self) -> Path:
        """Returns the absolute path of the user's folder."""
        if self.config.data_dir is None:
            raise FileNotFoundError(
                f"{self.TITLE} is given by its authors to those who sign their agreement ({self.HOMEPAGE}); "
                "then pass data_dir=FOLDER. SyntheticFaces needs no agreement"
            )
        root = Path(self.config.data_dir).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"data_dir {root} is not a folder")
        return root.absolute()

    @cached_property
    def real_root(self) -> str:
        """Returns the resolved path of the user's folder, with a trailing separator."""
        return os.path.join(os.path.realpath(self.root()), "")

    @cached_property
    def media_folder(self) -> Path:
        """Finds the folder with the clips; prefers face crops to whole videos unless `media` is set."""
        kinds = {"faces": self.FACE_FOLDERS, "videos": self.VIDEO_FOLDERS}
        patterns = [pattern for kind, some in kinds.items() if self.config.media in (None, kind) for pattern in some]
        root = self.root()
        for folder in (path for matches in find(root, patterns) for path in matches if path.is_dir()):
            # Unpacking often nests a folder in one of the same name, which is not a clip.
            if any(is_clip(path) for path in list_media(folder, self.MEDIA_DEPTH)):
                return folder
        raise FileNotFoundError(
            f"{self.TITLE}: no folder with clips found below {root}; looked for {', '.join(patterns)}"
        )

    def media_paths(self) -> Iterator[str]:
        """Yields the paths of all clips, video files or folders of images, without opening any file."""
        yield from list_media(self.media_folder, self.MEDIA_DEPTH)

    @cached_property
    def media_column(self) -> str:
        """Returns "frames" if the clips are folders of images, and "video" if they are files or none is found."""
        try:
            return "frames" if os.path.isdir(next(filter(is_clip, self.media_paths()))) else "video"
        except (FileNotFoundError, StopIteration):
            return "video"

    def _digest(self, given: str | None) -> str:
        """Hashes the code, the lists and the paths of the clips, to name the cache."""
        digest = hashlib.sha256(f"{given}".encode())
        for owner in (ExpressionVideos, Clip, Line, type(self)):
            digest.update(Path(inspect.getfile(owner)).read_bytes())
        try:
            for path in self.annotation_files():
                digest.update(os.fsencode(path) + path.read_bytes())
            for path in self.media_paths():
                digest.update(os.fsencode(path) + b"\n")
                if self.config.on_error == "skip" and os.path.exists(path):  # an empty clip may have been repaired
                    digest.update(f"{os.stat(path).st_mtime_ns}".encode())
        except (FileNotFoundError, ValueError):
            pass  # building reports missing files and contradictory lists
        return digest.hexdigest()[:16]

    def read_label(self, line: Line) -> str:
        """Returns the normalized label of a line; raises `ValueError` for an unknown name or number."""
        names, name = self.label_names(), line.label
        is_number = INTEGER.fullmatch(name) is not None
        if is_number and line.label_file is not None and self.config.label_order is None:
            name, is_number = line.label_file.name_of(line), False
        if not is_number:
            label = our_spelling(name)
            if label not in names:
                raise ValueError(f"{line.source}: label {name!r} is unknown; allowed: {', '.join(names)}")
            return label
        order = [our_spelling(name) for name in self.config.label_order or names]
        first = 0 if line.counts_from_zero else self.FIRST_LABEL
        last = first + len(order) - 1
        if not first <= int(line.label) <= last:
            raise ValueError(f"{line.source}: label {line.label} is out of range; allowed: {first} to {last}")
        return order[int(line.label) - first]

# SPDX-License-Identifier: Apache-2.0
"""Builder for AFEW: film clips labelled with one of 7 emotions, split by the authors into training and validation.

    AFEW(data_dir="/data/AFEW")

AFEW has no list files. Clips are stored in `{train,validation}/{Emotion}/`, as folders of frames or as `.avi` files.
Folder names such as `Train_AFEW` and `Val_AFEW`, and parent folders such as `AFEW_Face`, are recognized too.
"""

import os
from functools import cached_property
from pathlib import Path

from .clip_lists import Line, find, is_clip, list_media, our_spelling, path_parts
from .expression_videos import ExpressionVideos
from .listed_clips import ExpressionVideosConfig

FOLDERS = {"train": "train*", "validation": "val*"}
KINDS = {"faces": ("frames",), "videos": ("video",), None: ("frames", "video")}


class AFEW(ExpressionVideos):
    """Acted Facial Expressions in the Wild (AFEW): film clips, each labelled with one of seven emotions."""

    BUILDER_CONFIG_CLASS = ExpressionVideosConfig
    BUILDER_CONFIGS = [ExpressionVideosConfig(name="default")]
    TITLE = "AFEW"
    HOMEPAGE = "https://cs.anu.edu.au/few"
    CITATION = "Dhall et al.: Collecting Large, Richly Annotated Facial-Expression Databases from Movies. IEEE MM 2012"
    LABELS = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
    SPLITS = ("train", "validation")

    @cached_property
    def split_folders(self) -> tuple[str, dict[str, Path]]:
        """Returns the media column and a map split -> folder, for the first kind of media found in both splits."""
        root = self.root()
        for kind in KINDS[self.config.media]:
            folders = {split: next(_copies(root, pattern, kind), None) for split, pattern in FOLDERS.items()}
            if all(folders.values()):
                return kind, folders
        raise FileNotFoundError(
            f"AFEW: no clips of both train and validation found below {root}; looked for "
            f"{' and '.join(FOLDERS.values())} with folders {', '.join(self.LABELS)} or their adjectives, and "
            f"{' or '.join(KINDS[self.config.media])} in these"
        )

    @cached_property
    def media_column(self):
        try:
            return self.split_folders[0]
        except FileNotFoundError:
            return "video"

    def media_paths(self):
        for split in self.SPLITS:
            for folder in self.emotion_folders(split):
                yield from _clips(folder, self.split_folders[0])

    def annotation_files(self):
        return []

    def emotion_folders(self, split: str) -> list[Path]:
        """Returns the emotion folders of a split; raises if one is missing, to avoid skipping its clips silently."""
        parent = self.split_folders[1][split]
        folders = _emotion_folders(parent)
        if missing := set(self.LABELS) - {our_spelling(folder.name) for folder in folders}:
            names = ", ".join(sorted(path.name for path in parent.iterdir() if path.is_dir()))
            raise FileNotFoundError(f"AFEW: {parent} has no folder for {', '.join(sorted(missing))}; it has {names}")
        return folders

    def clip_key(self, path):
        """Returns a key that includes split and emotion, such as `train/Angry/000046280`."""
        return "/".join(path_parts(path)[-3:])

    def read_lines(self, root, split):
        for folder in self.emotion_folders(split):
            for path in _clips(folder, self.split_folders[0]):
                yield Line(path, folder.name, None, [], path, True)


def _copies(root: Path, pattern: str, kind: str):
    for parent in (path for matches in find(root, [pattern]) for path in matches if path.is_dir()):
        if any(is_clip(path) for folder in _emotion_folders(parent) for path in _clips(folder, kind)):
            yield parent


def _emotion_folders(parent: Path) -> list[Path]:
    return [path for path in sorted(parent.iterdir()) if our_spelling(path.name) in AFEW.LABELS and path.is_dir()]


def _clips(folder: Path, kind: str) -> list[str]:
    """Lists the clips of one kind: some copies hold both the videos and folders with the frames of the same clips."""
    return [path for path in list_media(folder) if os.path.isdir(path) == (kind == "frames")]

# SPDX-License-Identifier: Apache-2.0
"""AFEW: film clips with one of 7 emotions, split by its authors into training and validation.

    AFEW(data_dir="/data/AFEW")

There are no lists: a clip lies in `{train,validation}/{Emotion}/`, as a folder of frames or as `.avi`. Folders are also
found as `Train_AFEW`, `Val_AFEW`, below `AFEW_Face` and the like.
"""

import os
from functools import cached_property
from pathlib import Path

from .expression_videos import (
    ExpressionVideos,
    ExpressionVideosConfig,
    Line,
    find,
    is_clip,
    list_media,
    our_spelling,
    path_parts,
)

FOLDERS = {"train": "train*", "validation": "val*"}


class AFEW(ExpressionVideos):
    """Acted facial expressions in the wild: film clips, each with one of seven emotions."""

    BUILDER_CONFIG_CLASS = ExpressionVideosConfig
    BUILDER_CONFIGS = [ExpressionVideosConfig(name="default")]
    TITLE = "AFEW"
    HOMEPAGE = "https://cs.anu.edu.au/few"
    CITATION = "Dhall et al.: Collecting Large, Richly Annotated Facial-Expression Databases from Movies. IEEE MM 2012"
    LABELS = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
    SPLITS = ("train", "validation")

    @cached_property
    def emotion_folders(self) -> dict[str, list[Path]]:
        """Split -> its folders that are named by an emotion; of several copies those with frames, in every split."""
        root = self.root()
        copies = {split: list(_copies(root, pattern)) for split, pattern in FOLDERS.items()}
        kinds = {"faces": ["frames"], "videos": ["video"], None: ["frames", "video"]}[self.config.media]
        for kind in kinds:
            chosen = {split: next((copy for copy in copies[split] if _holds(copy, kind)), None) for split in copies}
            if all(chosen.values()):
                return chosen
        raise FileNotFoundError(
            f"AFEW: no clips ({' or '.join(kinds)}) of train and of validation found below {root}; looked for "
            f"{', '.join(FOLDERS.values())} with folders {', '.join(self.LABELS)} or their adjectives in it"
        )

    @cached_property
    def media_column(self):
        try:
            return "frames" if all(_holds(copy, "frames") for copy in self.emotion_folders.values()) else "video"
        except FileNotFoundError:
            return "video"

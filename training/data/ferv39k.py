# SPDX-License-Identifier: Apache-2.0
"""Builder for FERV39k: 38,935 clips of 22 scenes in 7 classes, with one split.

    FERV39k(config_name="all", data_dir="/data/FERV39k", scenes=["Action", "Argue"])

Lists: `4_setups/All_scenes/{train,test}_All.csv` with lines such as `Action/Sad/0010 Sad`, or `*train*.txt` in the
usual `path frames label` format. Clips: `2_ClipsforFaceCrop/Action/Sad/0010/*.jpg`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import datasets

from .clip_lists import Line, our_spelling, path_parts
from .expression_videos import ExpressionVideos
from .listed_clips import ExpressionVideosConfig

SCENES = (
    *("Action", "Argue", "Business", "Conflict", "Contest", "Crime", "Crisis", "DailyLife", "ElegantArt"),
    *("Experiment", "History", "Interview", "Liveshow", "Medicine", "OfficialEvent", "ScholarReport", "School"),
    *("Social", "Speech", "Talkshow", "Terror", "War"),
)


@dataclass
class FERV39kConfig(ExpressionVideosConfig):
    """The common configuration plus `scenes`, which limits the clips to some of the 22 scenes; default: all."""

    scenes: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        if unknown := set(self.scenes or []) - set(SCENES):
            raise ValueError(f"scenes has {sorted(unknown)}; allowed: {', '.join(SCENES)}")


class FERV39k(ExpressionVideos):
    """Facial Expression Recognition in Videos (FERV39k): clips of many scenes, each with one of seven emotions."""

    BUILDER_CONFIG_CLASS = FERV39kConfig
    BUILDER_CONFIGS = [FERV39kConfig(name="all")]
    TITLE = "FERV39k"
    HOMEPAGE = "https://wangyanckxx.github.io/Proj_CVPR2022_FERV39k.html"
    CITATION = (
        "Wang et al.: FERV39k: A Large-Scale Multi-Scene Dataset for Facial Expression Recognition in Videos. "
        "CVPR 2022"
    )
    LABELS = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
    FACE_FOLDERS = ("2_ClipsforFaceCrop", "Image/CropFace/2_ClipsforFaceCrop")
    VIDEO_FOLDERS = ("1_*", "0_*", "3_*")
    MEDIA_DEPTH = 3
    SIZES = {"all": {"train": 31088, "test": 7847}}
    CLASS_COUNTS = {"all": {"test": dict(zip(LABELS, (1473, 1393, 1958, 1487, 638, 467, 431), strict=True))}}

    def list_patterns(self, split):
        return [
            f"4_setups/All_scenes/{split}_All.csv",
            f"All_scenes/{split}_All.csv",
            f"{split}_All.csv",
            *(f"{start}{split}*.{suffix}" for suffix in ("csv", "txt") for start in ("", "*[-_ ]")),
        ]

    def extra_features(self):
        return {"scene": datasets.Value("string")}

    def columns_of(self, line, label):
        return {"scene": path_parts(line.path)[-3:][0]}

    def clip_key(self, path):
        """Returns `Scene/Emotion/number`, because the numbers restart in every folder."""
        return "/".join(path_parts(path)[-3:])

    def read_lines(self, root, split) -> Iterator[Line]:
        for line in super().read_lines(root, split):
            if not self.config.scenes or self.columns_of(line, "")["scene"] in self.config.scenes:
                yield line

    def official_counts(self, split):
        return {} if self.config.scenes else super().official_counts(split)

    def read_label(self, line):
        label = super().read_label(line)
        folder = our_spelling(path_parts(line.path)[-2:][0])
        if folder in self.LABELS and folder != label:
            raise ValueError(
                f"{line.source}: label {line.label!r} means {label}, but the clip lies in the folder of {folder}; if "
                "the list numbers the classes in another order, pass it as label_order"
            )
        return label

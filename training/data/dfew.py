# SPDX-License-Identifier: Apache-2.0
"""Builder for DFEW: 11,697 single-labelled film clips in 7 classes, with 5-fold cross-validation.

    DFEW(config_name="fold1", data_dir="/data/DFEW")

Lists: `EmoLabel_DataSplit/{train,test}(single-labeled)/set_{1..5}.csv` (labels 1 to 7), `*set_1*train*.txt` in the
usual `path frames label` format, or `train_set_1.csv` as in other repositories. Clips:
`Clip/clip_224x224*/00001/*.jpg` or `.avi`, otherwise `Clip/original/1.mp4`.
"""

from .clip_lists import path_parts
from .expression_videos import ExpressionVideos
from .listed_clips import ExpressionVideosConfig

# Test clips of each of the 5 folds (each clip is tested once). CLASS_COUNTS of fold 1 are counted in its list.
TEST_SIZES = (2341, 2341, 2340, 2339, 2336)


class DFEW(ExpressionVideos):
    """Dynamic Facial Expressions in the Wild (DFEW): film clips, each labelled with one of seven emotions."""

    BUILDER_CONFIG_CLASS = ExpressionVideosConfig
    BUILDER_CONFIGS = [ExpressionVideosConfig(name=f"fold{fold}", fold=fold) for fold in range(1, 6)]
    TITLE = "DFEW"
    HOMEPAGE = "https://dfew-dataset.github.io"
    CITATION = (
        "Jiang et al.: DFEW: A Large-Scale Database for Recognizing Dynamic Facial Expressions in the Wild. "
        "ACM Multimedia 2020"
    )
    LABELS = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
    FIRST_LABEL = 1
    FACE_FOLDERS = ("Clip/clip_224x224", "Clip/clip_224x224_*", "clip_224x224", "clip_224x224_*")
    VIDEO_FOLDERS = ("Clip/original", "original")
    SIZES = {
        f"fold{fold}": {"train": sum(TEST_SIZES) - size, "test": size} for fold, size in enumerate(TEST_SIZES, start=1)
    }
    CLASS_COUNTS = {"fold1": {"test": dict(zip(LABELS, (489, 379, 534, 435, 294, 29, 181), strict=True))}}

    def list_patterns(self, split):
        fold = self.config.fold
        return [
            f"EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv",
            f"EmoLabel_DataSplit/{split}*/set_{fold}.csv",
            f"{split}(single-labeled)/set_{fold}.csv",
            *self.fold_patterns(split),
        ]

    def clip_key(self, path):
        """Returns the clip number with leading zeros, which folder names have but lists do not."""
        name = path_parts(path)[-1]
        return name.zfill(5) if name.isdecimal() else name

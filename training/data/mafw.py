# SPDX-License-Identifier: Apache-2.0
"""MAFW: 9,172 clips with one of 11 emotions, 8,996 with one of 43 (11 single, 32 compound), captions in two languages.

    MAFW(config_name="fold1", data_dir="/data/MAFW")            # 11 classes; also called single_fold1
    MAFW(config_name="compound_fold1", data_dir="/data/MAFW")   # 43 classes

Lists: `Train & Test Set/{single,compound}/{with_caption,no_caption}/set_{1..5}/{train,test}.txt` (also
`Train_Test_Set` and `*_new`), tab-separated, GBK or UTF-8; or `*set_1*train*.txt` in the field's common form, which
needs `label_order`. Clips: `data/faces/00001/*.png`, otherwise `data/clips/00001.mp4`.
"""

from dataclasses import dataclass

import datasets

from .clip_lists import INTEGER, path_parts
from .expression_videos import ExpressionVideos, ExpressionVideosConfig

EMOTIONS = (
    *("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
    *("contempt", "anxiety", "helplessness", "disappointment"),
)
COMPOUNDS = (
    *("anger_disgust", "anger_disgust_anxiety", "anger_disgust_contempt", "anger_sadness", "anger_surprise"),
    *("anger_anxiety", "anger_helplessness", "disgust_sadness", "disgust_surprise", "disgust_contempt"),
    *("disgust_anxiety", "disgust_anxiety_helplessness", "disgust_helplessness"),
    *("disgust_helplessness_disappointment", "disgust_disappointment", "fear_sadness", "fear_sadness_anxiety"),
    *("fear_surprise", "fear_surprise_anxiety", "fear_anxiety", "happiness_surprise", "happiness_contempt"),
    *("sadness_surprise", "sadness_anxiety", "sadness_anxiety_helplessness", "sadness_helplessness"),
    *("sadness_helplessness_disappointment", "sadness_disappointment", "surprise_anxiety", "anxiety_helplessness"),
    *("anxiety_helplessness_disappointment", "helplessness_disappointment"),
)
# The order in DFER-CLIP's code; EmoCLIP's is the official one.
DFER_CLIP_ORDER = (
    *("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"),
    *("contempt", "anxiety", "helplessness", "disappointment"),
)
TEST_SIZES = (1839, 1837, 1833, 1832, 1831)  # single


@dataclass
class MAFWConfig(ExpressionVideosConfig):
    """As for every set, and `kind`: "single" for the 11 emotions, "compound" for those and their 32 compounds."""

    kind: str = "single"


def _configs():
    for fold in range(1, 6):
        yield MAFWConfig(name=f"fold{fold}", fold=fold)
        yield MAFWConfig(name=f"single_fold{fold}", fold=fold)
        yield MAFWConfig(name=f"compound_fold{fold}", fold=fold, kind="compound")


class MAFW(ExpressionVideos):
    """Multi-modal compound affect in the wild: clips with one emotion or several, and what is seen in words."""

    BUILDER_CONFIG_CLASS = MAFWConfig
    BUILDER_CONFIGS = list(_configs())
    TITLE = "MAFW"
    HOMEPAGE = "https://mafw-database.github.io/MAFW"
    CITATION = (
        "Liu et al.: MAFW: A Large-scale, Multi-modal, Compound Affective Database for Dynamic Facial Expression "
        "Recognition in the Wild. ACM Multimedia 2022"
    )
    LABELS = EMOTIONS
    FACE_FOLDERS = ("data/faces", "faces", "clips_faces")
    VIDEO_FOLDERS = ("data/clips", "clips")
    SIZES = {
        f"{prefix}fold{fold}": {"train": sum(TEST_SIZES) - size, "test": size}
        for prefix in ("", "single_")
        for fold, size in enumerate(TEST_SIZES, start=1)
    }

    def list_patterns(self, split):
        kind, fold = self.config.kind, self.config.fold
        return [
            f"{folder}{kind}/{captions}/set_{fold}/{split}.txt"
            for folder in ("Train*Test*Set*/", "")
            for captions in ("with_caption_new", "with_caption*", "*_new", "*")
        ] + self.fold_patterns(split)

    def label_names(self):
        return list(EMOTIONS if self.config.kind == "single" else EMOTIONS + COMPOUNDS)

    def extra_features(self):
        return {
            "labels": datasets.Sequence(datasets.ClassLabel(names=list(EMOTIONS))),
            "caption": datasets.Value("string"),
            "caption_zh": datasets.Value("string"),
        }

    def columns_of(self, line, label):
        caption_zh, caption = [*line.rest, "", ""][:2]
        return {"labels": label.split("_"), "caption": caption, "caption_zh": caption_zh}

    def clip_key(self, path):
        name = path_parts(path)[-1]
        return name.zfill(5) if name.isdecimal() else name

    def read_label(self, line):
        if INTEGER.fullmatch(line.label) and self.config.label_order is None:
            raise ValueError(
                f"{line.source}: the label is the number {line.label}, and lists of MAFW number the classes in two "
                f"orders; pass label_order, as {list(EMOTIONS)} (official, EmoCLIP) or {list(DFER_CLIP_ORDER)} "
                "(DFER-CLIP)"
            )
        return super().read_label(line)

# SPDX-License-Identifier: Apache-2.0
"""Builder for MAFW: 9,172 clips in 11 classes or 8,996 in 43 (11 single, 32 compound), with bilingual captions.

    MAFW(config_name="fold1", data_dir="/data/MAFW")            # 11 classes; also called single_fold1
    MAFW(config_name="compound_fold1", data_dir="/data/MAFW")   # 43 classes

Lists: `Train & Test Set/{single,compound}/{with_caption,no_caption}/set_{1..5}/{train,test}.txt` (also
`Train_Test_Set` and `*_new`), tab-separated, GBK or UTF-8; or `*set_1*train*.txt` in the usual `path frames label`
format, which needs `label_order`. The rows come from `no_caption`, which lists every clip. `with_caption` lists no
neutral clips and only adds the English and Chinese captions. A clip without caption gets an empty string, and is left
out of training on captions. Clips: `data/faces/00001/*.png`, otherwise `data/clips/00001.mp4`.
"""

from dataclasses import dataclass
from pathlib import Path

import datasets

from .clip_lists import INTEGER, Line, path_parts, read_list
from .expression_videos import ExpressionVideos
from .listed_clips import TOGETHER, ExpressionVideosConfig

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
# The order in DFER-CLIP's code; EmoCLIP uses the official one.
DFER_CLIP_ORDER = (
    *("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"),
    *("contempt", "anxiety", "helplessness", "disappointment"),
)
TEST_SIZES = (1839, 1837, 1833, 1832, 1831)  # single
# Train and test of a fold together, the same for every fold. The counts of the 43 compound classes are not known.
SINGLE_COUNTS = dict(zip(EMOTIONS, (1390, 639, 625, 1242, 1138, 1470, 1072, 236, 916, 262, 182), strict=True))
COMPOUND_SIZE, COMPOUND_COUNTS = 8996, {"neutral": 1138}


@dataclass
class MAFWConfig(ExpressionVideosConfig):
    """The common configuration plus `kind`: "single" for 11 emotions, "compound" for these and 32 compounds."""

    kind: str = "single"


def _configs():
    for fold in range(1, 6):
        yield MAFWConfig(name=f"fold{fold}", fold=fold)
        yield MAFWConfig(name=f"single_fold{fold}", fold=fold)
        yield MAFWConfig(name=f"compound_fold{fold}", fold=fold, kind="compound")


class MAFW(ExpressionVideos):
    """Multi-modal Compound Affective Database in the Wild (MAFW): clips with one or several emotions, and captions."""

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
    SIZES |= {f"compound_fold{fold}": {TOGETHER: COMPOUND_SIZE} for fold in range(1, 6)}
    SIZES["compound_fold1"] |= {"train": 7178, "test": 1818}
    CLASS_COUNTS = {name: {TOGETHER: COMPOUND_COUNTS if "compound" in name else SINGLE_COUNTS} for name in SIZES}
    COUNTS_ADVICE = (
        "MAFW's lists of with_caption lack all clips without a caption, the neutral ones among them: the lists of "
        f"no_caption must lie beside them. {ExpressionVideos.COUNTS_ADVICE}"
    )
    ENCODINGS = ("utf-8", "gb18030")  # the authors use both

    def list_patterns(self, split):
        """Returns the patterns of lists, complete lists first."""
        complete, captioned, other = (
            self.authors_patterns(split, word) for word in ("no?caption", "with?caption", "")
        )
        return [*complete, *captioned, *other, *self.fold_patterns(split)]

    def authors_patterns(self, split: str, captions: str) -> list[str]:
        """Returns the patterns of the authors' lists in folders whose names begin with `captions`, best first."""
        return [
            f"{folder}{self.config.kind}/{captions}{end}/set_{self.config.fold}/{split}.txt"
            for folder in ("Train*Test*Set*/", "")
            for end in ("_new", "*")
            if captions or end == "*"
        ]

    def caption_list(self, split: str) -> Path | None:
        """Finds the list with captions, which may lack clips."""
        return self.find_list(self.authors_patterns(split, "with?caption"), f"the captions of the {split} clips")

    def annotation_files(self):
        captions = [self.caption_list(split) for split in self.SPLITS]
        return super().annotation_files() + [path for path in captions if path is not None]

    def unchecked_clips(self, problems):
        captions = {split: self._read_captions(split, problems) for split in self.SPLITS}
        for split, clip in super().unchecked_clips(problems):
            line = captions[split].pop(clip.clip_id, None)
            if line is None:
                yield split, clip
                continue
            try:
                label = self.read_label(line)
            except ValueError as error:
                problems.append(str(error))
                continue
            if label != clip.label:
                problems.append(f"{line.source}: {clip.clip_id!r} is {label}, but {clip.label} in {clip.source}")
            yield split, clip._replace(columns=clip.columns | self.columns_of(line, clip.label))
        if not problems:  # otherwise lines may be left over because of these problems
            problems += [
                f"{line.source}: the complete list of the {split} clips has no {name!r}"
                for split, lines in captions.items()
                for name, line in lines.items()
            ]

    def _read_captions(self, split: str, problems: list[str]) -> dict[str, Line]:
        path, lines = self.caption_list(split), {}
        for line in read_list(path, self.ENCODINGS) if path else ():
            first = lines.setdefault(self.clip_key(line.path), line)
            if first is not line:
                problems.append(f"{line.source}: clip {line.path!r} is in {first.source} already")
        return lines

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
        if INTEGER.fullmatch(line.label) and self.config.label_order is None and line.label_file is None:
            raise ValueError(
                f"{line.source}: the label is the number {line.label}, and lists of MAFW number the classes in two "
                f"orders; pass label_order, as {list(EMOTIONS)} (official, EmoCLIP) or {list(DFER_CLIP_ORDER)} "
                "(DFER-CLIP)"
            )
        return super().read_label(line)

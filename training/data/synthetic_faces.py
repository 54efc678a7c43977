# SPDX-License-Identifier: Apache-2.0
"""Builder for rendered, captioned facial-expression clips: made on any laptop, no download, no licence to sign.

    builder = SyntheticFaces(config_name="clips", cache_dir="data")
    builder.download_and_prepare(num_proc=4)
    train = builder.as_dataset("train")

"clips" holds short mp4 files with captions, emotion labels and three made-up continuous targets; "stills" holds single
images with captions, for training a small CLIP. Emotions in `HELD_OUT_EMOTIONS` occur only in "test". "order" holds
pairs of a clip and the same clip backwards, whose classes differ only in the order of the frames; "compounds" holds
test clips that show two emotions at once.
"""

import hashlib
import io
import os
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import av
import datasets
import numpy as np
from PIL import Image

from training.data import face_grammar, face_renderer, face_spec, face_vocabulary

TARGETS = ("expressivity", "negative_affect", "psychomotor_tension")
# Rendering is distributed over processes by ranges of rows; this limits the number of processes for a split.
MAX_SHARDS = 32


# Identifies the code that specifies and draws the clips, so that videos of an older renderer are never reused.
SOURCE_HASH = hashlib.sha256(
    b"".join(source.read_bytes() for source in (*sorted(Path(__file__).parent.glob("face_*.py")), Path(__file__)))
).hexdigest()[:16]


@dataclass
class SyntheticFacesConfig(datasets.BuilderConfig):
    """Sizes of the splits, in clips or images, and of a clip; splits of size 0 are left out.

    "test" has `num_test_per_class` clips of each of the 11 emotions. "test_imbalanced" has ten times that number in
    total, with the class shares of the 7 seen emotions in DFEW. "order_pairs" has two rows per pair. For "order",
    `num_train`, `num_validation` and `num_order_pairs` (the test split) are numbers of pairs.
    """

    seed: int = 0
    num_train: int = 4000
    num_validation: int = 300
    num_test_per_class: int = 40
    num_order_pairs: int = 120
    num_frames: int = 8
    frame_size: int = 64
    fps: int = 8


class SyntheticFaces(datasets.GeneratorBasedBuilder):
    """Rendered faces with known facial movements, see the module docstring."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = SyntheticFacesConfig
    BUILDER_CONFIGS: ClassVar = [
        SyntheticFacesConfig(name="clips", description="8-frame mp4 clips with captions, labels and targets"),
        SyntheticFacesConfig(
            name="stills",
            description="single images with captions",
            num_train=60000,
            num_validation=1000,
            num_test_per_class=0,
            num_order_pairs=0,
        ),
        SyntheticFacesConfig(name="order", description="clips and their reverse", num_train=400, num_validation=60),
        SyntheticFacesConfig(name="compounds", description="two emotions at once", num_test_per_class=60),
    ]
    LABELS: ClassVar = {
        "clips": face_vocabulary.EMOTION_NAMES,
        "order": face_vocabulary.ORDER_NAMES,
        "compounds": face_vocabulary.COMPOUND_NAMES,
    }
    DEFAULT_CONFIG_NAME = "clips"

    def __init__(self, *args, hash=None, **kwargs):
        # `datasets` names the cache folder after the configuration only; the hash adds the rendering code.
        super().__init__(*args, hash=hash or SOURCE_HASH, **kwargs)

    def _info(self):
        described = {
            "caption": datasets.Value("string"),
            "components": datasets.List(datasets.Value("float32"), length=len(face_vocabulary.COMPONENTS)),
        }
        if self.config.name == "stills":
            features = {"image": datasets.Image(), **described}
        else:
            features = {
                "video": datasets.Video(decode=False),
                "label": datasets.ClassLabel(names=list(self.LABELS[self.config.name])),
                **described,
                "contrast_caption": datasets.Value("string"),
                "pair_id": datasets.Value("int32"),
                "clip_id": datasets.Value("string"),
                "identity": datasets.Value("string"),
                "num_frames": datasets.Value("int32"),
                **{name: datasets.Value("float32") for name in TARGETS},
            }
        return datasets.DatasetInfo(
            description=__doc__, features=datasets.Features(features), license="Apache-2.0", version=self.VERSION
        )

    def _split_generators(self, dl_manager):
        config = self.config
        sizes = {"train": config.num_train, "validation": config.num_validation}
        if config.name == "order":
            sizes["test"] = config.num_order_pairs
        elif config.name == "compounds":
            sizes = {"test": config.num_test_per_class * len(face_vocabulary.COMPOUND_NAMES)}
        elif config.name == "clips":
            sizes["test"] = config.num_test_per_class * len(face_vocabulary.EMOTION_NAMES)
            sizes["test_imbalanced"] = config.num_test_per_class * 10
            sizes["order_pairs"] = config.num_order_pairs
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"split": split, "ranges": _ranges(size)})
            for split, size in sizes.items()
            if size
        ]

    def _generate_examples(self, split, ranges):
        rows = {"stills": self._still_rows, "order": self._order_rows, "compounds": self._compound_rows}.get(
            self.config.name, self._pair_rows if split == "order_pairs" else self._clip_rows
        )
        for start, stop in ranges:
            for index in range(start, stop):
                yield from rows(split, index)

    def _still_rows(self, split, index):
        spec = face_grammar.sample_still(self.config.seed, split, index)
        encoded = io.BytesIO()
        Image.fromarray(face_renderer.render_still(spec, self.config.frame_size)).save(encoded, "JPEG", quality=92)
        row = {
            "image": {"bytes": encoded.getvalue(), "path": None},
            "caption": spec.caption,
            "components": face_spec.component_vector(spec),
        }
        yield spec.clip_id, row

    def _clip_rows(self, split, index):
        spec = face_grammar.sample_clip(self.config.seed, split, index)
        yield spec.clip_id, self._clip_row(split, spec, pair_id=-1, contrast_caption="")

    def _pair_rows(self, split, index):
        onset, offset = face_grammar.sample_order_pair(self.config.seed, index)
        for spec, twin in ((onset, offset), (offset, onset)):
            yield spec.clip_id, self._clip_row(split, spec, pair_id=index, contrast_caption=twin.caption)

    def _order_rows(self, split, index):
        pair = face_grammar.sample_order_pair(self.config.seed, index, f"order_{split}")
        for spec, twin, label in zip(pair, reversed(pair), face_vocabulary.ORDER_NAMES, strict=True):
            row = self._clip_row(f"order_{split}", replace(spec, label=label), index, twin.caption)
            yield spec.clip_id, row

    def _compound_rows(self, split, index):
        spec = face_grammar.sample_compound(self.config.seed, index)
        yield spec.clip_id, self._clip_row(f"compounds_{split}", spec, pair_id=-1, contrast_caption="")

    def _clip_row(self, split, spec, pair_id, contrast_caption):
        path = self._video_folder() / split / f"{spec.clip_id}.mp4"
        if not path.exists():
            frames = face_renderer.render_clip(spec, self.config.num_frames, self.config.frame_size)
            write_video(path, frames, self.config.fps)
        return {
            "video": str(path),
            "label": spec.label,
            "caption": spec.caption,
            "components": face_spec.component_vector(spec),
            "contrast_caption": contrast_caption,
            "pair_id": pair_id,
            "clip_id": spec.clip_id,
            "identity": spec.identity.name,
            "num_frames": self.config.num_frames,
            **spec.targets,
        }

    def _video_folder(self):
        """Returns the video folder. It does not depend on split sizes, so larger data sets reuse rendered clips."""
        config = self.config
        drawn = f"{SOURCE_HASH} {config.seed} {config.num_frames} {config.frame_size} {config.fps}"
        fingerprint = hashlib.sha256(drawn.encode()).hexdigest()[:12]
        return Path(self._cache_dir_root).absolute() / "synthetic_faces_videos" / fingerprint


def _ranges(size):
    edges = np.linspace(0, size, min(MAX_SHARDS, size) + 1).astype(int).tolist()
    return list(pairwise(edges))


def write_video(path, frames, fps):
    """Writes frames, uint8 (T, H, W, 3) RGB, atomically as an H.264 file with every pixel doubled.

    H.264 stores colour at half resolution; doubling keeps the colours of a 64-pixel face as sharp as its outlines.
    Every frame is intra-coded at a constant quantiser, so a clip written backwards decodes to exactly the same frames.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with av.open(str(unfinished), "w", format="mp4") as container:
        # With more than one thread, the encoder's output depends on the machine.
        options = {"qp": "20", "g": "1", "preset": "ultrafast", "threads": "1"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.width, stream.height, stream.pix_fmt = 2 * frames.shape[2], 2 * frames.shape[1], "yuv420p"
        for frame in frames.repeat(2, axis=1).repeat(2, axis=2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(unfinished, path)

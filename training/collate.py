# SPDX-License-Identifier: Apache-2.0
"""The clips of a training run, and how they become a batch. B clips, T frames, D embedding width."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torchvision.transforms import v2
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

from modeling_emoclip.video_reading import read_video
from training.recipe import Augmentation, DataRecipe

logger = logging.get_logger(__name__)


def media_column(columns: Iterable[str]) -> str | None:
    """Returns the column with the input of `read_video`, "video" (files) or "frames" (folders); `None` without."""
    return next((name for name in ("video", "frames") if name in columns), None)


class Clips(torch.utils.data.Dataset):
    """Rows of a data set, each with its target and a sample of its frames.

    Args:
        rows: a `datasets.Dataset` with a `video`, `frames` or `image` column.
        video_processor: the `EmoCLIPVideoProcessor`, which samples the frames.
        data: gives `frame_sampling` and `augmentation` (of augmented clips), `encode_every`, `short_clips` and
            `shortest` (of encoded frames) and `on_error`; by default those of an empty recipe.
        is_augmented: whether the clips change from epoch to epoch, for training.
        texts: one for each row, for models that compare videos with texts.
        labels: `(N,)` class numbers or `(N, n)` targets, for models with labels.
        text_embeds: text -> `(D,)`, already encoded; `None` if the text tower learns.
        frame_embeds: the rows' frames, already encoded (`feature_cache.FrameEmbeds`), in place of pixels.
        seed: seed of random choices, which depend on (seed, epoch, row) alone.
    """

    def __init__(
        self,
        rows,
        video_processor,
        data: DataRecipe | None = None,
        *,
        is_augmented: bool = False,
        texts: list[str] | None = None,
        labels: torch.Tensor | None = None,
        text_embeds: dict[str, torch.Tensor] | None = None,
        frame_embeds=None,
        seed: int = 0,
    ):
        data = data or DataRecipe()
        if frame_embeds is None and (data.short_clips, data.shortest) != ("repeat", None):
            raise ValueError(
                f"data.short_clips is {data.short_clips} and data.shortest {data.shortest}, but frames that go "
                "through the image tower in every step cannot be cut or padded"
            )
        self.rows, self.video_processor, self.data = rows, video_processor, data
        self.texts, self.labels, self.text_embeds, self.frame_embeds = texts, labels, text_embeds, frame_embeds
        self.seed, self.epoch = seed, 0
        self.frame_sampling = (is_augmented and data.frame_sampling) or video_processor.frame_sampling
        encode_every = data.encode_every if frame_embeds is not None else 1
        if self.frame_sampling.startswith("strided") and video_processor.frame_stride % encode_every:
            raise ValueError(
                f"data.encode_every is {encode_every}, but must divide model.video_processor.frame_stride = "
                f"{video_processor.frame_stride}"
            )
        self.frame_stride = max(1, video_processor.frame_stride // encode_every)
        self.augment = augmentation_transforms(data.augmentation) if is_augmented else None

    def __len__(self):
        return len(self.rows)

    def set_epoch(self, epoch: int):
        """Makes random choices differ from those of other epochs."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict | None:
        item = {"clip_index": index}
        if self.texts is not None:
            item["text"] = self.texts[index]
            if self.text_embeds is not None:
                item["text_embeds"] = self.text_embeds[item["text"]]
        if self.labels is not None:
            item["labels"] = self.labels[index]
        rng = np.random.default_rng([self.seed, self.epoch, index])
        if self.frame_embeds is not None:
            view = int(rng.integers(self.frame_embeds.num_views)) if self.frame_embeds.num_views > 1 else 0
            return item | {"frame_embeds": self._select_frames(self.frame_embeds[index, view], index, rng)}
        row = self.rows[index]
        if "components" in row:
            item["components"] = torch.tensor(row["components"])
        if "image" in row:
            return item | {"frames": self._augmented(np.array(row["image"].convert("RGB"))[None], rng)}
        try:
            frames, _ = read_video(
                row[media_column(row)],
                lambda metadata: self._sample_frames(metadata, rng),
                limits=self.video_processor.video_limits,
                guarded=self.video_processor.guard_decoding,
            )
        except (ValueError, OSError) as error:
            if self.data.on_error == "raise":
                raise
            logger.warning(f"left out: {error}")
            return None
        return item | {"frames": self._augmented(frames, rng)}

    def _select_frames(self, frame_embeds: torch.Tensor, index: int, rng: np.random.Generator) -> torch.Tensor:
        """Samples from all encoded frames `(T, D)` of a clip; shorter clips are treated as the recipe says."""
        shortest, short_clips = self.data.shortest, self.data.short_clips
        if shortest is not None:
            # By the row alone: the same in training and every evaluation.
            kept = np.random.default_rng(index).integers(min(shortest, len(frame_embeds)), len(frame_embeds) + 1)
            frame_embeds = frame_embeds[:kept]
        missing = self.video_processor.num_frames - len(frame_embeds)
        if missing > 0 and short_clips != "repeat":
            padding = missing if short_clips == "zeros" else 0
            return torch.nn.functional.pad(frame_embeds, (0, 0, 0, padding))
        return frame_embeds[torch.from_numpy(self._sample_frames(VideoMetadata(len(frame_embeds)), rng))]

    def digest(self) -> str:
        """Returns a digest of the clips, their order and their targets."""
        names = self.rows["clip_id"] if "clip_id" in self.rows.column_names else range(len(self.rows))
        labels = None if self.labels is None else self.labels.tolist()
        described = json.dumps([list(map(str, names)), self.texts, labels])
        return hashlib.sha256(described.encode()).hexdigest()[:20]

    def names(self, indices: list[int]) -> list[str]:
        """Returns the names of some clips for messages."""
        return [str(self.rows[index].get("clip_id", index)) for index in indices]

    def _augmented(self, frames: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        pixels = torch.from_numpy(frames).movedim(-1, 1)  # (T, 3, H, W)
        if self.augment is None:
            return pixels
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(int(rng.integers(2**62)))
            return self.augment(pixels)

    def _sample_frames(self, metadata: VideoMetadata, rng: np.random.Generator) -> np.ndarray:
        return self.video_processor.sample_frames(
            metadata,
            fps=self.video_processor.fps,
            frame_sampling=self.frame_sampling,
            frame_stride=self.frame_stride,
            rng=rng,
        )


class Collator:
    """Collates items of `Clips` to the model's inputs and `clip_index (B,)`; to an empty dict if all were skipped.

    Args:
        processor: `EmoCLIPProcessor`.
        with_components: whether to pass the `components` column on.
    """

    def __init__(self, processor, with_components: bool = False):
        self.processor = processor
        self.with_components = with_components

    def __call__(self, items: list[dict | None]) -> dict:
        items = [item for item in items if item is not None]
        if not items:
            return {}
        batch = {"clip_index": torch.tensor([item["clip_index"] for item in items])}
        if "text" in items[0]:
            batch["return_loss"] = True
            if "text_embeds" not in items[0]:
                batch |= self.processor(text=[item["text"] for item in items], return_tensors="pt")
        for name in ("text_embeds", "labels", *(("components",) if self.with_components else ())):
            if name in items[0]:
                batch[name] = torch.stack([item[name] for item in items])
        return batch | (self._cached(items) if "frame_embeds" in items[0] else self._pixels(items))

    def _cached(self, items: list[dict]) -> dict:
        clips = [item["frame_embeds"] for item in items]
        lengths = torch.tensor([len(clip) for clip in clips])
        return {
            "frame_embeds": pad_sequence(clips, batch_first=True),  # (B, T, D)
            "frame_mask": torch.arange(lengths.max()) < lengths[:, None],  # (B, T)
        }

    def _pixels(self, items: list[dict]) -> dict:
        clips = [item["frames"] for item in items]  # each (T, 3, H, W)
        return dict(self.processor.video_processor(clips, do_sample_frames=False, return_tensors="pt"))


def augmentation_transforms(augmentation: Augmentation) -> v2.Transform:
    """Returns a transform of frames `(T, 3, H, W)`, uint8, which draws once per call and so alike for all frames."""
    transforms = [
        v2.RandomHorizontalFlip(augmentation.flip),
        v2.ColorJitter(brightness=augmentation.brightness),
        v2.RandomAffine(augmentation.rotation, translate=(augmentation.shift, augmentation.shift)),
    ]
    return v2.Compose([*transforms, _RandomCrop(augmentation.crop)] if augmentation.crop else transforms)


class _RandomCrop(v2.Transform):
    """RandomResizedCrop to the input's size, which torchvision's needs to know beforehand."""

    def __init__(self, crop: float):
        super().__init__()
        self.crop = crop

    def forward(self, frames):
        size = frames.shape[-2:]
        return v2.RandomResizedCrop(size, scale=(1 - self.crop, 1.0), antialias=True)(frames)

# SPDX-License-Identifier: Apache-2.0
"""Clips as training sees them, and how they become a batch. B clips, T frames, D embedding width."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torchvision.transforms import v2
from transformers.utils import logging

from modeling_emoclip.frame_sampling import sample_frames
from modeling_emoclip.video_decoding import read_video
from training.recipe import Augmentation

logger = logging.get_logger(__name__)


def media_column(columns: Iterable[str]) -> str | None:
    """Which column holds what `read_video` takes: "video" files, or "frames", folders of images; `None`: neither."""
    return next((name for name in ("video", "frames") if name in columns), None)


class Clips(torch.utils.data.Dataset):
    """Rows of a data set, each with what it is trained against and a choice of its frames.

    Args:
        rows: a `datasets.Dataset` with a `video`, `frames` or `image` column.
        video_processor: an `EmoCLIPVideoProcessor`; says how many frames and which.
        texts: one for each row, for models that compare videos with texts.
        labels: `(N,)` class numbers or `(N, n)` targets, for models with labels.
        frame_sampling: overrides the processor's choice, for training.
        augmentation: of pixels, for training.
        seed: of random choices, which depend on (seed, epoch, row) alone.
        frame_embeds: the rows' frames, already encoded (`feature_cache.FrameEmbeds`); pixels are then not read.
        encode_every: of which each k-th is there.
        text_embeds: text -> `(D,)`, already encoded; `None` if the text tower learns.
        short_clips, shortest: see `DataRecipe`; only of frames that are encoded already.
        on_error: "raise", or "skip" to leave a clip that cannot be decoded out of its batch, with a warning.
    """

    def __init__(
        self,
        rows,
        video_processor,
        texts: list[str] | None = None,
        labels: torch.Tensor | None = None,
        frame_sampling: str | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        frame_embeds=None,
        encode_every: int = 1,
        text_embeds: dict[str, torch.Tensor] | None = None,
        on_error: str = "raise",
        short_clips: str = "repeat",
        shortest: int | None = None,
    ):
        if frame_embeds is None and (short_clips, shortest) != ("repeat", None):
            raise ValueError(
                f"data.short_clips is {short_clips} and data.shortest {shortest}, but frames that go through the image"
                " tower in every step cannot be cut or padded"
            )
        self.rows, self.texts, self.labels = rows, texts, labels
        self.num_frames = video_processor.num_frames
        self.video_limits, self.guard_decoding = video_processor.video_limits, video_processor.guard_decoding
        self.frame_sampling = frame_sampling or video_processor.frame_sampling
        if self.frame_sampling.startswith("strided") and video_processor.frame_stride % encode_every:
            raise ValueError(
                f"data.encode_every is {encode_every}, but must divide model.video_processor.frame_stride = "
                f"{video_processor.frame_stride}"
            )
        self.frame_stride = max(1, video_processor.frame_stride // encode_every)
        self.augment = augmentation_transforms(augmentation) if augmentation else None
        self.seed = seed
        self.epoch = 0
        self.frame_embeds = frame_embeds
        self.text_embeds = text_embeds
        self.on_error = on_error
        self.short_clips, self.shortest = short_clips, shortest

    def __len__(self):
        return len(self.rows)

    def set_epoch(self, epoch: int):
        """Other random frames in each epoch."""
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
            return item | {"frame_embeds": self._chosen(self.frame_embeds[index, view], index, rng)}
        row = self.rows[index]
        if "components" in row:
            item["components"] = torch.tensor(row["components"])
        if "image" in row:
            return item | {"frames": self._augmented(np.array(row["image"].convert("RGB"))[None], rng)}
        try:
            frames, _ = read_video(
                row[media_column(row)],
                lambda metadata: self._choose_frames(metadata.total_num_frames, rng),
                limits=self.video_limits,
                guarded=self.guard_decoding,
            )
        except (ValueError, OSError) as error:
            if self.on_error == "raise":
                raise
            logger.warning(f"left out: {error}")
            return None
        return item | {"frames": self._augmented(frames, rng)}

    def _chosen(self, frame_embeds: torch.Tensor, index: int, rng: np.random.Generator) -> torch.Tensor:
        """Of all frames of a clip `(T, D)` those that are wanted, with zeros for missing ones if that is wanted."""
        if self.shortest is not None:
            # By the row alone: the same in training and every evaluation.
            kept = np.random.default_rng(index).integers(min(self.shortest, len(frame_embeds)), len(frame_embeds) + 1)
            frame_embeds = frame_embeds[:kept]
        missing = self.num_frames - len(frame_embeds)
        if missing > 0 and self.short_clips != "repeat":
            padding = missing if self.short_clips == "zeros" else 0
            return torch.nn.functional.pad(frame_embeds, (0, 0, 0, padding))
        return frame_embeds[torch.from_numpy(self._choose_frames(len(frame_embeds), rng))]

    def digest(self) -> str:
        """Changes with the clips, their order, and what they are trained against."""
        names = self.rows["clip_id"] if "clip_id" in self.rows.column_names else range(len(self.rows))
        labels = None if self.labels is None else self.labels.tolist()
        described = json.dumps([list(map(str, names)), self.texts, labels])
        return hashlib.sha256(described.encode()).hexdigest()[:20]

    def names(self, indices: list[int]) -> list[str]:
        """What messages call some clips."""
        return [str(self.rows[index].get("clip_id", index)) for index in indices]

    def _augmented(self, frames: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        pixels = torch.from_numpy(frames).movedim(-1, 1)  # (T, 3, H, W)
        if self.augment is None:
            return pixels
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(int(rng.integers(2**62)))
            return self.augment(pixels)

    def _choose_frames(self, total_num_frames: int, rng: np.random.Generator) -> np.ndarray:
        return sample_frames(self.frame_sampling, total_num_frames, self.num_frames, stride=self.frame_stride, rng=rng)


class Collator:
    """Items of `Clips` -> the model's inputs, and `clip_index (B,)`: which clips they are; empty if there are none.

    Args:
        processor: `EmoCLIPProcessor`.
        with_components: also hand the `components` column on.
    """

    def __init__(self, processor, with_components: bool = False):
        self.processor = processor
        self.with_components = with_components

    def __call__(self, items: list[dict | None]) -> dict:
        items = [item for item in items if item is not None]
        if not items:  # not one clip of the batch can be decoded
            return {}
        batch = {"clip_index": torch.tensor([item["clip_index"] for item in items])}
        if "text" in items[0]:
            # Also with text_embeds: the loss tells by input_ids which clips of the batch have the same text.
            texts = [item["text"] for item in items]
            batch |= {**self.processor(text=texts, return_tensors="pt"), "return_loss": True}
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
    """Frames `(T, 3, H, W)`, uint8 -> the same, altered. Each transform draws once a call, so once for all frames."""
    transforms = [
        v2.RandomHorizontalFlip(augmentation.flip),
        v2.ColorJitter(brightness=augmentation.brightness),
        v2.RandomAffine(augmentation.rotation, translate=(augmentation.shift, augmentation.shift)),
    ]
    return v2.Compose([*transforms, _RandomCrop(augmentation.crop)] if augmentation.crop else transforms)


class _RandomCrop(v2.Transform):
    """RandomResizedCrop to the size that came in, which torchvision wants to know beforehand."""

    def __init__(self, crop: float):
        super().__init__()
        self.crop = crop

    def forward(self, frames):
        size = frames.shape[-2:]
        return v2.RandomResizedCrop(size, scale=(1 - self.crop, 1.0), antialias=True)(frames)

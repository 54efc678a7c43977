# SPDX-License-Identifier: Apache-2.0
"""Clips as training sees them, and how they become a batch. B clips, T frames, D embedding width."""

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torchvision.transforms import v2

from modeling_emoclip.frame_sampling import sample_frames
from modeling_emoclip.video_decoding import read_video
from training.recipe import Augmentation


class Clips(torch.utils.data.Dataset):
    """Rows of a data set, each with a text and a choice of its frames.

    Args:
        rows: a `datasets.Dataset` with a `video` or `image` column and a `caption` column.
        video_processor: an `EmoCLIPVideoProcessor`; says how many frames and which.
        frame_sampling: overrides the processor's choice, for training.
        seed: of random choices, which depend on (seed, epoch, row) alone.
        frame_embeds: the rows' frames, already encoded (`feature_cache.FrameEmbeds`); pixels are then not read.
        text_embeds: caption -> `(D,)`, already encoded; `None` if the text tower learns.
    """

    def __init__(self, rows, video_processor, frame_sampling=None, seed=0, frame_embeds=None, text_embeds=None):
        self.rows = rows
        self.captions = list(rows["caption"])  # a row costs more to fetch than everything else a cached clip needs
        self.num_frames = video_processor.num_frames
        self.frame_stride = video_processor.frame_stride
        self.frame_sampling = frame_sampling or video_processor.frame_sampling
        self.seed = seed
        self.epoch = 0
        self.frame_embeds = frame_embeds
        self.text_embeds = text_embeds

    def __len__(self):
        return len(self.rows)

    def set_epoch(self, epoch: int):
        """Other random frames in each epoch."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        item = {"caption": self.captions[index]}
        if self.text_embeds is not None:
            item["text_embeds"] = self.text_embeds[item["caption"]]

        def choose_frames(total_num_frames: int) -> np.ndarray:
            rng = np.random.default_rng([self.seed, self.epoch, index])
            return sample_frames(
                self.frame_sampling, total_num_frames, self.num_frames, stride=self.frame_stride, rng=rng
            )

        if self.frame_embeds is not None:
            frame_embeds = self.frame_embeds[index]  # (all frames, D)
            item["frame_embeds"] = frame_embeds[choose_frames(len(frame_embeds))]
            return item
        row = self.rows[index]
        if "components" in row:
            item["components"] = torch.tensor(row["components"])
        if "image" in row:
            item["frames"] = torch.from_numpy(np.array(row["image"].convert("RGB")))[None]  # (1, H, W, 3)
        else:
            frames, _ = read_video(row["video"], lambda metadata: choose_frames(metadata.total_num_frames))
            item["frames"] = torch.from_numpy(frames)
        return item


class Collator:
    """Items of `Clips` -> the model's inputs.

    Args:
        processor: `EmoCLIPProcessor`.
        augmentation: of pixels, in training.
        with_components: also hand the `components` column on.
    """

    def __init__(self, processor, augmentation: Augmentation | None = None, with_components: bool = False):
        self.processor = processor
        self.augment = _transforms(augmentation) if augmentation else None
        self.with_components = with_components

    def __call__(self, items: list[dict]) -> dict:
        captions = [item["caption"] for item in items]
        # Also with text_embeds: the loss tells by input_ids which clips of the batch have the same text.
        batch = dict(self.processor(text=captions, return_tensors="pt"))
        if "text_embeds" in items[0]:
            batch["text_embeds"] = torch.stack([item["text_embeds"] for item in items])
        if "frame_embeds" in items[0]:
            clips = [item["frame_embeds"] for item in items]
            batch["frame_embeds"] = pad_sequence(clips, batch_first=True)  # (B, T, D)
            lengths = torch.tensor([len(clip) for clip in clips])
            batch["frame_mask"] = torch.arange(lengths.max()) < lengths[:, None]  # (B, T)
        else:
            clips = [item["frames"].movedim(-1, 1) for item in items]  # each (T, 3, H, W)
            if self.augment is not None:
                clips = [self.augment(clip) for clip in clips]
            batch |= self.processor.video_processor(clips, do_sample_frames=False, return_tensors="pt")
        if self.with_components:
            batch["components"] = torch.stack([item["components"] for item in items])
        return batch | {"return_loss": True}


def _transforms(augmentation: Augmentation) -> v2.Compose:
    """Every transform draws once for each call, hence once for all the frames of a clip."""
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(augmentation.flip),
            v2.ColorJitter(brightness=augmentation.brightness),
            v2.RandomAffine(augmentation.rotation, translate=(augmentation.shift, augmentation.shift)),
        ]
    )

# SPDX-License-Identifier: Apache-2.0
"""Windows of the people in a video, recorded or live: every face is cropped and encoded once, and windows share them.

Shapes: B windows, T frames of a window, C labels, D embedding width.
"""

from collections.abc import Sequence

import numpy as np
import torch

from emoclip.faces.crops import Crop, FaceCropper
from modeling_emoclip.label_scoring import LabelScorer


class PersonWindows:
    """Crops and encodes the people in frames, remembers them, and pools windows of one person to embeddings.

    It holds the crops that wait to be encoded and the embeddings that were not forgotten, and no frame.

    Args:
        pipe: `ZeroShotVideoClassificationPipeline` of emoclip/pipeline.py.
        crop_faces: finds the people in a frame.
        batch_size: faces, or windows, that are encoded together.

    Attributes:
        seen: person -> position -> crop, in the order of positions. A position is a step of a grid, or a time.
    """

    def __init__(self, pipe, crop_faces: FaceCropper, batch_size: int = 32):
        self.pipe, self.crop_faces, self.batch_size = pipe, crop_faces, batch_size
        self.seen: dict[int, dict[float, Crop]] = {}
        self.newest: list[Crop] = []
        self._waiting: list[tuple[Crop, torch.Tensor]] = []

    def __len__(self) -> int:
        """The number of crops that wait to be encoded."""
        return len(self._waiting)

    def push(self, frame: np.ndarray, time: float, position: float) -> list[Crop]:
        """Adds a frame `(H, W, 3)`, uint8, RGB, at a time in seconds; returns the crops of the people in it."""
        self.newest = self.crop_faces(frame, time)
        if self.newest:
            # The crops of a frame are of one size, and so go through the processor as the frames of one clip.
            pixels = np.stack([crop.pixels for crop in self.newest])
            inputs = self.pipe.processor.video_processor(pixels, do_sample_frames=False, return_tensors="pt")
            self._waiting += zip(self.newest, inputs["pixel_values_videos"][0], strict=True)
        self.hold(position)
        return self.newest

    def hold(self, position: float) -> None:
        """Adds the newest frame again, which is still on screen at another position."""
        for crop in self.newest:
            self.seen.setdefault(crop.person, {})[position] = crop

    @torch.no_grad()
    def encode(self) -> None:
        """Encodes the crops that wait."""
        for first in range(0, len(self._waiting), self.batch_size):
            batch = self._waiting[first : first + self.batch_size]
            embeds = self.pipe.encode_frames(torch.stack([pixels for _, pixels in batch]))
            for (crop, _), embed in zip(batch, embeds, strict=True):
                crop.pixels, crop.embed = None, embed
        self._waiting = []

    @torch.no_grad()
    def pool(self, windows: Sequence[Sequence[Crop | None]]) -> np.ndarray:
        """Pools windows, each of T encoded crops with `None` for missing frames, to unit embeddings `(B, D)`."""
        pooled = []
        for first in range(0, len(windows), self.batch_size):
            batch = windows[first : first + self.batch_size]
            frame_mask = torch.tensor([[crop is not None for crop in crops] for crops in batch])  # (B, T)
            embeds = torch.stack([crop.embed for crops in batch for crop in crops if crop is not None])
            frame_embeds = embeds.new_zeros(*frame_mask.shape, embeds.shape[-1])  # (B, T, D)
            frame_embeds[frame_mask.to(frame_embeds.device)] = embeds
            outputs = self.pipe.model.get_video_features(frame_embeds=frame_embeds, frame_mask=frame_mask)
            pooled.append(torch.nn.functional.normalize(outputs.pooler_output, dim=-1).float().cpu().numpy())
        return np.concatenate(pooled) if pooled else np.empty((0, self.pipe.model.config.projection_dim), np.float32)

    def forget(self, before: float, most: int | None = None) -> None:
        """Drops what lies at positions less than `before`, and all but the last `most` crops of a person."""
        for person, crops in list(self.seen.items()):
            kept = [(position, crop) for position, crop in crops.items() if position >= before]
            self.seen[person] = dict(kept if most is None else kept[-most:])
            if not kept:
                del self.seen[person]


@torch.no_grad()
def score_windows(pipe, scorer: LabelScorer, embeds: np.ndarray, logit_scale: float, logit_bias: float) -> np.ndarray:
    """Scores unit embeddings `(B, D)` of windows against a label set: `(B, C)`, float32."""
    class_embeds = pipe.class_embeds(scorer.texts).float().cpu()
    return scorer.scores(torch.from_numpy(embeds) @ class_embeds.T * logit_scale + logit_bias).numpy()


def logit_scale_and_bias(model) -> tuple[float, float]:
    """Returns what turns a cosine into the model's logit."""
    return float(model.logit_scale.exp()), 0.0 if model.logit_bias is None else float(model.logit_bias)


__all__ = ["PersonWindows", "logit_scale_and_bias", "score_windows"]

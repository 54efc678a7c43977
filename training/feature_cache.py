# SPDX-License-Identifier: Apache-2.0
"""Each frame of a data set through the frozen image tower once, kept on disk.

While the towers are frozen nothing but the temporal part learns, and it reads frame embeddings: encoding them once
instead of in every epoch is the difference between seconds and hours. All frames of a clip are kept, so that training
may still pick other frames in every epoch.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from modeling_emoclip.video_decoding import read_video

CLIPS_PER_SHARD = 256
FRAMES_PER_BATCH = 256
# All frames of a clip are kept, so what picks among them makes no other embeddings.
FRAME_CHOICE = {"num_frames", "fps", "do_sample_frames", "frame_sampling", "frame_stride", "seed"}


class FrameEmbeds:
    """`frame_embeds[i]` -> `(frames of clip i, D)`, read from shards that are mapped, not loaded."""

    def __init__(self, shards: list[Path]):
        self.offsets: list[tuple[int, int, int]] = []  # clip -> shard, first row, last row + 1
        for number, shard in enumerate(shards):
            with safe_open(shard, "pt") as file:
                ends = np.cumsum(file.get_tensor("num_frames").numpy())
            self.offsets += [(number, int(start), int(end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        self.shards = [safe_open(shard, "pt").get_slice("frame_embeds") for shard in shards]

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> torch.Tensor:
        shard, start, end = self.offsets[index]
        return self.shards[shard][start:end]


def encode_frames(model, video_processor, rows, cache_dir: Path, num_workers: int = 0, title: str = "") -> FrameEmbeds:
    """Encodes what is not yet in `cache_dir`; an interrupted run goes on with the next shard.

    Args:
        model: `EmoCLIPModel`, on its device.
        video_processor: its size, crop and normalisation count; its choice of frames does not.
        rows: `datasets.Dataset` with a `video` column.
        cache_dir: the folder of this split is named in it by the weights, the preprocessing and the files.
        num_workers: processes that decode.
        title: of the progress bar.
    """
    folder = cache_dir / _fingerprint(model, video_processor, rows)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(rows), CLIPS_PER_SHARD)
    shards = [folder / f"clips_{start:07d}.safetensors" for start in starts]
    missing = [start for start, shard in zip(starts, shards, strict=True) if not shard.exists()]
    clips = [index for start in missing for index in range(start, min(start + CLIPS_PER_SHARD, len(rows)))]
    loader = torch.utils.data.DataLoader(
        _AllFrames(rows.select(clips), video_processor), batch_size=None, num_workers=num_workers
    )
    waiting: list[torch.Tensor] = []  # short clips wait for each other, so that the tower gets full batches
    encoded: list[torch.Tensor] = []
    for index, pixel_values in zip(clips, tqdm(loader, title, unit="clip", disable=not clips), strict=True):
        waiting.append(pixel_values)
        shard_is_complete = (index + 1) % CLIPS_PER_SHARD == 0 or index + 1 == len(rows)
        if shard_is_complete or sum(map(len, waiting)) >= FRAMES_PER_BATCH:
            encoded += _encode(model, torch.cat(waiting)).split([len(clip) for clip in waiting])
            waiting = []
        if shard_is_complete:
            _write(shards[index // CLIPS_PER_SHARD], encoded)
            encoded = []
    return FrameEmbeds(shards)


class _AllFrames(torch.utils.data.Dataset):
    def __init__(self, rows, video_processor):
        self.rows, self.video_processor = rows, video_processor

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        frames, _ = read_video(self.rows[index]["video"], lambda metadata: np.arange(metadata.total_num_frames))
        inputs = self.video_processor(frames, do_sample_frames=False, return_tensors="pt")
        return inputs["pixel_values_videos"][0]  # (T, 3, height, width)


@torch.inference_mode()
def _encode(model, pixel_values: torch.Tensor) -> torch.Tensor:
    chunks = pixel_values.to(model.device, model.dtype).split(FRAMES_PER_BATCH)
    pooled = [model.vision_model(pixel_values=chunk).pooler_output for chunk in chunks]
    return model.visual_projection(torch.cat(pooled)).float().cpu()  # (T, D)


def _write(shard: Path, encoded: list[torch.Tensor]):
    unfinished = shard.with_suffix(f".{os.getpid()}.tmp")
    lengths = torch.tensor([len(clip) for clip in encoded])
    save_file({"frame_embeds": torch.cat(encoded), "num_frames": lengths}, unfinished)
    os.replace(unfinished, shard)


def _fingerprint(model, video_processor, rows) -> str:
    """Changes with the image tower's weights, the preprocessing, and the name, size or date of any file."""
    digest = hashlib.sha256()
    tower = model.vision_model.state_dict() | {"projection": model.visual_projection.weight}
    for name, weight in tower.items():
        digest.update(name.encode() + weight.detach().float().cpu().numpy().tobytes())
    preprocessing = {name: value for name, value in video_processor.to_dict().items() if name not in FRAME_CHOICE}
    digest.update(json.dumps(preprocessing, sort_keys=True, default=str).encode())
    for video in rows["video"]:
        status = os.stat(video["path"])
        digest.update(f"{video['path']} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:20]

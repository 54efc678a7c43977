# SPDX-License-Identifier: Apache-2.0
"""Videos -> one row of numbers each, for a probe of one's own: a classifier, a regression, a search.

Shapes: N videos that have a row, D embedding width, B videos of a batch, T frames.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature
from transformers.utils import logging

from .video_inputs import is_in_memory, split_batch, video_name

logger = logging.get_logger(__name__)
ON_ERROR = ("raise", "skip")


class VideoEmbeddings(NamedTuple):
    """`embeds, metadata, skipped = pipe.embed(videos)`."""

    embeds: np.ndarray
    """`(N, D)`, float32, the `pooler_output` of `get_video_features`: not of unit length."""
    metadata: list[dict[str, Any]]
    """Of each row: `index` among the given videos, `video` (its path, where it has one), `num_frames`, `fps` and
    `duration` in seconds (`None` if unknown), `frames_used`, and `face_found` (`None`: not looked for)."""
    skipped: list[dict[str, Any]]
    """`index`, `video` and `error` of the videos that have no row."""


@torch.no_grad()
def embed_videos(
    pipe, videos: Any, face_options: dict, no_face: str, batch_size: int, on_error: str, progress: bool
) -> VideoEmbeddings:
    """`pipe.embed`; `face_options` are of `pipe.read_clip`."""
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error is {on_error!r}, but must be one of {', '.join(ON_ERROR)}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
    videos, embeds = split_batch(videos), [np.empty((0, pipe.model.config.projection_dim), np.float32)]
    metadata, skipped, waiting = [], [], []
    with pipe.device_placement(), tqdm(total=len(videos), unit="video", disable=not progress) as bar:
        for index, video in enumerate(videos):
            about = {"index": index, "video": _name(video, index, len(videos))}
            try:
                clip, about_clip = _read(pipe, video, face_options)
                if no_face == "nothing" and about_clip["face_found"] is False:
                    skipped.append(about | {"error": "no face found"})
                    continue
            except (OSError, ValueError) as error:
                if on_error == "raise":
                    raise
                logger.warning(f"skipped: {error}")
                skipped.append(about | {"error": str(error)})
            else:
                waiting.append(clip)
                metadata.append(about | about_clip)
            if waiting and (len(waiting) == batch_size or index == len(videos) - 1):
                embeds.append(_encode(pipe, waiting))
                waiting = []
            bar.update()
    return VideoEmbeddings(np.concatenate(embeds), metadata, skipped)


def _read(pipe, video: Any, face_options: dict) -> tuple[BatchFeature, dict[str, Any]]:
    clip, metadata = pipe.read_clip(video, **face_options)
    face_found = bool(clip.pop("face_found")) if "face_found" in clip else None
    about = {"num_frames": metadata.total_num_frames, "fps": metadata.fps, "duration": metadata.duration}
    mask = clip.setdefault("frame_mask", torch.ones(clip["pixel_values_videos"].shape[:2], dtype=torch.bool))
    return clip, about | {"frames_used": int(mask.sum()), "face_found": face_found}


def _encode(pipe, clips: list[BatchFeature]) -> np.ndarray:
    """`(B, D)`; clips of other sizes, which make no batch, one by one."""
    pixels, masks = ([clip[name][0] for clip in clips] for name in ("pixel_values_videos", "frame_mask"))
    if len({clip.shape[1:] for clip in pixels}) > 1:
        return np.concatenate([_encode(pipe, [clip]) for clip in clips])
    padded = {"pixel_values_videos": pad_sequence(pixels, True), "frame_mask": pad_sequence(masks, True)}
    inputs = pipe.with_frame_embeds(BatchFeature(padded).to(pipe.device, pipe.dtype))
    return pipe.model.get_video_features(**inputs).pooler_output.float().cpu().numpy()


def _name(video: Any, index: int, number: int) -> str:
    if is_in_memory(video) or isinstance(video, (bytes, bytearray)):
        return video_name(index, number)
    if isinstance(video, dict):
        return str(video.get("path") or video_name(index, number))
    return str(video[0] if isinstance(video, list) else video)


__all__ = ["VideoEmbeddings", "embed_videos"]

# SPDX-License-Identifier: Apache-2.0
"""Video inputs: batches are split into single videos, and frames in memory become tensors `(T, C, H, W)`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import ChannelDimension
from transformers.video_utils import VideoMetadata

from .video_reading import is_image_path, stack_images


def split_batch(videos: Any) -> list:
    """Splits one video, or a batch of any nesting, into a list of videos without opening files.

    Each is then an array or tensor of 4 dimensions, a list of frames (PIL images or arrays of 3 dimensions), or an
    input of `read_video`. Raises a ValueError that says which video is empty or of another rank.
    """
    return _flatten(videos, "the video")


def _flatten(videos: Any, name: str) -> list:
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        if videos.ndim not in (4, 5) or 0 in videos.shape:
            raise ValueError(
                f"{name} is an array of shape {tuple(videos.shape)}, but must be (frames, height, width, channels) or "
                "(frames, channels, height, width), or a batch of such with 5 dimensions, and none of them 0"
            )
        return list(videos) if videos.ndim == 5 else [videos]
    if isinstance(videos, Image.Image):
        return [[videos]]
    if not isinstance(videos, (list, tuple)):
        return [videos]
    if not videos:
        raise ValueError(f"{name} is an empty list: a video needs at least one frame, a batch at least one video")
    if all(map(_is_frame, videos)) or all(map(is_image_path, videos)):
        return [list(videos)]
    if any(map(_is_frame, videos)):
        raise ValueError(f"{name} is a list that mixes frames with videos; a list is one video or a batch of videos")
    return [one for index, video in enumerate(videos) for one in _flatten(video, video_name(index, len(videos)))]


def is_in_memory(video: Any) -> bool:
    """Returns whether a video is an array or list of frames, for `select_frames`; `read_video` takes the others."""
    return isinstance(video, (np.ndarray, torch.Tensor)) or (isinstance(video, list) and _is_frame(video[0]))


def _is_frame(item: Any) -> bool:
    return isinstance(item, Image.Image) or (isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 3)


def select_frames(video: Any, metadata: VideoMetadata, choose_frames: Callable | None, name: str) -> tuple:
    """Returns the chosen frames, or all, of a video in memory as 4 dimensions, and its metadata."""
    if choose_frames is not None:
        if metadata.total_num_frames != len(video):
            raise ValueError(
                f"{name} has {len(video)} frames, but its video_metadata says {metadata.total_num_frames}; if frames "
                "were sampled before, pass do_sample_frames=False"
            )
        metadata.frames_indices = choose_frames(metadata=metadata)
        indices = metadata.frames_indices
        video = [video[index] for index in indices] if isinstance(video, list) else video[indices]
    elif metadata.frames_indices is None:
        metadata.frames_indices = np.arange(len(video))
    return _stack(video, name) if isinstance(video, list) else video, metadata


def _stack(frames: list, name: str) -> Any:
    if all(isinstance(frame, Image.Image) for frame in frames):
        return stack_images(frames)
    arrays = [torch.as_tensor(np.array(frame) if isinstance(frame, Image.Image) else frame) for frame in frames]
    shapes = sorted({tuple(array.shape) for array in arrays})
    if len(shapes) > 1 or 0 in shapes[0]:
        raise ValueError(f"{name} has frames of the shapes {', '.join(map(str, shapes))}, which make no video")
    return torch.stack(arrays)


def channels_first(video: Any, layout: str | ChannelDimension | None, name: str) -> torch.Tensor:
    """Converts an array or tensor of 4 dimensions to `(T, C, H, W)`, uint8 or float32, where C is 1, 3 or 4.

    Raises a ValueError for other channels, integers outside 0 to 255, and values that are not finite or no numbers.
    """
    frames = _to_tensor(video, name)
    if layout is None:
        layout = ChannelDimension.LAST if frames.shape[-1] in (1, 3, 4) else ChannelDimension.FIRST
    if layout == ChannelDimension.LAST:
        frames = frames.permute(0, 3, 1, 2)
    if frames.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"{name} has the shape {tuple(video.shape)}: {frames.shape[1]} channels, if they are {layout}, but must "
            "have 1, 3 or 4"
        )
    if frames.is_floating_point():
        frames = frames.to(torch.float32)
        if not torch.isfinite(frames).all():
            frame = int((~torch.isfinite(frames)).flatten(1).any(dim=1).nonzero()[0])
            raise ValueError(
                f"{name} holds values that are not finite (NaN, infinity) in frame {frame} of the {len(frames)} taken"
            )
    elif frames.dtype != torch.uint8:
        if frames.min() < 0 or frames.max() > 255:
            raise ValueError(f"{name} holds integers from {frames.min()} to {frames.max()}, but must stay in 0 to 255")
        frames = frames.to(torch.uint8)
    return frames.contiguous()


def _to_tensor(video: Any, name: str) -> torch.Tensor:
    if isinstance(video, np.ndarray) and video.dtype.kind in "iuf":
        if video.dtype.kind in "iu" and video.dtype != np.uint8:
            video = video.astype(np.int64)  # torch has no min of unsigned types
        # torch takes neither negative strides, nor read-only memory without a warning, nor foreign byte order
        video = torch.from_numpy(np.require(video, video.dtype.newbyteorder("="), ["C", "W"]))
    if not isinstance(video, torch.Tensor) or video.dtype == torch.bool or video.is_complex():
        raise ValueError(f"{name} is of type {video.dtype}, but must hold integers from 0 to 255, or floats")
    return video


def is_rescaled(frames: torch.Tensor) -> bool:
    """Returns whether a video is taken to hold values from 0 to 1: floats, none above 1."""
    return frames.is_floating_point() and bool(frames.max() <= 1)


def video_name(index: int, batch_size: int) -> str:
    """Returns the name of a video without a path in messages, counted from 1."""
    return "the video" if batch_size == 1 else f"video {index + 1} of the batch of {batch_size}"

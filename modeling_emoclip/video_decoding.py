# SPDX-License-Identifier: Apache-2.0
"""From a video file, or a folder of frame images, to the frames that somebody chooses; no others are decoded."""

import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from transformers.video_utils import VideoMetadata

from .video_guard import read_guarded
from .video_limits import DEFAULT_LIMITS, VideoDecodeError, VideoLimits, make_limits
from .video_streams import Decoded, VideoFacts, ask_for_frames, read_stream

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")  # by content; of others PIL hands some to programs


def read_video(
    source,
    choose_frames: Callable[[VideoMetadata], np.ndarray],
    name: str | None = None,
    limits: dict | VideoLimits | None = None,
    guarded: bool = True,
) -> tuple[np.ndarray, VideoMetadata]:
    """Decodes the chosen frames of one video, at the size it is stored in and upright.

    Args:
        source (`str`, `Path`, `bytes`, `dict` or `list`): a video file, its bytes, a folder of frame images (in the
            natural order of their names: 2.jpg before 10.jpg), an image or a list of images, or a row of a `datasets`
            column `Video(decode=False)`, `{"bytes": ..., "path": ...}`.
        choose_frames: gets the metadata (number of frames, frames per second, ...), returns the indices of the wanted
            frames, in any order and with repetitions. If fewer frames decode than the file holds, it is asked again.
        name: what error messages call a source that is not a path.
        limits: what the video may cost, see `VideoLimits`, or the fields of it that differ from the defaults.
        guarded: read files in a process of their own, which may crash or hang without taking this one along
            (docs/reliability.md says what that costs). `False` reads in this process, for files that are known.

    Returns:
        Frames `(T, H, W, 3)`, uint8, RGB, and their metadata: `frames_indices` is what was chosen. Images of other
        sizes than the first chosen one are resized to it. Where the frame rate varies by more than a frame, indices
        count on the regular grid of the mean rate and the frame on screen at that time is taken, so that sampling is
        even in time and `metadata.timestamps` are right.

    Raises:
        FileNotFoundError: no such file or folder.
        VideoDecodeError: a `ValueError`: the source is no readable video, exceeds a limit, crashed its decoder, or a
            chosen frame is missing because the file is cut off. The message names the source.
        ValueError: what is given is no video at all, or a chosen index is not in it.
    """
    source, name = _resolve(source, name or "the video")
    limits = make_limits(limits)
    if isinstance(source, list):
        decoded = _read_images(source, choose_frames, name, limits)
    else:
        read = read_guarded if guarded else read_stream
        decoded = read(source, lambda facts: choose_frames(_metadata(facts)), name, limits)
    metadata, frames = _metadata(decoded.facts), decoded.frames
    metadata.frames_indices, metadata.video_backend = decoded.chosen, decoded.backend
    metadata.height, metadata.width = frames.shape[1:3]
    limits.check_size(name, metadata.width, metadata.height)  # the header may say otherwise
    return frames, metadata


def _metadata(facts: VideoFacts) -> VideoMetadata:
    return VideoMetadata(**asdict(facts))


def is_image_path(source) -> bool:
    """Whether `source` is a path whose suffix is an image's."""
    return isinstance(source, (str, Path)) and str(source).lower().endswith(IMAGE_SUFFIXES)


def stack_images(images: list[Image.Image]) -> np.ndarray:
    """`(T, H, W, C)`, uint8; images of other sizes than the first are resized to it. C is 3, or 4 if all are RGBA."""
    mode = "RGBA" if all(image.mode == "RGBA" for image in images) else "RGB"
    images = [image.convert(mode) for image in images]
    return np.stack([np.asarray(_image_of_size(image, images[0].size)) for image in images])


def _image_of_size(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    return image if size in (None, image.size) else image.resize(size, Image.Resampling.BICUBIC)


def _resolve(source, name: str) -> tuple[str | bytes | list[str], str]:
    """A path to an existing, non-empty file, bytes or a list of images; and the name for messages."""
    if isinstance(source, dict):
        if source.get("bytes") is None and source.get("path") is None:
            raise ValueError(f"{name} is a dict whose 'bytes' and 'path' are both missing: {sorted(source)}")
        name = source.get("path") or name
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    if isinstance(source, (bytes, bytearray)):
        if not source:
            raise ValueError(f"{name} is empty: 0 bytes")
        return bytes(source), name
    if isinstance(source, list):
        return [str(path) for path in source], name
    if not isinstance(source, (str, Path)):
        raise ValueError(
            f"{name} is a {type(source).__name__}, but must be a path, bytes, a dict with 'bytes' or 'path' as of "
            "datasets' Video(decode=False), a list of frames, or an array of frames"
        )
    return _resolve_path(str(source))


def _resolve_path(path: str) -> tuple[str | list[str], str]:
    if re.match(r"[a-z]+://", path):
        shown = re.sub(r"(?<=://).*@|[?#].*", "", path)  # without passwords and tokens
        raise ValueError(f"{shown} is a URL: download it first and give the path or the bytes of the file")
    if os.path.isdir(path):
        names = sorted(filter(is_image_path, os.listdir(path)), key=_natural_key)
        names = [name for name in names if not name.startswith(".")]
        if not names:
            raise ValueError(f"{path} is a folder without frame images ({', '.join(IMAGE_SUFFIXES)})")
        return [os.path.join(path, name) for name in names], path
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    if os.path.getsize(path) == 0:
        raise ValueError(f"{path} is empty: 0 bytes")
    # Absolute, because FFmpeg takes a relative "take:1.mp4" for a protocol.
    return ([path] if is_image_path(path) else os.path.abspath(path)), path


def _natural_key(name: str) -> tuple:
    parts = re.split(r"([0-9]+)", name)  # text and digits take turns
    return [int(part) if odd else part for part, odd in zip(parts, len(parts) * [False, True], strict=False)], name


def _read_images(paths: list[str], choose_frames: Callable, name: str, limits: VideoLimits) -> Decoded:
    limits.check_length(name, len(paths))
    facts = VideoFacts(total_num_frames=len(paths))
    chosen = ask_for_frames(lambda facts: choose_frames(_metadata(facts)), facts, name)
    unique, places = np.unique(chosen, return_inverse=True)
    images = []
    for index in unique:
        image = _open_image(paths[index], limits)
        limits.check_bytes(name, len(images) + 1, *(images or [image])[0].size)
        # In its final size at once: of large images after a small one, only one is held.
        images.append(_image_of_size(image, images[0].size if images else None))
    return Decoded(stack_images(images)[..., :3], places, chosen, facts, "pillow")


def _open_image(path: str, limits: VideoLimits = DEFAULT_LIMITS) -> Image.Image:
    try:
        with Image.open(path, formats=_IMAGE_FORMATS) as image:
            limits.check_size(path, *image.size)
            limits.check_bytes(path, 1, *image.size)
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except VideoDecodeError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what PIL raises on damage
        raise VideoDecodeError(f"{path} cannot be read as an image: {error}") from None


__all__ = ["IMAGE_SUFFIXES", "is_image_path", "read_video", "stack_images"]

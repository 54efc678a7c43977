# SPDX-License-Identifier: Apache-2.0
"""Reading the chosen frames of a video file, or of a folder of frame images; no others are decoded."""

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
from .video_streams import Decoded, VideoFacts, read_stream

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")  # by content; PIL hands some of the others to programs


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
        choose_frames: returns, for the metadata, the indices of the wanted frames, in any order and with repetitions.
            It is called again if fewer frames decode than the file holds.
        name: name of a source that is not a path in error messages.
        limits: see `VideoLimits`; or its fields that differ from the defaults.
        guarded: read files in another process, which can crash or hang without harm to this one; `False` reads trusted
            files in this one. docs/reliability.md says what that costs.

    Returns:
        Frames `(T, H, W, 3)`, uint8, RGB, and their metadata, with the chosen indices as `frames_indices`. Images are
        resized to the size of the first chosen one. Where the frame rate varies by more than a frame, indices count on
        the regular grid of the mean rate and the frame on screen at that time is taken, so that sampling is even in
        time and `metadata.timestamps` are right.

    Raises:
        FileNotFoundError: no such file or folder.
        VideoDecodeError: a ValueError: the source cannot be read, exceeds a limit, crashes its decoder, or is cut off
            before a chosen frame. The message names it.
        ValueError: the source is no video at all, or a chosen index is not in it.
    """
    source, name = resolve_source(source, name or "the video")
    limits, chosen = make_limits(limits), np.empty(0)

    def choose(facts: VideoFacts) -> np.ndarray:
        nonlocal chosen
        chosen = _checked_indices(choose_frames(VideoMetadata(**asdict(facts))), facts.total_num_frames, name)
        if facts.width and facts.height:
            limits.check_bytes(name, len(chosen), facts.width, facts.height)  # with repetitions
        return np.unique(chosen)

    if isinstance(source, list):
        decoded = _read_images(source, choose, name, limits)
    else:
        decoded = (read_guarded if guarded else read_stream)(source, choose, name, limits)
    frames, metadata = decoded.frames, VideoMetadata(**asdict(decoded.facts))
    if len(frames) != len(chosen) or (np.diff(chosen) < 0).any():
        frames = frames[np.unique(chosen, return_inverse=True)[1]]
    metadata.frames_indices, metadata.video_backend = chosen, decoded.backend
    metadata.height, metadata.width = frames.shape[1:3]
    limits.check_size(name, metadata.width, metadata.height)  # the header may be wrong
    return np.ascontiguousarray(frames), metadata


def _checked_indices(indices, total_num_frames: int, name: str) -> np.ndarray:
    """Returns `(T,)`, int64; raises a ValueError for indices that are not in the clip."""
    indices = np.asarray(indices)
    if indices.ndim != 1 or not len(indices) or indices.dtype.kind not in "iu":
        raise ValueError(f"{name}: the chosen frames must be a list of indices, but are {indices!r}")
    if indices.min() < 0 or indices.max() >= total_num_frames:
        raise ValueError(
            f"{name} has {total_num_frames} frames, but frames {indices.min()} to {indices.max()} are chosen"
        )
    return indices.astype(np.int64)


def is_image_path(source) -> bool:
    """Returns whether `source` is a path with the suffix of an image."""
    return isinstance(source, (str, Path)) and str(source).lower().endswith(IMAGE_SUFFIXES)


def stack_images(images: list[Image.Image]) -> np.ndarray:
    """Stacks images to `(T, H, W, C)`, uint8, in the size of the first; C is 3, or 4 if all are RGBA."""
    mode = "RGBA" if all(image.mode == "RGBA" for image in images) else "RGB"
    images = [image.convert(mode) for image in images]
    return np.stack([np.asarray(_image_of_size(image, images[0].size)) for image in images])


def _image_of_size(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    return image if size in (None, image.size) else image.resize(size, Image.Resampling.BICUBIC)


def resolve_source(source, name: str) -> tuple[str | bytes | list[str], str]:
    """Returns an existing, non-empty file, bytes or a list of images; and the name for messages."""
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
    facts, images = VideoFacts(total_num_frames=len(paths)), []
    for index in choose_frames(facts):
        image = open_image(paths[index], limits)
        limits.check_bytes(name, len(images) + 1, *(images or [image])[0].size)
        # In its final size at once: of large images after a small one, only one is held.
        images.append(_image_of_size(image, images[0].size if images else None))
    return Decoded(stack_images(images)[..., :3], facts, "pillow")


def open_image(path: str, limits: VideoLimits = DEFAULT_LIMITS) -> Image.Image:
    """Opens an image upright, in RGB, within the limits."""
    try:
        with Image.open(path, formats=_IMAGE_FORMATS) as image:
            limits.check_size(path, *image.size)
            limits.check_bytes(path, 1, *image.size)
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except VideoDecodeError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # PIL's errors for damage
        raise VideoDecodeError(f"{path} cannot be read as an image: {error}") from None

# SPDX-License-Identifier: Apache-2.0
"""Limits on what reading one video may cost, and the error for a video that is not read."""

import math
from dataclasses import dataclass, fields

# FFmpeg's names of accepted containers. Playlists (hls, dash, concat), which make a decoder open other files, and the
# demuxers that take any text or image for a video are left out on purpose.
FORMATS = "mov matroska avi gif apng mpeg mpegvideo mpegts m4v h264 hevc obu ivf mjpeg flv asf ogg dv mxf nut".split()
FORMATS += ["yuv4mpegpipe"]


class VideoDecodeError(ValueError):
    """Error for a video that is damaged, beyond a limit, too slow, or crashes its decoder; the message names it."""


@dataclass(frozen=True)
class VideoLimits:
    """Limits for one video, checked before memory is allocated, except for the times.

    The defaults accept any ordinary video and reject malformed or abusive files; a service sets lower ones.

    Args:
        max_pixels: pixels of a frame; the default holds 8K (7680 x 4320).
        max_aspect: longer side of a frame by its shorter one; resizing the shorter side would blow up a narrow strip.
        max_frames: frames of the file, or images of the folder; the default is a day at 58 per second.
        max_seconds: length of the video; the default is a day.
        max_bytes: size of all frames taken from the video, decoded; the default is 4 GiB.
        time_limit: seconds to read the frames of a clip, or each frame where all are read; exact in a guarded process,
            elsewhere checked between packets.
        whole_time_limit: seconds to go through all frames, with the work on each; the rest is then left out.

    Raises:
        ValueError: a limit that is no positive number.
    """

    max_pixels: int = 2**25
    max_aspect: float = 32.0
    max_frames: int = 5_000_000
    max_seconds: float = 86_400.0
    max_bytes: int = 2**32
    time_limit: float = 60.0
    whole_time_limit: float = math.inf

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"video limit {field.name} is {value!r}, but must be a number above 0")

    def check_size(self, name: str, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise VideoDecodeError(
                f"{name} is refused: its frames have {width} x {height} = {width * height:,} pixels, but max_pixels "
                f"is {self.max_pixels:,}"
            )
        if min(width, height) > 0 and max(width, height) > self.max_aspect * min(width, height):
            raise VideoDecodeError(
                f"{name} is refused: its frames have {width} x {height} pixels, but max_aspect, the longer side by "
                f"the shorter one, is {self.max_aspect:g}"
            )

    def check_length(self, name: str, num_frames: int, seconds: float | None = None) -> None:
        if num_frames > self.max_frames:
            raise VideoDecodeError(
                f"{name} is refused: it has {num_frames:,} frames or more, but max_frames is {self.max_frames:,}"
            )
        if seconds is not None and seconds > self.max_seconds:
            raise VideoDecodeError(
                f"{name} is refused: it lasts {seconds:,.1f} s, but max_seconds is {self.max_seconds:,.1f}"
            )

    def check_bytes(self, name: str, num_frames: int, width: int, height: int) -> None:
        size = 3 * num_frames * width * height
        if size > self.max_bytes:
            raise VideoDecodeError(
                f"{name} is refused: {num_frames:,} frames of {width} x {height} are {size:,} bytes, but max_bytes is "
                f"{self.max_bytes:,}"
            )


DEFAULT_LIMITS = VideoLimits()


def make_limits(limits: "dict | VideoLimits | None") -> VideoLimits:
    """Returns limits for the fields that differ from the defaults.

    Raises:
        ValueError: an unknown field, or a limit that is no positive number.
    """
    if limits is None or isinstance(limits, VideoLimits):
        return limits or DEFAULT_LIMITS
    known = [field.name for field in fields(VideoLimits)]
    if unknown := sorted(set(limits) - set(known)):
        raise ValueError(f"video_limits has {', '.join(unknown)}; allowed: {', '.join(known)}")
    return VideoLimits(**limits)

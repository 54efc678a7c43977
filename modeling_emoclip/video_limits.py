# SPDX-License-Identifier: Apache-2.0
"""What reading one video may cost, whoever it comes from; and the error when it is not read."""

import math
from dataclasses import dataclass, fields

# Containers that people have videos in, as FFmpeg calls them. Left out on purpose: playlists (hls, dash, concat), by
# which a decoder opens other files, and the demuxers that take any text or image for a video.
FORMATS = "mov matroska avi gif apng mpeg mpegvideo mpegts m4v h264 hevc obu ivf mjpeg flv asf ogg dv mxf nut".split()
FORMATS += ["yuv4mpegpipe"]


class VideoDecodeError(ValueError):
    """A video that is not read. The message names it and says why: damaged, refused by a limit, too slow, crashed."""


@dataclass(frozen=True)
class VideoLimits:
    """Limits for one video. All but the time are checked before memory is taken for it.

    The defaults refuse what is no video of people: they are for a machine of one's own. A service sets its own.

    Args:
        max_pixels: of a frame; the default holds 8K (7680 x 4320).
        max_aspect: the longer side of a frame by its shorter one. Frames are resized for the model by the shorter side
            and then cropped, and a strip of a few pixels by thousands would become larger than memory.
        max_frames: in the file, or images in the folder; the default is a day of 58 a second.
        max_seconds: length; the default is a day.
        max_bytes: of all frames that are taken from the video, decoded; the default is 4 GiB.
        time_limit: seconds for reading what is taken, or for each frame where all are gone through. Kept exactly in a
            guarded process only; elsewhere between two packets of the file.
        whole_time_limit: seconds for going through all frames, with what is done to each of them; then the rest is
            left out. For a service, in which one visitor's slow video must not keep the others waiting.

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
    """From the fields that shall differ from the defaults, as a processor holds them.

    Raises:
        ValueError: an unknown field, or a limit that is no positive number.
    """
    if limits is None or isinstance(limits, VideoLimits):
        return limits or DEFAULT_LIMITS
    known = [field.name for field in fields(VideoLimits)]
    if unknown := sorted(set(limits) - set(known)):
        raise ValueError(f"video_limits has {', '.join(unknown)}; allowed: {', '.join(known)}")
    return VideoLimits(**limits)


__all__ = ["DEFAULT_LIMITS", "FORMATS", "VideoDecodeError", "VideoLimits", "make_limits"]

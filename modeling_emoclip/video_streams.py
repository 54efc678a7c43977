# SPDX-License-Identifier: Apache-2.0
"""The video stream of one file: which frames it has, and decoding a few of them.

Every file is demuxed once by PyAV, which decodes nothing and costs little: it finds what is not a video or is cut off,
counts the frames (headers lie, or say nothing) and tells their times. Then decord decodes, or PyAV where decord is
missing, refuses the file, counts other frames, or cannot be trusted with it.

This file is imported in the guarded process (video_worker.py) too, and so imports neither torch nor transformers.
"""

import io
import math
import time as clock
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
from PIL import Image

from .video_limits import DEFAULT_LIMITS, FORMATS, VideoDecodeError, VideoLimits

try:
    import decord
except ImportError:
    decord = None
else:
    decord.logging.set_level(decord.logging.QUIET)

_UNREADABLE = "cannot be read: it is no video file, or damaged or cut off"
# decord 0.6 was tried on thousands of damaged files. It aborts when the header promises absurdly many frames or hours,
# and segfaults on MPEG-4 part 2 (most .avi files) with damaged pictures, which no look at the packets can tell.
_DECORD_CODECS = ("h264", "hevc", "vp8", "vp9")
_HIGHEST_RATE = 1000.0  # frames per second; a header that promises more is damaged
_WIDEST_PIXEL = 4.0  # width by height, or height by width; of the shapes in use the widest is 2 (half-width DVD)


@dataclass
class VideoFacts:
    """What is known of a video before a frame of it is decoded: the fields of transformers' `VideoMetadata`."""

    total_num_frames: int
    fps: float | None = None
    duration: float | None = None
    width: int | None = None
    height: int | None = None


ChooseFrames = Callable[[VideoFacts], np.ndarray]


@dataclass
class Decoded:
    """Frames of one video."""

    distinct: np.ndarray  # (distinct frames, H, W, 3), uint8, RGB, in the order of time
    places: np.ndarray  # (T,): distinct[places] are the chosen frames
    chosen: np.ndarray  # (T,), int64
    facts: VideoFacts
    backend: str

    @property
    def frames(self) -> np.ndarray:
        """`(T, H, W, 3)`."""
        every_one_once = np.array_equal(self.places, np.arange(len(self.distinct)))
        return np.ascontiguousarray(self.distinct if every_one_once else self.distinct[self.places])


def read_stream(
    source: str | bytes, choose_frames: ChooseFrames, name: str, limits: VideoLimits = DEFAULT_LIMITS
) -> Decoded:
    """`read_video` of video_decoding.py for a file that exists, or its bytes."""
    try:
        table = _frame_table(source, name, limits)
        found = _read_by_time(source, table, choose_frames, name) if table.is_usable else None
        return found or _read_by_counting(source, choose_frames, name, limits)
    except av.error.ArgumentError:  # what FFmpeg says of pictures that are too large
        too_large = f"or its pictures have more pixels than max_pixels, {limits.max_pixels:,}"
        raise VideoDecodeError(f"{name} {_UNREADABLE}, {too_large}") from None
    except av.error.FFmpegError as error:
        raise VideoDecodeError(f"{name} {_UNREADABLE} ({error.strerror})") from None


@dataclass
class _FrameTable:
    """What the packets of a video stream tell without decoding: one entry for each frame, in the order of display."""

    times: np.ndarray  # (frames,), int64, in units of time_base
    keyframe_times: np.ndarray
    time_base: float
    is_usable: bool  # every frame has a time of its own
    is_cut_off: bool
    num_promised: int  # frames, by the header
    suits_decord: bool
    width: int
    height: int
    limits: VideoLimits

    @property
    def total_num_frames(self) -> int:
        return max(len(self.times), self.num_promised) if self.is_cut_off else len(self.times)

    def facts(self) -> VideoFacts:
        span = float(self.times[-1] - self.times[0]) * self.time_base
        fps = sane_rate(round((len(self.times) - 1) / span, 6) if len(self.times) > 1 else None)
        return VideoFacts(
            total_num_frames=self.total_num_frames,
            fps=fps,
            duration=None if fps is None else self.total_num_frames / fps,
            width=self.width,
            height=self.height,
        )

    def frames_at(self, indices: np.ndarray) -> np.ndarray:
        """Indices as metadata counts them -> frames of the file; the same unless the frame rate varies."""
        if len(self.times) < 3 or self.is_cut_off:
            return indices
        grid = np.linspace(self.times[0], self.times[-1], len(self.times))
        if np.abs(self.times - grid).max() <= grid[1] - grid[0]:
            return indices
        half_a_tick = 0.5  # the grid is rounded, the times are not
        return np.searchsorted(self.times, grid[indices] + half_a_tick, side="right") - 1


@contextmanager
def _opened(source: str | bytes, name: str, limits: VideoLimits = DEFAULT_LIMITS) -> Iterator[tuple]:
    """Container and its video stream; of several, the first that is not a cover picture."""
    # FFmpeg itself refuses larger pictures, wherever in the file they say how large they are.
    max_pixels = {"max_pixels": str(int(limits.max_pixels))}
    # The white lists keep a playlist that calls itself a video from fetching other things.
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS), **max_pixels}
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    how = {"timeout": limits.time_limit, "metadata_errors": "replace"}  # titles may be in any encoding
    try:
        container = av.open(file, options=options, **how)
    except av.error.ArgumentError:
        raise VideoDecodeError(f"{name} {_UNREADABLE}, or none of the formats {', '.join(FORMATS)}") from None
    with container:
        streams = [s for s in container.streams.video if av.stream.Disposition.attached_pic not in s.disposition]
        if not streams:
            raise VideoDecodeError(f"{name} has no video stream: it holds sound or pictures only, or is cut off")
        if streams[0].codec_context is None:
            raise VideoDecodeError(f"{name} cannot be read: its codec is unknown here, or its header is damaged")
        limits.check_size(name, *_shown_size(streams[0]))
        streams[0].codec_context.options = max_pixels
        streams[0].thread_type = "NONE"  # frame threads can hang next to torch's
        yield container, streams[0]


def has_no_times(container, stream: av.VideoStream) -> bool:
    """Whether the times of a file's frames are in another order than the frames.

    AVI has no times. FFmpeg counts packets, and where frames are stored in another order than they are shown, as B
    frames are, the count is not their order; decord then gives other frames from run to run.
    """
    return container.format.name == "avi" and bool(stream.codec_context.has_b_frames)


def _frame_table(source: str | bytes, name: str, limits: VideoLimits) -> _FrameTable:
    times, keyframe_times, is_cut_off = [], [], False
    with _opened(source, name, limits) as (container, stream):
        for packet in _within(limits, name, container.demux(stream)):
            if not packet.size:
                continue
            if packet.is_keyframe and packet.pts is not None:
                keyframe_times.append(packet.pts)
            if packet.is_corrupt:  # the file ends within it
                is_cut_off = True
            elif not packet.is_discard:  # those only help to decode the ones after them
                times.append(packet.pts)
        is_usable = bool(times) and None not in times and len(set(times)) == len(times)
        is_usable = is_usable and not has_no_times(container, stream)
        if is_usable:
            limits.check_length(name, len(times), float((max(times) - min(times)) * stream.time_base))
        return _FrameTable(
            times=np.sort(np.array(times if is_usable else [], dtype=np.int64)),
            keyframe_times=np.sort(np.array(keyframe_times, dtype=np.int64)),
            time_base=float(stream.time_base),
            is_usable=is_usable,
            is_cut_off=is_cut_off,
            num_promised=stream.frames if stream.frames <= limits.max_frames else 0,  # else the header is damaged
            suits_decord=len(container.streams.video) == 1
            and stream.frames in (0, len(times))
            and stream.codec_context.name in _DECORD_CODECS
            and not is_cut_off
            and _pixel_aspect(stream) == 1
            and (container.duration or 0) <= limits.max_seconds * av.time_base,
            width=_shown_size(stream)[0],
            height=_shown_size(stream)[1],
            limits=limits,
        )


def _read_by_time(source, table: _FrameTable, choose_frames, name) -> Decoded | None:
    """`None` if some frame that the file holds does not decode."""
    facts = table.facts()
    chosen = ask_for_frames(choose_frames, facts, name)
    table.limits.check_bytes(name, len(chosen), table.width, table.height)
    wanted, places = np.unique(table.frames_at(chosen), return_inverse=True)
    if wanted[-1] >= len(table.times):
        raise VideoDecodeError(
            f"{name} is cut off: {len(table.times)} of its {facts.total_num_frames} frames are there, but frame "
            f"{wanted[-1]} is wanted"
        )
    for backend, decode in (("decord", _decode_with_decord), ("pyav", _decode_with_pyav)):
        frames = decode(source, table, wanted, name)
        if frames is not None:
            return Decoded(frames, places, chosen, facts, backend)
    return None


def _decode_with_decord(source, table: _FrameTable, wanted: np.ndarray, name: str) -> np.ndarray | None:
    if decord is None or not table.suits_decord:
        return None
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        reader = decord.VideoReader(file, ctx=decord.cpu(0), num_threads=1)
        if len(reader) != len(table.times):  # it also counts frames that an edit list leaves out
            return None
        frames = reader.get_batch(wanted.tolist())
        return frames.asnumpy() if hasattr(frames, "asnumpy") else np.asarray(frames)  # a bridge is set
    except Exception:  # on videos narrower than 64 pixels, for one; PyAV decides whether the file is at fault
        return None


def _decode_with_pyav(source, table: _FrameTable, wanted: np.ndarray, name: str) -> np.ndarray | None:
    """Jumps to the last key frame before each wanted frame, unless decoding on from the previous one is nearer."""
    frames: list[np.ndarray] = []
    with _opened(source, name, table.limits) as (container, stream):
        decoded = _decoded(container, stream)
        position = table.times[0] if len(table.keyframe_times) else None
        for time in table.times[wanted]:
            before = table.keyframe_times[: np.searchsorted(table.keyframe_times, time, side="right")]
            if len(before) and before[-1] > position:
                container.seek(int(before[-1]), stream=stream)
                decoded = _decoded(container, stream)
            frame = next((frame for frame in decoded if frame.pts is not None and frame.pts >= time), None)
            if frame is None or frame.pts != time:
                return None
            position = time
            _keep(frames, _upright(frame, _pixel_aspect(stream)), len(wanted), name, table.limits)
    return np.stack(frames)


def _keep(frames: list[np.ndarray], pixels: np.ndarray, num_wanted: int, name: str, limits: VideoLimits) -> None:
    """Appends a frame, in the size of the first one, whose own size counts: the header may say another."""
    if not frames:
        limits.check_size(name, *pixels.shape[1::-1])
        limits.check_bytes(name, num_wanted, *pixels.shape[1::-1])
    frames.append(_sized(pixels, frames[0].shape[1::-1] if frames else None))


def _read_by_counting(source, choose_frames, name, limits: VideoLimits) -> Decoded:
    """Decodes everything twice; for the rare file whose packets do not tell which frames will decode."""
    total, width, height = 0, 0, 0
    with _opened(source, name, limits) as (container, stream):
        for frame in _within(limits, name, _decoded(container, stream)):
            total, width, height = total + 1, width or frame.width, height or frame.height
        rate = sane_rate(stream.average_rate)
    if total == 0:
        raise VideoDecodeError(f"{name} {_UNREADABLE} (no frame decodes)")
    facts = VideoFacts(total, rate, None if rate is None else total / rate)
    limits.check_length(name, total, facts.duration)
    chosen = ask_for_frames(choose_frames, facts, name)
    limits.check_bytes(name, len(chosen), width, height)
    wanted, places = np.unique(chosen, return_inverse=True)
    frames: list[np.ndarray] = []
    with _opened(source, name, limits) as (container, stream):
        for index, frame in enumerate(_decoded(container, stream)):
            if len(frames) < len(wanted) and index == wanted[len(frames)]:
                _keep(frames, _upright(frame, _pixel_aspect(stream)), len(wanted), name, limits)
    return Decoded(np.stack(frames), places, chosen, facts, "pyav")


def _within(limits: VideoLimits, name: str, items: Iterable) -> Iterator:
    """The packets or frames of a file, as long as there are no more, and they take no longer, than may be."""
    end = clock.monotonic() + limits.time_limit
    for number, item in enumerate(items):
        limits.check_length(name, number)
        if clock.monotonic() > end:
            raise VideoDecodeError(f"{name} is refused: it was not read within {limits.time_limit:g} s")
        yield item


def _decoded(container, stream) -> Iterator[av.VideoFrame]:
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:  # a damaged packet is a missing frame
            continue


def _upright(frame: av.VideoFrame, pixel_aspect: float = 1.0) -> np.ndarray:
    """Returns the frame as a player shows it: `(H, W, 3)`, uint8, RGB.

    Pixels that are not square are made so, without losing any, and the frame is turned as the display matrix says
    (decord turns by itself, and gets no file whose pixels are not square).
    """
    pixels = frame.to_ndarray(format="rgb24")
    pixels = _sized(pixels, _squared(frame.width, frame.height, pixel_aspect))
    return np.rot90(pixels, k=round(frame.rotation / 90))


def _squared(width: int, height: int, pixel_aspect: float) -> tuple[int, int]:
    return (round(width * pixel_aspect), height) if pixel_aspect >= 1 else (width, round(height / pixel_aspect))


def _pixel_aspect(stream: av.VideoStream) -> float:
    """Returns the width of a pixel by its height, as the header has it; 1 where that is nothing in use."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / _WIDEST_PIXEL <= aspect <= _WIDEST_PIXEL else 1.0


def _shown_size(stream: av.VideoStream) -> tuple[int, int]:
    return _squared(stream.width, stream.height, _pixel_aspect(stream))


def sane_rate(rate) -> float | None:
    """Returns frames per second as a float, or `None` for a number that no video has."""
    return float(rate) if rate and 0 < rate <= _HIGHEST_RATE else None


def sane_duration(seconds: float) -> float | None:
    """Returns a duration in seconds, or `None` for a number that no video has: a header is a claim."""
    return float(seconds) if math.isfinite(seconds) and seconds > 0 else None


def _sized(pixels: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """`(H, W, 3)`, uint8, of the size (width, height); a size may change in the middle of a video."""
    if size in (None, pixels.shape[1::-1]):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def ask_for_frames(choose_frames: Callable, facts, name: str) -> np.ndarray:
    """The chosen indices `(T,)`, int64; a ValueError if they are not in the clip of `facts.total_num_frames`."""
    indices = np.asarray(choose_frames(facts))
    total = facts.total_num_frames
    if indices.ndim != 1 or not len(indices) or indices.dtype.kind not in "iu":
        raise ValueError(f"{name}: the chosen frames must be a list of indices, but are {indices!r}")
    if indices.min() < 0 or indices.max() >= total:
        raise ValueError(f"{name} has {total} frames, but frames {indices.min()} to {indices.max()} are chosen")
    return indices.astype(np.int64)


__all__ = [
    "ChooseFrames",
    "Decoded",
    "VideoFacts",
    "ask_for_frames",
    "has_no_times",
    "read_stream",
    "sane_duration",
    "sane_rate",
]

# SPDX-License-Identifier: Apache-2.0
"""The video stream of one file: which frames it has, and decoding a few of them.

PyAV demuxes every file once, which costs little: it finds files that are no video or cut off, counts the frames
(headers are wrong, or silent) and reads their times. Then decord decodes, or PyAV where decord is missing, refuses the
file, counts other frames, or cannot be trusted with it. The guarded process imports this file too, and no torch.
"""

import io
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

UNREADABLE = "cannot be read: it is no video file, or damaged or cut off"
# On damaged files decord 0.6 aborts when a header promises absurdly many frames or hours, and segfaults on MPEG-4 part
# 2 (most .avi files) with damaged pictures, which the packets do not reveal.
_DECORD_CODECS = ("h264", "hevc", "vp8", "vp9")
_HIGHEST_RATE = 1000.0  # frames per second; a header that promises more is damaged
_WIDEST_PIXEL = 4.0  # width by height, or height by width; the widest in use is 2 (half-width DVD)


@dataclass
class VideoFacts:
    """What is known of a video before a frame is decoded: fields of transformers' `VideoMetadata`."""

    total_num_frames: int
    fps: float | None = None
    duration: float | None = None
    width: int | None = None
    height: int | None = None


# Facts -> indices of the wanted frames: distinct, sorted, int64. Asked again if fewer frames decode than were counted.
ChooseFrames = Callable[[VideoFacts], np.ndarray]


@dataclass
class Decoded:
    """The wanted frames of one video, `(n, H, W, 3)`, uint8, RGB, upright."""

    frames: np.ndarray
    facts: VideoFacts
    backend: str


def read_stream(
    source: str | bytes, choose_frames: ChooseFrames, name: str, limits: VideoLimits = DEFAULT_LIMITS
) -> Decoded:
    """Decodes the chosen frames of a file that exists, or of its bytes: see `read_video` of video_reading.py."""
    try:
        table = _frame_table(source, name, limits)
        found = _read_by_time(source, table, choose_frames, name) if table.is_usable else None
        return found or _read_by_counting(source, choose_frames, name, limits)
    except av.error.ArgumentError:  # FFmpeg's error for pictures that are too large
        too_large = f"or its pictures have more pixels than max_pixels, {limits.max_pixels:,}"
        raise VideoDecodeError(f"{name} {UNREADABLE}, {too_large}") from None
    except av.error.FFmpegError as error:
        raise VideoDecodeError(f"{name} {UNREADABLE} ({error.strerror})") from None


@dataclass
class _FrameTable:
    """What the packets of a video stream tell without decoding, with one entry for each frame in display order."""

    times: np.ndarray  # (frames,), int64, in units of time_base
    keyframe_times: np.ndarray
    time_base: float
    is_usable: bool  # every frame has a time of its own
    is_cut_off: bool
    num_promised: int  # frames, by the header
    suits_decord: bool
    size: tuple[int, int]  # width and height
    limits: VideoLimits

    def facts(self) -> VideoFacts:
        total = max(len(self.times), self.num_promised) if self.is_cut_off else len(self.times)
        span = float(self.times[-1] - self.times[0]) * self.time_base
        fps = sane_rate(round((len(self.times) - 1) / span, 6) if len(self.times) > 1 else None)
        return VideoFacts(total, fps, fps and total / fps, *self.size)

    def frames_at(self, indices: np.ndarray) -> np.ndarray:
        """Maps indices as the metadata counts them to frames of the file; they differ if the frame rate varies."""
        if len(self.times) < 3 or self.is_cut_off:
            return indices
        grid = np.linspace(self.times[0], self.times[-1], len(self.times))
        if np.abs(self.times - grid).max() <= grid[1] - grid[0]:
            return indices
        half_a_tick = 0.5  # the grid is rounded, the times are not
        return np.searchsorted(self.times, grid[indices] + half_a_tick, side="right") - 1


@contextmanager
def opened(source: str | bytes, name: str, limits: VideoLimits = DEFAULT_LIMITS) -> Iterator[tuple]:
    """Opens a file: yields the container and its first video stream that is not a cover picture."""
    # FFmpeg itself refuses larger pictures, wherever in the file their size is given.
    max_pixels = {"max_pixels": str(int(limits.max_pixels))}
    # The allow lists keep a playlist that poses as a video from fetching other things.
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS), **max_pixels}
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    how = {"timeout": limits.time_limit, "metadata_errors": "replace"}  # titles may be in any encoding
    try:
        container = av.open(file, options=options, **how)
    except av.error.ArgumentError:
        raise VideoDecodeError(f"{name} {UNREADABLE}, or none of the formats {', '.join(FORMATS)}") from None
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
    """Returns whether the frames' times are no times: FFmpeg counts an AVI's packets, which B frames put out of order.

    decord then gives other frames from run to run.
    """
    return container.format.name == "avi" and bool(stream.codec_context.has_b_frames)


def _frame_table(source: str | bytes, name: str, limits: VideoLimits) -> _FrameTable:
    times, keyframe_times, is_cut_off = [], [], False
    with opened(source, name, limits) as (container, stream):
        for packet in _within(limits, name, container.demux(stream)):
            if not packet.size:
                continue
            if packet.is_keyframe and packet.pts is not None:
                keyframe_times.append(packet.pts)
            if packet.is_corrupt:  # the file ends within it
                is_cut_off = True
            elif not packet.is_discard:  # those only help to decode later ones
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
            and pixel_aspect(stream) == 1
            and (container.duration or 0) <= limits.max_seconds * av.time_base,
            size=_shown_size(stream),
            limits=limits,
        )


def _read_by_time(source, table: _FrameTable, choose_frames: ChooseFrames, name: str) -> Decoded | None:
    """Decodes frames by their times; returns `None` if some frame that the file holds does not decode."""
    facts = table.facts()
    indices = choose_frames(facts)
    table.limits.check_bytes(name, len(indices), *table.size)
    wanted, places = np.unique(table.frames_at(indices), return_inverse=True)
    if wanted[-1] >= len(table.times):
        raise VideoDecodeError(
            f"{name} is cut off: {len(table.times)} of its {facts.total_num_frames} frames are there, but frame "
            f"{wanted[-1]} is wanted"
        )
    for backend, decode in (("decord", _decode_with_decord), ("pyav", _decode_with_pyav)):
        frames = decode(source, table, wanted, name)
        if frames is not None:
            return Decoded(frames if len(wanted) == len(indices) else frames[places], facts, backend)
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
    except Exception:  # for instance on videos narrower than 64 pixels; PyAV decides whether the file is at fault
        return None


def _decode_with_pyav(source, table: _FrameTable, wanted: np.ndarray, name: str) -> np.ndarray | None:
    """Seeks to the last key frame before each wanted frame, unless decoding on from the previous one is nearer."""
    frames: list[np.ndarray] = []
    with opened(source, name, table.limits) as (container, stream):
        decoded = decoded_frames(container, stream)
        position = table.times[0] if len(table.keyframe_times) else None
        for time in table.times[wanted]:
            before = table.keyframe_times[: np.searchsorted(table.keyframe_times, time, side="right")]
            if len(before) and before[-1] > position:
                container.seek(int(before[-1]), stream=stream)
                decoded = decoded_frames(container, stream)
            frame = next((frame for frame in decoded if frame.pts is not None and frame.pts >= time), None)
            if frame is None or frame.pts != time:
                return None
            position = time
            _append(frames, upright(frame, pixel_aspect(stream)), len(wanted), name, table.limits)
    return np.stack(frames)


def _append(frames: list[np.ndarray], pixels: np.ndarray, num_wanted: int, name: str, limits: VideoLimits) -> None:
    """Appends a frame in the size of the first one, whose own size is checked, since the header may be wrong."""
    if not frames:
        limits.check_size(name, *pixels.shape[1::-1])
        limits.check_bytes(name, num_wanted, *pixels.shape[1::-1])
    frames.append(resized(pixels, frames[0].shape[1::-1] if frames else None))


def _read_by_counting(source, choose_frames: ChooseFrames, name: str, limits: VideoLimits) -> Decoded:
    """Decodes everything twice, for the rare file whose packets do not tell which frames will decode."""
    total, width, height = 0, 0, 0
    with opened(source, name, limits) as (container, stream):
        for frame in _within(limits, name, decoded_frames(container, stream)):
            total, width, height = total + 1, width or frame.width, height or frame.height
        rate = sane_rate(stream.average_rate)
    if total == 0:
        raise VideoDecodeError(f"{name} {UNREADABLE} (no frame decodes)")
    facts = VideoFacts(total, rate, rate and total / rate, width, height)
    limits.check_length(name, total, facts.duration)
    wanted, frames = choose_frames(facts), []
    limits.check_bytes(name, len(wanted), width, height)
    with opened(source, name, limits) as (container, stream):
        for index, frame in enumerate(decoded_frames(container, stream)):
            if len(frames) < len(wanted) and index == wanted[len(frames)]:
                _append(frames, upright(frame, pixel_aspect(stream)), len(wanted), name, limits)
    return Decoded(np.stack(frames), facts, "pyav")


def _within(limits: VideoLimits, name: str, items: Iterable) -> Iterator:
    """Yields the packets or frames of a file while their number and the time stay within the limits."""
    end = clock.monotonic() + limits.time_limit
    for number, item in enumerate(items):
        limits.check_length(name, number)
        if clock.monotonic() > end:
            raise VideoDecodeError(f"{name} is refused: it was not read within {limits.time_limit:g} s")
        yield item


def decoded_frames(container, stream) -> Iterator[av.VideoFrame]:
    """Yields the frames of a stream that decode."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:  # a damaged packet is a missing frame
            continue


def upright(frame: av.VideoFrame, aspect: float = 1.0) -> np.ndarray:
    """Returns a frame as a player shows it, `(H, W, 3)`, uint8, RGB: with square pixels, and rotated.

    decord rotates by itself, and gets no file whose pixels are not square.
    """
    pixels = resized(frame.to_ndarray(format="rgb24"), _squared(frame.width, frame.height, aspect))
    return np.rot90(pixels, k=round(frame.rotation / 90))


def _squared(width: int, height: int, aspect: float) -> tuple[int, int]:
    return (round(width * aspect), height) if aspect >= 1 else (width, round(height / aspect))


def pixel_aspect(stream: av.VideoStream) -> float:
    """Returns the width of a pixel by its height, as the header has it; 1 if that is out of range."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / _WIDEST_PIXEL <= aspect <= _WIDEST_PIXEL else 1.0


def _shown_size(stream: av.VideoStream) -> tuple[int, int]:
    return _squared(stream.width, stream.height, pixel_aspect(stream))


def sane_rate(rate) -> float | None:
    """Returns frames per second as a float, or `None` for a number that no video has."""
    return float(rate) if rate and 0 < rate <= _HIGHEST_RATE else None


def resized(pixels: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Resizes `(H, W, 3)`, uint8, to (width, height) where it differs: sizes can change within a video."""
    if size in (None, pixels.shape[1::-1]):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))

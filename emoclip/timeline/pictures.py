# SPDX-License-Identifier: Apache-2.0
"""Plotting of a timeline, and drawing it into its video.

Functions whose first argument is a timeline are methods of `EmotionTimeline`.
"""

import colorsys
import contextlib
import heapq
import math
import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from emoclip.files import written
from emoclip.typed_text import PICTURE_TEXT, one_line
from emoclip.video.frames import FrameSequence
from emoclip.video.sources import open_frames, progress_bar
from modeling_emoclip.frame_sampling import check_counts
from modeling_emoclip.video_limits import VideoDecodeError

from .files import cells
from .thumbnails import thumbnail_pixels

# Distinct in hue or lightness, the first eight also for color-blind readers; more labels get generated hues.
_COLOURS = "3b76b0 f08c2e 4f9d4b d1495b 8d6bb0 e8c547 57b8b2 8c5a3c f29fb5 1d3557 a3c644 7d7d7d".split()
_WIDTH, _LEFT, _RIGHT = 14.0, 1.5, 0.35  # inches: figure width and its margins
_TICK = Fraction(1, 90_000)  # seconds; frames of all common rates last a whole number of ticks
_LONGEST_SIDE = 16_384  # pixels; limit of libx264
_MOST_CELLS = 240  # per lane; more would be indistinguishable and are averaged


def plot(timeline, path: str | Path | None = None, most_people: int = 12) -> Any:
    """Plots one lane per person over time: faces on top, the label with the highest score below.

    A paler color means that the label stands out less from the others; gray means that the person is not seen. In
    long videos neighboring windows are averaged.

    Args:
        path: file to save the plot to; its suffix selects the format.
        most_people: number of lanes; the people seen longest are drawn, in order of first appearance.

    Returns:
        The `matplotlib.figure.Figure`, which notebooks display.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plot needs matplotlib: pip install matplotlib") from None
    check_counts(most_people=most_people)
    people = sorted(timeline.people[:most_people], key=lambda one: timeline.start[timeline.person == one][0])
    lanes = {person: _blocks(timeline, person) for person in people}
    with matplotlib.rc_context(PICTURE_TEXT):
        figure = Figure()
        _draw_lanes(figure, timeline, lanes)
        if path is not None:
            with written(path) as unfinished:
                figure.savefig(unfinished, dpi=110)
    return figure


def _draw_lanes(figure, timeline, lanes: dict[int, list[tuple]]) -> None:
    """Draws the whole figure; `lanes` maps a person to its `_blocks`."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    used = sorted({index for blocks in lanes.values() for _, _, index, _ in blocks})
    header = 0.6 + 0.23 * math.ceil(len(used) / 6)  # inches, like all sizes here
    height = header + max(len(lanes), 1) + 0.4
    figure.set_size_inches(_WIDTH, height)
    axes = _empty_lanes(figure, max(len(lanes), 1), header, timeline.span)
    axes[-1].xaxis.set_major_locator(MaxNLocator(12, steps=[1, 1.5, 2, 3, 6, 10]))
    for axis, (person, blocks) in zip(axes, lanes.items(), strict=False):
        _draw_lane(axis, timeline, person, blocks)
    if not lanes:
        axes[0].text(0.5, 0.5, "nobody to show", transform=axes[0].transAxes, ha="center", size=16, color="0.4")
    patches = [Patch(color=_colour(index), label=_short(timeline.answer_name(index), 34)) for index in used]
    legend = {"loc": "upper left", "bbox_to_anchor": (0, 1 - 0.35 / height), "frameon": False, "fontsize": 10}
    figure.legend(handles=patches, ncols=6, columnspacing=1.5, handlelength=1.2, **legend)
    figure.text(0.1 / _WIDTH, 1 - 0.1 / height, _title(timeline, len(lanes)), va="top", size=12)


def _empty_lanes(figure, number: int, header: float, span: tuple[float, float]) -> list:
    height = figure.get_figheight()
    places = {"left": _LEFT / _WIDTH, "right": 1 - _RIGHT / _WIDTH, "bottom": 0.4 / height, "top": 1 - header / height}
    axes = figure.subplots(number, sharex=True, squeeze=False, gridspec_kw={"hspace": 0.05, **places})[:, 0]
    for axis in axes:
        axis.set(xlim=span, ylim=(0, 1), yticks=[])
        axis.spines[["top", "left", "right", "bottom"]].set_visible(False)
        axis.tick_params(bottom=axis is axes[-1], labelsize=10)
        axis.grid(axis="x", color="0.88", lw=0.8)
        axis.set_axisbelow(True)
    axes[-1].xaxis.set_major_formatter(lambda seconds, _: _clock(seconds))
    return list(axes)


def _draw_lane(axis, timeline, person: int, blocks: list[tuple]):
    inch = (timeline.span[1] - timeline.span[0]) / (_WIDTH - _LEFT - _RIGHT)  # its length in seconds
    axis.axhspan(0.04, 0.36, color="0.95", lw=0, zorder=0)
    for begin, end, index, strength in blocks:
        axis.broken_barh([(begin, end - begin)], (0.04, 0.32), color=_paled(index, strength), lw=0, zorder=1)
    for begin, end, index, strength in _merged(blocks):
        text, is_dark = timeline.answer_name(index), sum(_paled(index, strength)) < 1.5
        if (end - begin) / inch > 0.085 * len(text) + 0.1:
            style = {"ha": "center", "va": "center", "size": 10, "color": "white" if is_dark else "black"}
            axis.text((begin + end) / 2, 0.19, text, clip_on=True, **style)
    seconds = sum(end - begin for begin, end, *_ in blocks)
    name = f"{_short(timeline.name_of(person), 17)}\nseen {_clock(round(seconds))}"
    axis.text(-0.01, 0.5, name, transform=axis.transAxes, ha="right", va="center", size=10)
    _draw_faces(axis, timeline, person, inch)


def _draw_faces(axis, timeline, person: int, inch: float):
    """Draws each thumbnail at its time and skips those that would overlap."""
    room, height = -np.inf, 0.56
    first, last = timeline.span
    lane_inches = axis.get_position().height * axis.figure.get_figheight()
    for time, picture in timeline.thumbnails.get(person, []):
        pixels = thumbnail_pixels(picture)
        width = height * lane_inches * inch * pixels.shape[1] / pixels.shape[0]
        left = min(max(time - width / 2, first), last - width)
        if left > room:
            axis.imshow(pixels, extent=(left, left + width, 0.41, 0.41 + height), aspect="auto", zorder=2)
            room = left + 1.05 * width
    axis.set(xlim=timeline.span, ylim=(0, 1))


def _blocks(timeline, person: int) -> list[tuple[float, float, int, float]]:
    """Returns at most about 240 blocks (begin, end, answer, strength: score above chance, scaled to 0-1)."""
    rows, begin, end = cells(timeline, person)
    pause = (timeline.span[1] - timeline.span[0]) / _MOST_CELLS
    groups = (begin // pause if timeline.stride < pause else np.arange(len(rows))).astype(int)
    blocks, chance = [], 0.5 if timeline.multi_label else 1 / len(timeline.labels)
    for group in np.unique(groups):
        chosen = groups == group
        scores = timeline.scores[rows[chosen]].mean(axis=0)
        strength = max(0.0, (float(scores.max()) - chance) / (1 - chance)) if chance < 1 else 1.0
        blocks.append((begin[chosen].min(), end[chosen].max(), int(timeline.answers(scores[None])[0]), strength))
    return blocks


def _merged(blocks: list[tuple]) -> list[tuple]:
    merged: list[tuple] = []
    for begin, end, index, strength in blocks:
        if merged and merged[-1][2] == index and begin - merged[-1][1] < 1e-6:
            before, _, _, other = merged.pop()
            begin, strength = before, (strength + other) / 2
        merged.append((begin, end, index, strength))
    return merged


def _title(timeline, num_shown: int) -> str:
    parts = [Path(timeline.video).name, f"windows of {timeline.window:g} s, every {timeline.stride:g} s"]
    if num_shown < len(timeline.people):
        parts.append(f"{len(timeline.people) - num_shown} more people, seen for a shorter time, are not shown")
    if timeline.faces == "none":
        parts.append("faces not looked for")
    if timeline.face_found is False:
        parts.append("no face found")
    if not timeline.complete:
        parts.append("NOT COMPLETE, see .error")
    return "  ·  ".join(parts)


def _colour(index: int) -> tuple[float, float, float]:
    if index < 0:  # "uncertain"
        return 0.55, 0.55, 0.55
    if index < len(_COLOURS):
        return tuple(channel / 255 for channel in bytes.fromhex(_COLOURS[index]))
    return colorsys.hls_to_rgb(index * 0.618 % 1, 0.35 + 0.12 * (index % 4), 0.6)


def _paled(index: int, strength: float) -> tuple[float, ...]:
    return tuple(1 - (0.35 + 0.65 * strength) * (1 - channel) for channel in _colour(index))


def _short(text: str, most: int) -> str:
    text = one_line(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0), 1), 60)
    rest = f"{rest:04.1f}" if rest % 1 else f"{int(rest):02}"
    return f"{int(minutes)}:{rest}" if minutes < 60 else f"{int(minutes // 60)}:{int(minutes % 60):02}:{rest}"


def annotate(timeline, path: str | Path, video: Any = None, fps: float | None = None, progress: bool = True) -> Path:
    """Writes the video with a box and the top label at each person, as H.264 with its time stamps and its sound.

    Sound is copied if MP4 supports its codec, and dropped otherwise. Frames of odd size lose a row or column.

    Args:
        path: file to write, e.g. `out.mp4`; it is written atomically.
        video, fps: the video, if the timeline was not made from a file or the file has moved.

    Raises:
        ValueError: the video does not exist, or H.264 does not support its frame size.
    """
    if video is None and not os.path.exists(timeline.video):
        raise ValueError(f"{timeline.video} is not there (any more): give video=, what the timeline was made of")
    if min(timeline.size) < 2 or max(timeline.size) > _LONGEST_SIDE:
        raise ValueError(
            f"{timeline.video} has frames of {timeline.size[0]} x {timeline.size[1]} pixels, but what is drawn into "
            f"must have 2 to {_LONGEST_SIDE:,} a side"
        )
    processor = timeline.pipe and timeline.pipe.processor.video_processor
    how = {"limits": processor.video_limits, "guarded": processor.guard_decoding} if processor else {}
    frames, paint = open_frames(timeline.video if video is None else video, fps, **how), _Painter(timeline)
    frames.limits.check_size(timeline.video, *timeline.size)  # a loaded timeline is untrusted
    frames.size = timeline.size
    bar, sound = progress_bar(frames, str(path), progress), tempfile.TemporaryDirectory()
    with bar, sound, written(path) as unfinished, av.open(str(unfinished), "w") as container:
        _write(container, frames, os.path.join(sound.name, "sound.mp4"), paint, bar)
    return Path(path)


def _write(container, frames: FrameSequence, sound_file: str, paint: "_Painter", bar) -> None:
    """Writes the annotated frames and the sound, interleaved by time."""
    # At least 1: a slide of several minutes would exceed the longest packet of MP4. Time stamps are not affected.
    rate = Fraction(max(frames.fps, 1.0)).limit_denominator(100_000)
    stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
    stream.codec_context.time_base, stream.pix_fmt = _TICK, "yuv420p"
    stream.width, stream.height = (side // 2 * 2 for side in frames.size)
    pictures, last = ((frame.time, frame) for frame in frames), -1
    for time, part in heapq.merge(pictures, _sound(frames, sound_file, container), key=itemgetter(0)):
        if isinstance(part, av.Packet):
            container.mux(part)
            continue
        picture = av.VideoFrame.from_ndarray(paint(frames.pixels_of(part), time)[: stream.height, : stream.width])
        last = picture.pts = max(round(time / _TICK), last + 1)  # times in damaged files may be less than a tick apart
        picture.time_base = _TICK
        container.mux(stream.encode(picture))
        bar.update(int(time - frames.start) - bar.n)
    container.mux(stream.encode())


def _sound(frames: FrameSequence, file: str, container) -> Iterator[tuple[float, av.Packet]]:
    """Yields (time, packet) of the sound, copied to `file` first by the process that reads the video."""
    with contextlib.suppress(av.error.FFmpegError, VideoDecodeError):
        if not frames.copy_sound(file):
            return
        with av.open(file) as sound:
            stream = container.add_stream_from_template(sound.streams[0])
            for packet in sound.demux():
                if None not in (packet.pts, packet.dts):
                    packet.stream = stream
                    yield float(packet.dts * packet.time_base), packet


class _Painter:
    """A callable that draws the boxes and labels at one time into a frame."""

    def __init__(self, timeline):
        self.timeline = timeline
        self.step = timeline.window / timeline.num_frames
        self.font = ImageFont.load_default(size=max(12, min(timeline.size) // 24))
        self.line = max(2, min(timeline.size) // 200)
        self.tracks = {person: timeline.tracks[timeline.tracks[:, 1] == person] for person in timeline.people}
        self.cells = {person: cells(timeline, person) for person in timeline.people}

    def __call__(self, pixels: np.ndarray, time: float) -> np.ndarray:
        image = Image.fromarray(pixels)
        draw = ImageDraw.Draw(image)
        for person, track in self.tracks.items():
            rows, begin, end = self.cells[person]
            cell = np.searchsorted(begin, time, side="right") - 1
            box = self._box_at(track, time)
            if cell >= 0 and time < end[cell] and box is not None:
                self._draw(draw, person, box, self.timeline.scores[rows[cell]])
        return np.asarray(image)

    def _box_at(self, track: np.ndarray, time: float) -> np.ndarray | None:
        """Interpolates the box between two sampled frames; `None` if the person is not in the nearest one."""
        after = np.searchsorted(track[:, 0], time)
        near = track[max(after - 1, 0) : after + 1]
        if len(near) < 2 or near[1, 0] - near[0, 0] > 1.5 * self.step:
            near = near[np.abs(near[:, 0] - time) <= self.step / 2]
        if not len(near):
            return None
        return np.array([np.interp(time, near[:, 0], near[:, corner]) for corner in range(2, 6)])

    def _draw(self, draw: ImageDraw.ImageDraw, person: int, box: np.ndarray, scores: np.ndarray):
        best = int(self.timeline.answers(scores[None])[0])
        text = f"{_short(self.timeline.answer_name(best), 40)} {scores.max():.2f}"
        if len(self.tracks) > 1:
            text = f"{_short(self.timeline.name_of(person), 40)}: {text}"
        colour = tuple(round(255 * channel) for channel in _colour(best))
        draw.rectangle(box.tolist(), outline=colour, width=self.line)
        _, _, right, bottom = draw.textbbox((0, 0), text, font=self.font)
        x = min(max(box[0], 0), max(self.timeline.size[0] - right, 0))
        y = box[1] - bottom - 2 * self.line
        y = y if y >= 0 else max(box[1], 0) + self.line  # above the box, or inside it if there is no room
        draw.rectangle((x, y, x + right + self.line, y + bottom + self.line), fill=colour)
        draw.text((x + self.line / 2, y), text, font=self.font, fill="white" if sum(colour) < 400 else "black")

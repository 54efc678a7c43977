# SPDX-License-Identifier: Apache-2.0
"""Part 4 of the benchmark: time lines, and the latency of a live stream."""

import time
from pathlib import Path

import numpy as np

from emoclip import EmotionStream
from tools.benchmark.measuring import LABELS, Line, Sizes, in_turns, make_pipe, write_film

PART = "4 over time"
OVERLAP = 16
WINDOWS_TIMED = 3
SOURCE_FPS = 25


def timeline_lines(sizes: Sizes, folder: Path) -> list[Line]:
    """Compares a time line to scoring every window separately, timed on a few and scaled up as all cost the same."""
    pipe = make_pipe(sizes)
    pipe.processor.video_processor.num_frames = OVERLAP
    film = write_film(folder / "long.mp4", sizes.timeline_seconds)
    window = np.random.default_rng(0).integers(0, 255, (OVERLAP, 360, 640, 3), dtype=np.uint8)
    made = []

    def ours():
        how = {"window": 2.0, "stride": 2.0 / OVERLAP, "faces": "none", "progress": False}
        made.append(len(pipe.timeline(str(film), LABELS, **how)))

    ways = {"ours": ours, "anew": lambda: [pipe(window, LABELS) for _ in range(WINDOWS_TIMED)]}
    seconds = in_turns(ways, sizes.rounds, "time line")
    anew = seconds["anew"] / WINDOWS_TIMED * made[-1]
    note = f"{made[-1]} windows, 15/16 overlap, with decoding; anew without"
    return [Line(PART, "time line / each window anew", seconds["ours"] / anew, most=1 / 8, note=note)]


def live_lines(sizes: Sizes) -> list[Line]:
    """Measures the time from a frame, of 25 per second, to its scores; frames that arrive too fast are dropped."""
    pipe, ages = make_pipe(sizes), []
    frame = np.random.default_rng(0).integers(0, 255, (360, 640, 3), dtype=np.uint8)
    start = time.monotonic()
    with EmotionStream(
        pipe,
        LABELS,
        faces="none",
        max_waiting=1,
        callback=lambda one: ages.append(time.monotonic() - start - one.time),
    ) as stream:
        pipe.encode_frames(pipe.processor.video_processor(frame[None], return_tensors="pt").pixel_values_videos[0])
        while len(ages) < sizes.live_frames:
            stream.push(frame, time=time.monotonic() - start)
            time.sleep(1 / SOURCE_FPS)
    middle, late = np.percentile(ages, [50, 99])
    note = f"{len(ages)} frames scored, {stream.dropped} dropped"
    return [
        Line(PART, "live: age of an answer, median", 1000 * middle, "ms", note=note),
        Line(PART, "live: age of an answer, 99th percentile", 1000 * late, "ms"),
    ]

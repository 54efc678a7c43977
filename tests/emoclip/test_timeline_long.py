# SPDX-License-Identifier: Apache-2.0
"""What length and overlap cost. The numbers of a run are printed: pytest -m slow -s."""

import copy
import json
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from test_timeline import GREEN, LABELS, QUIET, RED, decode, find_squares, make_pipe, write_people

from emoclip import EmoCLIPModel, ZeroShotVideoClassificationPipeline

MEASURE = r"""
import json, re, sys, time
from pathlib import Path
from test_timeline import LABELS, QUIET, find_squares
from test_timeline_long import make_wide_pipe
pipe = make_wide_pipe(sys.argv[2])
start = time.process_time()
timeline = pipe.timeline(sys.argv[1], LABELS, detector=find_squares, **QUIET)
seconds = time.process_time() - start
# Not getrusage's ru_maxrss, which a process has from the one that started it.
peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps({"windows": len(timeline), "end": timeline.span[1], "seconds": seconds, "peak_mb": peak}))
"""


def make_wide_pipe(clip_dir, **vision):
    """Embeddings of 512 numbers, as CLIP's; random weights."""
    pipe = make_pipe(clip_dir)
    config = copy.deepcopy(pipe.model.config)
    config.projection_dim = 512
    config.vision_config = type(config.vision_config).from_dict(config.vision_config.to_dict() | vision)
    return ZeroShotVideoClassificationPipeline(model=EmoCLIPModel(config).eval(), processor=pipe.processor)


def repeat(source, path, times):
    """The same packets over and over: hours of video in a second."""
    with av.open(str(source)) as original, av.open(str(path), "w") as container:
        stream = original.streams.video[0]
        copied, packets = container.add_stream_from_template(stream), list(original.demux(stream))
        packets = [(packet, packet.pts, packet.dts) for packet in packets if packet.dts is not None]
        for number in range(times):
            for packet, pts, dts in packets:
                packet.stream, packet.time_base = copied, stream.time_base
                packet.pts, packet.dts = pts + number * stream.duration, dts + number * stream.duration
                container.mux(packet)
    return path


def measure(path, clip_dir):
    command = [sys.executable, "-c", MEASURE, str(path), str(clip_dir)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_two_hours_take_the_memory_of_two_minutes_and_sixty_times_the_time(clip_dir, tmp_path):
    source = write_people(tmp_path / "20s.mp4", 20, people={RED: (0, 18, 8), GREEN: (4, 16, 56)})
    short = measure(repeat(source, tmp_path / "2min.mp4", 6), clip_dir)
    long = measure(repeat(source, tmp_path / "2h.mp4", 360), clip_dir)
    print(f"\n2 min: {short}\n2 h: {long}")
    assert long["end"] == pytest.approx(7200, abs=1) and long["windows"] > 50 * short["windows"]
    assert long["peak_mb"] < 1.2 * short["peak_mb"]
    assert long["seconds"] < 1.25 * 60 * short["seconds"]  # of the processor: others may use the machine


@pytest.mark.slow
def test_an_overlap_of_fifteen_sixteenths_costs_an_eighth_of_encoding_each_window(clip_dir, tmp_path):
    torch.manual_seed(0)
    pipe = make_wide_pipe(clip_dir, hidden_size=256, intermediate_size=1024, num_hidden_layers=8, patch_size=4)
    pipe.processor.video_processor.num_frames = 16
    film = write_people(tmp_path / "film.mp4", 24)
    frames = [np.ascontiguousarray(frame[:32, :32]) for frame in decode(film)]
    start = time.process_time()  # of the processor: others may use the machine
    timeline = pipe.timeline(film, LABELS, window=2.0, stride=0.125, detector=find_squares, **QUIET)
    ours = time.process_time() - start
    start = time.process_time()
    for first in range(0, len(timeline), 3):
        pipe(np.stack(frames[first : first + 16]), candidate_labels=LABELS)
    anew = 3 * (time.process_time() - start)
    print(f"\n{len(timeline)} windows: {ours:.2f} s with decoding and faces, {anew:.2f} s anew; 1 : {anew / ours:.1f}")
    assert timeline.num_frames_seen.tolist() == [16] * 177
    assert ours < anew / 8

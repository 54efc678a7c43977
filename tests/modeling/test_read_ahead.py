# SPDX-License-Identifier: Apache-2.0
"""Reading while encoding: the same results in the same order, and no thread or process that is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import is_running, readers_of, wait_until

from emoclip import EmoCLIPModel, EmoCLIPProcessor, ZeroShotVideoClassificationPipeline

LABELS = ["a smile", "lowered eyebrows", "wide open eyes"]
INTERRUPTED = """
import sys
from test_read_ahead import LABELS, make_pipe
pipe = make_pipe(sys.argv[1])
try:
    while True:
        pipe([sys.argv[2]] * 50, candidate_labels=LABELS)
        print("read", flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def make_pipe(clip_dir):
    model = EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=0)
    processor = EmoCLIPProcessor.from_clip(clip_dir, num_frames=4)
    return ZeroShotVideoClassificationPipeline(model=model, processor=processor)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "read_ahead"]


@pytest.fixture(scope="module")
def pipe(clip_dir):
    return make_pipe(clip_dir)


@pytest.fixture(scope="module")
def clips(write_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [str(write_clip(folder / f"{number}.mp4", num_frames=3 + 4 * number)) for number in range(5)]


def test_the_next_videos_are_read_before_they_are_asked_for_and_none_far_ahead(pipe, clips, monkeypatch):
    read, preprocess = [], pipe.preprocess
    monkeypatch.setattr(pipe, "preprocess", lambda video, **how: read.append(video) or preprocess(video, **how))
    results = iter(pipe((clip for clip in 20 * clips), candidate_labels=LABELS))
    next(results)
    assert wait_until(lambda: 3 <= len([one for one in read if isinstance(one, str)]))
    assert not wait_until(lambda: len([one for one in read if isinstance(one, str)]) > 4, seconds=0.2)
    results.close()
    assert wait_until(lambda: not threads())


@pytest.mark.parametrize("batch_size", [1, 2])
def test_results_are_those_of_one_after_the_other(pipe, clips, batch_size):
    ahead = pipe(clips, candidate_labels=LABELS, batch_size=batch_size)
    for clip, result in zip(clips, ahead, strict=True):
        expected = {entry["label"]: entry["score"] for entry in pipe(clip, candidate_labels=LABELS)}
        assert {entry["label"]: entry["score"] for entry in result} == pytest.approx(expected, abs=1e-6)
    lazy = pipe((clip for clip in clips), candidate_labels=LABELS)
    assert [result[0]["label"] for result in lazy] == [result[0]["label"] for result in ahead]
    assert wait_until(lambda: not threads())


def test_errors_of_either_side_leave_no_thread(pipe, clips, tmp_path, monkeypatch):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        pipe([*clips, str(broken), *clips], candidate_labels=LABELS)
    assert wait_until(lambda: not threads())

    def fail(*args, **kwargs):
        raise MemoryError("no memory left")

    monkeypatch.setattr(pipe, "encode_frames", fail)
    with pytest.raises(MemoryError, match="no memory left") as error:
        pipe(clips, candidate_labels=LABELS)
    assert error.traceback and wait_until(lambda: not threads())  # also while the traceback holds every frame


def test_ctrl_c_ends_it_within_two_seconds_and_its_readers_with_it(clip_dir, clips):
    command = [sys.executable, "-c", INTERRUPTED, str(clip_dir), clips[0]]
    where = {"cwd": Path(__file__).parent, "env": os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **where) as process:
        assert process.stdout.readline() == "read\n"
        children = readers_of(process.pid)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        while process.stdout.readline() == "read\n":
            continue
        assert time.monotonic() - start < 2  # how long torch then takes to end is its own affair
        assert process.wait(timeout=60) == 0
    assert children and wait_until(lambda: not any(map(is_running, children)))

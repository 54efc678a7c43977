# SPDX-License-Identifier: Apache-2.0
"""Reading while encoding: the same results in the same order, and no thread or process that is left behind."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_video_guard import is_running, readers_of, wait_until

from modeling_emoclip import EmoCLIPModel, EmoCLIPProcessor, ZeroShotVideoClassificationPipeline
from modeling_emoclip.read_ahead import read_ahead

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


def test_the_next_item_is_made_before_it_is_asked_for_and_none_is_made_far_ahead():
    made = []
    items = (made.append(number) or number for number in range(100))
    reader = read_ahead(items)
    assert next(reader) == 0
    assert wait_until(lambda: made == [0, 1, 2]) and not wait_until(lambda: len(made) > 3, seconds=0.2)
    assert list(reader) == list(range(1, 100)) and not threads()


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield from range(3)
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for item in read_ahead(items()):
            seen.append(item)
    assert seen == [0, 1, 2] and not threads()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_results_are_those_of_one_after_the_other(pipe, clips, batch_size):
    ahead = pipe(clips, candidate_labels=LABELS, batch_size=batch_size)
    for clip, result in zip(clips, ahead, strict=True):
        expected = {entry["label"]: entry["score"] for entry in pipe(clip, candidate_labels=LABELS)}
        assert {entry["label"]: entry["score"] for entry in result} == pytest.approx(expected, abs=1e-6)
    lazy = pipe((clip for clip in clips), candidate_labels=LABELS)
    assert [result[0]["label"] for result in lazy] == [result[0]["label"] for result in ahead] and not threads()


def test_errors_of_either_side_leave_no_thread(pipe, clips, tmp_path, monkeypatch):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        pipe([*clips, str(broken), *clips], candidate_labels=LABELS)
    assert not threads()

    def fail(*args, **kwargs):
        raise MemoryError("no memory left")

    monkeypatch.setattr(pipe, "encode_frames", fail)
    with pytest.raises(MemoryError, match="no memory left") as error:
        pipe(clips, candidate_labels=LABELS)
    assert error.traceback and wait_until(lambda: not threads())  # also while the traceback holds every frame


def test_ctrl_c_ends_it_within_two_seconds_and_its_readers_with_it(clip_dir, clips):
    command = [sys.executable, "-c", INTERRUPTED, str(clip_dir), clips[0]]
    with subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "read\n"
        children = readers_of(process.pid)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        while process.stdout.readline() == "read\n":
            continue
        assert time.monotonic() - start < 2  # how long torch then takes to end is its own affair
        assert process.wait(timeout=60) == 0
    assert children and wait_until(lambda: not any(map(is_running, children)))

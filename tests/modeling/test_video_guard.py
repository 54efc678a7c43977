# SPDX-License-Identifier: Apache-2.0
"""Videos read in another process: what it survives, what it leaves behind, and where it works."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import is_running, readers_of, wait_until
from video_files import numbers_of, write_video

from emoclip import EmoCLIPVideoProcessor
from modeling_emoclip import video_guard
from modeling_emoclip.video_limits import VideoDecodeError
from modeling_emoclip.video_reading import read_video

CODE = Path(video_guard.__file__).parent
READERS = video_guard.CLIP_READERS


def every_frame(metadata):
    return np.arange(metadata.total_num_frames)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("guard") / "clip.mp4")


def test_the_same_frames_as_in_process(clip):
    wanted = np.array([39, 3, 3, 17, 0])
    for source in (clip, clip.read_bytes(), {"bytes": clip.read_bytes(), "path": "clip"}):
        guarded, about = read_video(source, lambda _: wanted)
        plain, expected = read_video(source, lambda _: wanted, guarded=False)
        np.testing.assert_array_equal(guarded, plain)
        np.testing.assert_array_equal(about.frames_indices, expected.frames_indices)
        assert numbers_of(guarded) == wanted.tolist() and guarded.flags.writeable
        for field in ("total_num_frames", "fps", "duration", "width", "height", "video_backend"):
            assert getattr(about, field) == getattr(expected, field)


def test_one_process_serves_video_after_video(clip):
    read_video(clip, every_frame)
    before = set(readers_of(os.getpid()))
    for _ in range(5):
        read_video(clip, every_frame)
    assert set(readers_of(os.getpid())) == before


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_an_error_that_names_the_file(clip, number):
    def crash(metadata):
        before = {reader.process.pid for reader in READERS.idle}
        (busy,) = {reader.process.pid for reader in READERS.all if reader.process.poll() is None} - before
        os.kill(busy, number)
        return every_frame(metadata)

    with pytest.raises(
        VideoDecodeError, match=rf"clip\.mp4 crashed its decoder \(signal {int(number)}, {number.name}"
    ):
        read_video(clip, crash)
    assert numbers_of(read_video(clip, every_frame)[0]) == list(range(40))


def test_what_takes_too_long_is_ended(tmp_path):
    path = write_video(tmp_path / "long.mp4", width=1280, height=720)
    start = time.monotonic()
    with pytest.raises(VideoDecodeError, match=r"long\.mp4 (was|is refused: it was) not read within 0\.02 s"):
        read_video(path, every_frame, limits={"time_limit": 0.02})
    assert time.monotonic() - start < 3
    assert len(read_video(path, lambda _: np.arange(2))[0]) == 2


def test_a_process_that_does_not_even_end_itself_is_given_up(clip, monkeypatch):
    def stop(metadata):
        busy = [reader for reader in READERS.all if not reader.is_idle and reader.process.poll() is None]
        os.kill(busy[0].process.pid, signal.SIGSTOP)
        return every_frame(metadata)

    monkeypatch.setattr(video_guard, "_SHUTDOWN_SECONDS", 0.2)
    with pytest.raises(VideoDecodeError, match=r"was not read within 0\.5 s"):
        read_video(clip, stop, limits={"time_limit": 0.5})


def test_errors_of_who_chooses_frames_are_its_own(clip):
    with pytest.raises(ValueError, match="has 40 frames, but frames 0 to 99 are chosen"):
        read_video(clip, lambda _: np.arange(100))
    with pytest.raises(ZeroDivisionError):
        read_video(clip, lambda _: 1 / 0)
    assert len(read_video(clip, every_frame)[0]) == 40


def test_the_error_crosses_processes(tmp_path):
    (tmp_path / "bad.mp4").write_text("not a video" * 100)
    with pytest.raises(VideoDecodeError, match=r"bad\.mp4 cannot be read") as caught:
        read_video(tmp_path / "bad.mp4", every_frame)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is VideoDecodeError and str(again) == str(caught.value)


def test_threads_have_a_process_each(clip):
    results, errors = {}, []

    def read(index):
        try:
            for _ in range(5):
                results[index] = numbers_of(read_video(clip, lambda _: np.array([index, 39]))[0])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(index,)) for index in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors
    assert results == {index: [index, 39] for index in range(4)}


class OneClip(torch.utils.data.Dataset):
    def __init__(self, path):
        self.path = str(path)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return read_video(self.path, lambda _: np.array([index]))[0]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader_have_readers_of_their_own(clip, method):
    read_video(clip, every_frame)  # a process that a fork must not share
    mine = set(readers_of(os.getpid()))
    loader = torch.utils.data.DataLoader(OneClip(clip), batch_size=None, num_workers=2, multiprocessing_context=method)
    batches = iter(loader)
    frames = [next(batches)]
    theirs = set(readers_of(os.getpid())) - mine
    frames += list(batches)
    assert [numbers_of(frame.numpy())[0] for frame in frames] == list(range(6))
    assert theirs
    del batches
    assert wait_until(lambda: not any(map(is_running, theirs)))
    assert all(map(is_running, mine))
    assert len(read_video(clip, every_frame)[0]) == 40


# A process without torch: the guard alone, from a folder that is no package, as the Hub's code is.
IMPORT_GUARD = """
import sys, time, types
import numpy as np
package = sys.modules["hub"] = types.ModuleType("hub")
package.__path__ = [sys.argv[1]]
from hub.video_guard import read_guarded
from hub.video_limits import VideoLimits
"""
READ_FOREVER = """
def choose(facts):
    print("begins", flush=True)
    if sys.argv[3] == "chooses":
        time.sleep(60)
    return np.arange(facts.total_num_frames)
if sys.argv[3] == "streams":
    from emoclip.video.guarded_frames import GuardedFrames
    for frame in GuardedFrames(sys.argv[2], "clip", VideoLimits()):
        print("begins", flush=True)
        time.sleep(60)
while True:
    read_guarded(sys.argv[2], choose, "clip", VideoLimits())
"""


@pytest.mark.parametrize("state", ["chooses", "reads", "streams"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nobody_is_left_when_the_caller_ends(clip, number, state):
    command = [sys.executable, "-c", IMPORT_GUARD + READ_FOREVER, str(CODE), str(clip), state]
    caller = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert caller.stdout.readline() == b"begins\n"
    readers = readers_of(caller.pid)
    start = time.monotonic()
    os.killpg(caller.pid, number)  # as a terminal does
    caller.communicate(timeout=5)
    assert readers and wait_until(lambda: not any(map(is_running, readers)))
    assert time.monotonic() - start < 2


def test_it_works_from_a_folder_that_is_no_package(clip, tmp_path):
    folder = tmp_path / "transformers_modules" / "emo-clip.v1"
    folder.mkdir(parents=True)
    for name in ("video_limits", "video_streams", "video_worker", "video_guard"):
        (folder / f"{name}.py").write_bytes((CODE / f"{name}.py").read_bytes())
    read = (
        "decoded = read_guarded(sys.argv[2], lambda facts: np.arange(3), 'clip', VideoLimits())\n"
        "print(decoded.frames.shape, 'torch' in sys.modules, 'modeling_emoclip' in sys.modules)"
    )
    command = [sys.executable, "-I", "-c", IMPORT_GUARD + read, str(folder), str(clip)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == "(3, 64, 96, 3) False False\n", result.stderr


def test_modules_beside_the_caller_are_not_imported(clip, tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text("raise SystemExit('a file of the working directory was imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(READERS, "idle", [])
    assert len(read_video(clip, every_frame)[0]) == 40


def test_without_an_interpreter_it_says_so(clip, monkeypatch):
    monkeypatch.setattr(READERS, "idle", [])
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(RuntimeError, match=r"'/nowhere/python' cannot be started .* guard_decoding=False"):
        read_video(clip, every_frame)


# --- limits


@pytest.mark.parametrize("read", [read_video, partial(read_video, guarded=False)], ids=["guarded", "in process"])
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_pixels": 96 * 64 - 1}, "its frames have 96 x 64 = 6,144 pixels, but max_pixels is 6,143"),
        ({"max_aspect": 1.49}, r"its frames have 96 x 64 pixels, but max_aspect, .* is 1\.49"),
        ({"max_frames": 39}, "it has 40 frames or more, but max_frames is 39"),
        ({"max_seconds": 1.5}, r"it lasts 1\.6 s, but max_seconds is 1\.5"),
        ({"max_bytes": 40 * 96 * 64 * 3 - 1}, "40 frames of 96 x 64 are 737,280 bytes, but max_bytes is 737,279"),
    ],
)
def test_what_exceeds_a_limit_is_refused(clip, read, limits, message):
    with pytest.raises(VideoDecodeError, match=rf"clip\.mp4 is refused: {message}"):
        read(clip, every_frame, limits=limits)
    (name, value), *_ = limits.items()
    assert len(read(clip, every_frame, limits={name: value + 1})[0]) == 40


def test_a_size_that_only_the_pictures_tell_is_refused_too(clip):
    """The header says 96 x 64, each picture more: FFmpeg itself must refuse it."""
    data = write_video(clip.with_name("large.mkv"), width=960, height=640).read_bytes()
    width, height = (b"\xb0\x82" + (960).to_bytes(2, "big")), (b"\xba\x82" + (640).to_bytes(2, "big"))
    assert data.count(width) == data.count(height) == 1
    small = data.replace(width, b"\xb0\x82\x00\x60").replace(height, b"\xba\x82\x00\x40")
    with pytest.raises(VideoDecodeError, match="the video"):
        read_video(small, every_frame, limits={"max_pixels": 100_000})
    assert read_video(small, every_frame)[0].shape == (40, 640, 960, 3)


@pytest.mark.parametrize("wrong", [{"max_pixels": 0}, {"max_frames": "many"}, {"time_limit": True}, {"max_size": 3}])
def test_limits_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EmoCLIPVideoProcessor(video_limits=wrong)


def test_limits_travel_with_the_processor(clip, tmp_path):
    EmoCLIPVideoProcessor(video_limits={"max_frames": 39}, guard_decoding=False).save_pretrained(tmp_path)
    loaded = EmoCLIPVideoProcessor.from_pretrained(tmp_path)
    assert loaded.video_limits == {"max_frames": 39} and loaded.guard_decoding is False
    with pytest.raises(VideoDecodeError, match="max_frames is 39"):
        loaded(clip)
    loaded.video_limits = None
    assert loaded(clip, return_tensors="pt").pixel_values_videos.shape[1] == 16

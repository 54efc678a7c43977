# SPDX-License-Identifier: Apache-2.0
"""The guarded process is not believed, and it has no rights: a file that takes it over gains nothing."""

import gc
import json
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from video_files import write_video

from emoclip.video.guarded_frames import FRAME_READERS
from emoclip.video.sources import open_frames
from modeling_emoclip import video_guard
from modeling_emoclip.video_limits import VideoDecodeError
from modeling_emoclip.video_reading import read_video

READERS = video_guard.CLIP_READERS
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the rights are Linux's")
# Stands in the place of the guarded process and answers what it is told to, once it was asked.
TAKEN_OVER = """
import json, os, struct, sys, time
send = lambda text, data=b"", length=None: os.write(
    1, struct.pack("<QQ", len(text), len(data) if length is None else length) + text + data)
send(b'{"is_ready": true}')
os.read(0, 1 << 20)
FACTS = {"total_num_frames": 8, "fps": 8.0, "duration": 1.0, "width": 4, "height": 4}
ANSWER = {"shape": [8, 4, 4, 3], "backend": "x", "is_last": True}
FRAMES = bytes(8 * 4 * 4 * 3)
def say(message, data=b""): send(json.dumps(message).encode(), data)
def facts():
    say({"facts": FACTS})
    os.read(0, 1 << 20)
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("distrust") / "clip.mp4", num_frames=8)


def first_eight(metadata):
    return np.arange(8)


@pytest.fixture
def no_readers(monkeypatch):
    """New processes only, and none of these is left to other tests."""
    for readers in (READERS, FRAME_READERS):
        readers.end_all()
    monkeypatch.setattr(video_guard, "_SHUTDOWN_SECONDS", 0.1)
    yield monkeypatch
    for readers in (READERS, FRAME_READERS):
        readers.end_all()


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param("send(b'{}', length=1 << 62)", id="a length beyond all memory"),
        pytest.param("send(b'x' * 8, length=0); os.write(1, b'')", id="no JSON"),
        pytest.param("send(b'[1]')", id="no object"),
        pytest.param("send(b'[' * 100_000)", id="too deep"),
        pytest.param("os.write(1, struct.pack('<QQ', 1 << 60, 0))", id="a text beyond all memory"),
        pytest.param("say({'x': 1, 'is_last': True})", id="unknown fields"),
        pytest.param("say({'facts': FACTS | {'surplus': 1}})", id="a surplus field of facts"),
        pytest.param("say({'facts': FACTS | {'total_num_frames': 1 << 60}})", id="too many frames"),
        pytest.param("say({'facts': FACTS | {'fps': 'x'}})", id="a rate that is none"),
        pytest.param("say(ANSWER, FRAMES)", id="frames before the choice"),
        pytest.param("facts(); say(ANSWER | {'shape': [7, 4, 4, 3]}, FRAMES[48:])", id="too few frames"),
        pytest.param("facts(); say(ANSWER | {'places': [0, 1]}, FRAMES)", id="a surplus field"),
        pytest.param("facts(); say(ANSWER | {'shape': [8, 4, 4, 4]}, FRAMES)", id="another shape"),
        pytest.param("facts(); say(ANSWER | {'shape': [-1, 4, 4, 3]}, FRAMES)", id="a negative shape"),
        pytest.param("facts(); say({'is_last': True})", id="no frames"),
    ],
)
def test_an_answer_that_makes_no_sense_is_one_error_that_names_the_file(clip, no_readers, answers):
    no_readers.setattr(video_guard, "_START", TAKEN_OVER + answers + "\ntime.sleep(60)")
    with pytest.raises(VideoDecodeError, match=r"clip\.mp4"):
        read_video(clip, first_eight, limits={"time_limit": 5})
    assert not READERS.idle, "it is not asked again"


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param("os.write(1, struct.pack('<QQ', 1000, 0))", id="a header and then nothing"),
        pytest.param("send(b'{}', b'12', length=3)", id="all but the last byte"),
        pytest.param("\nwhile True: say({'is_alive': True}); time.sleep(0.05)", id="signs of life for ever"),
    ],
)
def test_the_whole_answer_is_under_the_time_limit(clip, no_readers, answers):
    no_readers.setattr(video_guard, "_START", TAKEN_OVER + answers + "\ntime.sleep(60)")
    with pytest.raises(VideoDecodeError, match=r"clip\.mp4 was not read within 0\.3 s"):
        read_video(clip, first_eight, limits={"time_limit": 0.3, "max_seconds": 1})


@pytest.mark.parametrize(
    "message",
    [
        "{'frame': {'step': 0, 'time': 0.0, 'is_new': True}, 'span': [0, 1]}",  # without pixels
        "{'frame': {'step': 0, 'time': 'x', 'is_new': True}, 'span': [0, 1], 'shape': [4, 4, 3]}",
        "{'frame': {}, 'span': [0, 1], 'shape': [4, 4, 3]}",
        "{'frame': {'step': 0, 'time': 0.0, 'is_new': True}, 'span': [1e308, 0], 'shape': [4, 4, 3]}",
        "{'frame': {'step': 0, 'time': 0.0, 'is_new': True}, 'shape': [4, 4, 3]}",
        "{'span': [0, 1], 'warnings': 1, 'is_last': True}",
    ],
)
def test_frames_that_make_no_sense(clip, no_readers, message):
    header = "say({'fps': 8.0, 'duration': None, 'is_last': True}); os.read(0, 1 << 20)\n"
    no_readers.setattr(video_guard, "_START", f"{TAKEN_OVER}{header}say({message}, bytes(48))\ntime.sleep(60)")
    frames = open_frames(clip, limits={"time_limit": 5})
    with pytest.raises(VideoDecodeError, match=r"clip\.mp4 cannot be read: its decoder"):
        list(frames.resample(4))


@pytest.mark.parametrize("executable", [None, "", "/bin/false"])
def test_a_python_that_is_not_there_is_one_error_with_advice(clip, no_readers, executable):
    no_readers.setattr(sys, "executable", executable)
    with pytest.raises(RuntimeError, match=r"cannot be started to read a video.*guard_decoding=False"):
        read_video(clip, first_eight)


def test_a_frozen_app_does_not_start_itself(clip, no_readers, tmp_path):
    started = tmp_path / "started"
    app = tmp_path / "app"
    app.write_text(f"#!/bin/sh\ntouch {started}\n")
    app.chmod(0o755)
    no_readers.setattr(sys, "executable", str(app))
    no_readers.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(RuntimeError, match="it is no Python"):
        read_video(clip, first_eight)
    assert not started.exists()


def test_a_start_that_never_ends_is_given_up(clip, no_readers, tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 30\n")
    program.chmod(0o755)
    no_readers.setattr(sys, "executable", str(program))
    no_readers.setattr(video_guard, "_LONGEST_START", 0.2)
    with pytest.raises(RuntimeError, match="cannot be started to read a video"):
        read_video(clip, first_eight, limits={"time_limit": 0.2})


def test_entries_of_the_path_that_are_no_texts_are_passed_over(clip, no_readers):
    no_readers.setattr(sys, "path", [*sys.path, Path("x"), b"y", None])
    assert len(read_video(clip, first_eight)[0]) == 8


def test_few_processes_wait_for_the_next_video(clip, no_readers):
    threads = [threading.Thread(target=read_video, args=(clip, first_eight)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(READERS.idle) <= 4
    gc.collect()
    assert sum(reader.process.poll() is None for reader in READERS.all) <= 4


ATTEMPTS = """
import os, socket
def attempts(path, port):
    found = {"secret": any("SECRET" in value for value in os.environ.values()), "write": None, "network": True}
    try:
        with open(path, "w") as file:
            file.write("x")
    except OSError as error:
        found["write"] = error.strerror
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        found["network"] = False
    return found
"""


@LINUX
def test_it_has_no_tokens_no_network_and_may_not_write(clip, no_readers, tmp_path):
    no_readers.setenv("HF_TOKEN", "hf_SECRET")
    with socket.create_server(("127.0.0.1", 0)) as server:
        # The real process, which tries while it answers, and tells what came of it as the name of its decoder.
        tell = f"json.dumps(attempts({str(tmp_path / 'written')!r}, {server.getsockname()[1]}))"
        begin = f"import guarded.video_worker as real; exec({ATTEMPTS!r}); send = real.send; real.send = "
        begin += f"lambda pipe, m, d=b'': send(pipe, m | ({{'backend': {tell}}} if 'backend' in m else {{}}), d); "
        start = video_guard._START.replace("getattr(importlib", begin + "getattr(importlib")
        no_readers.setattr(video_guard, "_START", start)
        _, metadata = read_video(clip, first_eight)
    found = json.loads(metadata.video_backend)
    assert found["secret"] is False
    assert found["write"] == "File too large"
    (reader,) = READERS.idle
    if os.readlink(f"/proc/{reader.process.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        pytest.skip("this system lets nobody have a network of their own")
    assert found["network"] is False


@LINUX
def test_its_memory_is_bounded_by_the_limits(clip, no_readers):
    def soft_limit(limits):
        read_video(clip, first_eight, limits=limits)
        (reader,) = READERS.idle
        text = Path(f"/proc/{reader.process.pid}/limits").read_text()
        return int(re.search(r"Max address space\s+(\d+)", text)[1])

    small = soft_limit({"max_bytes": 10**6, "max_pixels": 10**6})
    large = soft_limit({"max_bytes": 10**9, "max_pixels": 10**6})
    assert small < 3 * 2**30 and large - small == 2 * (10**9 - 10**6)


@LINUX
def test_it_writes_nothing_beside_the_code(clip, no_readers, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    for path in Path(video_guard.__file__).parent.glob("*.py"):
        (package / path.name).write_bytes(path.read_bytes())
    readers = video_guard.Readers({"guarded": str(package)}, "guarded.video_worker.Worker")
    no_readers.setattr(video_guard, "CLIP_READERS", readers)
    assert len(read_video(clip, first_eight)[0]) == 8
    readers.end_all()
    assert not list(package.rglob("*.pyc"))


def test_a_time_limit_bounds_the_processes_that_never_answer(clip, no_readers):
    no_readers.setattr(video_guard, "_START", TAKEN_OVER + "time.sleep(60)")
    start = time.monotonic()
    with pytest.raises(VideoDecodeError, match="was not read within"):
        open_frames(clip, limits={"time_limit": 0.3})
    assert time.monotonic() - start < 20

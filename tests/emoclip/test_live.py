# SPDX-License-Identifier: Apache-2.0
"""Live scores: as the offline pipeline's, never late, and every failure comes out."""

import itertools
import math
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from emoclip import EmoCLIPModel, EmoCLIPProcessor, ZeroShotVideoClassificationPipeline
from emoclip.live.stream import EmotionStream

LABELS = ["a smile", "lowered eyebrows", "wide open eyes"]
T = 4  # frames of a window
FRAMES = list(np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8))


def make_pipe(clip_dir):
    torch.manual_seed(0)
    model = EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=1)
    torch.nn.init.normal_(model.temporal.output_projection.weight)
    processor = EmoCLIPProcessor.from_clip(clip_dir, num_frames=T)
    return ZeroShotVideoClassificationPipeline(model=model, processor=processor)


@pytest.fixture(scope="module")
def pipe(clip_dir):
    return make_pipe(clip_dir)


@pytest.fixture
def slow_model(pipe, monkeypatch):
    """The image tower waits in each call until it is told to go on; the function says how often it was called."""
    gate, calls, encode = threading.Event(), [], pipe.encode_frames

    def forward(*args, **kwargs):
        calls.append(threading.current_thread().name)
        assert gate.wait(10)
        return encode(*args, **kwargs)

    monkeypatch.setattr(pipe, "encode_frames", forward)
    return gate, calls


def stream_of(pipe, **options):
    return EmotionStream(pipe, LABELS, **({"faces": "none", "window": 1.0} | options))


def values(scores):
    return [entry["score"] for entry in sorted(scores, key=lambda entry: entry["label"])]


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


# --- what is scored


def test_scores_are_those_of_the_pipeline_on_the_frames_of_the_window(pipe):
    stream = stream_of(pipe, drop=False)
    for index, frame in enumerate(FRAMES):
        stream.push(frame, index / T)
        (now,) = stream.scores()
        window = FRAMES[max(0, index + 1 - T) : index + 1]
        assert (now.time, now.person, now.frames_used, now.dropped) == (index / T, 0, len(window), 0)
        expected = pipe(np.stack(window), candidate_labels=LABELS)  # of fewer than T frames it repeats some
        assert values(now.scores) == pytest.approx(values(expected), abs=1e-5)
        assert [entry["label"] for entry in now.scores] == [entry["label"] for entry in expected]


def test_of_a_fast_camera_only_the_frames_of_the_window_are_encoded_each_once(pipe, monkeypatch):
    encoded, encode = [], pipe.encode_frames
    monkeypatch.setattr(pipe, "encode_frames", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    stream = stream_of(pipe, drop=False)
    for index in range(60):  # 30 frames a second, of which T are needed
        stream.push(FRAMES[index % 12], index / 30)
    assert encoded == [1] * 2 * T
    assert stream.dropped == 0
    (now,) = stream.scores()
    chosen = [FRAMES[index % 12] for index in (30, 38, 45, 53)]
    assert values(now.scores) == pytest.approx(values(pipe(np.stack(chosen), candidate_labels=LABELS)), abs=1e-5)


def test_every_so_many_pushed_frames_there_is_a_result(pipe):
    results = list(stream_of(pipe, drop=False, every=3).run(iter(FRAMES), fps=T))
    assert [now.time * T for now in results] == [0, 3, 6, 9]
    seen = []
    stream = stream_of(pipe, drop=False, every=5, callback=seen.append)
    assert list(stream.run(FRAMES, fps=T)) == seen and len(seen) == 3


def test_after_a_pause_old_frames_do_not_count(pipe):
    stream = stream_of(pipe, drop=False)
    for time_of_frame, frame in zip((0, 0.25, 7, 7.25), FRAMES[:4], strict=True):
        stream.push(Image.fromarray(frame), time_of_frame)
    (now,) = stream.scores()
    assert now.frames_used == 2
    expected = pipe(np.stack(FRAMES[2:4]), candidate_labels=LABELS)
    assert values(now.scores) == pytest.approx(values(expected), abs=1e-5)


def test_people_have_windows_of_their_own_and_nobody_is_no_error(pipe):
    picture = np.random.default_rng(1).integers(0, 255, (80, 200, 3), dtype=np.uint8)
    both = np.array([[10, 20, 50, 60, 0.9], [140, 15, 190, 65, 0.9]])
    found = iter([both, both, both[:1], both[:0], both[1:]])
    stream = stream_of(pipe, drop=False, faces="all", detector=lambda frame: next(found))
    counts = []
    for index in range(5):
        stream.push(picture, index / T)
        counts.append({now.person: now.frames_used for now in stream.scores()})
    assert counts == [{0: 1, 1: 1}, {0: 2, 1: 2}, {0: 3}, {}, {1: 2}]
    found = iter([both, both])
    stream = stream_of(pipe, drop=False, detector=lambda frame: next(found), faces="largest")
    assert [now.person for now in stream.run([picture, picture], fps=T)] == [1, 1]  # of 50 x 50 pixels


# --- never late


def test_frames_are_dropped_rather_than_late_and_counted(pipe, slow_model):
    gate, calls = slow_model
    with stream_of(pipe, max_waiting=2) as stream:
        stream.push(FRAMES[0], 0.0)
        wait_until(lambda: calls)  # the worker is busy with it
        start = time.monotonic()
        for index in range(1, 41):
            stream.push(FRAMES[index % 12], index / T)
            assert len(stream._waiting) <= 2
        assert time.monotonic() - start < 1.0
        assert stream.dropped == 38 and stream.scores() == []
        gate.set()
        wait_until(lambda: stream.scores() and stream.scores()[0].time == 40 / T)
        (now,) = stream.scores()
        assert now.dropped == 38 and now.frames_used == 2  # the two newest
        expected = pipe(np.stack([FRAMES[39 % 12], FRAMES[40 % 12]]), candidate_labels=LABELS)
        assert values(now.scores) == pytest.approx(values(expected), abs=1e-5)
        assert set(calls[:3]) == {"EmotionStream"} and len(calls) >= 3
        assert all(len(kept) <= T for kept in stream._people.seen.values())


def test_a_pushed_frame_may_be_written_over(pipe, slow_model):
    gate, _ = slow_model
    buffer = FRAMES[0].copy()
    with stream_of(pipe) as stream:
        stream.push(buffer, 0.0)
        buffer[:] = 0
        gate.set()
        wait_until(stream.scores)
        expected = pipe(FRAMES[0][None], candidate_labels=LABELS)
        assert values(stream.scores()[0].scores) == pytest.approx(values(expected), abs=1e-5)


def test_a_source_is_read_on_while_its_results_are_not_fetched(pipe):
    read = []

    def camera():
        for index in range(30):
            read.append(index)
            yield FRAMES[index % 12]
            time.sleep(0.01)

    with stream_of(pipe, window=0.1) as stream:
        results = stream.run(camera())
        first = next(results)
        wait_until(lambda: len(read) == 30)
        last = list(results)[-1]
        assert len(read) == 30 and first.time < last.time


# --- what goes wrong


def test_what_the_worker_raises_comes_out_at_the_next_call(pipe):
    def fail(now):
        raise ZeroDivisionError("in the callback")

    with stream_of(pipe, callback=fail) as stream:
        stream.push(FRAMES[0], 0.0)
        wait_until(lambda: stream._error)
        for call in (stream.scores, lambda: stream.push(FRAMES[0], 1.0), lambda: list(stream.run(iter(FRAMES)))):
            with pytest.raises(ZeroDivisionError, match="in the callback"):
                call()
    with stream_of(pipe, drop=False, callback=fail) as stream, pytest.raises(ZeroDivisionError):
        stream.push(FRAMES[0], 0.0)


def test_what_the_source_raises_comes_out_of_run(pipe):
    def camera():
        yield FRAMES[0]
        raise ConnectionError("unplugged")

    with stream_of(pipe) as stream, pytest.raises(ConnectionError, match="unplugged"):
        list(stream.run(camera()))


def test_closing_ends_the_thread_and_the_source(pipe):
    def endless():
        for index in itertools.count():
            yield FRAMES[index % 12]
            time.sleep(0.001)

    before = threading.active_count()
    with stream_of(pipe) as stream:
        for now in stream.run(endless()):
            assert now.scores
            break
    wait_until(lambda: threading.active_count() == before)
    with pytest.raises(RuntimeError, match="closed"):
        stream.push(FRAMES[0])
    with stream_of(pipe, callback=lambda now: stream.close()) as stream:
        list(stream.run(endless()))
    wait_until(lambda: threading.active_count() == before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0, but must be a number above 0"),
        ({"window": math.nan}, "window is nan, but must"),
        ({"window": math.inf}, "window is inf s, but must be finite"),
        ({"window": 1e-6}, r"window is 1e-06 s, but must be at least 0\.004 s"),
        ({"every": 0}, "every is 0, but must be a whole number from 1"),
        ({"every": 1.5}, r"every is 1\.5, but must"),
        ({"max_waiting": 0}, "max_waiting is 0, but must"),
        ({"callback": "print"}, "callback is 'print', but must be a function"),
        ({"faces": "some"}, "faces is 'some'"),
        ({"no_face": "what"}, "no_face is 'what'"),
    ],
)
def test_bad_arguments(pipe, options, message):
    before = threading.active_count()
    with pytest.raises(ValueError, match=message):
        stream_of(pipe, **options)
    with pytest.raises(ValueError, match="empty"):
        EmotionStream(pipe, [])
    with pytest.raises(TypeError, match="unexpected keyword argument 'treshold'"):
        stream_of(pipe, treshold=1)
    assert threading.active_count() == before


def test_bad_frames_times_and_sources(pipe, tmp_path):
    with stream_of(pipe, drop=False) as stream:
        stream.push(FRAMES[0], 1.0)
        for frame in (FRAMES[0][..., 0], FRAMES[0] / 255, "frame"):
            with pytest.raises(ValueError, match="a frame must"):
                stream.push(frame, 2.0)
        with pytest.raises(ValueError, match=r"0\.5 s comes after"):
            stream.push(FRAMES[0], 0.5)
        with pytest.raises(ValueError, match="give time"):
            stream.push(FRAMES[0])
        with pytest.raises(ValueError, match="give fps"):
            list(stream.run(iter(FRAMES)))
        with pytest.raises(ValueError, match="give fps"):
            list(stream.run(FRAMES))
        with pytest.raises(ValueError, match="source is None"):
            list(stream.run(None))
        for fps in (0, -1, math.nan, math.inf, "25"):
            with pytest.raises(ValueError, match=r"fps is .*, but must be"):
                list(stream.run(iter(FRAMES), fps=fps))
        for moment in (math.nan, math.inf, -math.inf):
            with pytest.raises(ValueError, match=r"time is .*, but must be"):
                stream.push(FRAMES[0], moment)
    (tmp_path / "text.mp4").write_text("not a video")
    with stream_of(pipe) as stream, pytest.raises(ValueError, match=r"text\.mp4"):
        list(stream.run(tmp_path / "text.mp4"))
    with stream_of(pipe) as stream, pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        list(stream.run("nowhere.mp4"))

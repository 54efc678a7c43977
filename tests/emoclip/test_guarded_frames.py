# SPDX-License-Identifier: Apache-2.0
"""Whole videos, frame after frame from another process: the same as in this one, and what a crash leaves."""

import os
import signal
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from processes import is_running, readers_of, wait_until
from test_timeline import LABELS, QUIET, find_squares, make_pipe, write_people
from video_files import numbers_of

from emoclip import EmotionStream
from emoclip.video.guarded_frames import FRAME_READERS
from emoclip.video.sources import open_frames
from modeling_emoclip import video_guard
from modeling_emoclip.video_limits import VideoDecodeError
from tools.reliability.video_mutations import write_noise


@pytest.fixture(scope="module")
def pipe(clip_dir):
    return make_pipe(clip_dir)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    data = write_noise(tmp_path_factory.mktemp("guarded") / "noise.mkv", "mpeg4", num_frames=90).read_bytes()
    middle = len(data) // 3
    return data[:middle] + bytes(500) + data[middle + 500 : 2 * middle]


def busy() -> int:
    """The process that reads right now."""
    (reader,) = [one for one in FRAME_READERS.all if not one.is_idle and one.process.poll() is None]
    return reader.process.pid


def write_sound(path, codec):
    """Two seconds of pictures; the sound begins half a second later."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 96, 64, "yuv420p"
        sound = container.add_stream(codec, rate=48_000)
        rng = np.random.default_rng(0)
        for index in range(50):
            pixels = np.full((64, 96, 3), 5 * index, np.uint8)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            tone = av.AudioFrame.from_ndarray(rng.normal(0, 0.1, (2, 1440)).astype("f4"), "fltp", "stereo")
            tone.sample_rate, tone.pts = 48_000, 24_000 + 1440 * index
            container.mux(sound.encode(tone))
        container.mux(pictures.encode())
        container.mux(sound.encode())
    return path


def write_still(path, num_frames):
    """A large picture, encoded once and muxed again and again: slow to read, quick to write."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuvj420p"
        noise = np.random.default_rng(0).integers(0, 255, (1080, 1920, 3), dtype=np.uint8)
        (packet,) = stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24"))
        for index in range(num_frames):
            copy = av.Packet(bytes(packet))
            copy.stream, copy.time_base, copy.pts, copy.dts = stream, Fraction(1, 25), index, index
            copy.is_keyframe = True
            container.mux(copy)
    return path


def facts_of(frames):
    return frames.fps, frames.duration, frames.size, frames.start, frames.end, frames.error


def test_the_same_frames_as_in_process(clip, damaged):
    for source in (clip, clip.read_bytes(), damaged):
        guarded, plain = open_frames(source), open_frames(source, guarded=False)
        for ours, theirs in zip(guarded, plain, strict=True):
            assert (ours.time, ours.end) == (theirs.time, theirs.end)
            np.testing.assert_array_equal(guarded.pixels_of(ours), plain.pixels_of(theirs))
        assert facts_of(guarded) == facts_of(plain) and guarded.end > 1
    assert "damaged" in guarded.error and "cut off" in guarded.error


@pytest.mark.parametrize("rate", [0.3, 8, 60])
def test_the_same_grid_as_in_process(clip, damaged, rate):
    for source in (clip, damaged):
        guarded, plain = open_frames(source), open_frames(source, guarded=False)
        for ours, theirs in zip(guarded.resample(rate), plain.resample(rate), strict=True):
            assert (ours.step, ours.time, ours.is_new) == (theirs.step, theirs.time, theirs.is_new)
            np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert facts_of(guarded) == facts_of(plain)


def test_frames_take_the_size_that_is_asked_for(clip):
    frames = open_frames(clip)
    frames.size = 48, 32
    assert {frame.pixels.shape for frame in frames.resample(5)} == {(32, 48, 3)}


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_keeps_what_was_read(clip, number):
    frames, seen = open_frames(clip), []
    for frame in frames:
        seen.append(frames.pixels_of(frame))
        if len(seen) == 5:
            os.kill(busy(), number)
    assert 5 <= len(seen) < 40 and numbers_of(np.stack(seen)) == list(range(len(seen)))
    assert f"clip.mp4: crashed its decoder (signal {int(number)}, {number.name}" in frames.error
    assert f"({frames.end:.1f} s of 1.6 s were read)" in frames.error
    assert len(list(frames)) == 40 and frames.error is None


def test_a_crash_before_the_first_frame_is_an_error(clip, monkeypatch):
    def send(reader, *message):
        os.kill(reader.process.pid, signal.SIGSEGV)

    frames = open_frames(clip)
    monkeypatch.setattr(video_guard.Reader, "send", send)
    with pytest.raises(VideoDecodeError, match=r"clip\.mp4 crashed its decoder \(signal 11"):
        list(frames)
    with pytest.raises(VideoDecodeError, match=r"clip\.mp4 crashed its decoder \(signal 11"):
        open_frames(clip)


def test_a_process_that_stops_in_the_middle_is_given_up(clip, monkeypatch):
    monkeypatch.setattr(video_guard, "_SHUTDOWN_SECONDS", 0.2)
    frames, number = open_frames(clip, limits={"time_limit": 0.5}), 0
    for number, _ in enumerate(frames):
        if number == 5:
            os.kill(busy(), signal.SIGSTOP)
    assert 5 <= number < 39 and "was not read within 0.5 s" in frames.error


def test_the_time_limit_is_for_each_frame_and_not_for_who_takes_them(clip):
    frames = open_frames(clip, limits={"time_limit": 0.5})
    for number, _ in enumerate(frames):
        if number in (3, 20):
            time.sleep(0.8)
    assert number == 39 and frames.error is None


def test_who_waits_long_for_a_slow_grid_hears_that_there_is_work(tmp_path, monkeypatch):
    path = write_still(tmp_path / "still.mkv", num_frames=60)

    def read(**limits):
        frames, start = open_frames(path, limits=limits), time.monotonic()
        (frame,) = frames.resample(1 / frames.duration / 1.9)  # its middle is near the end
        assert frames.error is None and frame.time > 0.9 * frames.duration
        return time.monotonic() - start

    seconds = read()
    monkeypatch.setattr(video_guard, "_SHUTDOWN_SECONDS", 0.05)
    read(time_limit=0.6 * seconds)


def test_who_takes_no_more_leaves_no_process(clip):
    frames = iter(open_frames(clip))
    next(frames)
    reader = busy()
    frames.close()
    assert wait_until(lambda: not is_running(reader))


def test_a_time_line_survives_its_decoder(pipe, tmp_path):
    path = write_people(tmp_path / "film.mp4", seconds=6)
    number = 0

    def detect(pixels):
        nonlocal number
        number += 1
        if number == 10:
            os.kill(busy(), signal.SIGSEGV)
        return find_squares(pixels)

    whole = pipe.timeline(path, LABELS, stride=0.5, detector=find_squares, **QUIET)
    part = pipe.timeline(path, LABELS, stride=0.5, detector=detect, **QUIET)
    assert whole.complete and not part.complete and "film.mp4: crashed its decoder" in part.error
    assert 2 < part.span[1] < 5 and 2 <= len(part) < len(whole)
    shared = np.flatnonzero(part.end < part.span[1] - 0.5)
    np.testing.assert_allclose(part.scores[shared], whole.scores[: len(shared)], atol=1e-6)


def test_a_stream_of_a_file_says_what_happened_to_its_decoder(pipe, clip, caplog):
    whole = list(EmotionStream(pipe, LABELS, faces="none", drop=False).run(clip))
    results = EmotionStream(pipe, LABELS, faces="none", drop=False).run(clip)
    part = [next(results)]
    os.kill(busy(), signal.SIGSEGV)
    part += results
    assert len(part) < len(whole) and [now.time for now in part] == [now.time for now in whole[: len(part)]]
    assert "crashed its decoder" in caplog.text


def test_without_the_guard_there_is_no_process(pipe, clip, tmp_path, monkeypatch):
    def refuse(self, limits):
        raise AssertionError("a process is started")

    monkeypatch.setattr(video_guard.Readers, "_take", refuse)
    monkeypatch.setattr(pipe.processor.video_processor, "guard_decoding", False)
    timeline = pipe.timeline(clip, LABELS, faces="none", **QUIET)
    timeline.annotate(tmp_path / "out.mp4", **QUIET)
    assert len(list(EmotionStream(pipe, LABELS, faces="none", drop=False).run(clip)))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "aac"), ("b.mkv", "libopus"), ("c.mp4", "libmp3lame"), ("d.ts", "ac3")]
)
def test_sound_is_copied_packet_by_packet(tmp_path, name, codec):
    path = write_sound(tmp_path / name, codec)
    with av.open(str(path)) as container:
        zero = container.start_time / av.time_base
        packets = [packet for packet in container.demux(audio=0) if packet.pts is not None]
        expected = [(float(packet.pts * packet.time_base) - zero, bytes(packet)) for packet in packets]
    for guarded in (True, False):
        copy = str(tmp_path / f"{guarded}.mp4")
        assert open_frames(path, guarded=guarded).copy_sound(copy)
        with av.open(copy) as container:
            packets = [packet for packet in container.demux() if packet.pts is not None]
            found = [(float(packet.pts * packet.time_base), bytes(packet)) for packet in packets]
        assert [data for _, data in found] == [data for _, data in expected]
        assert [at for at, _ in found] == pytest.approx([at for at, _ in expected], abs=1e-3)  # MP4 counts in ms


def test_no_sound_is_copied_where_there_is_none(clip, tmp_path):
    silent = open_frames(clip)
    assert not silent.copy_sound(str(tmp_path / "sound.mp4"))
    assert not open_frames(np.zeros((3, 8, 8, 3), np.uint8), fps=3).copy_sound(str(tmp_path / "sound.mp4"))
    assert not list(tmp_path.iterdir()) and readers_of(os.getpid())

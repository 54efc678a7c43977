# SPDX-License-Identifier: Apache-2.0
"""Videos of every kind and with every fault: the right answer, what could be read, or one clear error."""

import math
import re
import struct

import av
import numpy as np
import pytest
from PIL import Image
from test_timeline import LABELS, QUIET, RED, draw_people, find_squares, make_pipe, write_people
from video_files import write_video

from emoclip.video.sources import open_frames, progress_bar
from modeling_emoclip.frame_sampling import segment_middle


@pytest.fixture(scope="module")
def pipe(clip_dir):
    return make_pipe(clip_dir)


@pytest.fixture
def run(pipe):
    def run(video, **arguments):
        return pipe.timeline(video, LABELS, **({"detector": find_squares, "stride": 0.5, **QUIET} | arguments))

    return run


def grid(video, rate, **arguments):
    """Frames on a grid: their numbers, and which of them were new."""
    frames = open_frames(video, **arguments)
    found = list(frames.resample(rate))
    numbers = [round(float(frame.pixels[frame.pixels.shape[0] // 2, 5].mean()) / 6) for frame in found]
    return frames, numbers, [frame.is_new for frame in found]


def write_times(path, times, codec="mjpeg"):
    """One picture for each time, in units of 1/25 s, muxed in this order."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for number, time in enumerate(times):
            pixels = np.full((64, 96, 3), 6 * time % 250, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                packet.pts, packet.dts, packet.time_base = time, number - 30, stream.codec_context.time_base
                container.mux(packet)
    return path


def test_a_grid_over_a_whole_video_is_the_middle_of_its_segments(clip):
    frames, numbers, _ = grid(clip, 10)  # 1.6 s
    assert numbers == segment_middle(40, 16).tolist()
    assert (frames.start, frames.end, frames.duration, frames.size) == (0, 1.6, 1.6, (96, 64)) and frames.error is None


def test_variable_frame_rate_goes_by_time(tmp_path):
    path = write_video(tmp_path / "vfr.mp4", 12, times=[0, 1, 2, 3, 25, 26, 27, 28, 50, 51, 52, 53])
    _, numbers, is_new = grid(path, 5)
    assert numbers == [2, 3, 3, 3, 3, 6, 7, 7, 7, 7, 10][: len(numbers)] and len(numbers) >= 10
    assert is_new[:7] == [True, True, False, False, False, True, True]


def test_frames_out_of_order_are_sorted(tmp_path):
    frames, numbers, _ = grid(write_times(tmp_path / "swapped.mkv", [0, 2, 1, 3, 5, 4, 8, 7, 6, 9, 10, 11]), 25)
    assert numbers == list(range(12)) and frames.error is None
    frames, numbers, _ = grid(write_times(tmp_path / "late.mkv", [*range(20), 3, *range(20, 25)]), 25)
    assert numbers == list(range(25)) and "run backwards" in frames.error


def test_a_jump_of_hours_ends_the_video(tmp_path):
    frames, numbers, _ = grid(write_times(tmp_path / "jump.mkv", [*range(10), 25 * 9000, 25 * 9000 + 1]), 25)
    assert numbers == list(range(10)) and "time jumps" in frames.error


def test_one_frame(run, tmp_path):
    timeline = run(write_people(tmp_path / "one.mp4", seconds=0.04))
    assert len(timeline) == 1 and timeline.complete and timeline.end[0] == pytest.approx(0.04)
    assert len(timeline.to_srt().split("\n\n")) == 1 and timeline.plot()


def remux(source, path, **options):
    """The same packets in another container."""
    with av.open(str(source)) as original, av.open(str(path), "w", options=options) as container:
        copied = container.add_stream_from_template(original.streams.video[0])
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                container.mux(packet)
    return path


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """1.5 s, with the length in the header, and without."""
    path = write_people(tmp_path_factory.mktemp("short") / "short.mp4", seconds=1.52)
    return path, remux(path, path.with_name("raw.h264")), remux(path, path.with_name("recorded.mkv"), live="1")


def test_a_video_shorter_than_a_window_is_one_window_whether_or_not_its_header_has_a_duration(run, short):
    assert [open_frames(path).duration is None for path in short] == [False, True, True]
    expected, *others = (run(path, window=8, stride=4, faces="none") for path in short)
    for one in (expected, *others):
        assert one.num_frames_seen.tolist() == [8] and one.window == pytest.approx(1.52) and one.complete
        assert (one.start[0], one.end[0]) == pytest.approx((0, 1.52))
        assert one.tracks[:, 0] == pytest.approx(1.52 * (np.arange(8) + 0.5) / 8)
        assert np.abs(one.scores - expected.scores).max() < 1e-5


def test_an_endless_window_is_the_whole_video(run, short):
    for path in short:
        whole = run(path, window=math.inf, faces="none")
        assert whole.num_frames_seen.tolist() == [8] and whole.window == pytest.approx(1.52)


def test_a_processor_with_a_frame_rate_reads_a_short_video_at_that_rate(clip_dir, short):
    pipe = make_pipe(clip_dir)
    pipe.processor.video_processor.fps = 4
    for path in short:
        for window in (8, math.inf):
            timeline = pipe.timeline(path, LABELS, window=window, faces="none", **QUIET)
            assert timeline.num_frames == 6 and timeline.num_frames_seen.tolist() == [6]


def test_a_video_read_twice_has_the_same_people_as_one_read_once(run, short):
    twice, once = run(short[0], window=8), run(short[0], window=1.52)
    assert twice.people == once.people == [0] and twice.box == pytest.approx(once.box)
    assert len(twice.thumbnails[0]) == len(once.thumbnails[0]) and np.abs(twice.scores - once.scores).max() < 1e-5


def make_lying_files(folder):
    """4 s whose headers say -1 s, 61 microseconds, 0.04 s, and 10 hours."""
    path = write_people(folder / "honest.mp4", seconds=4, fps=8)
    late = folder / "late.mkv"  # begins at 5 s, so that a DURATION of 4 s is over before it begins
    with av.open(str(late), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for index in range(32):
            frame = av.VideoFrame.from_ndarray(draw_people(index / 8, {RED: (0, 4, 8)}), format="rgb24")
            frame.pts = 40 + index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = late.read_bytes()
    late.write_bytes(re.sub(rb"\d\d:\d\d:\d\d\.\d+", b"00:00:04.000000000", data, count=1))
    for name, duration in (("tick", b"00:00:05.000100000"), ("days", b"10:00:00.000000000")):
        (folder / f"{name}.mkv").write_bytes(re.sub(rb"\d\d:\d\d:\d\d\.\d+", duration, data, count=1))
    data = bytearray(path.read_bytes())
    place = data.find(b"mdhd") + 20
    data[place : place + 4] = struct.pack(">I", 1)
    (folder / "tick.mp4").write_bytes(data)
    return path, [late, folder / "tick.mkv", folder / "tick.mp4"], folder / "days.mkv"


def test_a_header_that_lies_about_the_duration_changes_no_window(run, tmp_path):
    honest, lying, too_long = make_lying_files(tmp_path)
    expected = run(honest, stride=1, faces="none")
    assert len(expected) == 3
    for path in (*lying, too_long):
        timeline = run(path, stride=1, faces="none", progress=True)
        assert timeline.complete == (path != too_long), timeline.error
        assert (timeline.window, timeline.stride, timeline.num_frames) == (2, 1, 8)
        assert timeline.start - timeline.span[0] == pytest.approx(expected.start, abs=0.01)
        assert np.abs(timeline.scores - expected.scores).max() < 1e-5


def test_a_duration_that_is_no_number_does_not_stop_the_progress_bar():
    frames = open_frames(np.zeros((4, 8, 8, 3), np.uint8), fps=4)
    for duration in (-1.0, 0.0, math.nan, math.inf, 1e300):
        frames.duration = duration
        with progress_bar(frames, "video", True) as bar:
            bar.update(1)
            assert bar.total is None


def test_rotated(run, tmp_path):
    upright = draw_people(0, {RED: (0, 9, 8)})
    with av.open(str(tmp_path / "rotated.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 160, "yuv420p"
        stream.set_display_rotation(90)
        for _ in range(16):
            lying = np.ascontiguousarray(np.rot90(upright, k=-1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(lying, format="rgb24")))
        container.mux(stream.encode())
    timeline = run(tmp_path / "rotated.mp4")
    assert timeline.size == (160, 96)
    assert timeline.box[0] == pytest.approx([10, 8, 42, 40], abs=2)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".mp4", {"width": 3840, "height": 2160, "seconds": 0.08}),
        (".mp4", {"width": 96, "height": 170}),
        (".mkv", {"pix_fmt": "yuv420p10le", "codec": "libx265"}),
        (".avi", {"codec": "mpeg4"}),
        (".webm", {"codec": "libvpx-vp9"}),
        (".ts", {}),
    ],
    ids=["4k", "portrait", "10 bits", "avi", "webm", "ts"],
)
def test_sizes_depths_and_containers(run, tmp_path, suffix, options):
    seconds = options.pop("seconds", 1.0)
    timeline = run(write_people(tmp_path / f"video{suffix}", seconds=seconds, **options))
    assert timeline.complete and timeline.face_found and len(timeline) == 1
    assert timeline.size == (options.get("width", 160), options.get("height", 96))
    assert timeline.span == (pytest.approx(0, abs=0.01), pytest.approx(seconds, abs=0.01))
    assert timeline.box[0, 1] == pytest.approx(8, abs=2)


def test_grey(run, tmp_path):
    path = write_people(tmp_path / "grey.mp4", seconds=1, pix_fmt="gray")
    timeline = run(path, detector=lambda frame: np.array([[10, 8, 42, 40, 0.9]]))
    assert timeline.complete and len(timeline) == 1 and run(path).face_found is False


def test_frames_in_memory_and_in_folders_need_fps(run, tmp_path):
    frames = np.stack([draw_people(index / 10, {RED: (0, 9, 8)}) for index in range(30)])
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    expected = run(frames, fps=10)
    assert expected.span == (0, 3) and len(expected) == 3
    for video in (frames / 255, [Image.fromarray(frame) for frame in frames], tmp_path):
        assert np.abs(run(video, fps=10).scores - expected.scores).max() < 1e-5
    with pytest.raises(ValueError, match="give fps"):
        run(frames)
    with pytest.raises(ValueError, match="one video"):
        run([frames, frames])


def test_a_stream_that_breaks_off_keeps_what_was_read(run, tmp_path):
    path = write_people(tmp_path / "film.mp4", seconds=8, options={"movflags": "faststart"})
    data = path.read_bytes()
    complete, broken = run(data), run(data[: len(data) * 7 // 10])
    assert complete.complete and complete.error is None
    assert not broken.complete and "NOT COMPLETE" in repr(broken)
    assert "cut off" in broken.error and "of 8.0 s" in broken.error
    shared = np.flatnonzero(broken.end < broken.span[1] - 0.5)
    assert len(shared) > 2 and 3 < broken.span[1] < 7
    assert np.abs(broken.scores[shared] - complete.scores[: len(shared)]).max() < 1e-5
    damaged = bytearray(data)
    damaged[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    timeline = run(bytes(damaged))
    assert not timeline.complete and "damaged" in timeline.error and timeline.span[1] == pytest.approx(8, abs=0.2)
    assert '"complete": false' in timeline.to_json()


def test_what_is_no_video_is_one_clear_error(run, tmp_path):
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"sound\.wav cannot be read: .* none of the formats"):
        run(tmp_path / "sound.wav")
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be read"):
        run(tmp_path / "text.mp4")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        run(tmp_path / "nowhere.mp4")

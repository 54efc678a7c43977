# SPDX-License-Identifier: Apache-2.0
"""What a header promises bounds no loop and no memory, and changes no score."""

import re
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from emoclip import EmoCLIPModel, EmoCLIPProcessor, EmotionStream, ZeroShotVideoClassificationPipeline
from emoclip.video.sources import open_frames
from modeling_emoclip.video_limits import VideoDecodeError
from modeling_emoclip.video_reading import read_video

LABELS = ["a smile", "a frown"]
WHOLE_FRAME = {"faces": "none", "progress": False}


@pytest.fixture(scope="module")
def pipe(clip_dir):
    torch.manual_seed(0)
    model = EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=1).eval()
    torch.nn.init.normal_(model.temporal.output_projection.weight)
    return ZeroShotVideoClassificationPipeline(
        model=model, processor=EmoCLIPProcessor.from_clip(clip_dir, num_frames=8)
    )


def write(path, num_frames=32, first=0, rate=8, aspect=None, **options):
    """4 seconds, unless told otherwise, of a picture that changes."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64 + 2 * num_frames, 3), dtype=np.uint8)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=rate, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for index in range(num_frames):
            pixels = np.ascontiguousarray(noise[:, 2 * index : 2 * index + 64])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = first + index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_tag(path, clock):
    """A Matroska file whose track says another duration."""
    path.write_bytes(re.sub(rb"\d\d:\d\d:\d\d\.\d{9}", clock.encode(), path.read_bytes()))
    return path


def with_ticks(path, ticks, box=b"mdhd"):
    """An MP4 whose track says another number of ticks."""
    data = bytearray(path.read_bytes())
    place = data.find(box) + 20
    data[place : place + 4] = struct.pack(">I", ticks)
    path.write_bytes(data)
    return path


LATE = {"first": 40, "avoid_negative_ts": "disabled"}  # an honest start at 5 s


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("before the start", lambda path: with_tag(write(path.with_suffix(".mkv"), **LATE), "00:00:04.000000000")),
        ("at the start", lambda path: with_tag(write(path.with_suffix(".mkv"), **LATE), "00:00:05.000010000")),
        ("0.001 s", lambda path: with_tag(write(path.with_suffix(".mkv")), "00:00:00.001000000")),
        ("one tick", lambda path: with_ticks(write(path.with_suffix(".mp4")), 1)),
        ("no tick", lambda path: with_ticks(write(path.with_suffix(".mp4")), 0)),
        ("none", lambda path: write(path.with_suffix(".h264"))),
        ("honest", lambda path: write(path.with_suffix(".mp4"))),
    ],
)
def test_a_time_line_has_the_windows_of_the_frames_that_are_there(pipe, tmp_path, name, make):
    timeline = pipe.timeline(make(tmp_path / "clip"), LABELS, **WHOLE_FRAME)
    assert timeline.window == 2.0 and timeline.span[1] - timeline.span[0] == pytest.approx(4.0, abs=0.2)
    assert len(timeline) == 3


def test_a_duration_that_is_none_is_unknown(tmp_path):
    path = with_tag(write(tmp_path / "clip.mkv", **LATE), "00:00:04.000000000")
    assert open_frames(path).duration is None and open_frames(path, guarded=False).duration is None


def test_a_container_that_says_it_lasts_for_decades_is_read_all_the_same(tmp_path):
    """decord aborts on it, and so never gets it."""
    path = write(tmp_path / "clip.webm.mkv")
    data = bytearray(path.read_bytes())
    place = data.find(b"\x44\x89\x88") + 3  # the element Duration, of 8 bytes
    data[place : place + 8] = struct.pack(">d", 1e12)
    path.write_bytes(data)
    frames, metadata = read_video(path, lambda _: np.arange(3))
    assert len(frames) == 3 and metadata.total_num_frames == 32


@pytest.mark.parametrize("window", [8.0, float("inf")])
def test_a_shorter_video_is_one_window_whether_its_header_says_how_long_it_is_or_not(pipe, tmp_path, window):
    named, raw = write(tmp_path / "clip.mp4"), write(tmp_path / "clip.h264")
    lines = [pipe.timeline(path, LABELS, window=window, stride=1.0, **WHOLE_FRAME) for path in (named, raw)]
    assert [(len(line), line.num_frames_seen.tolist()) for line in lines] == [(1, [8])] * 2
    np.testing.assert_allclose(lines[0].scores, lines[1].scores, atol=1e-4)
    call = {entry["label"]: entry["score"] for entry in pipe(named, LABELS)}
    np.testing.assert_allclose(lines[0].scores[0], [call[label] for label in LABELS], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1e-6, "stride": 1e-6}, r"window is 1e-06 s, but must be at least 0\.008 s"),
        ({"window": float("nan")}, "window is nan, but must be"),
        ({"stride": float("nan")}, "stride is nan, but must be"),
        ({"stride": 0}, "stride is 0, but must be"),
        ({"window": "2"}, "window is '2', but must be"),
        ({"batch_size": 0}, "batch_size is 0, but must be"),
        ({"batch_size": 1.5}, r"batch_size is 1\.5, but must be"),
    ],
)
def test_what_asks_for_too_many_frames_or_none_is_refused_before_reading(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe.timeline("nowhere.mp4", LABELS, **({"window": 2.0, "stride": 1.0} | options), **WHOLE_FRAME)
    if "window" in options:
        with pytest.raises(ValueError, match=message):
            EmotionStream(pipe, LABELS, window=options["window"], drop=False, faces="none")


@pytest.mark.parametrize("rate", [-1.0, 0, float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize("guarded", [True, False])
def test_a_grid_has_a_rate_that_can_be(tmp_path, rate, guarded):
    frames = open_frames(write(tmp_path / "clip.mp4", 2), guarded=guarded)
    with pytest.raises(ValueError, match="steps per second are asked for"):
        next(frames.resample(rate))


def test_a_last_frame_that_says_it_stays_for_ever_ends_with_the_limits(tmp_path):
    path = write(tmp_path / "clip.gif.mp4", 3)
    data = bytearray(path.read_bytes())
    place = data.find(b"stts") + 12  # of all frames: the last one's is then what remains
    data[place : place + 4] = struct.pack(">I", 2**31 - 1)
    path.write_bytes(data)
    frames = open_frames(path, limits={"max_seconds": 10**9})
    list(frames.resample(0.001))
    assert frames.end - frames.start < 10_000


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "25"])
def test_frames_per_second_of_a_list_of_frames(pipe, fps):
    with pytest.raises((ValueError, TypeError), match=r"fps is|not supported"):
        pipe.timeline([Image.new("RGB", (8, 8))] * 4, LABELS, fps=fps, **WHOLE_FRAME)


# --- what is kept is counted as it is, not as the header or the first picture has it


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0]])
def test_large_images_after_a_small_one_are_refused(tmp_path, order):
    folder = tmp_path / "frames"
    folder.mkdir()
    for place, index in enumerate(order):
        Image.new("RGB", (32, 32) if index == 0 else (800, 800)).save(folder / f"{place}.png")
    with pytest.raises(VideoDecodeError, match=r"png is refused.*max_bytes is 1,000,000|frames is refused"):
        read_video(folder, lambda _: np.arange(3), limits={"max_bytes": 10**6})


@pytest.mark.parametrize("guarded", [True, False])
def test_bytes_are_those_of_the_pictures_that_decode(tmp_path, guarded):
    """A header of 16 x 16, and pictures of 256 x 256."""
    path = tmp_path / "small_header.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=8)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuvj420p"
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame(256, 256, "yuvj420p")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    place = data.find(b"mp4v") if b"mp4v" in data else data.find(b"jpeg")
    data[place + 28 : place + 32] = struct.pack(">HH", 16, 16)
    path.write_bytes(data)
    with pytest.raises(VideoDecodeError, match=r"small_header\.mp4 is refused.*max_bytes"):
        read_video(path, lambda _: np.arange(8), limits={"max_bytes": 10**6}, guarded=guarded)


def test_an_address_is_refused_without_its_secrets():
    with pytest.raises(ValueError, match=r"^rtsp://host/1 is a URL") as refused:
        read_video("rtsp://user:pa/ss@host/1?token=abc", lambda _: np.arange(1))
    assert "pa/ss" not in str(refused.value) and "abc" not in str(refused.value)


# --- pixels that are not square


@pytest.mark.parametrize(
    ("aspect", "shape"), [(Fraction(2, 1), (64, 128)), (Fraction(1, 2), (128, 64)), (Fraction(1, 1000), (64, 64))]
)
@pytest.mark.parametrize("guarded", [True, False])
def test_frames_have_the_shape_that_a_player_shows(tmp_path, aspect, shape, guarded):
    path = write(tmp_path / "clip.mp4", 4, aspect=aspect)
    frames, metadata = read_video(path, lambda _: np.arange(4), guarded=guarded)
    assert frames.shape[1:3] == shape == (metadata.height, metadata.width)
    whole = open_frames(path, guarded=guarded)
    (first, *_) = whole.resample(8)
    assert first.pixels.shape[:2] == shape
    np.testing.assert_array_equal(first.pixels, frames[0])


def test_the_frames_of_an_avi_are_the_same_each_time(tmp_path):
    """It has B frames, and no times; decord gives frame 1 in most runs, and frame 2 in some."""
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for number in range(3):
            pixels = np.full((64, 128, 3), 80 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    for wanted in ([1], [2], [0, 2]):
        means = {tuple(read_video(path, lambda _, w=wanted: np.array(w))[0].mean((1, 2, 3)).round()) for _ in range(8)}
        assert len(means) == 1 and np.allclose(means.pop(), [80 * number for number in wanted], atol=4)
    for guarded in (True, False):
        steps = [(step.time, step.pixels.mean()) for step in open_frames(path, guarded=guarded).resample(8)]
        assert np.allclose(steps, [[(number + 0.5) / 8, 80 * number] for number in range(3)], atol=4)

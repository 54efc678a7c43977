# SPDX-License-Identifier: Apache-2.0
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_files import numbers_of, picture, write_video

from modeling_emoclip import video_reading, video_streams
from modeling_emoclip.frame_sampling import segment_middle

read_video = partial(video_reading.read_video, guarded=False)  # the other process is test_video_guard.py's
MIDDLES_OF_5 = segment_middle(40, 5)


def every_frame(metadata):
    return np.arange(metadata.total_num_frames)


@pytest.fixture(params=["decord", "pyav"])
def backend(request, monkeypatch):
    if request.param == "pyav":
        monkeypatch.setattr(video_streams, "decord", None)
    elif video_streams.decord is None:
        pytest.skip("decord is not installed")
    return request.param


# --- decoding


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("avi", "mpeg4"), ("mkv", "libx264"), ("webm", "libvpx-vp9")]
)
def test_containers(tmp_path, backend, suffix, codec):
    path = write_video(tmp_path / f"clip.{suffix}", codec=codec)
    wanted = np.array([39, 3, 3, 17, 0])  # in any order, with repetitions
    expected_backend = "pyav" if codec == "mpeg4" else backend  # decord cannot be trusted with MPEG-4 part 2
    for source in (path, str(path), path.read_bytes(), {"bytes": path.read_bytes(), "path": "clip"}):
        frames, metadata = read_video(source, lambda _: wanted)
        assert frames.shape == (5, 64, 96, 3) and frames.dtype == np.uint8
        assert numbers_of(frames) == wanted.tolist()
        assert metadata.video_backend == expected_backend
        assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (40, 25, 1.6)
        assert (metadata.width, metadata.height, list(metadata.frames_indices)) == (96, 64, wanted.tolist())


@pytest.mark.parametrize("codec_options", [{"width": 100, "height": 70}, {"width": 426, "height": 240}])
def test_decoders_agree_on_sizes_that_are_no_multiple_of_16(tmp_path, monkeypatch, codec_options):
    path = write_video(tmp_path / "clip.mp4", num_frames=12, **codec_options)
    first, _ = read_video(path, every_frame)
    monkeypatch.setattr(video_streams, "decord", None)
    second, _ = read_video(path, every_frame)
    np.testing.assert_allclose(first.astype(int), second.astype(int), atol=2)


def test_decord_refusal_is_mended(tmp_path):
    frames, metadata = read_video(write_video(tmp_path / "narrow.mp4", width=48), every_frame)
    assert metadata.video_backend == "pyav"
    assert numbers_of(frames) == list(range(40))


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_display_matrix_is_applied(tmp_path, backend, rotation):
    path = write_video(tmp_path / "phone.mp4", num_frames=10, rotation=rotation)
    frames, metadata = read_video(path, lambda _: np.array([5]))
    expected = np.rot90(picture(5), k=rotation // 90)
    assert metadata.video_backend == backend
    assert (metadata.height, metadata.width) == expected.shape[:2]
    np.testing.assert_allclose(frames[0].astype(int), expected.astype(int), atol=40)
    assert abs(frames[0].astype(int) - expected).mean() < 5


def test_variable_frame_rate_is_sampled_evenly_in_time(tmp_path, backend):
    times = [*range(20), *range(20, 120, 5)]  # 20 frames in the first 0.8 s, 20 in the next 4 s
    path = write_video(tmp_path / "variable.mp4", times=times)
    frames, metadata = read_video(path, lambda found: segment_middle(found.total_num_frames, 8))
    shown_at = np.array(times)[numbers_of(frames)] / 25
    assert (np.array(metadata.timestamps) - shown_at >= -1e-3).all()  # the frame on screen, not one of the future
    assert (np.array(metadata.timestamps) - shown_at < 0.2).all()
    assert abs(metadata.duration - 4.6 * 40 / 39) < 1e-3


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path):
    path = write_video(tmp_path / "cut.mp4", times=list(range(-5, 35)))
    frames, metadata = read_video(path, every_frame)
    assert metadata.total_num_frames == 35
    assert numbers_of(frames) == list(range(5, 40))


def test_a_header_that_counts_wrongly_is_not_believed(tmp_path):
    data = bytearray(write_video(tmp_path / "clip.avi", codec="mpeg4").read_bytes())
    for tag, offset in ((b"avih", 24), (b"strh", 40)):  # dwTotalFrames, dwLength
        at = data.index(tag) + offset
        assert int.from_bytes(data[at : at + 4], "little") == 40
        data[at : at + 4] = (200).to_bytes(4, "little")
    frames, metadata = read_video(bytes(data), every_frame)
    assert metadata.total_num_frames == 40
    assert numbers_of(frames) == list(range(40))


def test_frames_that_do_not_decode_are_sampled_around(tmp_path):
    path = write_video(tmp_path / "clip.mkv", codec="mpeg4")
    with av.open(str(path)) as container:
        packet = bytes(list(container.demux(video=0))[25])
    damaged = path.read_bytes().replace(packet, bytes(len(packet)))
    frames, metadata = read_video(damaged, lambda found: segment_middle(found.total_num_frames, 8))
    assert damaged != path.read_bytes()
    assert metadata.total_num_frames in (39, 40)
    assert len(frames) == 8 and numbers_of(frames) == sorted(numbers_of(frames))


def test_pyav_decodes_only_from_the_nearest_key_frame(clip, monkeypatch):
    decoded = []
    original = video_streams.decoded_frames
    monkeypatch.setattr(video_streams, "decord", None)
    monkeypatch.setattr(video_streams, "decoded_frames", lambda *a: (decoded.append(f) or f for f in original(*a)))
    frames, _ = read_video(clip, lambda _: np.array([2, 31]))
    assert numbers_of(frames) == [2, 31]
    assert len(decoded) == 3 + 2  # 0 1 2, then 30 31: a key frame every 10


def test_decord_is_asked_for_each_wanted_frame_once(clip, monkeypatch):
    if video_streams.decord is None:
        pytest.skip("decord is not installed")
    asked = []
    reader = video_streams.decord.VideoReader
    original = reader.get_batch
    monkeypatch.setattr(reader, "get_batch", lambda self, indices: asked.append(indices) or original(self, indices))
    read_video(clip, lambda _: np.array([7, 7, 30, 7]))
    assert asked == [[7, 30]]


def test_only_needed_images_are_opened(folder, monkeypatch):
    opened = []
    original = Image.open
    monkeypatch.setattr(
        video_reading.Image, "open", lambda path, **how: opened.append(Path(path).name) or original(path, **how)
    )
    frames, metadata = read_video(folder, lambda found: segment_middle(found.total_num_frames, 5))
    assert numbers_of(frames) == MIDDLES_OF_5.tolist()
    assert opened == [f"{index}.png" for index in MIDDLES_OF_5]
    assert metadata.total_num_frames == 40 and metadata.fps is None


# --- bad files


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def make_bad(kind, folder):
    path = folder / f"{kind}.mp4"
    if kind == "text":
        path.write_text("this is not a video\n" * 50)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "index_at_end":
        data = write_video(path).read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif kind == "index_at_start":
        data = write_video(path, movflags="faststart").read_bytes()
        path.write_bytes(data[: len(data) // 2 + 700])
    elif kind == "sound":
        path = folder / "sound.mkv"
        write_sound(path)
    elif kind == "playlist":  # FFmpeg would open what it names
        path.write_text(f"ffconcat version 1.0\nfile {write_video(folder / 'other.mp4').name}\n")
    elif kind == "no_images":
        path = folder / "no_images"
        path.mkdir()
        (path / "clip.mp4").write_bytes(b"x")
    elif kind == "bad_image":
        path = folder / "bad_image.png"
        path.write_text("this is not an image")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "is no video file, or damaged"),
        ("empty", "is empty: 0 bytes"),
        ("index_at_end", "cut off"),
        ("index_at_start", r"is cut off: \d+ of its 40 frames are there, but frame 3\d is wanted"),
        ("sound", "has no video stream"),
        ("playlist", "none of the formats mov, matroska"),
        ("no_images", "is a folder without frame images"),
        ("bad_image", "cannot be read as an image"),
    ],
)
def test_bad_files_give_one_clear_error(tmp_path, backend, kind, message, capfd):
    path = make_bad(kind, tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        read_video(path, lambda found: segment_middle(found.total_num_frames, 5))
    assert str(path) in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_cut_off_serves_what_is_there(tmp_path, backend):
    path = make_bad("index_at_start", tmp_path)
    frames, metadata = read_video(path, lambda _: np.arange(5))
    assert numbers_of(frames) == [0, 1, 2, 3, 4]
    assert metadata.total_num_frames == 40


def test_missing_files(tmp_path):
    for path in (tmp_path / "no.mp4", str(tmp_path / "no.mp4"), [tmp_path / "no.jpg"]):
        with pytest.raises(FileNotFoundError, match=r"no\.(mp4|jpg) does not exist"):
            read_video(path, every_frame)

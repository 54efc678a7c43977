# SPDX-License-Identifier: Apache-2.0
import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from modeling_emoclip import video_decoding, video_streams
from modeling_emoclip.frame_sampling import segment_middle
from modeling_emoclip.video_decoding import read_video
from modeling_emoclip.video_processing_emoclip import EmoCLIPVideoProcessor

MIDDLES_OF_5 = segment_middle(40, 5)


def write_video(path, num_frames=40, width=96, height=64, codec="libx264", rotation=None, times=None, **options):
    """The left half tells the number of the frame; the upper right quarter is red."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = width, height, "yuv420p", 10
        stream.bit_rate = 4_000_000
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(index, width, height), format="rgb24")
            frame.pts = index if times is None else times[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def picture(index, width=96, height=64):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 6 * index
    pixels[: height // 2, width // 2 :] = [200, 30, 30]
    return pixels


def numbers_of(frames):
    """The frame numbers that `picture` wrote, from frames (T, H, W, 3)."""
    height, width = frames.shape[1:3]
    return np.rint(frames[:, height // 2, width // 4].mean(-1) / 6).astype(int).tolist()


def every_frame(metadata):
    return np.arange(metadata.total_num_frames)


@pytest.fixture(params=["decord", "pyav"])
def backend(request, monkeypatch):
    if request.param == "pyav":
        monkeypatch.setattr(video_streams, "decord", None)
    elif video_streams.decord is None:
        pytest.skip("decord is not installed")
    return request.param


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    for index in range(40):
        Image.fromarray(picture(index)).save(folder / f"{index}.png")  # 10.png would sort before 2.png as text
    (folder / "notes.txt").write_text("not a frame")
    (folder / ".hidden.png").write_text("not a frame either")
    return folder


@pytest.fixture
def processor():
    return EmoCLIPVideoProcessor(num_frames=5, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


# --- decoding


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("avi", "mpeg4"), ("mkv", "libx264"), ("webm", "libvpx-vp9")]
)
def test_containers(tmp_path, backend, suffix, codec):
    path = write_video(tmp_path / f"clip.{suffix}", codec=codec)
    wanted = np.array([39, 3, 3, 17, 0])  # in any order, with repetitions
    for source in (path, str(path), path.read_bytes(), {"bytes": path.read_bytes(), "path": "clip"}):
        frames, metadata = read_video(source, lambda _: wanted)
        assert frames.shape == (5, 64, 96, 3) and frames.dtype == np.uint8
        assert numbers_of(frames) == wanted.tolist()
        assert metadata.video_backend == backend
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


def test_a_header_that_counts_wrongly_is_not_believed(tmp_path, backend):
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
    original = video_streams._decoded
    monkeypatch.setattr(video_streams, "decord", None)
    monkeypatch.setattr(video_streams, "_decoded", lambda *a: (decoded.append(f) or f for f in original(*a)))
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
    monkeypatch.setattr(video_decoding.Image, "open", lambda path: opened.append(Path(path).name) or original(path))
    frames, metadata = read_video(folder, lambda found: segment_middle(found.total_num_frames, 5))
    assert numbers_of(frames) == MIDDLES_OF_5.tolist()
    assert opened == [f"{index}.png" for index in MIDDLES_OF_5]
    assert metadata.total_num_frames == 40 and metadata.fps is None


# --- bad files


def test_an_unknown_codec(tmp_path):
    data = write_video(tmp_path / "clip.mp4").read_bytes()
    with pytest.raises(ValueError, match="video 2 of the batch of 2 cannot be read: its codec is unknown here"):
        EmoCLIPVideoProcessor()([data, data.replace(b"avc1", b"xyz1")], return_tensors="pt")


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
        path = folder / "sound.wav"
        write_sound(path)
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
        ("no_images", "is a folder without frame images"),
        ("bad_image", "cannot be read as an image"),
    ],
)
def test_bad_files_give_one_clear_error(tmp_path, backend, processor, kind, message, capfd):
    path = make_bad(kind, tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        processor(path, return_tensors="pt")
    assert str(path) in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_cut_off_serves_what_is_there(tmp_path, backend):
    path = make_bad("index_at_start", tmp_path)
    frames, metadata = read_video(path, lambda _: np.arange(5))
    assert numbers_of(frames) == [0, 1, 2, 3, 4]
    assert metadata.total_num_frames == 40


def test_missing_files(processor, tmp_path):
    for path in (tmp_path / "no.mp4", str(tmp_path / "no.mp4"), [tmp_path / "no.jpg"]):
        with pytest.raises(FileNotFoundError, match=r"no\.(mp4|jpg) does not exist"):
            processor(path)


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([], "is an empty list"),
        ([[]], "is an empty list"),
        (None, "is a NoneType, but must be a path"),
        ([np.zeros((4, 8, 8, 3), np.uint8), 7], "video 2 of the batch of 2 is a int, but must be"),
        (b"", "is empty: 0 bytes"),
        ({"bytes": None, "path": None}, "'bytes' and 'path' are both missing"),
        ("https://example.org/clip.mp4", "is a URL: download it first"),
        (np.zeros((0, 8, 8, 3), np.uint8), "none of them 0"),
        (np.zeros((0, 4, 8, 8, 3), np.uint8), "none of them 0"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\), but must be \(frames, height"),
        (np.zeros((4, 8, 8, 5), np.uint8), "must have 1, 3 or 4"),
        (np.full((4, 8, 8, 3), np.nan), "not finite"),
        ([np.zeros((4, 8, 8, 3)), np.full((4, 8, 8, 3), np.inf)], "video 2 of the batch of 2 holds values .* finite"),
        (np.full((4, 8, 8, 3), 300), "integers from 300 to 300"),
        (np.zeros((4, 8, 8, 3), bool), "of type bool"),
        (np.full((4, 8, 8, 3), "a"), "but must hold integers"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)], "shapes .8, 8, 3., .9, 8, 3."),
        ([Image.new("RGB", (8, 8)), "clip.mp4"], "mixes frames with videos"),
    ],
)
def test_bad_inputs_are_named(processor, videos, message):
    with pytest.raises(ValueError, match=message):
        processor(videos, return_tensors="pt")


# --- the processor


def test_every_kind_of_input_gives_the_same_clip(processor, clip, folder):
    frames = np.stack([picture(index) for index in range(40)])
    expected = processor(frames, return_tensors="pt").pixel_values_videos
    assert expected.shape == (1, 5, 3, 32, 32) and expected.dtype == torch.float32
    images = [Image.fromarray(frame) for frame in frames]
    paths = [folder / f"{index}.png" for index in range(40)]
    exact = [folder, str(folder), paths, [str(path) for path in paths], images, list(frames)]
    exact += [torch.from_numpy(frames), torch.from_numpy(frames).permute(0, 3, 1, 2), frames.astype(np.int64)]
    exact += [[frames], frames[None], [images], [paths], {"bytes": None, "path": str(folder)}]
    for videos in exact:
        torch.testing.assert_close(processor(videos, return_tensors="pt").pixel_values_videos, expected)
    for videos in (clip, str(clip), clip.read_bytes(), [clip], {"bytes": clip.read_bytes(), "path": None}):
        found = processor(videos, return_tensors="pt").pixel_values_videos
        assert (found - expected).abs().mean() < 0.1  # the codec loses a little


def test_pixels_are_those_of_clips_image_processor(folder):
    inputs = EmoCLIPVideoProcessor(num_frames=40)(folder, return_tensors="pt").pixel_values_videos
    images = [Image.open(folder / f"{index}.png") for index in range(40)]
    expected = CLIPImageProcessor()(images, return_tensors="pt").pixel_values
    torch.testing.assert_close(inputs[0], expected)


def test_a_batch_may_mix_kinds_sizes_and_lengths(processor, clip, folder, tmp_path):
    large = write_video(tmp_path / "large.mkv", num_frames=3, width=128, height=160)
    array = np.zeros((7, 3, 40, 50), np.float32)
    batch = [clip, folder, large, array, [Image.new("L", (90, 33))]]
    inputs = processor(batch, return_tensors="pt", return_metadata=True)
    assert set(inputs) == {"pixel_values_videos", "video_metadata"}
    assert inputs.pixel_values_videos.shape == (5, 5, 3, 32, 32)
    assert [metadata.total_num_frames for metadata in inputs.video_metadata] == [40, 40, 3, 7, 1]
    assert list(inputs.video_metadata[2].frames_indices) == [0, 0, 1, 2, 2]
    one_by_one = [processor(video, return_tensors="pt").pixel_values_videos[0] for video in batch]
    torch.testing.assert_close(inputs.pixel_values_videos, torch.stack(one_by_one))


def test_squash_to_a_size_without_normalising(clip):
    dfer_clip = {"size": {"height": 24, "width": 40}, "do_center_crop": False, "do_normalize": False}
    pixels = EmoCLIPVideoProcessor(**dfer_clip)(clip, return_tensors="pt").pixel_values_videos
    assert pixels.shape == (1, 16, 3, 24, 40)
    assert pixels.min() >= 0 and 0.5 < pixels.max() <= 1


def test_sizes_that_cannot_be_stacked_are_an_error(processor):
    batch = [np.zeros((4, 64, 96, 3), np.uint8), np.zeros((4, 96, 64, 3), np.uint8)]
    with pytest.raises(ValueError, match="set do_center_crop=True"):
        processor(batch, do_center_crop=False, return_tensors="pt")
    assert len(processor(batch, do_center_crop=False).pixel_values_videos) == 2


def test_without_sampling_short_clips_are_padded_and_masked(processor, clip):
    batch = [np.full((3, 40, 40, 3), 255, np.uint8), clip]
    inputs = processor(batch, do_sample_frames=False, return_tensors="pt")
    assert inputs.pixel_values_videos.shape == (2, 40, 3, 32, 32)
    assert inputs.frame_mask.dtype == torch.bool
    assert inputs.frame_mask.tolist() == [[True] * 3 + [False] * 37, [True] * 40]
    assert (inputs.pixel_values_videos[0, 3:] == 0).all() and (inputs.pixel_values_videos[0, :3] != 0).all()
    same_length = processor([clip, clip], do_sample_frames=False, return_tensors="np")
    assert "frame_mask" not in same_length and same_length.pixel_values_videos.shape == (2, 40, 3, 32, 32)


def test_floats_that_are_rescaled_already_are_not_rescaled_again(processor):
    frames = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3))
    expected = processor(frames.astype(np.float32), return_tensors="pt").pixel_values_videos
    for dtype in (np.float16, np.float32, np.float64):
        rescaled = processor((frames / 255).astype(dtype), return_tensors="pt").pixel_values_videos
        torch.testing.assert_close(rescaled, expected, atol=5e-3, rtol=0)
    kept = processor(frames / 255, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values_videos
    assert 0.9 < kept.max() < 1.2


def test_transparency_is_laid_on_white(processor):
    image = Image.fromarray(np.full((40, 40, 4), [0, 0, 0, 51], np.uint8))
    options = {"do_normalize": False, "return_tensors": "pt"}
    torch.testing.assert_close(processor([image], **options).pixel_values_videos, torch.full((1, 5, 3, 32, 32), 0.8))
    rescaled = np.asarray(image)[None] / 255
    torch.testing.assert_close(processor(rescaled, **options).pixel_values_videos, torch.full((1, 5, 3, 32, 32), 0.8))


def test_evaluation_is_deterministic_and_random_strategies_need_a_seed(processor, clip):
    def frames(**options):
        inputs = processor([clip, clip], return_metadata=True, **options)
        return [list(metadata.frames_indices) for metadata in inputs.video_metadata]

    assert frames() == frames() == [MIDDLES_OF_5.tolist()] * 2
    assert frames(frame_sampling="strided_window", frame_stride=3) == [[13, 16, 19, 22, 25]] * 2
    for strategy in ("segment_random", "strided_window_random"):
        with pytest.raises(ValueError, match="needs a seed or an rng"):
            frames(frame_sampling=strategy)
        seeded = frames(frame_sampling=strategy, seed=7)
        assert seeded == frames(frame_sampling=strategy, seed=7) != frames(frame_sampling=strategy, seed=8)
        assert seeded == frames(frame_sampling=strategy, rng=np.random.default_rng(7))
        assert seeded[0] != seeded[1]


def test_fps_in_place_of_num_frames(processor, clip):
    metadata = processor(clip, fps=5, return_metadata=True).video_metadata[0]
    assert list(metadata.frames_indices) == segment_middle(40, 8).tolist()
    assert metadata.timestamps == pytest.approx((np.arange(8) * 5 + 2) / 25)
    assert processor(clip, num_frames=3, return_tensors="pt").pixel_values_videos.shape[1] == 3
    with pytest.raises(ValueError, match="exclude each other"):
        processor(clip, fps=5, num_frames=3)
    with pytest.raises(ValueError, match="needs the video's own frames per second"):
        processor(np.zeros((9, 40, 40, 3), np.uint8), fps=5)
    given = {"total_num_frames": 9, "fps": 3.0}
    inputs = processor(np.zeros((9, 40, 40, 3), np.uint8), fps=1, video_metadata=given, return_tensors="pt")
    assert inputs.pixel_values_videos.shape[1] == 3
    with pytest.raises(ValueError, match="has 9 frames, but its video_metadata says 8"):
        processor(np.zeros((9, 40, 40, 3), np.uint8), video_metadata={"total_num_frames": 8})


def test_saved_and_loaded(tmp_path):
    options = {
        "num_frames": 7,
        "frame_sampling": "strided_window",
        "frame_stride": 2,
        "size": {"height": 20, "width": 30},
        "do_center_crop": False,
        "do_normalize": False,
    }
    processor = EmoCLIPVideoProcessor(**options)
    processor.save_pretrained(tmp_path)
    loaded = EmoCLIPVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert {name: loaded.to_dict()[name] for name in options} == options
    assert EmoCLIPVideoProcessor.from_pretrained(tmp_path, num_frames=3).num_frames == 3


def test_bad_settings():
    with pytest.raises(ValueError, match="'middle', but must be one of segment_middle"):
        EmoCLIPVideoProcessor(frame_sampling="middle")
    with pytest.raises(ValueError, match="stride is -1"):
        EmoCLIPVideoProcessor(frame_sampling="strided_window")(np.zeros((9, 9, 9, 3), np.uint8), frame_stride=-1)
    with pytest.raises(ValueError, match="num_frames is 0"):
        EmoCLIPVideoProcessor()(np.zeros((9, 9, 9, 3), np.uint8), num_frames=0)
    with pytest.raises(TypeError):
        EmoCLIPVideoProcessor()(np.zeros((9, 9, 9, 3), np.uint8), frame_sampler="segment_middle")


def test_defaults_are_clips():
    ours, clips = EmoCLIPVideoProcessor().to_dict(), CLIPImageProcessor().to_dict()
    for name in ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor", "do_convert_rgb"):
        assert ours[name] == clips[name]
    assert (ours["num_frames"], ours["frame_sampling"], ours["frame_stride"]) == (16, "segment_middle", 4)
    assert math.isclose(ours["rescale_factor"], 1 / 255)

# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor
from video_files import picture, write_video

from modeling_emoclip.frame_sampling import segment_middle
from modeling_emoclip.video_processing_emoclip import EmoCLIPVideoProcessor

MIDDLES_OF_5 = segment_middle(40, 5)


@pytest.fixture
def processor():
    return EmoCLIPVideoProcessor(num_frames=5, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


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


def test_an_unknown_codec(tmp_path):
    data = write_video(tmp_path / "clip.mp4").read_bytes()
    with pytest.raises(ValueError, match="video 2 of the batch of 2 cannot be read: its codec is unknown here"):
        EmoCLIPVideoProcessor()([data, data.replace(b"avc1", b"xyz1")], return_tensors="pt")


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
        (
            np.where(np.arange(4)[:, None, None, None] == 2, np.nan, np.zeros((4, 8, 8, 3))),
            "not finite.* in frame 2 of",
        ),
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

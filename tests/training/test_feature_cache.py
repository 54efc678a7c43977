# SPDX-License-Identifier: Apache-2.0
"""Frames of real files through a tiny random tower: found again, never mixed up, never half written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from emoclip import EmoCLIPModel, EmoCLIPProcessor, EmoCLIPVideoProcessor
from modeling_emoclip.video_reading import read_video
from training.cache import feature_cache
from training.cache.feature_cache import Views, encode_frames, tower_fingerprint
from training.recipe import Augmentation

ROOT = Path(__file__).parents[2]
# The same call in a process of its own; with "hang" it stops between writing and renaming its third shard.
SCRIPT = """
import json, os, sys, time
import datasets
from emoclip import EmoCLIPModel, EmoCLIPProcessor, EmoCLIPVideoProcessor
from training.cache import feature_cache

clip_dir, cache_dir, paths, hang = sys.argv[1:]
feature_cache.CLIPS_PER_SHARD = 2
replace, calls = os.replace, []

def replace_twice(*names):
    calls.append(names)
    if len(calls) == 3:
        print("hangs", flush=True)
        time.sleep(600)
    replace(*names)

if hang:
    os.replace = replace_twice
features = datasets.Features({"video": datasets.Video(decode=False)})
rows = datasets.Dataset.from_dict({"video": json.loads(paths)}, features=features)
processor = EmoCLIPProcessor.from_clip(clip_dir).video_processor
feature_cache.encode_frames(EmoCLIPModel.from_clip(clip_dir), processor, rows, feature_cache.Path(cache_dir), 1)
"""


@pytest.fixture(scope="module")
def video_processor(clip_dir):
    return EmoCLIPProcessor.from_clip(clip_dir).video_processor


@pytest.fixture(scope="module")
def model(clip_dir):
    return EmoCLIPModel.from_clip(clip_dir)


@pytest.fixture
def clips(write_clip, tmp_path):
    """Five clips of 3 to 7 frames."""
    (tmp_path / "clips").mkdir()
    return [str(write_clip(tmp_path / "clips" / f"{number}.mp4", num_frames=3 + number)) for number in range(5)]


@pytest.fixture
def frame_folder(tmp_path):
    folder = tmp_path / "clip_of_images"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (11, 48, 64, 3), np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")  # 10.png comes after 2.png
    return folder, images


@pytest.fixture
def encode(model, video_processor, tmp_path):
    """`encode(rows, ...)` into the folder of the test."""

    def encode(rows, cache_dir=tmp_path / "cache", model=model, video_processor=video_processor, **options):
        return encode_frames(model, video_processor, rows, cache_dir, **options)

    return encode


@pytest.fixture
def encoded(monkeypatch):
    """The number of frames of each clip that the tower got."""
    lengths, encode = [], feature_cache._encode

    def counting(model, clips):
        lengths.extend(map(len, clips))
        return encode(model, clips)

    monkeypatch.setattr(feature_cache, "_encode", counting)
    return lengths


def rows_of(videos):
    features = datasets.Features({"video": datasets.Video(decode=False)})
    return datasets.Dataset.from_dict({"video": videos}, features=features)


def rows_of_folders(folders):
    return datasets.Dataset.from_dict({"frames": list(map(str, folders)), "label": [0] * len(folders)})


def embeds_of(frames, model, video_processor):
    """What the tower makes of frames `(T, H, W, 3)`, without the cache."""
    pixel_values = video_processor(frames, do_sample_frames=False, return_tensors="pt").pixel_values_videos
    with torch.inference_mode():
        return model.visual_projection(model.vision_model(pixel_values=pixel_values[0]).pooler_output)


def read_all(path):
    return read_video(path, lambda metadata: np.arange(metadata.total_num_frames))[0]


def content_of(cache_dir):
    return {str(path.relative_to(cache_dir)): path.read_bytes() for path in cache_dir.rglob("*.safetensors")}


def start_process(clip_dir, cache_dir, paths, hang=""):
    command = [sys.executable, "-c", SCRIPT, str(clip_dir), str(cache_dir), json.dumps(paths), hang]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_equal(one, other, **options):
    assert len(one) == len(other)
    for index in range(len(one)):
        torch.testing.assert_close(one[index], other[index], **options)


def test_every_frame_of_every_clip_is_encoded_as_the_model_would(encode, clips, model, video_processor):
    frame_embeds = encode(rows_of(clips))
    assert [len(clip) for clip in frame_embeds] == [3, 4, 5, 6, 7]
    assert_equal(frame_embeds, [embeds_of(read_all(clip), model, video_processor) for clip in clips])


def test_a_killed_run_goes_on_to_the_same_bytes(encode, encoded, clips, clip_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "CLIPS_PER_SHARD", 2)
    cache_dir = tmp_path / "killed"
    process = start_process(clip_dir, cache_dir, clips, hang="hang")
    assert process.stdout.readline() == "hangs\n", process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(content_of(cache_dir)) == 2 and len(list(cache_dir.rglob("*.tmp"))) == 1
    resumed = encode(rows_of(clips), cache_dir)
    assert encoded == [7]
    uninterrupted = encode(rows_of(clips))
    assert content_of(cache_dir) == content_of(tmp_path / "cache") and len(content_of(cache_dir)) == 3
    assert_equal(resumed, uninterrupted, rtol=0, atol=0)


@pytest.mark.slow
def test_two_processes_may_fill_one_cache_at_once(encode, encoded, clips, clip_dir, tmp_path, monkeypatch):
    processes = [start_process(clip_dir, tmp_path / "shared", clips) for _ in range(2)]
    for process in processes:
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
    found = encode(rows_of(clips), tmp_path / "shared")
    assert encoded == []
    monkeypatch.setattr(feature_cache, "CLIPS_PER_SHARD", 2)
    encode(rows_of(clips))
    assert content_of(tmp_path / "shared") == content_of(tmp_path / "cache") and len(found) == 5


def test_worker_processes_change_no_bit(encode, clips, tmp_path):
    encode(rows_of(clips))
    encode(rows_of(clips), tmp_path / "workers", num_workers=2)
    assert content_of(tmp_path / "workers") == content_of(tmp_path / "cache")


def test_other_splits_and_copies_of_a_clip_are_not_encoded_again(encode, encoded, clips):
    first = encode(rows_of([clips[0], clips[1], clips[0]]))
    assert encoded == [3, 4]
    second = encode(rows_of([clips[1], clips[2]]), title="another split")
    assert encoded == [3, 4, 5]
    assert torch.equal(first[2], first[0]) and torch.equal(second[0], first[1])


@pytest.mark.parametrize("change", ["weights", "projection", "dtype", "size", "every", "views", "seed"])
def test_what_makes_other_embeddings_is_encoded_again(
    change, encode, encoded, clips, clip_dir, model, video_processor
):
    rows, flip = rows_of(clips), Views(1, Augmentation(flip=0.5))
    encode(rows, views=flip)
    encoded.clear()
    if change in ("weights", "projection"):
        model = EmoCLIPModel.from_clip(clip_dir)
        name = "visual_projection.weight" if change == "projection" else "vision_model.post_layernorm.bias"
        model.get_parameter(name).data[-1] += 1e-6
        encode(rows, model=model)
    elif change == "dtype":
        encode(rows, model=EmoCLIPModel.from_clip(clip_dir).to(torch.bfloat16))
    elif change == "size":
        size = {"height": 36, "width": 36}
        encode(rows, video_processor=type(video_processor)(**{**video_processor.to_dict(), "size": size}))
    elif change == "every":
        assert [len(clip) for clip in encode(rows, every=2)] == [2, 2, 3, 3, 4]
    elif change == "views":
        encode(rows, views=Views(1, Augmentation(flip=0.5, rotation=1.0)))
    else:
        encode(rows, views=flip, seed=1)
    assert len(encoded) == len(clips)
    encode(rows, views=flip)
    assert len(encoded) == len(clips)


def test_what_picks_among_the_frames_encodes_nothing(encode, encoded, clips, video_processor):
    encode(rows_of(clips))
    encoded.clear()
    choice = {"num_frames": 3, "frame_sampling": "strided_window", "frame_stride": 2}
    encode(rows_of(clips), video_processor=type(video_processor)(**{**video_processor.to_dict(), **choice}))
    assert encoded == []


def test_a_changed_file_is_the_only_one_encoded_again(encode, encoded, clips, write_clip, frame_folder):
    rows = rows_of(clips)
    encode(rows)
    encoded.clear()
    os.utime(clips[1], (1, 1))
    encode(rows)
    assert encoded == [4]
    status = os.stat(clips[2])
    write_clip(Path(clips[2]), num_frames=9)
    os.utime(clips[2], ns=(status.st_atime_ns, status.st_mtime_ns))  # only the size tells
    assert [len(clip) for clip in encode(rows)] == [3, 4, 9, 6, 7]
    assert encoded == [4, 9]
    folder, _ = frame_folder
    encode(rows_of_folders([folder]))
    (folder / "10.png").unlink()
    assert len(encode(rows_of_folders([folder]))[0]) == 10


def test_the_fingerprint_of_a_tower_is_computed_once_if_given(encode, encoded, clips, model, monkeypatch):
    encode(rows_of(clips[:1]))
    tower = tower_fingerprint(model)
    monkeypatch.setattr(feature_cache, "tower_fingerprint", None)
    encode(rows_of(clips[:1]), tower=tower)
    assert encoded == [3]


@pytest.fixture
def with_bad_clips(clips, tmp_path):
    """Four files, of which one is cut off and one is missing; and the path of an empty folder."""
    good = Path(clips[4]).read_bytes()
    Path(clips[4]).write_bytes(good[: len(good) // 2])
    (tmp_path / "empty").mkdir()
    return [*clips[:2], clips[4], str(tmp_path / "missing.mp4")], str(tmp_path / "empty"), good


def test_bad_clips_stop_the_run_at_its_end_and_only_mended_ones_are_encoded_then(
    encode, encoded, with_bad_clips, tmp_path
):
    paths, _, good = with_bad_clips
    with pytest.raises(ValueError, match="train, 4 clips: 2 cannot be read") as raised:
        encode(rows_of(paths), title="train")
    assert paths[2] in str(raised.value) and paths[3] in str(raised.value) and paths[0] not in str(raised.value)
    assert encoded == [3, 4]
    Path(paths[2]).write_bytes(good)
    Path(paths[3]).write_bytes(good)
    frame_embeds = encode(rows_of(paths))
    assert encoded == [3, 4, 7, 7] and frame_embeds.skipped == []
    assert torch.equal(frame_embeds[2], frame_embeds[3])


def test_skipped_clips_are_named_remembered_and_never_served(encode, with_bad_clips, caplog):
    paths, _, _ = with_bad_clips
    views = Views(1, Augmentation(flip=1.0))
    for _ in range(2):  # the second time everything else comes from the cache
        caplog.clear()
        frame_embeds = encode(rows_of([*paths, paths[2]]), on_error="skip", views=views)
        assert frame_embeds.skipped == [2, 3, 4] and len(frame_embeds) == 5
        assert paths[2] in caplog.text and paths[3] in caplog.text
    assert len(frame_embeds[1]) == len(frame_embeds[1, 1]) == 4
    with pytest.raises(ValueError, match="row 2 cannot be read"):
        frame_embeds[2]
    kept = frame_embeds.select([1, 0])
    assert len(kept) == kept.num_views == 2 and kept.skipped == []
    assert torch.equal(kept[0, 1], frame_embeds[1, 1])


def test_a_folder_without_images_is_a_bad_clip(encode, with_bad_clips, frame_folder):
    empty, (folder, _) = with_bad_clips[1], frame_folder
    with pytest.raises(ValueError, match="1 cannot be read") as raised:
        encode(rows_of_folders([folder, empty]))
    assert empty in str(raised.value)
    assert encode(rows_of_folders([folder, empty]), on_error="skip").skipped == [1]


def test_of_many_bad_clips_the_first_are_named_and_all_counted(encode, tmp_path):
    with pytest.raises(ValueError, match=r"25 cannot be read") as raised:
        encode(rows_of([str(tmp_path / f"{number}.mp4") for number in range(25)]))
    assert str(raised.value).count(str(tmp_path)) == 20 and "and 5 more" in str(raised.value)


def test_a_bug_is_not_taken_for_a_bad_clip(encode, clips, monkeypatch):
    def broken(*arguments):
        raise TypeError("a bug")

    monkeypatch.setattr(feature_cache, "read_video", broken)
    with pytest.raises(RuntimeError, match=r"0\.mp4 failed: TypeError\('a bug'\)"):
        encode(rows_of(clips), on_error="skip")


@pytest.mark.parametrize("options", [{"every": 0}, {"on_error": "ignore"}])
def test_wrong_options_are_refused(encode, clips, options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        encode(rows_of(clips), **options)


def test_rows_without_clips_are_refused(encode):
    with pytest.raises(ValueError, match="caption"):
        encode(datasets.Dataset.from_dict({"caption": ["a smile"]}))


def test_views_depend_on_seed_view_and_path_alone(encode, clips, tmp_path):
    views = Views(3, Augmentation(flip=0.5, rotation=20.0, brightness=0.4, shift=0.1, crop=0.3))
    state = torch.get_rng_state()
    frame_embeds = encode(rows_of(clips), views=views)
    assert torch.equal(torch.get_rng_state(), state)
    plain = encode(rows_of(clips), tmp_path / "plain")
    # In another order, with fewer views, by other processes, after a part was done.
    again = tmp_path / "again"
    encode(rows_of(clips[3:]), again, views=views)
    reversed_embeds = encode(rows_of(clips[::-1]), again, views=Views(2, views.augmentation), num_workers=2)
    assert frame_embeds.num_views == 4 and reversed_embeds.num_views == 3 and plain.num_views == 1
    for row in range(5):
        torch.testing.assert_close(frame_embeds[row, 0], plain[row])
        for view in range(3):
            torch.testing.assert_close(frame_embeds[row, view], reversed_embeds[4 - row, view])
        assert not torch.allclose(frame_embeds[row, 1], plain[row], atol=1e-3)
        assert not torch.allclose(frame_embeds[row, 1], frame_embeds[row, 2], atol=1e-3)
    other_seed = encode(rows_of(clips), views=views, seed=1)
    assert not torch.allclose(other_seed[0, 1], frame_embeds[0, 1], atol=1e-3)


def test_a_flipped_view_is_the_encoding_of_flipped_frames(encode, frame_folder, model, video_processor):
    folder, images = frame_folder
    frame_embeds = encode(rows_of_folders([folder]), views=Views(1, Augmentation(flip=1.0)))
    flipped = embeds_of(np.ascontiguousarray(images[:, :, ::-1]), model, video_processor)
    torch.testing.assert_close(frame_embeds[0, 1], flipped)
    assert not torch.allclose(frame_embeds[0, 0], flipped, atol=1e-3)


def test_folders_of_images_and_bytes_are_clips_too(encode, encoded, frame_folder, clips, model, video_processor):
    folder, images = frame_folder
    torch.testing.assert_close(encode(rows_of_folders([folder]))[0], embeds_of(images, model, video_processor))
    from_files = encode(rows_of(clips))
    in_rows = [{"bytes": Path(clip).read_bytes(), "path": "clip.mp4"} for clip in clips]  # as push_to_hub leaves them
    encoded.clear()
    assert_equal(encode(rows_of(in_rows)), from_files)
    encode(rows_of(in_rows[::-1]))
    assert encoded == [3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match="row 1"):
        encode(rows_of([in_rows[0], {"bytes": b"no video", "path": None}]))


@pytest.mark.parametrize("limit", ["FRAMES_PER_BATCH", "BYTES_PER_PART"])
def test_long_clips_are_read_in_parts(encode, encoded, write_clip, frame_folder, tmp_path, monkeypatch, limit):
    folder, _ = frame_folder
    clip = str(write_clip(tmp_path / "long.mp4", num_frames=31))
    views = Views(1, Augmentation(rotation=20.0))
    whole = encode(rows_of([clip]), tmp_path / "whole", every=2, views=views)
    from_images = encode(rows_of_folders([folder]), tmp_path / "whole")
    encoded.clear()
    monkeypatch.setattr(feature_cache, limit, {"FRAMES_PER_BATCH": 4, "BYTES_PER_PART": 4 * 96 * 64 * 3}[limit])
    parts = encode(rows_of([clip]), every=2, views=views)
    assert encoded == 2 * [4, 4, 4, 4]
    for view in range(2):
        torch.testing.assert_close(parts[0, view], whole[0, view])
    torch.testing.assert_close(encode(rows_of_folders([folder]))[0], from_images[0])


def test_a_clip_whose_later_part_fails_is_bad_as_a_whole(encode, encoded, clips, monkeypatch):
    """And the shards of long clips are closed early."""
    monkeypatch.setattr(feature_cache, "FRAMES_PER_BATCH", 2)
    monkeypatch.setattr(feature_cache, "FRAMES_PER_SHARD", 4)
    read_video = feature_cache.read_video

    def fails_later(media, choose_frames, name, *how):
        frames, metadata = read_video(media, choose_frames, name, *how)
        if name == clips[2] and metadata.frames_indices[0] == 2:
            raise ValueError("the disk is gone")
        return frames, metadata

    monkeypatch.setattr(feature_cache, "read_video", fails_later)
    frame_embeds = encode(rows_of(clips), on_error="skip")
    assert frame_embeds.skipped == [2]
    assert [len(frame_embeds[row]) for row in (0, 1, 3, 4)] == [3, 4, 6, 7]
    assert len({shard for shard, *_ in filter(None, frame_embeds.places[0])}) > 1
    monkeypatch.setattr(feature_cache, "read_video", read_video)
    encoded.clear()
    assert len(encode(rows_of(clips))[2]) == sum(encoded) == 5  # its first part was not taken for the clip


def test_a_damaged_shard_is_encoded_again(encode, encoded, clips, tmp_path):
    encode(rows_of(clips))
    (shard,) = (tmp_path / "cache").rglob("*.safetensors")
    for size in (shard.stat().st_size // 2, 0):
        shard.write_bytes(shard.read_bytes()[:size])
        encoded.clear()
        assert len(encode(rows_of(clips))) == len(encoded) == 5


def test_only_old_leftovers_are_removed(encode, clips, tmp_path):
    encode(rows_of(clips))
    (folder,) = (tmp_path / "cache").iterdir()
    old, young = folder / "old.tmp", folder / "young.tmp"
    for leftover in (old, young):
        leftover.write_bytes(b"half a shard")
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    os.utime(old, (two_days_ago, two_days_ago))
    encode(rows_of(clips))
    assert young.exists() and not old.exists()


def test_the_bar_counts_clips_and_starts_where_the_last_run_stopped(encode, clips, capsys):
    encode(rows_of(clips[:3]))
    encode(rows_of(clips), title="frames of train")
    bar = capsys.readouterr().err
    assert "frames of train:  60%" in bar and "5/5" in bar and "clip/s]" in bar
    encode(rows_of(clips), title="frames of train")
    assert capsys.readouterr().err == ""


def test_a_cache_can_be_moved(encode, encoded, clips, tmp_path):
    before = [clip.clone() for clip in encode(rows_of(clips))]
    encoded.clear()
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    assert_equal(encode(rows_of(clips), tmp_path / "moved"), before, rtol=0, atol=0)
    assert encoded == []


def test_an_image_that_is_overwritten_under_its_name_is_another_clip(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    before, date = feature_cache._clip_key(str(folder)), folder.stat().st_mtime_ns
    Image.new("RGB", (8, 8), (0, 99, 99)).save(folder / "1.png")
    os.utime(folder / "1.png", ns=(0, 1))
    assert folder.stat().st_mtime_ns == date
    assert feature_cache._clip_key(str(folder)) != before


def test_other_versions_of_what_reads_and_encodes_are_other_embeddings(monkeypatch, tmp_path):
    found = []
    for number in ("1.0", "2.0"):
        feature_cache._readers.cache_clear()
        monkeypatch.setattr(feature_cache, "version", lambda name, number=number: number)
        clips = feature_cache._Clips([], EmoCLIPVideoProcessor(), 1, None, (0, 0))
        found.append(clips.fingerprint("tower"))
    feature_cache._readers.cache_clear()
    assert found[0] != found[1]

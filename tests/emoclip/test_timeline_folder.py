# SPDX-License-Identifier: Apache-2.0
"""A timeline in a folder: it comes back as it was, and one that a stranger has changed is refused by name."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from test_timeline import LABELS, QUIET, RED, draw_people, find_squares, make_pipe

from emoclip.timeline.timeline import EmotionTimeline

GHOSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


def encoded(size, kind):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, format=kind)
    return file.getvalue()


def claiming(side):
    """A JPEG of 8 x 8 pixels whose header says that each side has so many."""
    data = encoded((8, 8), "JPEG")
    place = data.find(b"\xff\xc0") + 5  # behind the marker of the frame, its length and the bits of a sample
    return data[:place] + side.to_bytes(2, "big") * 2 + data[place + 4 :]


@pytest.fixture(scope="module")
def pipe(clip_dir):
    return make_pipe(clip_dir)


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    frames = np.stack([draw_people(index / 4, {RED: (0, 9, 8)}) for index in range(12)])
    timeline = pipe.timeline(frames, LABELS, fps=4, detector=find_squares, **QUIET)
    return timeline.save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "folder")


def change_tensors(folder, **changed):
    """Writes arrays in the place of those there; `None` leaves one out."""
    tensors = load_file(folder / "timeline.safetensors") | changed
    save_file({name: array for name, array in tensors.items() if array is not None}, folder / "timeline.safetensors")


def test_a_timeline_without_a_window_comes_back(pipe, tmp_path):
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    empty = pipe.timeline(frames, LABELS, fps=4, detector=lambda frame: np.zeros((0, 5)), **QUIET)
    loaded = EmotionTimeline.load(empty.save(tmp_path))
    assert len(loaded) == 0 and loaded.to_csv() == empty.to_csv() and loaded.scores.shape == (0, 3)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (GHOSTSCRIPT, "it is no JPEG"),
        (encoded((8, 8), "PNG"), "it is no JPEG"),
        (encoded((113, 8), "JPEG"), "113 x 8 pixels, but at most 112 a side"),
        (claiming(1_000), "1000 x 1000 pixels"),
        (claiming(60_000), "it is no JPEG, or damaged .*3600000000 pixels"),
        (encoded((64, 64), "JPEG")[:200], "it is no JPEG, or damaged"),
        (b"", "it is no JPEG"),
    ],
    ids=["eps", "png", "wide", "large", "huge", "cut off", "empty"],
)
def test_only_small_jpegs_are_taken_for_thumbnails(folder, monkeypatch, picture, message):
    decoded, load = [], Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(image.size) or load(image))
    monkeypatch.setattr("subprocess.Popen", None)
    change_tensors(folder, **{"thumbnail.0.0": np.frombuffer(picture, dtype=np.uint8)})
    with pytest.raises(ValueError, match=rf"timeline\.safetensors: thumbnail\.0\.0 .*{message}"):
        EmotionTimeline.load(folder)
    assert all(max(size) <= 112 for size in decoded)


def test_a_thumbnail_that_was_put_there_later_is_not_opened_as_anything_else(saved, monkeypatch):
    timeline = EmotionTimeline.load(saved)
    timeline.thumbnails[0][0] = (0.0, GHOSTSCRIPT)
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(ValueError, match="it is no JPEG"):
        timeline.plot()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": 1}, "hidden is missing, or unknown"),
        ({"span": None}, "span is None, but must be two times"),
        ({"version": 1}, "is not what this version"),
        ({"labels": [1, 2, 3]}, r"labels is \[1, 2, 3\], but must"),
        ({"labels": ["a", "a", "b"]}, "labels is"),
        ({"labels": ["a", "b"]}, "scores has the shape"),
        ({"size": [160, 1e9]}, "size is"),
        ({"size": [16, 9]}, "box has values that cannot be"),
        ({"window": 0}, "window is 0, but must be seconds"),
        ({"window": float("nan")}, "window is nan"),
        ({"stride": "1"}, "stride is '1'"),
        ({"num_frames": True}, "num_frames is True"),
        ({"num_frames": 10**400}, "num_frames is 1000"),
        ({"faces": ["all"]}, r"faces is \['all'\]"),
        ({"abstain_below": 2}, "abstain_below is 2"),
        ({"names": {"0": 1}}, "names is"),
        ({"names": {"x": "Anna"}}, "names is"),
        ({"names": {"0": ""}}, r"names\[0\] is ''"),
        ({"thumbnail_times": {"0": ["x"]}}, "thumbnail_times is"),
        ({"thumbnail_times": {}}, r"missing or unknown: thumbnail\.0\.0"),
    ],
)
def test_a_field_that_is_wrong_is_named(folder, changed, message):
    about = json.loads((folder / "timeline.json").read_text())
    (folder / "timeline.json").write_text(json.dumps(about | changed))
    with pytest.raises(ValueError, match=rf"folder.timeline\.(json|safetensors).*{message}"):
        EmotionTimeline.load(folder)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"version": 2, "x": ' + b"9" * 5000 + b"}"]
)
def test_what_is_no_json_of_a_timeline_is_refused(folder, text):
    (folder / "timeline.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"folder.timeline\.json"):
        EmotionTimeline.load(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"probe": None}, "missing or unknown: probe"),
        ({"more": np.zeros(3)}, "missing or unknown: more"),
        ({"scores": np.zeros((3, 2), np.float32)}, "scores has the shape"),
        ({"scores": np.full((2, 3), np.nan, np.float32)}, "scores has values that are not finite"),
        ({"scores": np.full((2, 3), 7, np.float32)}, "scores has values that cannot be"),
        (
            {"embeds": np.zeros(3, np.float32)},
            r"embeds is F32 of shape \(3,\), but must be F16 or F32 or F64 of shape",
        ),
        ({"person": np.zeros(2, np.float32)}, "person is F32"),
        ({"person": np.full(2, 5)}, "person 5 do not follow"),
        ({"start": np.array([1.0, 0.0])}, "do not follow each other in time"),
        ({"end": np.array([-1.0, 2.0])}, "end has values that cannot be"),
        ({"tracks": np.zeros((0, 6))}, "do not follow each other in time"),
        ({"tracks": np.full((9, 6), 1e300)}, "tracks has values that are not finite, or are huge"),
        ({"box": np.full((2, 4), 1e6)}, "box has values that cannot be"),
        ({"num_frames_seen": np.array([1, 9])}, "num_frames_seen has values that cannot be"),
        ({"thumbnail.0.0": np.zeros((3, 3), np.uint8)}, r"thumbnail\.0\.0 is U8 of shape \(3, 3\)"),
    ],
)
def test_an_array_that_is_wrong_is_named(folder, changed, message):
    change_tensors(folder, **changed)
    with pytest.raises(ValueError, match=rf"folder.timeline\.safetensors.*{message}"):
        EmotionTimeline.load(folder)


@pytest.mark.parametrize(
    "data", [b"", b"x" * 100, (1 << 62).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"{}"]
)
def test_what_is_no_safetensors_file_of_a_timeline_is_refused(folder, data):
    (folder / "timeline.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"folder.timeline\.safetensors"):
        EmotionTimeline.load(folder)


def test_a_folder_without_a_timeline_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"timeline\.json"):
        EmotionTimeline.load(tmp_path)


def test_frames_are_not_resized_to_what_a_strangers_file_says(folder, tmp_path):
    about = json.loads((folder / "timeline.json").read_text())
    (folder / "timeline.json").write_text(json.dumps(about | {"size": [16_000, 16_000]}))
    with pytest.raises(ValueError, match="16000 x 16000 = 256,000,000 pixels"):
        EmotionTimeline.load(folder).annotate(tmp_path / "out.mp4", np.zeros((4, 96, 160, 3), np.uint8), 4, False)
    assert not (tmp_path / "out.mp4").exists()

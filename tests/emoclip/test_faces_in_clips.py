# SPDX-License-Identifier: Apache-2.0
"""A call, embeddings and alignment on clips that nobody has cropped."""

import json

import numpy as np
import pytest
import torch
from test_timeline import GREEN, LABELS, QUIET, RED, decode, find_squares, make_pipe, write_people

from emoclip.faces.boxes import crop_face
from emoclip.reference_texts import REFERENCE_TEXTS


@pytest.fixture(scope="module")
def pipe(clip_dir):
    return make_pipe(clip_dir)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Red in the second half; green, somewhat lower, in all of it."""
    folder = tmp_path_factory.mktemp("film")
    return write_people(folder / "film.mp4", 4.0, people={GREEN: (0, 4, 56), RED: (2, 4, 8)}, fps=12)


def nobody(frame):
    return np.zeros((0, 5))


def scores_of(entries):
    return [next(entry["score"] for entry in entries if entry["label"] == label) for label in LABELS]


def test_a_call_takes_the_person_that_is_seen_largest_in_all_of_the_clip(pipe, film):
    frames = decode(film)
    chosen = [frames[int(48 * (step + 0.5) / 8)] for step in range(8)]
    crops = np.stack([crop_face(frame, find_squares(frame)[-1], size=32) for frame in chosen])
    expected = scores_of(pipe(crops, candidate_labels=LABELS))
    for video in (film, np.stack(frames), [film, film]):
        result = pipe(video, candidate_labels=LABELS, faces="largest", detector=find_squares, batch_size=2)
        for entries in result if isinstance(video, list) else [result]:
            assert all(entry["face_found"] is True for entry in entries)
            assert scores_of(entries) == pytest.approx(expected, abs=1e-5)


def test_frames_without_the_person_do_not_count(pipe, film):
    def only_red(faces):
        return [face for face in faces if face.box[1] < 40]

    red = {"faces": only_red, "detector": find_squares}
    in_second_half, half = pipe(film, candidate_labels=LABELS, **red), decode(film)[24:]
    assert in_second_half[0]["face_found"] and pipe.embed(film, **red, **QUIET).metadata[0]["frames_used"] == 4
    inputs, _ = pipe.read_clip(film, **red)
    assert inputs["frame_mask"].tolist() == [[False] * 4 + [True] * 4]
    crops = torch.stack([torch.tensor(crop_face(f, find_squares(f)[0], size=32)) for f in half[3::6]])
    expected = pipe.processor(videos=crops, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
    assert torch.allclose(inputs["pixel_values_videos"][:, 4:], expected, atol=1e-6)


def test_no_face_is_an_answer_of_a_call(pipe, film):
    whole = pipe(film, candidate_labels=LABELS)
    assert "face_found" not in whole[0]
    found = pipe(film, candidate_labels=LABELS, faces="largest", detector=nobody)
    assert [entry.pop("face_found") for entry in found] == [False] * 3
    assert scores_of(found) == pytest.approx(scores_of(whole), abs=1e-5)
    assert pipe(film, candidate_labels=LABELS, faces="largest", detector=nobody, no_face="nothing") == []
    embedded = pipe.embed([film], faces="largest", detector=nobody, no_face="nothing", **QUIET)
    assert embedded.embeds.shape == (0, 24) and embedded.skipped[0]["error"] == "no face found"


def test_a_built_in_detector_is_loaded_once(pipe, film, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "emoclip.pipeline.load_face_detector",
        lambda name: loaded.append(name) or (lambda frame: find_squares(frame)),
    )
    for _ in range(2):
        pipe([film, film], candidate_labels=LABELS, faces="largest", detector="haar")
    assert loaded == ["haar"]
    pipe._detectors.clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faces": "all"}, r"faces is 'all'.*timeline\(\)"),
        ({"faces": "some"}, "faces is 'some'"),
        ({"faces": "largest", "no_face": "crash"}, "no_face is 'crash'"),
        ({"faces": "largest", "detector": "nose"}, "'nose' is no face detector"),
    ],
)
def test_bad_arguments_of_faces(pipe, film, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(film, candidate_labels=LABELS, **options)
    with pytest.raises(ValueError, match=message):
        pipe.embed(film, **options, **QUIET)


@torch.no_grad()
def test_embeddings_are_the_models_in_any_batch_size(pipe, film):
    frames = np.random.default_rng(0).integers(0, 255, (3, 40, 50, 3), dtype=np.uint8)
    videos = [film, frames, {"path": str(film), "bytes": None}, film.read_bytes()]
    expected = [
        pipe.model.get_video_features(**pipe.processor(videos=one, return_tensors="pt")).pooler_output[0].numpy()
        for one in videos
    ]
    for batch_size in (1, 3):
        embeds, metadata, skipped = pipe.embed(videos, batch_size=batch_size, **QUIET)
        assert np.abs(embeds - np.stack(expected)).max() < 1e-5 and embeds.dtype == np.float32 and skipped == []
    assert [row["index"] for row in metadata] == [0, 1, 2, 3]
    names = [str(film), "video 2 of the batch of 4", str(film), "video 4 of the batch of 4"]
    assert [row["video"] for row in metadata] == names
    first = {"num_frames": 48, "fps": 12.0, "duration": 4.0, "frames_used": 8, "face_found": None}
    assert metadata[0].items() >= first.items() and metadata[1]["fps"] is None
    json.dumps(metadata)


def test_clips_of_other_lengths_are_embedded_in_one_batch(clip_dir, film, tmp_path):
    pipe, short = make_pipe(clip_dir), write_people(tmp_path / "short.mp4", 2.0, fps=12)
    pipe.processor.video_processor.fps = 2
    embeds, metadata, _ = pipe.embed([film, short], **QUIET)
    assert [row["frames_used"] for row in metadata] == [8, 4]
    alone = [pipe.embed(one, **QUIET).embeds[0] for one in (film, short)]
    assert np.abs(embeds - np.stack(alone)).max() < 1e-5


def test_a_bad_video_is_skipped_only_where_that_is_asked_for(pipe, film, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    with pytest.raises(ValueError, match=r"bad\.mp4"):
        pipe.embed([film, bad], **QUIET)
    embeds, metadata, skipped = pipe.embed([bad, film], on_error="skip", **QUIET)
    assert len(embeds) == 1 and metadata[0]["index"] == 1
    assert [(row["index"], row["video"]) for row in skipped] == [(0, str(bad))] and "bad.mp4" in skipped[0]["error"]
    for options in ({"on_error": "ignore"}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            pipe.embed(film, **options, **QUIET)


def test_alignment_is_the_cosine_and_its_place_among_other_texts(pipe, film, tmp_path):
    options = {"window": 1.0, "stride": 0.5, "detector": find_squares, **QUIET}
    texts = ["lowered eyebrows", "wide open eyes", "an expression of anger."]
    aligned = pipe.alignment(film, "a smile", texts, **options)
    timeline = pipe.timeline(film, LABELS, faces="largest", no_face="frame", **options)
    embeds = pipe.class_embeds({text: ((text,),) for text in ["a smile", *texts]}).detach().numpy()
    cosines = timeline.embeds @ embeds.T
    assert aligned.cosines == pytest.approx(cosines[:, 0], abs=1e-6)
    assert aligned.cosine == pytest.approx(cosines[:, 0].mean(), abs=1e-6)
    assert aligned.percentiles == pytest.approx(100 * (cosines[:, 1:] < cosines[:, :1]).mean(axis=1))
    assert aligned.percentile == pytest.approx(100 * (cosines.mean(0)[1:] < cosines.mean(0)[0]).mean())
    assert aligned.face_found and len(aligned.start) == len(timeline)
    assert timeline.alignment("a smile", ["a smile"]).percentile == 50, "a text is as good as itself"
    read = json.loads(aligned.to_json(tmp_path / "alignment.json"))
    assert read["text"] == "a smile" and len(read["percentiles"]) == len(aligned.start)
    figure = aligned.plot(tmp_path / "alignment.png")
    lines = figure.axes[0].lines[1:]  # the first one is that of 50
    assert len(lines) == len(set(aligned.person))
    assert sorted(value for line in lines for value in line.get_ydata()) == sorted(aligned.percentiles)
    assert (tmp_path / "alignment.png").stat().st_size > 5000
    assert pipe.alignment(film, ["a smile", "wide open eyes"], **options).num_reference_texts == 121


def test_alignment_without_a_face_or_texts(pipe, film, tmp_path):
    options = {"detector": nobody, **QUIET}
    whole = pipe.alignment(film, "a smile", **options)
    assert whole.face_found is False and set(whole.person) == {"whole frame"} and whole.cosine is not None
    nothing = pipe.alignment(film, "a smile", no_face="nothing", **options)
    assert nothing.cosine is None and nothing.percentile is None and "no face" in repr(nothing)
    nothing.plot(tmp_path / "nothing.png")
    for texts in ([], "a face"):
        with pytest.raises(ValueError, match="reference_texts"):
            pipe.alignment(film, "a smile", texts, **options)
    with pytest.raises(ValueError, match="must be a text"):
        pipe.alignment(film, "", **options)


def test_reference_texts_are_distinct():
    assert len(set(REFERENCE_TEXTS)) == len(REFERENCE_TEXTS) == 121

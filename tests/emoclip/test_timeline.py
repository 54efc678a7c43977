# SPDX-License-Identifier: Apache-2.0
"""Windows of people in a video: which they are, and that their scores are the pipeline's."""

import itertools
import math
from dataclasses import replace

import av
import numpy as np
import pytest
import torch

from emoclip import EmoCLIPModel, EmoCLIPProcessor, ZeroShotVideoClassificationPipeline
from emoclip.faces.boxes import crop_face
from emoclip.timeline.timeline import EmotionTimeline

LABELS = ["a smile", "lowered eyebrows", "wide open eyes"]
RED, GREEN = (220, 20, 20), (20, 220, 20)
QUIET = {"progress": False}


def make_pipe(clip_dir, num_frames=8, **config):
    torch.manual_seed(0)
    model = EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=1, **config)
    torch.nn.init.normal_(model.temporal.output_projection.weight)
    processor = EmoCLIPProcessor.from_clip(clip_dir, num_frames=num_frames)
    return ZeroShotVideoClassificationPipeline(model=model, processor=processor)


def find_squares(frame):
    """A detector: bounding boxes of what is red and of what is green."""
    boxes = []
    for channel in (0, 1):
        others = frame[..., [1 - channel, 2]].max(axis=-1)
        rows, columns = np.nonzero((frame[..., channel] > 150) & (others < 100))
        if len(rows) > 50:
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, 0.9])
    return np.array(boxes)


def draw_people(time, people, width=160, height=96):
    """People are squares, colour -> (from, to, y) seconds on screen; they move and change slowly."""
    pixels = np.full((height, width, 3), 40, np.uint8)
    pixels[:, ::8] = 80
    for colour, (since, until, y) in people.items():
        if since <= time < until:
            x = 10 + int(4 * time) % (width - 50)
            pixels[y : y + 32, x : x + 32] = colour
            pixels[y + 20 : y + 28, x + 6 : x + 6 + int(3 * time) % 20] = 0
    return pixels


def write_people(path, seconds=6.0, people=None, fps=25, codec="libx264", pix_fmt="yuv420p", options=None, **size):
    people = {RED: (0, seconds, 8)} if people is None else people
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = size.get("width", 160), size.get("height", 96), pix_fmt
        for index in range(round(seconds * fps)):
            frame = av.VideoFrame.from_ndarray(draw_people(index / fps, people, **size), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def pipe(clip_dir):
    return make_pipe(clip_dir)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Red all the time; green from 1.5 to 4.5 s."""
    return write_people(tmp_path_factory.mktemp("film") / "film.mp4", people={RED: (0, 6, 8), GREEN: (1.5, 4.5, 56)})


@pytest.fixture(scope="module")
def timeline(pipe, film):
    return pipe.timeline(film, LABELS, window=2.0, stride=0.5, detector=find_squares, **QUIET)


def person_of(timeline, y):
    (person,) = {int(row[1]) for row in timeline.tracks if abs(row[3] - y) < 4}
    return person


def test_windows_cover_each_person_while_most_of_the_frames_show_it(timeline):
    red, green = person_of(timeline, 8), person_of(timeline, 56)
    assert timeline.people == [red, green] and timeline.face_found and timeline.complete
    assert timeline.start[timeline.person == red].tolist() == pytest.approx(np.arange(0, 4.5, 0.5))
    assert timeline.start[timeline.person == green].tolist() == pytest.approx(np.arange(0.5, 4, 0.5))
    assert timeline.num_frames_seen[timeline.person == green].tolist() == [4, 6, 8, 8, 8, 6, 4]
    assert (timeline.end - timeline.start).tolist() == pytest.approx([2.0] * len(timeline))
    assert timeline.box[timeline.person == green][:, 1] == pytest.approx(56, abs=2)
    assert timeline.scores.sum(axis=1) == pytest.approx(1)
    cells = timeline.stretches(green)
    assert (cells[0].start, cells[-1].end) == pytest.approx((1.5, 4.5), abs=0.15)
    assert all(before.end == after.start for before, after in itertools.pairwise(cells))


def test_every_window_has_the_pipelines_scores(pipe, film, timeline):
    frames, worst = decode(film), 0.0
    for row in range(len(timeline)):
        inside = (timeline.tracks[:, 0] > timeline.start[row]) & (timeline.tracks[:, 0] < timeline.end[row])
        track = timeline.tracks[inside & (timeline.tracks[:, 1] == timeline.person[row])]
        crops = np.stack([crop_face(frames[int(time * 25)], box, size=32) for time, _, *box in track])
        assert len(crops) == timeline.num_frames_seen[row]
        if len(crops) == 8:
            expected = {entry["label"]: entry["score"] for entry in pipe(crops, candidate_labels=LABELS)}
            worst = max(worst, *(abs(timeline.scores[row][i] - expected[label]) for i, label in enumerate(LABELS)))
    assert worst < 1e-5


@torch.no_grad()
def test_frames_without_the_person_are_masked(pipe, film, timeline):
    frames, green = decode(film), person_of(timeline, 56)
    row = int(np.flatnonzero((timeline.person == green) & (timeline.num_frames_seen == 6))[0])
    pixels, mask = torch.zeros(1, 8, 3, 32, 32), torch.zeros(1, 8, dtype=torch.bool)
    for time, _, *box in timeline.tracks[timeline.tracks[:, 1] == green]:
        slot = int((time - timeline.start[row]) * 4)
        if 0 <= time - timeline.start[row] < 2:
            crop = crop_face(frames[int(time * 25)], box, size=32)
            clip = pipe.processor(videos=crop[None], do_sample_frames=False, return_tensors="pt")
            pixels[0, slot], mask[0, slot] = clip["pixel_values_videos"][0, 0], True
    inputs = pipe.processor(text=[f"an expression of {label}." for label in LABELS], return_tensors="pt")
    logits = pipe.model(pixel_values_videos=pixels, frame_mask=mask, input_ids=inputs["input_ids"]).logits_per_video
    assert mask.sum() == 6
    assert timeline.scores[row].tolist() == pytest.approx(logits[0].softmax(-1).tolist(), abs=1e-5)


def test_each_crop_is_encoded_once_however_much_windows_overlap(clip_dir, film, monkeypatch):
    pipe, encoded = make_pipe(clip_dir, num_frames=16), []
    encode = pipe.encode_frames
    monkeypatch.setattr(pipe, "encode_frames", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    timeline = pipe.timeline(film, LABELS, window=1.6, stride=0.1, detector=find_squares, **QUIET)
    assert timeline.stride == pytest.approx(0.1)
    assert sum(encoded) == len(timeline.tracks) == 60 + 30
    assert max(encoded) <= 32
    full = timeline.num_frames_seen.sum()
    assert sum(encoded) <= full / 8


def test_batches_do_not_change_scores(pipe, film, timeline):
    other = pipe.timeline(film, LABELS, window=2.0, stride=0.5, detector=find_squares, batch_size=3, **QUIET)
    assert np.abs(other.scores - timeline.scores).max() < 1e-5
    assert (other.person == timeline.person).all() and (other.tracks == timeline.tracks).all()


def test_a_video_shorter_than_a_window_is_one_window_with_the_pipelines_scores(pipe, film):
    frames = np.stack(decode(film))
    timeline = pipe.timeline(frames, LABELS, window=60, stride=10, faces="none", fps=25, **QUIET)
    expected = {entry["label"]: entry["score"] for entry in pipe(frames, candidate_labels=LABELS)}
    assert timeline.scores.tolist() == [pytest.approx([expected[label] for label in LABELS], abs=1e-5)]
    assert (timeline.start[0], timeline.end[0]) == (0, 6) and timeline.num_frames_seen[0] == 8
    of_file = pipe.timeline(film, LABELS, window=60, stride=10, faces="none", **QUIET)
    assert np.abs(of_file.scores - timeline.scores).max() < 1e-5


def test_the_last_window_ends_with_the_video(pipe, film):
    timeline = pipe.timeline(film, LABELS, window=2.0, stride=1.75, detector=find_squares, faces="largest", **QUIET)
    assert sorted(set(timeline.start.tolist())) == pytest.approx([0, 1.75, 3.5, 4.0])


def test_which_faces_count(pipe, film, timeline):
    count = {"window": 2.0, "stride": 2.0, "detector": find_squares, **QUIET}
    whole = pipe.timeline(film, LABELS, **(count | {"faces": "none", "detector": "never loaded"}))
    assert whole.faces == "none" and whole.face_found is None and whole.detector is None
    assert whole.box.tolist() == [[0, 0, 160, 96]] * 3 and whole.name_of(0) == "whole frame"
    lowest = pipe.timeline(film, LABELS, faces=lambda faces: [face for face in faces if face.box[1] > 40], **count)
    assert lowest.faces == "callback" and len(lowest.people) == 1
    assert pipe.timeline(film, LABELS, faces="largest", **count).detector == "find_squares"


def test_no_face_is_an_answer(pipe, film):
    nobody = {"detector": lambda frame: np.zeros((0, 5)), **QUIET}
    nothing = pipe.timeline(film, LABELS, **nobody)
    assert len(nothing) == 0 and nothing.face_found is False and nothing.people == []
    assert nothing.search("a smile") == [] and len(nothing.rescore(["a", "b"])) == 0 and "no face" in repr(nothing)
    frame = pipe.timeline(film, LABELS, no_face="frame", **nobody)
    assert frame.face_found is False and set(frame.person.tolist()) == {-1} and len(frame) == 5
    assert not any(frame.to_pandas()["face_found"])
    both = pipe.timeline(film, LABELS, no_face="frame", faces=lambda f: [x for x in f if x.box[1] > 40],
                         detector=find_squares, stride=0.5, **QUIET)  # fmt: skip
    assert both.face_found and len(both.people) == 2
    assert both.start[both.person == -1].tolist() == pytest.approx([0, 0.5, 3.5, 4.0])


def test_new_labels_and_searches_need_no_second_pass(pipe, film, timeline):
    labels = {"amused": ["a smile", "wide open eyes"], "calm": "an expression of anger."}
    again = pipe.timeline(film, labels, window=2.0, stride=0.5, detector=find_squares, **QUIET)
    rescored = timeline.rescore(labels)
    assert rescored.labels == ["amused", "calm"] and timeline.labels == LABELS
    assert np.abs(rescored.scores - again.scores).max() < 1e-5
    moments = timeline.search("a smile", top=2)
    embed = pipe.class_embeds({"a smile": (("a smile",),)})[0].numpy()
    assert moments[0].score == pytest.approx((timeline.embeds @ embed).max()) and len(moments) <= 2
    for person in timeline.people:
        own = sorted(moment for moment in timeline.search("a smile", top=99) if moment.person == person)
        assert all(before.end <= after.start for before, after in itertools.pairwise(own))


def test_scores_are_the_pipelines_with_every_option_of_a_call(clip_dir, film):
    fitted = [{"labels": sorted(LABELS), "temperature": 3.0}]
    for config in ({"label_temperatures": fitted}, {"contrastive_loss": "sigmoid"}):
        pipe = make_pipe(clip_dir, **config)
        frames = np.stack(decode(film))
        plain = pipe.timeline(frames, LABELS, window=60, stride=60, faces="none", fps=25, **QUIET)
        for options in ({}, {"temperature": 0.5}, {"multi_label": True}, {"multi_label": "a face"}):
            timeline = plain.rescore(LABELS, **options)
            expected = {entry["label"]: entry["score"] for entry in pipe(frames, candidate_labels=LABELS, **options)}
            assert timeline.scores[0].tolist() == pytest.approx([expected[label] for label in LABELS], abs=1e-5)
            assert timeline.multi_label == ("multi_label" in options)
        assert plain.temperature == (3.0 if "label_temperatures" in config else 1.0)


def test_uncertain_is_an_answer(timeline, tmp_path):
    sure = replace(
        timeline, scores=np.where(np.arange(3) == 1, 0.8, 0.1).astype(np.float32) * np.ones((len(timeline), 1))
    )
    unsure = replace(sure, abstain_below=0.81)
    for one, answer in ((sure, LABELS[1]), (unsure, "uncertain"), (replace(sure, abstain_below=0.79), LABELS[1])):
        assert {stretch.label for person in one.people for stretch in one.stretches(person)} == {answer}
        assert set(one.to_pandas()["label"]) == {answer} and f": {answer}\n" in one.to_srt()
        legend = [text.get_text() for text in one.plot().legends[0].get_texts()]
        assert legend == [answer]
    assert EmotionTimeline.load(unsure.save(tmp_path)).abstain_below == 0.81
    with pytest.raises(ValueError, match="rename it"):
        timeline.rescore(["uncertain", "calm"], abstain_below=0.5)


def test_neighbouring_windows_above_half_the_height_are_one_moment(timeline):
    one = timeline.rescore(LABELS)
    rows = np.flatnonzero(one.person == one.people[0])
    height = np.full(len(one), 0.1)
    height[rows] = [0.9, 0.1, 0.1, 0.6, 0.8, 0.7, 0.1, 0.1, 0.1]
    one.embeds = np.column_stack([height, np.sqrt(1 - height**2)]).astype(np.float32)
    one.probe = one.embeds[0]
    one.pipe = type("Pipe", (), {"model": timeline.pipe.model})()
    one.pipe.class_embeds = lambda texts: torch.tensor([[1.0, 0.0]] if "text" in texts else one.probe[None])
    moments = [moment for moment in one.search("anything", top=2) if moment.person == one.people[0]]
    assert [(m.start, m.end) for m in moments] == [(0.0, 2.0), (pytest.approx(1.5 + 0.5), pytest.approx(4.5))]


def test_saved_and_loaded(pipe, timeline, tmp_path, clip_dir):
    timeline.names[timeline.people[0]] = "Änne"
    loaded = EmotionTimeline.load(timeline.save(tmp_path / "new" / "folder"))
    timeline.names.clear()
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "timeline.json",
        "timeline.safetensors",
    ]
    assert loaded.thumbnails == timeline.thumbnails and loaded.names == {timeline.people[0]: "Änne"}
    loaded.names.clear()
    assert loaded.to_json() == timeline.to_json() and repr(loaded) == repr(timeline)
    with pytest.raises(ValueError, match="pipe="):
        loaded.search("a smile")
    assert loaded.search("a smile", pipe=pipe) == timeline.search("a smile")
    assert EmotionTimeline.load(tmp_path / "new" / "folder", pipe).search("a smile") == timeline.search("a smile")
    assert np.abs(loaded.rescore(LABELS, pipe=pipe).scores - timeline.scores).max() < 1e-6
    torch.manual_seed(1)
    other = make_pipe(clip_dir)
    torch.nn.init.normal_(other.model.text_projection.weight)
    with pytest.raises(ValueError, match="another text encoder"):
        loaded.search("a smile", pipe=other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 0}, "stride is 0, but must be a number above 0"),
        ({"stride": math.nan}, "stride is nan, but must"),
        ({"window": math.nan}, "window is nan, but must"),
        ({"window": "2"}, "window is '2', but must"),
        ({"window": 1e-6, "stride": 1e-6}, r"window is 1e-06 s, but must be at least 0\.008 s: its frames, 8 here"),
        ({"batch_size": 0}, "batch_size is 0, but must be a whole number from 1"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5, but must"),
        ({"window": 1, "stride": 2}, "stride <= window"),
        ({"faces": "some"}, "faces is 'some'"),
        ({"no_face": "crash"}, "no_face is 'crash'"),
        ({"candidate_labels": []}, "empty"),
    ],
)
def test_bad_arguments(pipe, film, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe.timeline(film, **({"candidate_labels": LABELS, "detector": find_squares, **QUIET} | arguments))


@pytest.mark.parametrize("fps", [0, -1, math.nan, math.inf, "25", True])
def test_a_rate_of_frames_that_is_none_is_refused(pipe, timeline, fps, tmp_path):
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"fps is .*, but must be"):
        pipe.timeline(frames, LABELS, faces="none", fps=fps, **QUIET)
    with pytest.raises(ValueError, match=r"fps is .*, but must be"):
        timeline.annotate(tmp_path / "out.mp4", video=frames, fps=fps, **QUIET)


@pytest.mark.parametrize("top", [-1, 0, 1.5, None, True])
def test_a_number_of_moments_that_is_none_is_refused(timeline, top):
    with pytest.raises(ValueError, match=f"top is {top}, but must be a whole number from 1"):
        timeline.search("a smile", top=top)


@pytest.mark.parametrize("text", ["", "  ", [], ["a smile", ""], 3, None])
def test_a_search_without_a_text_says_so(timeline, text):
    for ask in (timeline.search, timeline.alignment):
        with pytest.raises(ValueError, match=r"text is .*, but must be a text or a list of texts"):
            ask(text)
    with pytest.raises(ValueError, match=r"reference_texts\[1\] is .*, but must be a text"):
        timeline.alignment("a smile", ["a frown", text])


def test_names_are_texts_of_persons(timeline, tmp_path):
    for names, message in (({0: 7}, r"names\[0\] is 7, but must be a text"), ({"0": "Anna"}, "names has '0'")):
        one = replace(timeline, names=names)
        for use in (one.to_srt, one.to_json, one.plot, lambda one=one: one.save(tmp_path)):
            with pytest.raises(ValueError, match=message):
                use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("most_people", [0, -1, 1.5])
def test_a_picture_of_so_few_people_is_refused(timeline, most_people):
    with pytest.raises(ValueError, match="most_people is"):
        timeline.plot(most_people=most_people)


def test_a_model_that_has_changed_since_cannot_score_an_old_timeline(clip_dir, film):
    pipe = make_pipe(clip_dir)
    timeline = pipe.timeline(film, LABELS, faces="none", **QUIET)
    with torch.no_grad():
        pipe.model.text_projection.weight.copy_(torch.randn_like(pipe.model.text_projection.weight))
    for ask in (lambda: timeline.rescore(["calm"]), lambda: timeline.search("a smile")):
        with pytest.raises(ValueError, match="another text encoder"):
            ask()


def test_ctrl_c_stops_at_once(pipe, film):
    frames = []

    def interrupted(frame):
        frames.append(frame)
        if len(frames) == 5:
            raise KeyboardInterrupt
        return find_squares(frame)

    with pytest.raises(KeyboardInterrupt):
        pipe.timeline(film, LABELS, detector=interrupted, **QUIET)
    assert len(frames) == 5

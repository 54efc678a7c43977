# SPDX-License-Identifier: Apache-2.0
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from emoclip import EmoCLIPModel, EmoCLIPProcessor, ZeroShotVideoClassificationPipeline
from modeling_emoclip import pipeline_emoclip

LABELS = ["a smile", "lowered eyebrows", "wide open eyes"]


@pytest.fixture(scope="module")
def pipe(clip_dir):
    torch.manual_seed(0)
    descriptions = {"happiness": ["a smile", "a smile slowly appearing"]}
    model = EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=1, class_descriptions=descriptions)
    torch.nn.init.normal_(model.temporal.output_projection.weight)
    processor = EmoCLIPProcessor.from_clip(clip_dir, num_frames=4)
    return ZeroShotVideoClassificationPipeline(model=model, processor=processor)


@pytest.fixture(scope="module")
def clips(write_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / "a.mp4"), write_clip(folder / "b.avi", num_frames=3, width=128)]


def test_scores_are_sorted_and_sum_to_one(pipe, clips):
    scores = pipe(clips[0], candidate_labels=LABELS)
    assert {entry["label"] for entry in scores} == set(LABELS)
    values = [entry["score"] for entry in scores]
    assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1)


@torch.no_grad()
def test_scores_are_the_models(pipe, clips):
    inputs = pipe.processor(text=LABELS, videos=str(clips[0]), return_tensors="pt")
    expected = pipe.model(**inputs).logits_per_video[0].softmax(dim=-1).tolist()
    scores = {entry["label"]: entry["score"] for entry in pipe(clips[0], candidate_labels={x: x for x in LABELS})}
    assert [scores[label] for label in LABELS] == pytest.approx(expected, abs=1e-5)


def test_a_list_of_videos_gives_a_list_of_results_in_any_batch_size(pipe, clips):
    single = [pipe(clip, candidate_labels=LABELS) for clip in clips]
    for batch_size in (1, 2):
        results = pipe([str(clip) for clip in clips], candidate_labels=LABELS, batch_size=batch_size)
        for result, expected in zip(results, single, strict=True):
            assert [entry["label"] for entry in result] == [entry["label"] for entry in expected]
            assert [e["score"] for e in result] == pytest.approx([e["score"] for e in expected], abs=1e-5)


def test_every_kind_of_video_gives_the_same_scores(pipe, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
    images = [Image.fromarray(frame) for frame in frames]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    expected = pipe(frames, candidate_labels=LABELS)
    for video in (images, torch.from_numpy(frames), tmp_path, str(tmp_path)):
        scores = pipe(video, candidate_labels=LABELS)
        assert [e["score"] for e in scores] == pytest.approx([e["score"] for e in expected], abs=1e-5)


def test_each_label_set_is_encoded_once_and_kept(pipe, clips, monkeypatch):
    encoded = []
    encode_texts = pipeline_emoclip.encode_texts
    monkeypatch.setattr(
        pipeline_emoclip, "encode_texts", lambda *parts: encoded.append(parts[2]) or encode_texts(*parts)
    )
    labels = {"x": ["one text", "two texts"], "y": "three"}
    first = pipe([str(clip) for clip in clips], candidate_labels=labels)
    assert pipe([str(clip) for clip in clips], candidate_labels=labels) == first
    assert encoded == [["one text", "two texts", "three"]]
    width = pipe.model.config.projection_dim
    monkeypatch.setattr("emoclip.pipeline.MOST_KEPT_NUMBERS", 3 * width)  # a set is as large as it has labels
    for number in range(5):
        pipe.class_embeds({"label": ((f"text {number}",),)})
    assert len(pipe._class_embeds) == 3
    pipe.class_embeds({f"label {number}": ((f"text {number}",),) for number in range(9)})
    assert [len(embeds) for embeds in pipe._class_embeds.values()] == [9]  # the newest, whatever its size


def test_the_checkpoints_descriptions_stand_for_their_labels(pipe, clips):
    scores = pipe(clips[0], candidate_labels=["happiness", "anger"])
    written_out = {"happiness": ["a smile", "a smile slowly appearing"], "anger": "an expression of anger."}
    assert scores == pipe(clips[0], candidate_labels=written_out)
    by_template = pipe(clips[0], candidate_labels=["happiness", "anger"], hypothesis_template="{}")
    assert by_template == pipe(clips[0], candidate_labels={"happiness": "happiness", "anger": "anger"})


def test_several_threads_may_use_it_at_once(pipe, clips, monkeypatch):
    monkeypatch.setattr(
        "emoclip.pipeline.MOST_KEPT_NUMBERS", 4 * pipe.model.config.projection_dim
    )  # so that they throw out each other's
    label_sets = [[f"a face of kind {kind}", "a smile"] for kind in range(5)]
    tasks = [(clip, labels) for clip in clips for labels in label_sets]
    expected = [pipe(clip, candidate_labels=labels) for clip, labels in tasks]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            assert list(threads.map(lambda task: pipe(task[0], candidate_labels=task[1]), tasks)) == expected


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_what_the_process_itself_reads(pipe, clips, method):
    expected = pipe(clips, candidate_labels=LABELS)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        assert pipe(clips, candidate_labels=LABELS, num_workers=2) == expected
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_saved_folder_loads_through_transformers_pipeline(pipe, clips, tmp_path):
    pipe.model.save_pretrained(tmp_path)
    pipe.processor.save_pretrained(tmp_path)
    loaded = pipeline("zero-shot-video-classification", model=str(tmp_path))
    assert type(loaded) is ZeroShotVideoClassificationPipeline
    scores, expected = loaded(clips[0], candidate_labels=LABELS), pipe(clips[0], candidate_labels=LABELS)
    # Loaded weights lie elsewhere in memory, which on some processors changes the last bit.
    assert [entry["score"] for entry in scores] == pytest.approx([entry["score"] for entry in expected], abs=1e-6)
    assert [entry["label"] for entry in scores] == [entry["label"] for entry in expected]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "candidate_labels"),
        ({"candidate_labels": []}, ValueError, "empty"),
        ({"candidate_labels": ["a", "a"]}, ValueError, "'a' more than once"),
        ({"candidate_labels": ["a"], "hypothesis_template": "no place"}, ValueError, "hypothesis_template"),
        ({"hypothesis_template": "{}"}, ValueError, "without candidate_labels"),
        ({"candidate_labels": ["a"], "labels": ["b"]}, TypeError, "labels"),
    ],
)
def test_bad_arguments(pipe, clips, arguments, error, message):
    with pytest.raises(error, match=message):
        pipe(clips[0], **arguments)


def test_bad_videos_are_named(pipe, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(ValueError, match=r"text\.mp4"):
        pipe(text, candidate_labels=LABELS)
    with pytest.raises(ValueError, match="empty list"):
        pipe([], candidate_labels=LABELS)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        pipe(str(tmp_path / "nowhere.mp4"), candidate_labels=LABELS)

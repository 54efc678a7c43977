# SPDX-License-Identifier: Apache-2.0
"""Texts for clips, a class left out, a validation part, balance."""

from collections import Counter

import datasets
import numpy as np
import pytest
from transformers.utils import logging

from training.data import views

NAMES = ["anger", "fear", "sadness", "fear_sadness"]
DESCRIPTIONS = {"anger": ["a frown", "pressed lips"], "fear": ["wide eyes"], "sadness": ["tears"]}


def make_rows(labels, **columns):
    features = {"label": datasets.ClassLabel(names=NAMES)}
    features |= {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict({"label": labels, **columns}, features=datasets.Features(features))


@pytest.mark.parametrize(
    "label, kind, text",
    [
        ("anger", "class_name", "anger"),
        ("anger", "photo", "a photo of anger."),
        ("anger", "expression", "an expression of anger."),
        ("anger", "description", "a frown"),
        ("fear_sadness", "expression", "an expression of fear and sadness."),
        ("fear_sadness", "description", "wide eyes, tears"),
    ],
)
def test_the_papers_kinds_of_text(label, kind, text):
    assert views.class_text(label, kind, DESCRIPTIONS) == text


@pytest.mark.parametrize(
    "label, labels, descriptions, kind, text",
    [
        ("about_to_cry", ["bored"], {}, "expression", "an expression of about to cry."),
        ("about_to_cry", ["bored"], {"about_to_cry": ["wet eyes"]}, "description", "wet eyes"),
        ("about_to_cry", ["about", "to"], {}, "class_name", "about to cry"),  # nothing is called cry
        ("fear_sadness", ["fear", "sadness"], {}, "photo", "a photo of fear and sadness."),
        ("fear_sadness", [], {"fear_sadness": ["tears"], **DESCRIPTIONS}, "description", "tears"),
    ],
)
def test_only_labels_made_of_labels_are_compounds(label, labels, descriptions, kind, text):
    assert views.class_text(label, kind, descriptions, labels) == text


def test_clip_texts_know_the_classes_of_their_data_set():
    assert views.clip_texts(make_rows([3]), "expression", {}) == ["an expression of fear and sadness."]
    features = datasets.Features({"label": datasets.ClassLabel(names=["about_to_cry", "bored"])})
    rows = datasets.Dataset.from_dict({"label": [0, 1]}, features=features)
    assert views.clip_texts(rows, "expression", {})[0] == "an expression of about to cry."


def test_a_class_without_description_is_named():
    with pytest.raises(ValueError, match=r"no text for \['joy'\].*anger, fear, sadness"):
        views.class_text("joy", "description", DESCRIPTIONS)
    with pytest.raises(ValueError, match="'poem', but must be one of caption, description"):
        views.class_text("anger", "poem", DESCRIPTIONS)


def test_sample_level_texts_are_the_clips_own_captions():
    rows = make_rows([0, 1], caption=["he shouts", "she hides"])
    assert views.clip_texts(rows, "caption", DESCRIPTIONS) == ["he shouts", "she hides"]
    assert views.clip_texts(rows, "description", DESCRIPTIONS) == ["a frown", "wide eyes"]


def test_missing_captions_are_an_error():
    with pytest.raises(ValueError, match=r"data.text is 'caption', but the clips have none"):
        views.clip_texts(make_rows([0]), "caption", {})
    with pytest.raises(ValueError, match="clip 'b' has an empty one"):
        views.clip_texts(make_rows([0, 1], caption=["he shouts", ""], clip_id=["a", "b"]), "caption", {})


def test_clips_without_a_caption_are_left_out_and_counted(caplog):
    rows = make_rows([0, 1, 2], caption=["he shouts", "", " "])
    logging.get_logger().addHandler(caplog.handler)
    try:
        assert views.with_captions(rows, "train")["caption"] == ["he shouts"]
    finally:
        logging.get_logger().removeHandler(caplog.handler)
    assert "train: 2 of 3 clips have no caption and are left out" in caplog.text
    with pytest.raises(ValueError, match="not one of the 2 clips of train has one"):
        views.with_captions(rows.select([1, 2]), "train")
    with pytest.raises(ValueError, match=r"the clips have none; their columns are label"):
        views.with_captions(make_rows([0]), "train")


def test_leaving_a_class_out():
    rows = {split: make_rows([0, 1, 2, 1, 0]) for split in ("train", "validation", "test")}
    left = views.leave_class_out(rows, "fear", learned=("train", "validation"))
    assert left["train"]["label"] == left["validation"]["label"] == [0, 2, 0]
    assert left["test"]["label"] == [1, 1]
    with pytest.raises(ValueError, match="'joy', but must be one of anger, fear"):
        views.leave_class_out(rows, "joy", learned=("train",))


def test_the_validation_part_is_stratified_seeded_and_disjoint():
    rows = make_rows([0] * 80 + [1] * 20, clip_id=[str(number) for number in range(100)])
    train, validation = views.cut_validation(rows, 0.1, seed=0)
    assert Counter(validation["label"]) == {0: 8, 1: 2}
    assert set(train["clip_id"]) | set(validation["clip_id"]) == set(rows["clip_id"])
    assert len(train) + len(validation) == 100
    assert views.cut_validation(rows, 0.1, seed=0)[1]["clip_id"] == validation["clip_id"]
    assert views.cut_validation(rows, 0.1, seed=1)[1]["clip_id"] != validation["clip_id"]


def test_no_person_is_on_both_sides():
    people = [str(number % 10) for number in range(100)]
    train, validation = views.cut_validation(make_rows([0, 1] * 50, person=people), 0.2, seed=0, group="person")
    assert len(set(validation["person"])) == 2
    assert not set(train["person"]) & set(validation["person"])


@pytest.mark.parametrize(
    "share, message", [(0.0, "above 0 and at most 0.5"), (0.6, "at most 0.5"), (0.1, "at least 10")]
)
def test_an_impossible_validation_part_is_an_error(share, message):
    with pytest.raises(ValueError, match=message):
        views.cut_validation(make_rows([0, 1] * 10, person=["a", "b"] * 10), share, seed=0, group="person")


def test_every_clip_once():
    sampler = views.SeededSampler(100, seed=0)
    first = list(sampler)
    assert sorted(first) == list(range(100)) != first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)


def test_balanced_drawing():
    sampler = views.SeededSampler(1000, seed=0, labels=[0] * 900 + [1] * 100)
    drawn = list(sampler)
    assert len(drawn) == 1000 and 400 < sum(index >= 900 for index in drawn) < 600
    assert drawn == list(sampler)
    sampler.set_epoch(1)
    assert drawn != list(sampler)
    assert np.unique(drawn).max() < 1000

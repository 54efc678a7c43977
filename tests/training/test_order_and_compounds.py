# SPDX-License-Identifier: Apache-2.0
"""Rendered clips that only the order of frames tells apart, clips of two emotions at once, and texts for labels."""

import datasets
import numpy as np
import pytest
import torch

from training.data.face_grammar import sample_compound, sample_order_pair
from training.data.face_renderer import render_clip
from training.data.face_vocabulary import COMPOUND_NAMES, EMOTIONS, ORDER_NAMES, SEEN_EMOTIONS
from training.data.synthetic_faces import SyntheticFaces
from training.predictions import predict_texts
from training.recipe import EvaluationSet

TEXTS = {"anger": ["red", "hot"], "disgust": ["green", "sour"]}


def test_an_order_pair_is_one_clip_forwards_and_backwards():
    for index in range(3):
        appearing, fading = (render_clip(spec, 4, 32) for spec in sample_order_pair(0, index, "order_test"))
        assert np.array_equal(appearing, fading[::-1])
        assert not np.array_equal(appearing, fading)


def test_the_order_task_has_both_of_each_pair_and_no_person_twice(tmp_path):
    builder = SyntheticFaces(
        config_name="order", cache_dir=str(tmp_path), num_train=4, num_validation=2, num_order_pairs=3, frame_size=32
    )
    builder.download_and_prepare(num_proc=1)
    people = []
    for split, pairs in {"train": 4, "validation": 2, "test": 3}.items():
        rows = builder.as_dataset(split)
        names = [rows.features["label"].int2str(label) for label in rows["label"]]
        assert names == list(ORDER_NAMES) * pairs
        assert rows["identity"][::2] == rows["identity"][1::2]  # both of a pair show one person
        people += rows["identity"][::2]
    assert len(set(people)) == 4 + 2 + 3


def test_a_compound_shows_what_is_typical_of_both_parts():
    for index in range(3 * len(COMPOUND_NAMES)):
        spec = sample_compound(0, index)
        assert spec.label == COMPOUND_NAMES[index % len(COMPOUND_NAMES)]
        present = {action.component for action in spec.actions}
        first, second = spec.label.split("_")
        assert {first, second} <= set(SEEN_EMOTIONS)
        for part in (first, second):
            assert present & set(dict(EMOTIONS[part])), (spec.label, present)


@pytest.mark.parametrize(
    ("kind", "descriptions", "expected"),
    [
        ("descriptions", {"about_to_cry": ["wet eyes"]}, {"wet eyes", "an expression of bored."}),
        ("descriptions", None, {"an expression of about to cry.", "an expression of bored."}),
        (
            "first_description",
            {"about_to_cry": ["wet eyes", "a trembling lip"]},
            {"wet eyes", "an expression of bored."},
        ),
        ("photo", {"about_to_cry": ["wet eyes"]}, {"a photo of about to cry.", "a photo of bored."}),
    ],
)
def test_a_label_with_underscores_is_no_compound(kind, descriptions, expected):
    features = datasets.Features({"label": datasets.ClassLabel(names=["about_to_cry", "bored"])})
    rows, read = datasets.Dataset.from_dict({"label": [0, 1]}, features=features), set()

    def embeds_of(texts):
        read.update(texts)
        return torch.eye(len(texts), 8)

    predictions = predict_texts(EvaluationSet(texts=kind), rows, torch.eye(2, 8), descriptions, embeds_of)
    assert read == expected and predictions.names == predictions.pipeline_labels == ["about_to_cry", "bored"]


@pytest.fixture
def compounds():
    features = datasets.Features({"label": datasets.ClassLabel(names=["anger", "disgust", "anger_disgust"])})
    return datasets.Dataset.from_dict({"label": [0, 1, 2]}, features=features)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("descriptions", {"red", "hot", "green", "sour"}),
        ("first_description", {"red", "green"}),
        ("description", {"red", "green", "red, green"}),
        ("class_name", {"anger", "disgust", "anger and disgust"}),
        ("expression", {f"an expression of {name}." for name in ("anger", "disgust", "anger and disgust")}),
    ],
)
def test_what_stands_for_a_label(compounds, kind, expected):
    read = set()

    def embeds_of(texts):
        read.update(texts)
        return torch.nn.functional.one_hot(torch.arange(len(texts)), 8).float()

    predictions = predict_texts(EvaluationSet(texts=kind), compounds, torch.eye(3, 8), TEXTS, embeds_of)
    assert read == expected
    assert predictions.scores.shape == (3, 3)
    assert predictions.pipeline_labels == ["anger", "disgust", "anger + disgust"]

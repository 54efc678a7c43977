# SPDX-License-Identifier: Apache-2.0
"""The rendered data set: what is promised about held-out emotions, determinism, and the files it writes."""

import multiprocessing
from hashlib import sha256

import decord
import numpy as np
import pytest

from training.data.face_grammar import (
    forbidden_pairs,
    nearest_recipe,
    sample_clip,
    sample_order_pair,
    sample_still,
)
from training.data.face_renderer import render_clip, render_still
from training.data.face_spec import component_vector
from training.data.face_vocabulary import (
    COMPONENTS,
    EMOTION_NAMES,
    HELD_OUT_DYNAMICS,
    HELD_OUT_EMOTIONS,
    SEEN_EMOTIONS,
)
from training.data.synthetic_faces import TARGETS, SyntheticFaces


def _components(spec):
    return [action.component for action in spec.actions]


@pytest.fixture(scope="module")
def training_specs():
    """Everything a model may be trained or selected on: clips and stills."""
    specs = [sample_clip(0, split, index) for split in ("train", "validation") for index in range(2000)]
    return specs + [sample_still(0, split, index) for split in ("train", "validation") for index in range(2000)]


@pytest.fixture(scope="module")
def test_specs():
    return [sample_clip(0, "test", index) for index in range(11 * 60)]


def test_training_never_shows_what_is_held_out(training_specs):
    assert {spec.label for spec in training_specs} == set(SEEN_EMOTIONS)
    for spec in training_specs:
        assert not forbidden_pairs(_components(spec))
        assert not HELD_OUT_DYNAMICS & {(action.component, action.dynamics) for action in spec.actions}


def test_captions_never_name_an_emotion(training_specs, test_specs):
    adjectives = "angry disgusted afraid scared happy sad surprised contemptuous anxious helpless disappointed".split()
    words = {word for spec in training_specs + test_specs for word in spec.caption.replace(",", "").split()}
    assert not words & {*EMOTION_NAMES, *adjectives}


def test_held_out_clips_are_made_of_forbidden_pairs(test_specs):
    for label in HELD_OUT_EMOTIONS:
        clips = [spec for spec in test_specs if spec.label == label]
        assert np.mean([bool(forbidden_pairs(_components(spec))) for spec in clips]) >= 0.8
    moving = {(action.component, action.dynamics) for spec in test_specs for action in spec.actions}
    assert moving >= HELD_OUT_DYNAMICS


def test_true_components_tell_the_emotions_apart(test_specs):
    hits = {name: [] for name in EMOTION_NAMES}
    for spec in test_specs:
        hits[spec.label].append(nearest_recipe(_components(spec)) == spec.label)
    assert np.mean([np.mean(values) for values in hits.values()]) >= 0.90


def test_vocabulary_is_closed_and_lower_case(training_specs, test_specs):
    known = {word for spec in training_specs for word in spec.caption.replace(",", "").split()}
    assert len(known) < 200
    assert all(word.isalpha() and word.islower() for word in known)
    assert {word for spec in test_specs for word in spec.caption.replace(",", "").split()} <= known


def test_stills_show_few_components_and_say_nothing_of_time():
    specs = [sample_still(0, "train", index) for index in range(500)]
    assert {len(spec.actions) for spec in specs} == {0, 1, 2}
    assert not [spec for spec in specs if any(word in spec.caption for word in ("appearing", "fading", "moment"))]
    for spec in specs:
        assert component_vector(spec).sum() == len(spec.actions)


def test_nobody_is_in_two_splits(training_specs, test_specs):
    pairs = [spec for index in range(100) for spec in sample_order_pair(0, index)]
    names = [spec.identity.name for spec in training_specs + test_specs + pairs[::2]]
    assert len(names) == len(set(names))
    # Names could differ and faces not: the generators that draw them must differ too.
    assert len({spec.rng_key for spec in training_specs + test_specs + pairs[::2]}) == len(names)


def test_imbalanced_labels_follow_dfew():
    labels = [sample_clip(0, "test_imbalanced", index).label for index in range(400)]
    assert set(labels) == set(SEEN_EMOTIONS)
    assert labels.count("disgust") in range(4, 7) and labels.count("neutral") in range(88, 95)


def test_targets_stay_in_range_and_vary(training_specs):
    clips = training_specs[:4000]
    for name in TARGETS:
        values = np.array([spec.targets[name] for spec in clips])
        assert values.min() >= 0.0 and values.max() <= 1.0 and values.std() > 0.1


def test_targets_do_not_depend_on_who_moves():
    same = {}
    for index in range(2000):
        spec = sample_clip(0, "validation", index)
        if not spec.actions:
            same[spec.identity.name] = tuple(spec.targets.values())
    assert len(same) > 10 and set(same.values()) == {(0.0, 0.5, 0.0)}


def _digest(index):
    spec = sample_clip(3, "train", index)
    still = sample_still(3, "train", index)
    return sha256(
        render_clip(spec).tobytes() + render_still(still).tobytes() + repr((spec, still)).encode()
    ).hexdigest()


def test_same_seed_gives_the_same_pixels_in_another_process():
    # "spawn" starts from nothing: no generator's state can be inherited.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.map(_digest, range(4))
    assert elsewhere == [_digest(index) for index in range(4)]
    assert len(set(elsewhere)) == 4


def test_order_pair_is_one_clip_and_its_reverse():
    for index in range(10):
        onset, offset = sample_order_pair(0, index)
        assert onset.caption.endswith("slowly appearing") and offset.caption.endswith("slowly fading")
        assert onset.caption.rsplit(" ", 1)[0] == offset.caption.rsplit(" ", 1)[0]
        forward, backward = render_clip(onset), render_clip(offset)
        assert np.array_equal(forward, backward[::-1]) and not np.array_equal(forward, backward)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_can_be_seen(component):
    """At full strength a component changes the picture by far more than the noise does."""
    found = next(s for s in (sample_still(0, "train", i) for i in range(1000)) if _components(s) == [component])
    plain = type(found)(**{**vars(found), "actions": ()})
    change = np.abs(render_still(found).astype(int) - render_still(plain)).max(axis=2)
    assert (change > 20).sum() >= 12


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("faces"))
    sizes = {"num_train": 6, "num_validation": 0, "num_test_per_class": 1, "num_order_pairs": 2}
    builder = SyntheticFaces(config_name="clips", cache_dir=cache, **sizes)
    builder.download_and_prepare(num_proc=2)
    return builder.as_dataset()


def test_builder_writes_playable_clips(clips):
    assert {split: len(rows) for split, rows in clips.items()} == {
        "train": 6,
        "test": 11,
        "test_imbalanced": 10,
        "order_pairs": 4,
    }
    row = clips["train"][0]
    assert row["video"]["bytes"] is None
    frames = decord.VideoReader(row["video"]["path"]).get_batch(range(row["num_frames"])).asnumpy()
    assert frames.shape == (8, 128, 128, 3)
    drawn = render_clip(sample_clip(0, "train", 0))
    assert np.abs(frames[:, ::2, ::2].astype(int) - drawn).mean() < 6
    assert clips["test"].features["label"].names == list(EMOTION_NAMES)
    assert clips["test"]["label"] == list(range(11))


def test_order_pairs_decode_to_the_same_frames(clips):
    onset, offset = (clips["order_pairs"][index] for index in (2, 3))
    assert onset["pair_id"] == offset["pair_id"] == 1
    assert onset["contrast_caption"] == offset["caption"] and offset["contrast_caption"] == onset["caption"]
    forward, backward = (
        decord.VideoReader(row["video"]["path"]).get_batch(range(8)).asnumpy() for row in (onset, offset)
    )
    assert np.array_equal(forward, backward[::-1])


def test_stills_come_as_images_and_stream(tmp_path):
    builder = SyntheticFaces(config_name="stills", cache_dir=str(tmp_path), num_train=3, num_validation=0)
    row = next(iter(builder.as_streaming_dataset("train")))
    assert row["image"].size == (64, 64) and len(row["components"]) == len(COMPONENTS)
    assert row["caption"] == sample_still(0, "train", 0).caption


def test_rendering_resumes(tmp_path, monkeypatch):
    sizes = {"num_train": 3, "num_validation": 0, "num_test_per_class": 0, "num_order_pairs": 0}
    builder = SyntheticFaces(config_name="clips", cache_dir=str(tmp_path), **sizes)
    assert len(list(builder.as_streaming_dataset("train"))) == 3
    monkeypatch.setattr("training.data.face_renderer.render_clip", None)
    assert len(list(builder.as_streaming_dataset("train"))) == 3

# SPDX-License-Identifier: Apache-2.0
"""The texts that the demo is scored with are not texts that it was trained with."""

from training.build import load_class_descriptions
from training.data import face_grammar, face_vocabulary

DESCRIPTIONS = load_class_descriptions("class_descriptions.yaml")


def test_every_label_has_several_descriptions_of_its_own():
    assert tuple(DESCRIPTIONS) == face_vocabulary.EMOTION_NAMES
    texts = [text for texts in DESCRIPTIONS.values() for text in texts]
    assert all(len(texts) >= 2 for texts in DESCRIPTIONS.values()) and len(set(texts)) == len(texts)


def test_no_test_text_occurs_in_training():
    texts = [text for texts in DESCRIPTIONS.values() for text in texts]
    order_texts = [spec.caption for index in range(120) for spec in face_grammar.sample_order_pair(0, index)]
    captions = {face_grammar.sample_clip(0, "train", index).caption for index in range(4000)}
    captions |= {face_grammar.sample_still(0, "train", index).caption for index in range(4000)}
    assert captions.isdisjoint(order_texts)
    assert not [text for text in texts if any(text in caption for caption in captions)]


def test_descriptions_name_no_emotion():
    for texts in DESCRIPTIONS.values():
        assert not [word for text in texts for word in face_vocabulary.EMOTION_NAMES if word in text]

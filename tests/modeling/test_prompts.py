# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn.functional import normalize

from emoclip.typed_text import parse_labels
from modeling_emoclip.label_scoring import encode_labels, label_texts


def encode(texts):
    """A vector of its own for each text, of any length."""
    return torch.stack([torch.randn(6, generator=torch.Generator().manual_seed(sum(map(ord, t)))) * 7 for t in texts])


def test_a_name_gets_its_descriptions_else_the_template():
    descriptions = {"anger": ["lowered brows", "a glare"]}
    assert label_texts(["anger", "calm"], descriptions) == {
        "anger": (("lowered brows", "a glare"),),
        "calm": (("an expression of calm.",),),
    }
    assert label_texts(["anger"], descriptions, "a photo of {}") == {"anger": (("a photo of anger",),)}


def test_underscores_are_blanks_in_a_template():
    assert label_texts(["about_to_cry"]) == {"about_to_cry": (("an expression of about to cry.",),)}
    assert label_texts(["about_to_cry"], {"about_to_cry": ["wet_eyes"]}) == {"about_to_cry": (("wet_eyes",),)}


def test_a_dict_brings_one_description_or_several():
    assert label_texts({"a": "one", "b": ["two", "three"]}) == {"a": (("one",),), "b": (("two", "three"),)}


def test_compound_labels_are_the_mean_of_their_parts():
    texts = label_texts(["anger", "disgust", "anger + disgust"], {"anger": ["lowered brows", "a glare"]}, None)
    embeds = encode_labels(texts, encode)
    torch.testing.assert_close(embeds[2], normalize((embeds[0] + embeds[1]) / 2, dim=-1))
    torch.testing.assert_close(embeds[1], normalize(encode(["an expression of disgust."])[0], dim=-1))


def test_several_descriptions_are_averaged_as_unit_vectors_and_each_text_is_encoded_once():
    calls = []

    def counting(texts):
        calls.append(list(texts))
        return encode(texts)

    embeds = encode_labels(label_texts({"a": ["x", "y"], "b": ["y", "x"], "c": "y"}), counting)
    assert calls == [["x", "y"]]
    x, y = normalize(encode(["x", "y"]), dim=-1)
    torch.testing.assert_close(embeds[0], normalize((x + y) / 2, dim=-1))
    torch.testing.assert_close(embeds[0], embeds[1])
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "empty"),
        ({}, "empty"),
        ("anger", "list of labels"),
        (None, "list of labels"),
        (["anger", "calm", "anger"], "'anger' more than once"),
        (["anger", " "], "' '"),
        (["anger", 3], "3"),
        (["anger +"], "empty part"),
        ({"anger": []}, "anger"),
        ({"anger": ""}, "anger"),
        ({"anger": ["x", None]}, "anger"),
    ],
)
def test_bad_labels_get_one_clear_error(labels, message):
    with pytest.raises(ValueError, match=message):
        label_texts(labels)


def test_a_template_without_a_place_for_the_label():
    with pytest.raises(ValueError, match="hypothesis_template"):
        label_texts(["anger"], None, "an expression")


def test_labels_as_they_are_typed():
    typed = ["calm: a relaxed face; closed lips", " bored ", "", "anger + disgust"]
    labels = parse_labels(typed)
    assert labels == {"calm": ["a relaxed face", "closed lips"], "bored": None, "anger + disgust": None}
    texts = label_texts(labels, {"bored": ["drooping eyelids"], "calm": ["not this"]})
    assert texts == {
        "calm": (("a relaxed face", "closed lips"),),
        "bored": (("drooping eyelids",),),
        "anger + disgust": (("an expression of anger.",), ("an expression of disgust.",)),
    }
    assert label_texts({"x": None, "y": None}) == label_texts(["x", "y"])
    for lines, message in ((["a", "a: b"], "'a' is given twice"), (["a:"], "no description")):
        with pytest.raises(ValueError, match=message):
            parse_labels(lines)

# SPDX-License-Identifier: Apache-2.0
"""What a score is: shares, temperatures, answers, and what the configuration says of them."""

import json
from types import SimpleNamespace

import pytest
import torch

from emoclip import EmoCLIPConfig
from modeling_emoclip.label_scoring import fitted_temperature, label_scores, label_texts, make_label_scorer

LOGITS = torch.tensor([[2.0, 1.0, -1.0], [0.5, 3.0, 3.0]])
LABELS = ["calm", "amused", "tense"]
FITTED = {"labels": ["amused", "calm", "tense"], "temperature": 2.5, "ece_before": 0.2, "ece_after": 0.1, "data": "x"}


def config_of(**fields):
    return EmoCLIPConfig(class_descriptions={"calm": ["a relaxed face"], "neutral": ["a straight mouth"]}, **fields)


def test_labels_that_compete_share_one():
    assert torch.equal(label_scores(LOGITS), LOGITS.softmax(dim=-1))
    scores = label_scores(LOGITS.half(), temperature=2.0)
    assert scores.dtype == torch.float32 and torch.allclose(scores.sum(dim=-1), torch.ones(2))
    assert torch.allclose(scores, (LOGITS / 2).softmax(dim=-1))


def test_labels_by_themselves_do_not_know_of_each_other():
    background = torch.tensor([[1.0], [3.0]])
    scores = label_scores(LOGITS, 2.0, background)
    for column in range(3):
        of_two = torch.stack([LOGITS[:, column], background[:, 0]], dim=1)
        assert torch.allclose(scores[:, column], (of_two / 2).softmax(dim=-1)[:, 0])
        assert torch.equal(label_scores(LOGITS[:, column : column + 1], 2.0, background)[:, 0], scores[:, column])
    assert scores[0, 1] == 0.5 and scores.sum() > 2


def test_the_answer_comes_first_also_if_it_is_uncertain():
    def ranked(scores, abstain_below=None):
        return make_label_scorer(config_of(), LABELS, abstain_below=abstain_below).ranked(scores)

    entries = ranked(torch.tensor([0.25, 0.5, 0.25]))
    assert entries == [{"label": x, "score": y} for x, y in (("amused", 0.5), ("calm", 0.25), ("tense", 0.25))]
    assert ranked([0.25, 0.5, 0.25], abstain_below=0.5) == entries
    uncertain = ranked([0.25, 0.5, 0.25], abstain_below=0.51)
    assert uncertain == [{"label": "uncertain", "score": 0.5}, *entries]
    assert json.loads(json.dumps(uncertain)) == uncertain


def test_scoring_competes_with_the_temperature_of_exactly_these_labels():
    config = config_of(label_temperatures=[{"labels": ["amused", "calm"], "temperature": 9}, FITTED])
    scoring = make_label_scorer(config, LABELS)
    assert scoring.temperature == 2.5 and list(scoring.texts) == LABELS
    assert torch.allclose(scoring.scores(LOGITS), (LOGITS / 2.5).softmax(dim=-1))
    assert make_label_scorer(config, LABELS[::-1]).temperature == 2.5
    assert make_label_scorer(config, LABELS, temperature=3).temperature == 3
    assert make_label_scorer(config, [*LABELS, "bored"]).temperature == 1
    assert make_label_scorer(config, LABELS[:2]).temperature == 9
    # Other texts under the same names are other labels.
    assert make_label_scorer(config, LABELS, "a photo of {}").temperature == 1
    texts = {"calm": "a relaxed face", "amused": "an expression of amused.", "tense": "an expression of tense."}
    assert make_label_scorer(config, texts).temperature == 2.5
    assert make_label_scorer(config, texts | {"tense": "pressed lips"}).temperature == 1
    assert make_label_scorer(config, LABELS, multi_label=True).temperature == 1
    assert fitted_temperature(config_of(), label_texts(LABELS)) == 1


def test_multi_label_scoring_is_against_the_texts_of_neutral():
    scoring = make_label_scorer(config_of(), ["calm", "neutral"], multi_label=True, abstain_below=0.9)
    assert list(scoring.texts.values()) == [(("a relaxed face",),), (("a straight mouth",),), (("a straight mouth",),)]
    scores = scoring.scores(torch.tensor([[2.0, 1.0, 1.0]]))
    assert torch.allclose(scores, torch.tensor([[torch.tensor(1.0).sigmoid(), 0.5]]))
    assert [entry["label"] for entry in scoring.ranked(scores[0])] == ["uncertain", "calm", "neutral"]
    plain = SimpleNamespace(class_descriptions=None, label_temperatures=None, contrastive_loss="softmax")
    assert list(make_label_scorer(plain, ["x"], "{}!", multi_label=True).texts.values())[1] == (("neutral!",),)
    assert list(make_label_scorer(plain, ["x"], multi_label="a face").texts.values())[1] == (("a face",),)
    two = make_label_scorer(plain, ["x"], multi_label=["a face", "nobody"])
    assert list(two.texts.values())[1] == (("a face", "nobody"),) and two.multi_label is True


def test_multi_label_scoring_of_a_model_trained_with_the_sigmoid_loss_is_what_it_was_trained_for():
    scoring = make_label_scorer(config_of(contrastive_loss="sigmoid"), LABELS, multi_label=True)
    assert list(scoring.texts) == LABELS
    assert torch.equal(scoring.scores(LOGITS), LOGITS.sigmoid())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"abstain_below": 50}, "abstain_below is 50"),
        ({"candidate_labels": ["uncertain"], "abstain_below": 0.5}, "rename it"),
        ({"candidate_labels": []}, "empty"),
        ({"multi_label": ""}, r"multi_label'\] is"),
        ({"multi_label": []}, r"multi_label'\] is"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make_label_scorer(config_of(), **({"candidate_labels": LABELS} | options))


def test_temperatures_travel_with_the_configuration(tmp_path):
    config_of(label_temperatures=[FITTED]).save_pretrained(tmp_path)
    assert EmoCLIPConfig.from_pretrained(tmp_path).label_temperatures == [FITTED]
    assert EmoCLIPConfig().label_temperatures is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"temperature": 1.0}], "labels None"),
        (["x"], "labels None"),
        ([FITTED | {"labels": ["b", "a"]}], "sorted"),
        ([FITTED | {"labels": ["a", "a"]}], "distinct"),
        ([FITTED | {"labels": [1]}], "texts"),
        ([FITTED | {"temperature": 0}], "greater than 0"),
        ([FITTED | {"temperature": "2"}], "greater than 0"),
        ([FITTED | {"temperature": float("inf")}], "greater than 0"),
        ([FITTED, FITTED], "more than once"),
    ],
)
def test_bad_temperatures(entries, message):
    with pytest.raises(Exception, match=message):
        EmoCLIPConfig(label_temperatures=entries)

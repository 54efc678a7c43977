# SPDX-License-Identifier: Apache-2.0
"""One's own videos through every kind of experiment: captions, classes, prompts, targets; what is wrong is named."""

import json

import pytest
import torch
from transformers import AutoModel, CLIPTokenizer

from emoclip import EmoCLIPForVideoRegression
from training import train
from training.build import SPECIAL_TOKENS, load_builder, train_tokenizer
from training.recipe import DataSource

FROZEN = '{"(vision_model|text_model)\\\\..*|(visual|text)_projection\\\\..*|logit_scale": null, ".*": 1e-2}'


@pytest.mark.parametrize("text", ["caption", "description", "class_name"])
def test_zero_shot_training_on_ones_own_videos(make_recipe, tmp_path, text):
    metrics = train.run(make_recipe(tmp_path, f"data.text={text}"))
    assert metrics["final"]["own"]["num_clips"] == 18  # a quarter was cut off to choose the epoch on
    assert "validation_loss" in metrics["history"][0]


@pytest.mark.parametrize("trains_vision", [False, True])
@pytest.mark.parametrize("architecture", ["EmoCLIPForPromptClassification", "EmoCLIPForVideoClassification"])
def test_models_with_classes(make_recipe, tmp_path, architecture, trains_vision):
    rates = FROZEN.replace("(vision_model|text_model)", "text_model") if trains_vision else FROZEN
    if architecture == "EmoCLIPForVideoClassification":  # it has no text side
        rates = '{".*": 1e-3}' if trains_vision else '{"(vision_model|visual_projection)\\\\..*": null, ".*": 1e-2}'
    rates = f"optim.learning_rates={rates}"
    kind = [f"model.architecture={architecture}", "data.text=class_name", "model.config.prompt_num_context_tokens=2"]
    metrics = train.run(make_recipe(tmp_path, *kind, rates))
    assert metrics["final"]["own"]["labels"] == ["happiness", "sadness"]
    model = AutoModel.from_pretrained(tmp_path)
    assert type(model).__name__ == architecture and model.config.label2id == {"happiness": 0, "sadness": 1}


@pytest.mark.parametrize(
    "name", ["os.path", "..train.main", "publish.main", "synthetic_faces.os", "nowhere.Set", "Set"]
)
def test_a_recipe_names_builders_and_no_other_code(name):
    with pytest.raises(ValueError, match=rf"data\.builder is '{name}', but must be `module\.Class`"):
        load_builder(DataSource(builder=name))


def test_targets(make_recipe, tmp_path):
    rates = 'optim.learning_rates={"(vision_model|visual_projection|temporal)\\\\..*": null, ".*": 1e-2}'
    overrides = ["model.architecture=EmoCLIPForVideoRegression", "data.targets=[tension]", rates]
    metrics = train.run(make_recipe(tmp_path, *overrides))
    assert set(metrics["final"]["own"]["targets"]["tension"]) >= {"pcc", "ccc", "mae", "rmse"}
    model = EmoCLIPForVideoRegression.from_pretrained(tmp_path)
    assert model.config.target_names == ["tension"]


def test_a_head_on_a_trained_emoclip(make_recipe, tmp_path):
    train.run(make_recipe(tmp_path / "first"))
    rates = 'optim.learning_rates={"(vision_model|visual_projection|temporal)\\\\..*": null, ".*": 1e-2}'
    head = ["model.architecture=EmoCLIPForVideoRegression", "data.targets=[tension]", rates, "model.config={}"]
    train.run(make_recipe(tmp_path / "second", *head, f"model.init={tmp_path / 'first'}"))
    first, second = (AutoModel.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert all(
        torch.equal(weight, second.state_dict()[name])
        for name, weight in first.temporal.state_dict().items()
        for name in [f"temporal.{name}"]
    )


def test_nothing_to_train_is_an_evaluation(make_recipe, tmp_path):
    mean_of_frames = ["model.config={temporal_num_layers: 0}", 'optim.learning_rates={".*": null}', "optim.epochs=0"]
    metrics = train.run(make_recipe(tmp_path, *mean_of_frames))
    assert metrics["start"] == metrics["final"] and metrics["history"] == []
    assert json.loads((tmp_path / "metrics.json").read_text())["trained_parameters"] == 0


def test_people_are_on_one_side_and_classes_balanced(make_recipe, tmp_path):
    metrics = train.run(make_recipe(tmp_path, "data.validation_group=group", "data.class_balanced=true"))
    assert metrics["final"]["own"]["num_clips"] in (16, 20)  # one or two of six people were cut off


def test_a_class_left_out(make_recipe, tmp_path):
    leave_out = ["data.leave_out=sadness", "optim.batch_size=3", "data.evaluation={own: {split: train}}"]
    with pytest.raises(ValueError, match="no clip of train has one of the labels"):  # train is what it was left out of
        train.run(make_recipe(tmp_path, *leave_out, "data.evaluation={own: {split: train, only_labels: [sadness]}}"))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["model.architecture=EmoCLIPForVideoRegression"], "data.targets is \\[\\], but model.architecture"),
        (["model.architecture=CLIP"], "must be one of EmoCLIPModel"),
        (["data.targets=[joy]", "model.architecture=EmoCLIPForVideoRegression"], r"names \['joy'\].*tension"),
        (["data.validation_split=validation"], "has no split validation.*validation_share"),
    ],
)
def test_a_recipe_that_does_not_fit_the_data_is_an_error(make_recipe, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        train.run(make_recipe(tmp_path, *overrides))


def test_a_trained_tokenizer_is_the_same_every_time():
    captions = [f"a person shows number {number} and a smile fading slowly" for number in range(200)]
    tokenizers = [train_tokenizer(captions, 400) for _ in range(4)]
    assert all(tokenizer.get_vocab() == tokenizers[0].get_vocab() for tokenizer in tokenizers)
    ids = tokenizers[0](captions[7])["input_ids"]
    assert tokenizers[0].decode(ids, skip_special_tokens=True) == captions[7]  # 7 is a word
    assert ids[0] == tokenizers[0].bos_token_id == 2 and ids[-1] == tokenizers[0].eos_token_id == 3
    again = CLIPTokenizer(**SPECIAL_TOKENS).train_new_from_iterator(sorted(set(captions)), 400)
    assert again.tokenize(captions[7]) == tokenizers[0].tokenize(captions[7])

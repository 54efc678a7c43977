# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch

from training.optimizer import build_optimizer, build_scheduler, set_trainable
from training.recipe import OptimRecipe, load_recipe

RECIPES = Path(__file__).parents[2] / "training" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("[!_]*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path):
    recipe = load_recipe(path)
    assert recipe.optim.learning_rates and (path.stem.startswith("_") or recipe.title)


def test_extends_paths_and_overrides(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "model: {init: ../clip, config: {temporal_num_layers: 2}}\n"
        "optim: {epochs: 3, learning_rates: {a: 1e-3, b: null}, weight_decay: 5e-4}\n"
    )
    (tmp_path / "recipe.yaml").write_text("extends: base.yaml\noptim: {learning_rates: {c: 1}}\n")
    recipe = load_recipe(tmp_path / "recipe.yaml", ["optim.epochs=5", "model.config.temporal_num_heads=4"])
    assert recipe.optim.epochs == 5 and recipe.optim.weight_decay == 5e-4
    assert recipe.optim.learning_rates == {"c": 1}  # ordered: a merge would have no order to speak of
    assert recipe.model.config == {"temporal_num_layers": 2, "temporal_num_heads": 4}
    assert recipe.model.init == str(tmp_path.parent / "clip")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {epoch: 3}", r"unknown recipe field optim\.epoch; .*epochs"),
        ("optim: {epochs: three}", "epochs"),
        ("optim: 3", "optim"),
        ("optim: {optimizer: adam}", "optimizer"),
        ("[1, 2]", "mapping"),
        ("optim: {epochs: 3", "not valid YAML"),
        ("data: {evaluation: {seen: {splits: test}}}", r"data\.evaluation\.seen\.splits"),
        ("data: {augmentation: {flip: often}}", "flip"),
    ],
)
def test_bad_recipes_name_the_field(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_missing_recipe_and_malformed_override(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")
    (tmp_path / "recipe.yaml").write_text("title: x")
    with pytest.raises(ValueError, match=r"optim\.epochs"):
        load_recipe(tmp_path / "recipe.yaml", ["optim.epochs"])


def small_model():
    return torch.nn.ModuleDict({"tower": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})


def test_the_first_match_decides_and_null_freezes():
    model = small_model()
    rates = set_trainable(model, {r"head\.bias": 0.5, r"head\..*": 0.1, r"tower\..*": None})
    assert rates == {"head.weight": 0.1, "head.bias": 0.5}
    assert not model["tower"].weight.requires_grad and model["head"].weight.requires_grad
    groups = build_optimizer(model, OptimRecipe(weight_decay=0.2), rates).param_groups
    assert sorted((g["lr"], g["weight_decay"]) for g in groups) == [(0.1, 0.2), (0.5, 0.0)]


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({r"head\..*": 0.1}, "tower.weight"),
        ({r"head\..*": 0.1, ".*": None, "neck": 1}, "neck"),
        ({".*": None}, "nothing to train"),
        ({".*": -1}, "at least 0"),
        ({".*": "fast"}, "fast"),
    ],
)
def test_bad_learning_rates(rates, message):
    with pytest.raises(ValueError, match=message):
        set_trainable(small_model(), rates)


def test_milestones_are_epochs():
    model = small_model()
    optim = OptimRecipe(optimizer="sgd", schedule="milestones", milestones=[1, 2])
    optimizer = build_optimizer(model, optim, set_trainable(model, {".*": 1.0}))
    scheduler = build_scheduler(optimizer, optim, steps_per_epoch=3)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01])

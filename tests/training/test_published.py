# SPDX-License-Identifier: Apache-2.0
"""Nothing secret is published, nothing of the user's is removed, and no weights are lost."""

import os

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from filelock import FileLock
from safetensors.torch import load_file

from training import checkpoint as checkpoints
from training import train
from training.checkpoint import SELECTED, Progress, load_checkpoint, load_selected, save_checkpoint
from training.collate import Collator
from training.metrics.scores import metrics_of
from training.optimizer import build_scheduler
from training.predictions import Predictions
from training.publish import card
from training.publish.card import as_text, published_recipe
from training.publish.redaction import REMOVED, without_folders, without_secrets
from training.publish.space import APP, is_space
from training.recipe import OptimRecipe, Recipe

# --- what leaves the machine


@pytest.mark.parametrize(
    ("value", "published"),
    [
        ({"token": "abc", "hf_token": "x", "api_key": 1}, {"token": REMOVED, "hf_token": REMOVED, "api_key": REMOVED}),
        ({"prompt_num_context_tokens": 8, "token": None}, {"prompt_num_context_tokens": 8, "token": None}),
        ("see hf_abcDEF123456", f"see {REMOVED}"),
        ("https://user:pa@ss@host/x", "https://host/x"),
        ("https://host/x?token=abc&size=3", f"https://host/x?token={REMOVED}&size=3"),
        ([{"options": {"password": "x"}}], [{"options": {"password": REMOVED}}]),
        ("an expression of {}.", "an expression of {}."),
    ],
)
def test_secrets_are_found_by_the_names_of_fields_and_by_look(value, published):
    assert without_secrets(value) == published


@pytest.mark.parametrize(
    ("value", "published"),
    [
        ("/home/eve/data/mine", "mine"),
        ("~/data/mine", "mine"),
        ("C:\\Users\\eve\\mine", "mine"),
        ("\\\\server\\share\\mine", "mine"),
        ("file:///home/eve/mine.csv", "mine.csv"),
        ("lists of /home/eve/mine, and of D:/x/other", "lists of mine, and of other"),
        ("https://host/a/b/c", "https://host/a/b/c"),
        ("org/name", "org/name"),
        (r"temporal\..*|visual_projection\..*", r"temporal\..*|visual_projection\..*"),
    ],
)
def test_folders_of_this_machine_stay_here(value, published):
    assert without_folders(value) == published


def test_a_published_recipe_holds_neither():
    recipe = Recipe()
    recipe.data.options = {
        "password": "SECRET",
        "list": "/home/mallory/list.csv",
        "url": "rtsp://mallory:word@camera/1",
    }
    recipe.model.video_processor = {"token": "hf_SECRETSECRET", "size": {"height": 8, "width": 8}}
    text = yaml.safe_dump(published_recipe(recipe))
    assert not any(word in text for word in ("SECRET", "mallory", "word@", "home"))
    assert "list.csv" in text and "height: 8" in text


def test_what_people_type_is_text_in_a_card():
    typed = {"title": "a\n# b <script>x</script>", "labels": ["<img onerror=x>", "a|b"], "recall": {"$x$": 0.5}}
    assert as_text(typed) == {
        "title": "a # b &lt;script&gt;x&lt;/script&gt;",
        "labels": ["&lt;img onerror=x&gt;", "a\\|b"],
        "recall": {"\\$x\\$": 0.5},
    }


# --- licences of weights


def test_weights_from_a_hub_repository_that_nobody_can_look_into_count_as_licensed(monkeypatch):
    monkeypatch.setattr(card, "_on_hub", lambda repo_id, name: None)
    recipe = Recipe()
    recipe.model.init = "someone/emoclip-trained-on-mafw"
    assert [one.name for one in card.data_sets(recipe) if one.is_licensed and one.is_learnt] == ["unknown"]
    recipe.model.init = "openai/clip-vit-base-patch32"
    assert not [one for one in card.data_sets(recipe) if one.is_licensed]


def test_an_emoclip_on_the_hub_without_a_recipe_counts_as_licensed(tmp_path, monkeypatch):
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "emoclip"}')
    monkeypatch.setattr(card, "_on_hub", lambda repo_id, name: str(config) if name == "config.json" else None)
    recipe = Recipe()
    recipe.model.init = "someone/converted"
    assert [one.name for one in card.data_sets(recipe) if one.is_licensed] == ["unknown"]


def test_a_repository_that_names_itself_and_a_builder_that_nobody_knows(tmp_path):
    loop = tmp_path / "loop"
    loop.mkdir()
    (loop / "recipe.yaml").write_text(yaml.safe_dump({"model": {"init": "."}, "data": {"builder": "my_sets.Mine"}}))
    (loop / "config.json").write_text('{"model_type": "emoclip"}')
    recipe = Recipe()
    recipe.model.init = str(loop)
    found = {one.name: one.is_licensed for one in card.data_sets(recipe) if one.is_learnt}
    assert found["my_sets.Mine"] is True
    assert card.base_model(recipe) is None


# --- nothing of the user's is removed


def test_somebody_elses_gradio_app_is_no_space_of_ours(tmp_path):
    (tmp_path / "README.md").write_text("---\nsdk: gradio\n---\n")
    (tmp_path / "app.py").write_text("import gradio\n")
    assert not is_space(tmp_path)
    (tmp_path / "app.py").write_text(APP)
    assert is_space(tmp_path)
    (tmp_path / "my_module.py").write_text("")
    assert not is_space(tmp_path)


# --- checkpoints


class Killed(BaseException):
    pass


@pytest.mark.parametrize("death", range(1, 8))
def test_the_selected_weights_survive_a_kill_at_any_point(tmp_path, monkeypatch, death):
    """At the n-th file operation of the second checkpoint; a resumed training then writes a third one."""
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(2, 2)
    checkpoint, best = tmp_path / "checkpoint", model.weight.detach().clone()
    save_checkpoint(accelerator, model, Progress(epoch=1), checkpoint, selects=True)
    calls = 0

    def deadly(function):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == death:
                raise Killed
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for owner, name in ((os, "replace"), (os, "link"), (checkpoints.shutil, "rmtree")):
            patched.setattr(owner, name, deadly(getattr(owner, name)))
        try:
            save_checkpoint(accelerator, model, Progress(epoch=2), checkpoint, selects=False)
        except Killed:
            pass
    with torch.no_grad():
        model.weight.add_(1)
    progress = load_checkpoint(accelerator, checkpoint)
    assert progress.epoch in (1, 2)
    save_checkpoint(accelerator, model, Progress(epoch=3), checkpoint, selects=False)
    load_selected(model, checkpoint)
    torch.testing.assert_close(model.weight.detach(), best)


def test_a_run_that_was_killed_after_its_last_epoch_still_has_its_weights(tmp_path):
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(2, 2)
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(accelerator, model, Progress(epoch=1), checkpoint, selects=True)
    os.replace(checkpoint, checkpoints.previous_of(checkpoint))
    load_selected(model, checkpoint)


def test_a_file_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError("no links here")

    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(2, 2)
    save_checkpoint(accelerator, model, Progress(), tmp_path / "checkpoint", selects=True)
    monkeypatch.setattr(os, "link", refuse)
    save_checkpoint(accelerator, model, Progress(epoch=1), tmp_path / "checkpoint", selects=False)
    assert load_file(tmp_path / "checkpoint" / SELECTED).keys() == {"weight", "bias"}


def test_two_trainings_in_one_folder(tmp_path, capsys):
    output_dir = tmp_path / "run"
    output_dir.mkdir()
    recipe = "training/recipes/synthetic_emoclip.yaml"
    with FileLock(output_dir / ".training.lock"), pytest.raises(SystemExit) as stopped:
        train.main([recipe, f"run.output_dir={output_dir}"])
    assert stopped.value.code == 2 and "another training is at work there" in capsys.readouterr().err


# --- numbers


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0]),
        ("milestones", [0.0, 0.5, 1.0, 0.1, 0.1]),
        ("cosine", [0.0, 0.5, 1.0, 0.75, 0.25]),
    ],
)
def test_every_schedule_warms_up(schedule, rates):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    optim = OptimRecipe(epochs=5, schedule=schedule, warmup=0.4, milestones=[3])
    scheduler, found = build_scheduler(optimizer, optim, 1), []
    for _ in rates:
        found += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(rates)


def test_no_number_is_never_better():
    nan = float("nan")

    def better(*losses, selected=0):
        history = [{"validation_loss": loss} for loss in losses]
        return train.is_better(Progress(history=history, selected=selected), "validation_loss")

    assert better(nan, 0.1) and not better(0.1, nan) and not better(nan, nan) and better(0.2, 0.1)


def test_scores_that_are_no_numbers_are_an_error_that_names_a_clip():
    scores = np.zeros((3, 2))
    scores[1] = np.nan
    with pytest.raises(ValueError, match="scores of 1 of 3 clips are no finite numbers, as of y"):
        metrics_of(Predictions(["a", "b"], scores, np.array([0, 0, 1]), list("xyz")))


def test_a_batch_without_a_clip_is_empty():
    assert Collator(None)([None, None]) == {}


def test_a_checkpoint_of_other_clips_is_not_gone_on_from(tmp_path):
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(2, 2)
    save_checkpoint(accelerator, model, Progress(clips="these"), tmp_path / "checkpoint", selects=True)
    assert load_checkpoint(accelerator, tmp_path / "checkpoint", "these").clips == "these"
    with pytest.raises(ValueError, match="was trained on other clips"):
        load_checkpoint(accelerator, tmp_path / "checkpoint", "others")

# SPDX-License-Identifier: Apache-2.0
"""Every kind of model becomes a folder that a stranger can load, with a card that says what was measured on what."""

import json
import re
import subprocess
import sys

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from local_hub import LocalHub
from safetensors.torch import load_file
from transformers import AutoModel

from training import train
from training.publish import card, export, push, while_training
from training.publish.hub import PushError
from training.recipe import load_recipe

FROZEN = '"(text_model|vision_model|visual_projection|text_projection|temporal)\\\\..*|logit_scale": null'
LEARNS = "optim.learning_rates={" + FROZEN + ', ".*": 1e-2}'
WITHOUT_TEXT = LEARNS.replace("text_model|", "").replace("|text_projection", "").replace("|logit_scale", "")
KINDS = {
    "EmoCLIPModel": [],
    "EmoCLIPForPromptClassification": ["data.text=class_name", "model.config.prompt_num_context_tokens=2", LEARNS],
    "EmoCLIPForVideoClassification": [WITHOUT_TEXT],
    "EmoCLIPForVideoRegression": ["data.targets=[tension]", "model.config.target_ranges=[[0, 3]]", WITHOUT_TEXT],
}
HEADS = list(KINDS)[1:]
DFEW = ["builder: own_videos.OwnVideos", "builder: dfew.DFEW", "config_name: null", "config_name: fold1"]
NOBODY = "no token was found|offline mode is enabled"  # whether who runs the tests has a token or not
VALIDATE = """
import sys
from huggingface_hub import ModelCard

for path in sys.argv[1:]:
    ModelCard.load(path).validate()
"""


@pytest.fixture(scope="module")
def run_dir_of(make_recipe, tmp_path_factory):
    """A finished run of a kind of model, trained once."""
    made = {}

    def run_dir(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            overrides = [f"model.architecture={kind}", *KINDS[kind], "optim.epochs=1", "optim.batch_size=9"]
            train.run(make_recipe(made[kind], *overrides))
        return made[kind]

    return run_dir


@pytest.fixture
def licensed_run(run_dir_of, tmp_path):
    """A run that says that it was trained on DFEW."""
    folder, run_dir = tmp_path / "licensed", run_dir_of("EmoCLIPModel")
    folder.mkdir()
    for path in run_dir.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    text = (folder / "recipe.yaml").read_text()
    for old, new in zip(DFEW[::2], DFEW[1::2], strict=True):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "recipe.yaml").write_text(text)
    return folder


def card_of(run_dir, **values) -> str:
    model, processor, recipe = export.load_run(run_dir)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    return card.write_card(metrics, recipe, model, processor, **values)


@pytest.mark.parametrize("kind", [HEADS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in HEADS[1:])])
def test_a_head_is_loaded_by_a_stranger(run_dir_of, kind, tmp_path):
    hub_dir, difference = export.export(run_dir_of(kind), tmp_path / "hub")  # which compares logits and calls pipeline
    assert difference <= 1e-5
    config = json.loads((hub_dir / "config.json").read_text())
    reference = f"modeling_emoclip_heads.{kind}"
    assert config["auto_map"]["AutoModelForVideoClassification"] == config["auto_map"]["AutoModel"] == reference
    assert "custom_pipelines" not in config  # transformers' own video-classification takes it
    assert "zero-shot" not in (hub_dir / "README.md").read_text().split("---")[1]
    assert load_recipe(hub_dir / "recipe.yaml").model.architecture == kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_holds_the_numbers_of_the_run(run_dir_of, kind):
    metrics = json.loads((run_dir_of(kind) / "metrics.json").read_text())
    text = card_of(run_dir_of(kind))
    assert "{{" not in text and "{%" not in text and "\n\n\n" not in text
    final, data = metrics["final"]["own"], ModelCard(text).data
    assert data.pipeline_tag == "video-classification" and data.library_name == "transformers"
    assert {"facial-expression-recognition", "emotion-recognition", "clip", "custom_code"} <= set(data.tags)
    results = {result.metric_name: result for result in data.eval_results}
    if kind == "EmoCLIPForVideoRegression":
        scores, expected = final["targets"]["tension"], {"PCC of tension": ("pcc", 1), "RMSE of tension": ("rmse", 1)}
        assert f"**{scores['mae']:.3f}**" in text and "| 0 | tension | 0 to 3 |" in text
        assert "Not a medical device" in text
    else:
        scores, expected = final, {"UAR in percent": ("uar", 100), "WAR in percent": ("war", 100)}
        assert (
            f"**{100 * final['uar']:.1f}**" in text and f"happiness {100 * final['recall']['happiness']:.0f}" in text
        )
    for name, (metric, factor) in expected.items():
        assert results[name].metric_value == pytest.approx(factor * scores[metric], abs=0.01)
        if interval := scores.get(f"{metric}_interval"):
            low, high = (factor * value for value in interval)
            assert results[name].metric_args == {"interval_95": pytest.approx([low, high], abs=0.01)}
            assert (f"({low:.1f} to {high:.1f})" if factor == 100 else f"({low:.3f} to {high:.3f})") in text
    assert "**which it was trained on**" in text  # the evaluation set of this recipe is a part of `train`
    assert f"{metrics['trained_parameters']:,} of {metrics['parameters']:,} parameters" in text
    assert "Regulation (EU) 2024/1689" in text and "foteinopoulou2024emoclip" in text and "zhao2023dferclip" in text


def test_classes_are_listed_in_the_order_of_the_scores(run_dir_of):
    assert "| 0 | happiness |\n| 1 | sadness |\n" in card_of(run_dir_of("EmoCLIPForVideoClassification"))
    prompts = card_of(run_dir_of("EmoCLIPForPromptClassification"))
    assert "| 0 | happiness | happiness |\n| 1 | sadness | sadness |\n" in prompts
    assert "2 learned tokens before it, which each class has of its own" in prompts


def test_pictures_are_copied_and_shown(run_dir_of, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "check", lambda *arguments: 0.0)
    (run_dir_of("EmoCLIPModel") / "confusion_own.png").write_bytes(b"\x89PNG")
    hub_dir, _ = export.export(run_dir_of("EmoCLIPModel"), tmp_path / "hub", "lab/emo")
    assert (hub_dir / "confusion_own.png").read_bytes() == b"\x89PNG"
    card = (hub_dir / "README.md").read_text()
    assert "](confusion_own.png)" in card and 'pipeline(model="lab/emo"' in card


def test_who_may_use_the_weights(run_dir_of, licensed_run, tmp_path):
    own, licensed = ModelCard(card_of(run_dir_of("EmoCLIPModel"))), ModelCard(card_of(licensed_run))
    assert own.data.license_name == "all-rights-reserved" and "The videos are not published" in own.text
    assert licensed.data.license == "other" and licensed.data.license_name == "dfew-agreement"
    assert licensed.data.license_link == "https://dfew-dataset.github.io"
    assert "What these weights were trained on is licensed** (DFEW)" in licensed.text
    assert "research only, by agreement with the authors" in licensed.text and "Jiang et al." in licensed.text
    assert licensed.data.eval_results[0].dataset_name == "DFEW, own"


def sources(recipe, **changes):
    """(name, whether it is licensed) of what the weights come from."""
    for dotted, value in changes.items():
        part, name = dotted.split("_", 1)
        setattr(getattr(recipe, part), name, value)
    return [(one.name, one.is_licensed) for one in card.data_sets(recipe) if one.is_learnt]


def test_a_licence_goes_along_with_the_weights(licensed_run, run_dir_of, tmp_path):
    own = load_recipe(run_dir_of("EmoCLIPModel") / "recipe.yaml")
    mine = ("videos of the publisher's own", False)
    assert sources(own) == [mine]
    assert sources(own, model_init=str(licensed_run)) == [mine, ("DFEW", True)]
    (licensed_run / "recipe.yaml").rename(tmp_path / "elsewhere.yaml")  # as of weights that were converted
    assert sources(own, model_init=str(licensed_run)) == [mine, ("unknown", True)]
    measured_only = load_recipe(tmp_path / "elsewhere.yaml", ["optim.epochs=0"])
    assert sources(measured_only) == []
    assert card.licence([]) == {"license": "apache-2.0"}


def test_the_published_recipe_names_no_folder_of_this_machine(licensed_run, tmp_path):
    recipe = load_recipe(
        licensed_run / "recipe.yaml",
        [
            "data.data_dir=/home/alice/secret/DFEW",
            "data.class_descriptions=/home/alice/words.yaml",
            "data.evaluation.mafw={data: {builder: mafw.MAFW, config_name: fold2, data_dir: ~/alice/MAFW}}",
            "run.output_dir=/home/alice/outputs",
            "run.push_to_hub=alice/emo",
        ],
    )
    export.write_recipe(tmp_path, recipe)
    text = (tmp_path / "recipe.yaml").read_text()
    short = card.recipe_text(card.published_recipe(recipe))
    for written in (text, short):
        assert "alice" not in written and str(tmp_path.parent) not in written and "secret" not in written
    (tmp_path / "short.yaml").write_text(short)
    for path in ("recipe.yaml", "short.yaml"):
        again = load_recipe(tmp_path / path)
        assert (again.optim, again.model.config) == (recipe.optim, recipe.model.config)
        assert (again.data.data_dir, again.data.class_descriptions) == ("DFEW", "words.yaml")
        assert again.data.evaluation["mafw"].data.data_dir == "MAFW"
    assert "betas" not in short and "epochs: 1" not in short  # the defaults


def test_every_card_is_valid_for_the_hub(run_dir_of, licensed_run, tmp_path):
    cards = {kind: card_of(run_dir_of(kind)) for kind in KINDS} | {"licensed": card_of(licensed_run)}
    for name, text in cards.items():
        (tmp_path / f"{name}.md").write_text(text)
    with LocalHub() as hub:
        command = [sys.executable, "-c", VALIDATE, *(str(tmp_path / f"{name}.md") for name in cards)]
        subprocess.run(command, env=hub.env(tmp_path / "home"), check=True)
        assert hub.requests == len(cards) * [("POST", "/api/validate-yaml")]


class Snapshots:
    """In place of HubPusher: keeps what is pushed."""

    url = "http://hub/lab/emo"

    def __init__(self, repo_id, private, output_dir):
        self.repo_id, self.private, self.folder = repo_id, private, output_dir.parent / "snapshots"
        self.folder.mkdir()

    def open(self):
        self.opened = True

    def push_soon(self, write, message):
        write(self.folder / message)

    def visibility(self):
        return "private" if self.private else "public"

    def finish(self, folder, message):
        return "0" * 40


def refusal(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        push.main([*map(str, arguments)])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and "Traceback" not in error
    return error.splitlines()[-1]


def test_what_is_licensed_is_not_made_public_unasked(licensed_run, capsys, monkeypatch):
    monkeypatch.setattr(export, "check", lambda *arguments: 0.0)
    monkeypatch.setattr(push, "check", lambda *arguments: 0.0)
    monkeypatch.setattr(push, "HubPusher", Snapshots)
    with pytest.raises(SystemExit):
        push.main([str(licensed_run), "--repo", "lab/emo"])
    assert "hub is no exported run" in capsys.readouterr().err
    export.main([str(licensed_run)])
    error = refusal(capsys, licensed_run, "--repo", "lab/emo")
    assert "licensed data (DFEW)" in error and "--private" in error and "--i-have-the-right-to-publish" in error
    assert not (licensed_run.parent / "snapshots").exists()
    push.main([str(licensed_run), "--repo", "lab/emo", "--private"])
    assert "pushed http://hub/lab/emo (private)" in capsys.readouterr().out
    (licensed_run.parent / "snapshots").rmdir()
    push.main([str(licensed_run), "--repo", "lab/emo", "--i-have-the-right-to-publish"])
    assert "pushed http://hub/lab/emo (public)" in capsys.readouterr().out


def test_a_refused_push_leaves_the_folder(run_dir_of, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "check", lambda *arguments: 0.0)
    export.export(run_dir_of("EmoCLIPModel"), tmp_path / "hub")
    error = refusal(capsys, run_dir_of("EmoCLIPModel"), "--hub-dir", tmp_path / "hub", "--repo", "lab/emo")
    assert re.search(NOBODY, error) and f"the complete folder is {tmp_path / 'hub'}" in error
    assert (tmp_path / "hub" / "model.safetensors").is_file()


def test_snapshots_hold_the_selected_weights_and_disturb_nothing(make_recipe, tmp_path, monkeypatch):
    """With adapters and an average, which are not what a stranger loads."""
    monkeypatch.setattr(export, "check", lambda *arguments: 0.0)
    monkeypatch.setattr(push, "check", lambda *arguments: 0.0)
    monkeypatch.setattr(while_training, "HubPusher", Snapshots)
    lora = "model.lora={r: 2, target_modules: [q_proj, v_proj]}"
    rates = 'optim.learning_rates={".*lora_.*": 1e-2, ".*": null}'
    overrides = [lora, rates, "optim.ema=0.5", "optim.epochs=2", "run.select_on=last"]
    train.run(make_recipe(tmp_path / "alone", *overrides))
    train.run(make_recipe(tmp_path / "pushed", *overrides, "run.push_to_hub=lab/emo"))
    alone, pushed = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "pushed"))
    assert all(torch.equal(alone[name], pushed[name]) for name in alone)
    first, last = (tmp_path / "snapshots" / f"Epoch {epoch} of 2" for epoch in (1, 2))
    loaded = load_file(last / "model.safetensors")
    assert loaded.keys() == alone.keys() and all(torch.equal(alone[name], loaded[name]) for name in alone)
    assert any(not torch.equal(alone[name], value) for name, value in load_file(first / "model.safetensors").items())
    assert type(AutoModel.from_pretrained(first)).__name__ == "EmoCLIPModel"
    assert "epoch 1 of 2" in (first / "README.md").read_text() and (first / "pipeline_emoclip.py").is_file()
    assert yaml.safe_load((first / "recipe.yaml").read_text())["data"]["data_dir"] == "OwnVideos"


def test_a_push_that_would_be_refused_is_refused_before_the_training(make_recipe, tmp_path):
    with pytest.raises(PushError, match=f"run.push_to_hub=lab/emo: .*{NOBODY}"):
        train.run(make_recipe(tmp_path, "run.push_to_hub=lab/emo"))
    assert not (tmp_path / "metrics.json").exists()


def test_the_card_of_a_run_with_a_typed_title_has_no_markup_of_it(run_dir_of):
    model, processor, recipe = export.load_run(run_dir_of("EmoCLIPForVideoClassification"))
    model.config.id2label = {0: "<b>happy</b>", 1: "line\n# heading"}
    recipe.title = "x\n```\n# y <script>"
    metrics = {"title": recipe.title, "history": [], "epochs": 1, "selected": {"epoch": 1}, "parameters": 1}
    written = card.write_card(metrics, recipe, model, processor, "checkpoint.md")
    body = "".join(written.split("---", 2)[2].split("```")[::2])  # in blocks of code nothing is markup
    assert "<script>" not in body and "<b>" not in body and "\n# heading" not in body and "\n# y" not in body


def test_an_export_replaces_earlier_exports_and_nothing_else(run_dir_of, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "check", lambda *arguments: 0.0)
    run, mine = run_dir_of("EmoCLIPModel"), tmp_path / "mine"
    (mine / "precious").mkdir(parents=True)
    (mine / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit) as stopped:
        export.main([str(run), "--hub-dir", str(mine)])
    assert stopped.value.code == 1 and "holds precious, and would be replaced" in capsys.readouterr().err
    assert (mine / "precious" / "thesis.txt").read_text() == "years of work"
    hub_dir, _ = export.export(run, tmp_path / "hub")
    export.export(run, hub_dir)  # once more
    (hub_dir / "notes.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.md"):
        export.export(run, hub_dir)
    (hub_dir / "notes.md").unlink()
    (hub_dir / "recipe.yaml").unlink()
    with pytest.raises(FileExistsError, match="is not what an earlier export wrote"):
        export.export(run, hub_dir)

# SPDX-License-Identifier: Apache-2.0
"""The whole path on a handful of real clips: train, resume, export, load elsewhere. Numbers are not the point here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, CLIPModel

from training import train
from training.publish import export, to_clip
from training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "training" / "recipes"
SIZES = "{num_train: 24, num_validation: 8, num_test_per_class: 1, num_order_pairs: 2}"


@pytest.fixture(scope="module")
def make_recipe(clip_dir, tmp_path_factory):
    cache_dir = tmp_path_factory.mktemp("data")

    def make(output_dir, *overrides):
        small = [
            f"model.init={clip_dir}",
            f"data.options={SIZES}",
            f"data.cache_dir={cache_dir}",
            "optim.epochs=3",
            "optim.batch_size=8",
            f"run.output_dir={output_dir}",
        ]
        return load_recipe(RECIPES / "synthetic_emoclip.yaml", [*small, *overrides])

    return make


@pytest.fixture(scope="module")
def run_dir(make_recipe, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("run")
    train.run(make_recipe(output_dir))
    return output_dir


@pytest.fixture(scope="module")
def hub_dir(run_dir):
    return export.export(run_dir, run_dir / "hub")[0]


def weights(run_dir):
    return load_file(run_dir / "model.safetensors")


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_output_folder_is_complete(run_dir, make_recipe):
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert len(metrics["history"]) == 3
    for stage in ("start", "final"):
        assert set(metrics[stage]) == {
            "seen",
            "held_out",
            "held_out_among_all",
            "all",
            "seen_imbalanced",
            "order_pairs",
        }
        assert metrics[stage]["all"]["num_clips"] == 11 and metrics[stage]["held_out"]["num_clips"] == 4
        assert metrics[stage]["held_out_among_all"]["chance"] == pytest.approx(1 / 11)
        assert metrics[stage]["order_pairs"]["num_clips"] == 4
    written = load_recipe(run_dir / "recipe.yaml")
    written.run.output_dir = str(run_dir)
    assert written == make_recipe(run_dir)
    model, processor = AutoModel.from_pretrained(run_dir), AutoProcessor.from_pretrained(run_dir)
    assert processor.video_processor.num_frames == 8
    assert model.config.class_descriptions["contempt"]


def test_only_the_temporal_part_and_the_scale_learn(run_dir, clip_dir):
    clip, trained = load_file(clip_dir / "model.safetensors"), weights(run_dir)
    changed = [name for name in clip if not torch.equal(clip[name], trained[name])]
    assert changed == ["logit_scale"]
    assert trained["temporal.output_projection.weight"].abs().max() > 0


def test_before_training_the_order_of_frames_cannot_matter(run_dir):
    """Two clips of a pair have the same frames, so the mean of frames is right for exactly one of the two."""
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["start"]["order_pairs"]["war"] == 0.5


def test_same_recipe_and_seed_twice_gives_identical_weights(run_dir, make_recipe, tmp_path):
    train.run(make_recipe(tmp_path))
    assert_same_weights(tmp_path, run_dir)


def test_another_seed_gives_other_weights(run_dir, make_recipe, tmp_path):
    train.run(make_recipe(tmp_path, "run.seed=1"))
    name = "temporal.layers.0.mlp.fc1.weight"
    assert not torch.equal(weights(tmp_path)[name], weights(run_dir)[name])


def test_a_killed_run_resumes_to_the_same_weights(run_dir, make_recipe, tmp_path, monkeypatch):
    save_checkpoint, saved = train.save_checkpoint, []

    def die_after_two(*arguments, **options):
        save_checkpoint(*arguments, **options)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_checkpoint", die_after_two)
    with pytest.raises(KeyboardInterrupt):
        train.run(make_recipe(tmp_path))
    assert not (tmp_path / "metrics.json").exists()
    monkeypatch.setattr(train, "save_checkpoint", save_checkpoint)
    metrics = train.run(make_recipe(tmp_path, "run.resume=true"))
    assert [record["epoch"] for record in metrics["history"]] == [1, 2, 3]
    assert_same_weights(tmp_path, run_dir)


def test_frames_and_texts_are_encoded_once_and_pixels_give_the_same_loss(make_recipe, run_dir, tmp_path):
    """Towers that learn (at rate 0 they do not move) are run in every step; the losses must be those of the cache."""
    everything = "optim.learning_rates={'temporal.*|logit_scale': 1e-3, '.*': 0.0}"
    plain = ["optim.weight_decay=0", "optim.max_grad_norm=null"]  # the norm would count the towers' gradients
    metrics = train.run(make_recipe(tmp_path, everything, *plain))
    cached = train.run(make_recipe(tmp_path / "cached", *plain))
    for pixels, cache in zip(metrics["history"], cached["history"], strict=True):
        assert pixels["loss"] == pytest.approx(cache["loss"], abs=1e-4)
        assert pixels["validation_loss"] == pytest.approx(cache["validation_loss"], abs=1e-4)


def test_another_choice_of_frames_reuses_the_encoded_ones(make_recipe, run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("training.cache.feature_cache._encode", None)  # would fail if a frame were encoded again
    choice = ["model.video_processor.num_frames=4", "data.frame_sampling=segment_random"]
    train.run(make_recipe(tmp_path, *choice))
    assert (tmp_path / "metrics.json").exists()


def test_an_output_folder_of_another_recipe_is_left_alone(run_dir, make_recipe):
    before = (run_dir / "recipe.yaml").read_bytes()
    with pytest.raises(FileExistsError, match="another recipe"):
        train.run(make_recipe(run_dir, "optim.epochs=4"))
    assert (run_dir / "recipe.yaml").read_bytes() == before and (run_dir / "metrics.json").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train_split=training", "no split training"),
        ("data.evaluation.seen.candidate_labels=[joy]", "joy"),
        ("data.class_descriptions=nowhere.yaml", "nowhere.yaml"),
        ("model.config.temporal_layers=1", "temporal_layers"),
    ],
)
def test_bad_recipes_fail_with_the_field(make_recipe, tmp_path, override, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train.run(make_recipe(tmp_path, override))
    assert not (tmp_path / "metrics.json").exists()


def test_the_command_reports_a_bad_recipe_without_a_traceback(capsys):
    with pytest.raises(SystemExit):
        train.main([str(RECIPES / "synthetic_emoclip.yaml"), "optim.epoch=3"])
    assert "unknown recipe field optim.epoch" in capsys.readouterr().err


def test_pretraining_from_random_weights_and_export_as_clip(make_recipe, tmp_path):
    overrides = ["data.options={num_train: 32, num_validation: 8}", "optim.epochs=2", "optim.batch_size=8"]
    overrides += [f"data.cache_dir={tmp_path}", f"run.output_dir={tmp_path / 'run'}", "run.num_workers=0"]
    overrides += ["model.config.vision_config.num_hidden_layers=1"]
    metrics = train.run(load_recipe(RECIPES / "synthetic_tiny_clip.yaml", overrides))
    assert metrics["history"][0]["loss"] > metrics["history"][1]["loss"]
    to_clip.main([str(tmp_path / "run"), str(tmp_path / "clip")])
    clip = CLIPModel.from_pretrained(tmp_path / "clip")
    assert torch.equal(clip.visual_projection.weight, weights(tmp_path / "run")["visual_projection.weight"])
    assert "component" not in " ".join(clip.state_dict())
    assert not [path for path in (tmp_path / "clip").glob("*.json") if "auto_map" in path.read_text()]
    processor = AutoProcessor.from_pretrained(tmp_path / "clip")
    assert (
        processor(text=["a smile"], images=torch.zeros(3, 70, 80), return_tensors="pt")["pixel_values"].shape[-1] == 64
    )


def test_hub_folder_holds_everything_flat(hub_dir):
    names = {path.name for path in hub_dir.iterdir()}
    code = {path.name for path in (ROOT / "modeling_emoclip").glob("*.py")} - {"__init__.py"}
    assert code <= names
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"} <= names
    config = json.loads((hub_dir / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_emoclip.EmoCLIPModel"
    assert "zero-shot-video-classification" in config["custom_pipelines"]


def test_the_card_is_filled_from_the_metrics(hub_dir, run_dir):
    card = (hub_dir / "README.md").read_text()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert f"**{100 * metrics['final']['all']['uar']:.1f}**" in card
    assert str(run_dir.parent) not in card  # nor any other folder of this machine
    assert "drawn faces only" in card and "pipeline_tag: video-classification" in card and "{{" not in card


def test_an_export_that_cannot_be_loaded_leaves_the_old_one(run_dir, hub_dir, monkeypatch):
    card = (hub_dir / "README.md").read_bytes()
    monkeypatch.setattr(export, "CUSTOM_PIPELINES", {"x": {"impl": "nowhere.X", "pt": ["AutoModel"]}})
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        export.export(run_dir, hub_dir)
    assert (hub_dir / "README.md").read_bytes() == card
    assert not list(run_dir.glob("hub.unfinished*"))


def test_a_stranger_names_the_expression_from_the_folder_alone(hub_dir, write_clip, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    script = ROOT / "examples" / "zero_shot_clip.py"

    def call(video):
        command = [sys.executable, "-I", script, hub_dir, video, "--labels", "a smile", "a frown", "--json"]
        return subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    scores = json.loads(call(clip).stdout.splitlines()[-1])["scores"]
    assert {entry["label"] for entry in scores} == {"a smile", "a frown"}
    clip.write_bytes(b"")
    refused = call(clip)
    assert refused.returncode == 1 and "clip.mp4" in refused.stderr and "Traceback" not in refused.stderr

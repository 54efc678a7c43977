# SPDX-License-Identifier: Apache-2.0
"""Every shipped recipe, on a handful of invented clips in the layout of its data set and with a tiny CLIP, goes the
whole road: it trains two steps, moves the weights that it says and no other, scores every evaluation set, is exported
with a card, and loaded by another process, with the code in the folder."""

import copy
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import data_set_trees as trees
import pytest
import torch
import yaml
from safetensors.torch import save_file

from emoclip import EmoCLIPModel, EmoCLIPProcessor
from training import train
from training.data.mafw import COMPOUNDS
from training.data.mafw import EMOTIONS as MAFW_EMOTIONS
from training.publish import check_hub_folder, export
from training.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("[!_]*.yaml"))
PAGE = (RECIPES / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"`(\w+)\.yaml((?: [a-z]\w*\.[^`]+)?)`", PAGE)

# Of each class two clips to train on, of which one is cut off to choose the epoch on, and one to test on.
EMOTIONS = trees.EMOTIONS
CLIPS = {
    "train": [(f"{n:05d}", EMOTIONS[n % 7]) for n in range(14)],
    "test": [(f"{n:05d}", EMOTIONS[n - 14]) for n in range(14, 21)],
}
BATCH_SIZE = 3  # 7 clips, or 6 where a class is left out: two steps
IMAGE_SIZE = {"height": 32, "width": 32}


def make_dfew(root):
    for split, clips in CLIPS.items():
        for fold in range(1, 6):
            lines = trees.common_lines(clips, EMOTIONS, "DFEW/Clip/clip_224x224")
            trees.write_text(root / f"DFEW_set_{fold}_{split}.txt", lines)
        for name, _ in clips:
            trees.write_frames(root / "Clip/clip_224x224" / name)


def make_ferv39k(root):
    for split, clips in CLIPS.items():
        clips = [(f"Action/{trees.ADJECTIVES[EMOTIONS.index(label)]}/{name}", label) for name, label in clips]
        trees.write_text(root / f"{split}.txt", trees.common_lines(clips, EMOTIONS, "FERV39k/2_ClipsforFaceCrop"))
        for name, _ in clips:
            trees.write_frames(root / "2_ClipsforFaceCrop" / name)


def make_mafw(root):
    for split, clips in CLIPS.items():
        for fold in range(1, 6):
            for kind in ("single", "compound"):
                labels = EMOTIONS if kind == "single" else (*EMOTIONS[:4], *COMPOUNDS[:3])
                named = [(name, labels[EMOTIONS.index(label)]) for name, label in clips]
                lines = [(f"{name}.mp4\t{label}", f"\t\ta face, number {name}") for name, label in named]
                place = f"set_{fold}/{split}.txt"
                folder = root / "Train & Test Set" / kind
                trees.write_text(folder / "no_caption" / place, [line for line, _ in lines])
                captioned = [line + caption for line, caption in lines if "\tneutral" not in line]
                trees.write_text(folder / "with_caption" / place, captioned)
        for name, _ in clips:
            trees.write_frames(root / "data/faces" / name)


def make_afew(root):
    for split, clips in CLIPS.items():
        for name, label in clips:
            folder = trees.ADJECTIVES[EMOTIONS.index(label)]
            trees.write_frames(root / {"test": "validation"}.get(split, split) / folder / name)


def make_own(root):
    rows = [
        {
            "file_name": f"{split}/{name}",
            "caption": f"a face, number {name}",
            "severity": int(name) / 7,
            "group": f"{label} of {split}",
        }
        for split, clips in CLIPS.items()
        for name, label in clips
    ]
    trees.make_own(root, rows)


MAKERS = {
    "dfew.DFEW": make_dfew,
    "ferv39k.FERV39k": make_ferv39k,
    "mafw.MAFW": make_mafw,
    "afew.AFEW": make_afew,
    "own_videos.OwnVideos": make_own,
}


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory):
    """Builder -> folder."""
    folders = {builder: tmp_path_factory.mktemp(make.__name__) for builder, make in MAKERS.items()}
    for builder, make in MAKERS.items():
        make(folders[builder])
    return folders


@pytest.fixture(scope="module")
def trained_emoclip(clip_dir, tmp_path_factory):
    """What recipes that start from `outputs/emoclip_mafw` find there."""
    folder = tmp_path_factory.mktemp("emoclip")
    EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=1, temporal_head_dim=8).save_pretrained(folder)
    EmoCLIPProcessor.from_clip(clip_dir).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def short_texts(tmp_path_factory):
    """For descriptions: the tiny text tower reads 24 tokens, contexts included."""
    path = tmp_path_factory.mktemp("texts") / "class_descriptions.yaml"
    path.write_text(yaml.safe_dump({label: [label[:8]] for label in MAFW_EMOTIONS}))
    return path


@pytest.fixture
def load_tiny(data_dirs, clip_dir, trained_emoclip, short_texts, tmp_path_factory, tmp_path):
    cache_dir = tmp_path_factory.getbasetemp() / "recipes_cache"

    def load(name, *overrides):
        """The recipe, with what is large replaced and what is slow switched off; nothing of what it is about."""
        recipe = load_recipe(RECIPES / f"{name}.yaml", overrides)
        model, data, optim, run = recipe.model, recipe.data, recipe.optim, recipe.run
        if model.init is not None:
            model.init = str(trained_emoclip if model.init.startswith("outputs/") else clip_dir)
        if "size" in model.video_processor and model.init is not None:
            model.video_processor["size"] = IMAGE_SIZE
        for source in (data, *(one.data for one in data.evaluation.values() if one.data is not None)):
            source.data_dir = str(data_dirs[source.builder]) if source.builder in data_dirs else None
            if source.builder in data_dirs:
                source.options = source.options | {"verify": False}
        if data.builder == "synthetic_faces.SyntheticFaces":
            number = int(data.config_name == "clips")  # stills have no test split
            data.options = {"num_train": 7, "num_validation": 3} | dict.fromkeys(
                ("num_test_per_class", "num_order_pairs"), number
            )
        elif data.validation_share:
            data.validation_share = 0.5
        data.class_descriptions, data.cache_dir = str(short_texts), str(cache_dir)
        optim.epochs, optim.batch_size = min(optim.epochs, 1), BATCH_SIZE
        optim.chunk_size = optim.chunk_size and 2
        run.output_dir, run.num_workers, run.num_render_processes = str(tmp_path / "run"), 0, 1
        run.mixed_precision = "no"
        return recipe

    return load


def save_copy(experiment, copied, folder):
    copied.model.load_state_dict(experiment.model.state_dict())
    copied.save_pretrained(folder)


def run_and_compare(recipe, monkeypatch):
    """The metrics, and expression of `optim.learning_rates` -> whether any weight that it decides on has moved."""
    built = {}

    def build(*arguments):
        experiment = train_build(*arguments)
        copied = dataclasses.replace(experiment, model=copy.deepcopy(experiment.model))
        # Of the trained weights, when they are there; saving merges adapters into frozen weights.
        experiment.save_pretrained = lambda folder: save_copy(experiment, copied, folder)
        built["parameters"] = [(name, p, p.detach().clone()) for name, p in experiment.trained.named_parameters()]
        return experiment

    train_build = train.build
    monkeypatch.setattr(train, "build", build)
    metrics = train.run(recipe)
    moved = dict.fromkeys(recipe.optim.learning_rates, False)
    for name, parameter, before in built["parameters"]:
        pattern = next(pattern for pattern in moved if re.fullmatch(pattern, name))
        moved[pattern] |= not torch.equal(parameter, before)
    return metrics, moved


def check(recipe, monkeypatch):
    metrics, moved = run_and_compare(recipe, monkeypatch)
    rates = recipe.optim.learning_rates
    assert moved == {pattern: rate is not None for pattern, rate in rates.items()}
    assert len(metrics["history"]) == recipe.optim.epochs
    assert all(math.isfinite(epoch["loss"]) for epoch in metrics["history"])
    assert set(metrics["final"]) == set(load_recipe(Path(recipe.run.output_dir) / "recipe.yaml").data.evaluation)
    assert all(scores["num_clips"] > 0 for scores in metrics["final"].values())
    return metrics


def export_it(recipe, folder, monkeypatch):
    """The folder, with what another process shall get from it; its card names every set that was scored."""
    monkeypatch.setattr(export, "check", lambda *arguments: 0.0)  # below, for all of them
    hub_dir, _ = export.export(Path(recipe.run.output_dir), folder)
    model, processor, _ = export.load_run(Path(recipe.run.output_dir))
    save_file(check_hub_folder.sample_of(model, processor), f"{hub_dir}.sample")
    card = (hub_dir / "README.md").read_text()
    metrics = json.loads((hub_dir / "metrics.json").read_text())
    assert "Nothing was scored" not in card or not metrics["final"]
    assert all(f"| {name} |" in card for name in metrics["final"])
    return hub_dir


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return tmp_path_factory.mktemp("exported")


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_what_it_says_scores_every_set_and_is_exported(name, load_tiny, monkeypatch, exported):
    recipe = load_tiny(name)
    metrics = check(recipe, monkeypatch)
    assert metrics["final"] or name == "synthetic_tiny_clip"
    if metrics["final"]:  # the other one is exported as a CLIP
        export_it(recipe, exported / name, monkeypatch)


LOAD_ALL = """
import runpy, sys
main = runpy.run_path(sys.argv[1])["main"]
for folder in sys.argv[2:]:
    main(folder, f"{folder}.sample")
"""


def test_another_process_loads_what_was_exported(exported, tmp_path):
    """After the tests above, in the same process; alone there is nothing to load."""
    folders = sorted(str(path) for path in exported.iterdir() if path.is_dir())
    if not folders:
        pytest.skip("the tests that export did not run")
    command = [sys.executable, "-I", "-c", LOAD_ALL, check_hub_folder.__file__, *folders]
    env = os.environ | {"HF_HOME": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    differences = [json.loads(line)["difference"] for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(differences) == len(folders) and max(differences) < 1e-5


@pytest.mark.parametrize(
    "overrides",
    [
        "data.text=expression model.config.prompt_num_context_tokens=4 model.config.temporal_num_layers=2 "
        "model.config.prompt_class_position=middle model.config.prompt_class_specific_contexts=false",
        "model.config.prompt_num_context_tokens=0 data.text=photo",
    ],
)
def test_ablations(overrides, load_tiny, monkeypatch):
    recipe = load_tiny("dferclip_dfew", *overrides.split())
    if recipe.model.config["prompt_num_context_tokens"] == 0:  # nothing to move
        recipe.optim.learning_rates["prompt_learner\\..*"] = None
    check(recipe, monkeypatch)


def test_the_page_lists_every_recipe():
    assert {name for name, _ in COMMANDS} == set(NAMES)


@pytest.mark.parametrize("name, overrides", sorted({command for command in COMMANDS if command[1]}))
def test_commands_of_the_page_load(name, overrides):
    load_recipe(RECIPES / f"{name}.yaml", overrides.split())


@pytest.mark.parametrize("name", NAMES)
def test_header_and_page_say_what_to_expect(name):
    header = "".join(line for line in (RECIPES / f"{name}.yaml").read_text().splitlines(True) if line.startswith("#"))
    assert name.startswith("synthetic") or name == "own_videos" or ("Expected:" in header and "Obtained:" in header)
    reference = load_recipe(RECIPES / f"{name}.yaml").reference
    rows = [reference, *reference.values()] if "pcc" not in reference else []
    for row in rows:
        if isinstance(row, dict) and "uar" in row:
            assert f"{row['uar']:.2f}/{row['war']:.2f}" in PAGE


def test_of_several_bases_the_later_wins_and_no_paper_number_is_inherited(tmp_path):
    (tmp_path / "method.yaml").write_text("optim: {epochs: 3, batch_size: 8}")
    (tmp_path / "data.yaml").write_text("reference: {uar: 1}\noptim: {epochs: 5}\ndata: {config_name: fold1}")
    (tmp_path / "recipe.yaml").write_text("extends: [method.yaml, data.yaml]\noptim: {batch_size: 4}")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.optim.epochs, recipe.optim.batch_size, recipe.data.config_name) == (5, 4, "fold1")
    assert recipe.reference == {}

# SPDX-License-Identifier: Apache-2.0
"""The road of one's own clips: from a folder with a table to a folder for the Hub, as a new user walks it."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from training import build, train
from training.data.views import cut_validation
from training.publish import export

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LABELS = ("happy", "sad", "angry")


@pytest.fixture(scope="module")
def clips(write_clip, tmp_path_factory):
    """Twelve files, for every table to name."""
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{number}.mp4", num_frames=4 + number % 3, width=32) for number in range(12)]


@pytest.fixture
def make_folder(clips, tmp_path):
    def make(columns, num_train=12, num_test=0, labels=LABELS, test_labels=LABELS):
        """A folder with `metadata.csv`; `columns` of label, caption, tension."""
        folder, rows = tmp_path / "mine", []
        for number in range(num_train + num_test):
            is_test = number >= num_train
            names = test_labels if is_test else labels
            path = folder / ("test" if is_test else "train") / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(clips[number % len(clips)], path) if number < len(clips) else path.write_bytes(
                clips[number % len(clips)].read_bytes()
            )
            row = {"file_name": f"{path.parent.name}/{path.name}", "label": names[number % len(names)]}
            row |= {"caption": f"a face, number {number}", "tension": number / 10}
            rows.append({name: row[name] for name in ("file_name", *columns)})
        with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return folder

    return make


@pytest.fixture
def walk(clip_dir, tmp_path, monkeypatch, capfd):
    def walk(folder, *overrides, recipe="own_videos"):
        """Trains and exports; the scores, the card, and all that was printed."""
        small = [f"model.init={clip_dir}", "model.video_processor.num_frames=4", "model.config.temporal_max_frames=8"]
        small = [*small[: 3 if recipe == "own_videos" else 2], "optim.epochs=2", "run.num_workers=0"]
        places = [
            f"data.data_dir={folder}",
            f"data.cache_dir={tmp_path / 'cache'}",
            f"run.output_dir={tmp_path / 'run'}",
        ]
        metrics = train.main([str(ROOT / "training" / "recipes" / f"{recipe}.yaml"), *small, *places, *overrides])
        monkeypatch.setattr(export, "check", lambda *arguments: 0.0)  # test_recipes.py looks at that
        hub_dir, _ = export.export(tmp_path / "run", tmp_path / "hub")
        printed = "".join(capfd.readouterr())
        assert "MISSING" not in printed and "Traceback" not in printed
        return metrics, (hub_dir / "README.md").read_text(encoding="utf-8"), printed

    return walk


def test_twelve_clips_without_a_test_split(make_folder, walk):
    metrics, card, printed = walk(make_folder(["label", "caption"]))
    assert set(metrics["final"]) == {"validation", "validation_captions"}
    assert metrics["final"]["validation"]["labels"] == sorted(LABELS)
    num_left = 12 - metrics["final"]["validation"]["num_clips"]
    assert f"optim.batch_size is 64, but of {num_left} clips a batch has {num_left}" in printed
    assert "`cut from train`, **by whose loss the epoch was chosen**" in card


def test_a_test_split_is_what_is_scored_and_a_class_may_be_missing_from_it(make_folder, walk):
    folder = make_folder(["label", "caption"], num_train=14, num_test=6, test_labels=("happy", "sad"))
    metrics, card, _ = walk(folder, "optim.batch_size=4")
    assert set(metrics["final"]) == {"test", "test_captions"}
    assert set(metrics["final"]["test"]["recall"]) == {"happy", "sad"}
    assert "`test` has no clip of angry: the UAR is over the other classes." in card
    assert "| test | 6 of OwnVideos, `test` |" in card


def test_one_clip_is_no_validation_part(make_folder, walk):
    """Over one clip a contrastive loss is always 0, so that every epoch would be as good as the first."""
    metrics, _, _ = walk(make_folder(["label", "caption"], num_train=9))
    assert metrics["final"]["validation"]["num_clips"] >= 2
    assert all(record["validation_loss"] > 0 for record in metrics["history"])


def test_numbers_only_are_sent_to_the_recipe_that_predicts_them(make_folder, walk, capfd):
    with pytest.raises(SystemExit):
        walk(make_folder(["tension"]))
    assert "recipes/emoclip_symptoms.yaml with data.targets=[COLUMN]" in capfd.readouterr().err.splitlines()[-1]


def test_captions_only(make_folder, walk):
    metrics, card, _ = walk(make_folder(["caption"], num_test=4))
    (captions,) = metrics["final"].values()
    assert captions["num_captions"] == captions["num_clips"] == 4
    for way in ("video_to_text", "text_to_video"):
        assert 0 <= captions[way]["recall_at_1"] <= captions[way]["recall_at_5"] == 1.0
        assert 1 <= captions[way]["median_rank"] <= 4
    assert "| test_captions | 4 of OwnVideos, `test` | 4 |" in card


def test_labels_only(make_folder, walk, capfd):
    folder = make_folder(["label"], num_test=3)
    with pytest.raises(SystemExit) as stopped:
        walk(folder)
    assert stopped.value.code == 2
    assert "the clips have none; their columns are" in (error := capfd.readouterr().err.splitlines()[-1])
    assert "data.text=description, class_name" in error
    metrics, card, _ = walk(folder, "data.text=class_name")
    assert set(metrics["final"]) == {"test"} and "| test | 3 of OwnVideos" in card


def test_targets_only(make_folder, walk):
    metrics, card, _ = walk(
        make_folder(["tension"]), "data.targets=[tension]", "data.validation_group=null", recipe="emoclip_symptoms"
    )
    assert set(metrics["final"]) == {"validation"} and set(metrics["final"]["validation"]["targets"]) == {"tension"}
    assert "| validation | " in card and "| tension |" in card


def test_labels_by_a_classifier(make_folder, walk):
    """A batch as large as the data is taken as it is."""
    rates = '{"(vision_model|visual_projection)\\\\..*": null, "(temporal|classifier)\\\\..*": 0.001}'
    metrics, card, printed = walk(
        make_folder(["label"], num_train=9, num_test=3),
        "model.architecture=EmoCLIPForVideoClassification",
        f"optim.learning_rates={rates}",
        "optim.batch_size=9",
        "data.validation_share=0",
    )
    assert set(metrics["final"]) == {"test"} and "a batch has" not in printed
    assert "there are no validation clips: the weights of the last epoch are kept" in printed
    assert "| 0 | angry |" in card


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.data_dir=/nowhere"], "/nowhere is not a folder"),
        (["data.text=description"], "class_descriptions has no text for"),
        (["data.validation_share=0.9"], "the validation share is 0.9, but must be"),
        (["data.validation_share=0", "run.patience=2"], "run.patience=2 needs a validation loss"),
        (["data.train_split=test"], "has no split test"),
        (
            ["data.evaluation={mine: {split: train, candidate_labels: [happy], only_labels: [sad]}}"],
            "only_labels names sad",
        ),
        (["model.config.temporal_layers=1"], "no field temporal_layers"),
        (["model.video_processor.num_frame=4"], "no field num_frame; is it num_frames"),
    ],
)
def test_what_a_user_can_mend_is_one_line(make_folder, walk, capfd, overrides, message):
    folder = make_folder(["label", "caption"])
    with pytest.raises(SystemExit) as stopped:
        walk(folder, *overrides)
    assert stopped.value.code == 2
    error = capfd.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error


def test_a_table_with_a_wrong_line_is_one_line(make_folder, walk, capfd):
    folder = make_folder(["label", "caption"])
    (folder / "train" / "3.mp4").unlink()
    with pytest.raises(SystemExit):
        walk(folder)
    error = capfd.readouterr().err
    assert "3.mp4" in error and "Traceback" not in error


def test_one_clip_is_too_few(make_folder, walk, capfd):
    with pytest.raises(SystemExit):
        walk(make_folder(["caption"], num_train=1), "data.validation_share=0")
    assert "has 1 clips to train on, but at least 2 are needed" in capfd.readouterr().err


def test_a_component_loss_lasts_at_least_a_step(make_recipe, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(build, "WithComponentLoss", lambda model, number, steps: asked.append(steps) or model)
    recipe = make_recipe(tmp_path / "run", "model.component_loss_until=0.001", "optim.batch_size=500")
    rows = build.load_rows(recipe)
    monkeypatch.setattr(
        build, "load_rows", lambda recipe: {k: v.add_column("components", [[1.0]] * len(v)) for k, v in rows.items()}
    )
    build.build(recipe, "cpu", tmp_path / "cache")
    assert asked == [1]


@pytest.mark.parametrize(("share", "num_cut"), [(0.4, 16), (0.1, 4), (0.15, 6), (0.33, 13), (0.5, 20)])
def test_the_share_that_is_asked_for_is_cut(share, num_cut):
    import datasets

    rows = datasets.Dataset.from_dict({"label": [number % 2 for number in range(40)], "clip": list(range(40))})
    train_rows, validation = cut_validation(rows, share, 0, None)
    assert abs(len(validation) - num_cut) <= 1
    assert sorted([*train_rows["clip"], *validation["clip"]]) == list(range(40))


def test_the_readme_s_commands_as_they_are_written(make_folder, clip_dir, tmp_path):
    """But for the folder and the CLIP, which is not downloaded here."""
    (row,) = (line for line in README.splitlines() if line.startswith("| clips of your own |"))
    train_command, export_command = re.findall(r"`((?:accelerate|python) [^`]+)`", row)
    folder = make_folder(["label", "caption"])
    places = {"accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"], "python": [sys.executable]}
    here = [f"model.init={clip_dir}", f"data.cache_dir={tmp_path / 'cache'}", "optim.epochs=1", "run.num_workers=0"]
    for name in ("training", "emoclip", "modeling_emoclip", "hub_cards"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for command, more in ((train_command, here), (export_command, [])):
        program, *arguments = shlex.split(command.replace("FOLDER", str(folder)))
        run = subprocess.run(
            [*places[program], *arguments, *more], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr[-3000:]
        assert "MISSING" not in run.stdout + run.stderr
    hub_dir = tmp_path / "outputs" / "own_videos" / "hub"
    assert json.loads((hub_dir / "metrics.json").read_text())["final"].keys() == {"validation", "validation_captions"}
    assert "EmoCLIP on my videos" in (hub_dir / "README.md").read_text()

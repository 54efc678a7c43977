# SPDX-License-Identifier: Apache-2.0
"""The command on tiny checkpoints and a handful of real clips: right numbers, names before indices, clear errors."""

import csv
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_set_trees import make_dfew
from local_hub import USER, Commit, File, LocalHub, Repo
from PIL import Image

from emoclip import EmoCLIPForVideoClassification, EmoCLIPForVideoRegression, EmoCLIPProcessor
from training import evaluate_model as command
from training import train
from training.cache import feature_cache
from training.metrics.uar.uar import unweighted_average_recall
from training.recipe import load_recipe

RECIPE = Path(__file__).parents[2] / "training" / "recipes" / "own_videos.yaml"
SMALL = {"temporal_num_layers": 1, "temporal_num_heads": 2, "temporal_head_dim": 8, "temporal_intermediate_size": 16}
LABELS = ("happiness", "sadness", "fear")

FEW = ("--options", "verify=false")  # the trees are not as large as the real sets


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def own_videos(write_clip, tmp_path_factory):
    """13 clips, a number that no batch divides, by five people."""
    folder = tmp_path_factory.mktemp("own")
    lines = ["file_name,split,label,caption,tension,group"]
    for number in range(13):
        write_clip(folder / f"{number}.mp4", num_frames=5 + number % 3, width=64 + 16 * (number % 4))
        label = LABELS[number % 3]
        lines.append(f"{number}.mp4,test,{label},a face of {label},{number / 10},person{number % 5}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def run_dir(clip_dir, own_videos, cache_dir, tmp_path_factory):
    """What train.py leaves of one epoch."""
    folder = tmp_path_factory.mktemp("run")
    overrides = [
        f"model.init={clip_dir}",
        f"model.config={json.dumps(SMALL)}",
        "model.video_processor={num_frames: 4, frame_sampling: segment_middle}",
        f"data.data_dir={own_videos}",
        f"data.cache_dir={cache_dir}",
        "data.train_split=test",
        "data.validation_share=0",
        "data.evaluation={own: {}}",
        "optim={epochs: 1, batch_size: 4, milestones: []}",
        f"run.output_dir={folder}",
    ]
    train.run(load_recipe(RECIPE, overrides))
    return folder


@pytest.fixture(scope="module")
def save_head(clip_dir, tmp_path_factory):
    """`save_head(model_class, **config)`: a checkpoint folder."""

    def save(model_class, **config):
        folder = tmp_path_factory.mktemp("head")
        torch.manual_seed(0)
        model = model_class.from_clip(clip_dir, **SMALL, **config)
        model.save_pretrained(folder)
        EmoCLIPProcessor.from_clip(clip_dir, num_frames=4).save_pretrained(folder)
        return model, folder

    return save


@pytest.fixture
def evaluate(own_videos, cache_dir, tmp_path):
    """The command on one's own videos, or on `data_set`."""

    def run(checkpoint, *options, data_set="own", data_dir=own_videos):
        where = ["--data-dir", str(data_dir), "--cache-dir", str(cache_dir), "--output", str(tmp_path / "out")]
        return command.main([str(checkpoint), data_set, *where, *map(str, options)])

    return run


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_gives_the_numbers_that_training_wrote(run_dir, evaluate, tmp_path, capsys):
    report = evaluate(run_dir)
    assert report["sets"]["default_test"] == json.loads((run_dir / "metrics.json").read_text())["final"]["own"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == report
    rows = read_csv(tmp_path / "out" / "predictions_default_test.csv")
    assert list(rows[0]) == [
        "clip_id",
        "group",
        "label",
        "predicted",
        "score_fear",
        "score_happiness",
        "score_sadness",
    ]
    assert [row["clip_id"] for row in rows] == [str(number) for number in range(13)]
    assert [row["label"] for row in rows] == [LABELS[number % 3] for number in range(13)]
    for row in rows:
        assert row["predicted"] == max(LABELS, key=lambda name: float(row[f"score_{name}"]))
    numbers = [[LABELS.index(row[column]) for row in rows] for column in ("label", "predicted")]
    assert report["sets"]["default_test"]["uar"] == unweighted_average_recall(*numbers)
    assert report["sets"]["default_test"]["intervals"]["number"] == 5  # people, not clips
    Image.open(tmp_path / "out" / "confusion_default_test.png").verify()
    assert not list((tmp_path / "out").glob("*.unfinished"))
    assert "13 clips, UAR" in (out := capsys.readouterr().out) and "recall of sadness" in out


def test_labels_may_be_any_words_and_descriptions_ones_own(run_dir, evaluate, tmp_path, caplog):
    report = evaluate(run_dir, "--labels", "happiness", "fear", "boredom")
    metrics = report["sets"]["default_test"]
    assert metrics["labels"] == ["happiness", "fear", "boredom"] and metrics["num_clips"] == 9
    before = read_csv(tmp_path / "out" / "predictions_default_test.csv")
    (tmp_path / "texts.yaml").write_text(
        "happiness: a smile slowly appearing\nfear: [wide open eyes, lowered eyebrows]\n"
    )
    evaluate(run_dir, "--labels", "happiness", "fear", "boredom", "--descriptions", tmp_path / "texts.yaml")
    after = read_csv(tmp_path / "out" / "predictions_default_test.csv")
    for one, other in zip(before, after, strict=True):
        assert float(one["score_boredom"]) == pytest.approx(float(other["score_boredom"]), abs=1e-5)
        assert abs(float(one["score_fear"]) - float(other["score_fear"])) > 1e-3
    assert "have no label boredom" in caplog.text


def test_classes_are_found_by_name_whatever_their_order(save_head, evaluate):
    names = ["sadness", "anger", "fear", "happiness"]  # own videos: fear, happiness, sadness
    model, folder = save_head(EmoCLIPForVideoClassification, id2label=dict(enumerate(names)))
    with torch.no_grad():  # always says anger, then happiness
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 3.0, 1.0, 2.0]))
    model.save_pretrained(folder)
    metrics = evaluate(folder)["sets"]["default_test"]
    assert metrics["recall"] == {"fear": 0, "happiness": 1, "sadness": 0}
    assert metrics["labels"] == ["fear", "happiness", "sadness"]  # anger is no label of these clips
    assert metrics["recall_interval"]["happiness"] == [1, 1]


def test_a_class_that_the_model_lacks_is_an_error(save_head, evaluate, capsys, tmp_path):
    _, folder = save_head(EmoCLIPForVideoClassification, id2label={0: "sadness", 1: "happiness"})
    with pytest.raises(SystemExit, match="1"):
        evaluate(folder)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: the model has no class fear; it has sadness, happiness") and "--labels" in error
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert evaluate(folder, "--labels", "happiness", "sadness")["sets"]["default_test"]["num_clips"] == 9


def test_targets(save_head, evaluate, tmp_path, capsys):
    _, folder = save_head(EmoCLIPForVideoRegression, target_names=["tension"])
    metrics = evaluate(folder)["sets"]["default_test"]
    rows = read_csv(tmp_path / "out" / "predictions_default_test.csv")
    truth, predicted = (np.array([float(row[name]) for row in rows]) for name in ("tension", "predicted_tension"))
    assert truth == pytest.approx(np.arange(13) / 10)
    assert metrics["targets"]["tension"]["mae"] == pytest.approx(np.abs(truth - predicted).mean(), abs=1e-5)
    assert metrics["pcc"] == pytest.approx(np.corrcoef(truth, predicted)[0, 1], abs=1e-3)
    assert "tension: PCC" in capsys.readouterr().out
    _, folder = save_head(EmoCLIPForVideoRegression, target_names=["flatness"])
    with pytest.raises(SystemExit):
        evaluate(folder)
    assert "predicts flatness, but the data set has the columns" in capsys.readouterr().err


def test_all_folds_their_mean_and_every_clip_encoded_once(run_dir, evaluate, tmp_path, monkeypatch, capsys):
    encode, encoded = feature_cache._encode, []
    monkeypatch.setattr(feature_cache, "_encode", lambda model, clips: encoded.extend(clips) or encode(model, clips))
    tree = make_dfew(tmp_path / "dfew", folds=(1, 2, 3, 4, 5))
    report = evaluate(run_dir, "--fold", "all", *FEW, data_set="dfew", data_dir=tree)
    assert list(report["sets"]) == [f"fold{number}_test" for number in range(1, 6)]
    assert [metrics["num_clips"] for metrics in report["sets"].values()] == [3, 4, 4, 4, 4]
    assert len(encoded) == 7
    wars = [metrics["war"] for metrics in report["sets"].values()]
    assert report["mean"]["war"] == pytest.approx(np.mean(wars))
    assert (
        f"mean of 5: UAR {100 * report['mean']['uar']:.2f}, WAR {100 * np.mean(wars):.2f}" in capsys.readouterr().out
    )
    report = evaluate(run_dir, "--config", "fold2", *FEW, data_set="dfew.DFEW", data_dir=tree)
    assert report["sets"].keys() == {"fold2_test"}


def test_a_clip_that_cannot_be_read_is_an_error_or_left_out(run_dir, evaluate, tmp_path, capsys):
    tree = make_dfew(tmp_path / "dfew")
    for image in (tree / "Clip/clip_224x224/00011").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(SystemExit):
        evaluate(run_dir, data_set="dfew", data_dir=tree)
    assert "fold1 has other numbers of clips" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate(run_dir, *FEW, data_set="dfew", data_dir=tree)
    assert "00011" in capsys.readouterr().err
    report = evaluate(run_dir, *FEW, "--on-error", "skip", data_set="dfew", data_dir=tree)
    assert report["sets"]["fold1_test"]["num_clips"] == 2


@pytest.mark.parametrize(
    ("data_set", "options", "message"),
    [
        ("dfow", [], "the data set dfow is unknown; there are dfew"),
        ("own", ["--split", "validation"], "has no split validation; it has test"),
        ("own", ["--fold", "all"], "has no folds of default"),
        ("own", ["--options", "media"], "not of the form name=value"),
        ("own", ["--labels", "boredom"], "no clip of test has one of the labels"),
        ("own", ["--descriptions", "LIST"], "must have the form `label:"),
        ("own", ["--descriptions", "nowhere.yaml"], "nowhere.yaml"),
        ("own", ["--output", "RUN"], "holds a training run"),
    ],
)
def test_errors_are_one_line(run_dir, evaluate, tmp_path, capsys, data_set, options, message):
    (tmp_path / "list.yaml").write_text("[a, b]")
    values = {"LIST": str(tmp_path / "list.yaml"), "RUN": str(run_dir)}
    with pytest.raises(SystemExit, match="1"):
        evaluate(run_dir, *[values.get(option, option) for option in options], data_set=data_set)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert (run_dir / "metrics.json").exists()


def test_what_is_no_checkpoint_of_this_package_is_named(clip_dir, evaluate, tmp_path, capsys):
    for checkpoint, message in ((clip_dir, "it is a clip model"), (tmp_path, str(tmp_path))):
        with pytest.raises(SystemExit):
            evaluate(checkpoint)
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_two_processes_and_a_hub_id_give_the_same(run_dir, own_videos, cache_dir, evaluate, tmp_path):
    alone = evaluate(run_dir)
    model = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
    files = {name: File((run_dir / name).read_bytes(), name.endswith(".safetensors")) for name in model}
    where = ["--data-dir", own_videos, "--cache-dir", cache_dir, "--output", tmp_path / "two", "--batch-size", "2"]
    command = [sys.executable, "-m", "training.evaluate_model", f"{USER}/emoclip", "own", *where]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # What accelerate launch sets, without a third process.
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with LocalHub() as hub:
        hub.repos["model", f"{USER}/emoclip"] = repo = Repo(f"{hub.url}/{USER}/emoclip")
        repo.append("main", Commit(None, "upload", "", files))
        ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
        environments = [hub.env(tmp_path / "home") | shared | rank for rank in ranks]
        processes = [subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL) for env in environments]
        assert [process.wait() for process in processes] == [0, 0]
    together = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert together["sets"] == alone["sets"]
    one, two = (read_csv(tmp_path / name / "predictions_default_test.csv") for name in ("out", "two"))
    assert [row["clip_id"] for row in two] == [row["clip_id"] for row in one]

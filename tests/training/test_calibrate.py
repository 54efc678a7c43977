# SPDX-License-Identifier: Apache-2.0
"""Temperatures: known ones are found, honest errors are told, and the command writes all or nothing."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils.extmath import softmax

from emoclip import EmoCLIPConfig, EmoCLIPForVideoClassification, EmoCLIPModel, EmoCLIPProcessor
from modeling_emoclip.label_scoring import make_label_scorer
from training.compare import calibrate as command
from training.compare.calibration import calibrate, calibration_error, draw_reliability, fit_temperature

LABELS = ["happiness", "sadness"]


def draw(num_clips, num_labels=5, temperature=1.0, seed=0):
    """Logits of which `temperature` makes probabilities, and right labels drawn by those."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_clips, num_labels)) * 2
    references = (softmax(logits).cumsum(axis=1) > rng.random(num_clips)[:, None]).argmax(axis=1)
    return logits * temperature, references


# --- numbers


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_known_temperature_is_found_and_lowers_the_error(temperature):
    logits, references = draw(20_000, temperature=temperature)
    report = calibrate(logits, references)
    assert report["temperature"] == pytest.approx(temperature, rel=0.03)
    before, after = report["before"], report["after"]
    assert after["ece"] < 0.015 and after["ece_by_chance"] < 0.015
    assert after["nll"] <= before["nll"] + 1e-4
    if temperature != 1:
        assert before["ece"] > 0.1
    assert sum(part["clips"] for part in after["bins"]) == report["num_clips"] == 20_000


def test_the_fit_is_the_lowest_likelihood_of_a_grid():
    logits, references = draw(300, temperature=3.0)

    def nll(temperature):
        return -np.log(softmax(logits / temperature)[np.arange(300), references]).mean()

    fitted = fit_temperature(logits, references)
    assert nll(fitted) <= min(nll(one) for one in np.linspace(0.5, 8, 400)) + 1e-9
    assert fit_temperature(logits + 7, references) == pytest.approx(fitted)


def test_the_error_is_that_of_the_paper():
    # Bins (9/15, 10/15] and (13/15, 14/15]: |1/2 - 0.65| of two clips, |1 - 0.9| of one.
    scores, is_right = np.array([0.64, 0.66, 0.9]), np.array([True, False, True])
    assert calibration_error(scores, is_right) == pytest.approx((2 * 0.15 + 0.1) / 3)
    assert calibration_error(scores, np.stack([is_right, ~is_right])) == pytest.approx(((0.4 + 0.3 + 0.9) / 2) / 3)
    assert calibration_error(np.array([1.0, 1 / 15]), np.array([True, False])) == pytest.approx(1 / 30)


def test_after_is_measured_on_clips_that_the_temperature_has_not_seen():
    logits, references = draw(40, temperature=4.0)
    groups = [f"person {number // 8}" for number in range(40)]
    report = calibrate(logits, references, groups)
    assert report["num_groups"] == 5
    others = np.array(groups) != "person 0"
    first = softmax(logits[:8] / fit_temperature(logits[others], references[others])).max(axis=1)
    again = calibrate(logits, references, groups)
    assert again == report
    mean_of_all = report["after"]["score"] * 40
    rest = 0.0
    for person in range(1, 5):
        held = np.array(groups) == f"person {person}"
        fitted = fit_temperature(logits[~held], references[~held])
        rest += softmax(logits[held] / fitted).max(axis=1).sum()
    assert first.sum() + rest == pytest.approx(mean_of_all, rel=1e-6)


def test_what_cannot_be_calibrated():
    logits, references = draw(50)
    with pytest.raises(ValueError, match="some errors"):
        calibrate(10 * np.eye(5)[references], references)
    with pytest.raises(ValueError, match="no better than the others"):
        calibrate(-logits, logits.argmax(axis=1))
    with pytest.raises(ValueError, match="4 clips or groups"):
        calibrate(logits, references, [f"person {number % 4}" for number in range(50)])


def test_the_picture(tmp_path):
    report = calibrate(*draw(200, temperature=3.0))
    draw_reliability(tmp_path / "picture.png", report, "a title with $ in it")
    with Image.open(tmp_path / "picture.png") as picture:
        assert min(picture.size) > 400 and len(np.unique(np.asarray(picture.convert("L")))) > 20


# --- the command


@pytest.fixture
def checkpoint(clip_dir, tmp_path):
    torch.manual_seed(0)
    model = EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=0, class_descriptions={"happiness": ["a smile"]})
    model.save_pretrained(tmp_path / "run")
    EmoCLIPProcessor.from_clip(clip_dir, num_frames=4).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def own(own_videos, tmp_path_factory):
    return [
        "own",
        "--data-dir",
        str(own_videos),
        "--split",
        "train",
        "--cache-dir",
        str(tmp_path_factory.mktemp("cache")),
    ]


@pytest.fixture
def knowing(monkeypatch):
    """The random model knows something of its clips, which all look the same: most of them, and not all."""
    predict = command.predict

    def predict_better(options):
        data, predictions, logits = predict(options)
        noise = np.random.default_rng(0).normal(size=logits.shape)
        return data, predictions, logits + 3 * (noise + np.eye(logits.shape[1])[predictions.targets])

    monkeypatch.setattr(command, "predict", predict_better)


def test_the_command_writes_what_the_pipeline_will_use(checkpoint, own, knowing, capsys):
    before = json.loads((checkpoint / "config.json").read_text())
    report = command.main([str(checkpoint), *own])
    config = EmoCLIPConfig.from_pretrained(checkpoint)
    (entry,) = config.label_temperatures
    assert entry["labels"] == LABELS and entry["temperature"] == report["temperature"]
    assert entry["ece_before"] == report["before"]["ece"] and entry["ece_after"] == report["after"]["ece"]
    assert entry["data"] == "own default train, 24 clips" and report["num_groups"] == 6
    assert make_label_scorer(config, LABELS[::-1]).temperature == report["temperature"]
    after = json.loads((checkpoint / "config.json").read_text())
    assert after.pop("label_temperatures") and before.pop("label_temperatures", None) is None and after == before
    assert json.loads((checkpoint / "calibration.json").read_text()) == {"own_default_train": report}
    assert (checkpoint / "reliability_own_default_train.png").is_file()
    assert f"temperature {report['temperature']:.3f}" in capsys.readouterr().out

    command.main([str(checkpoint), *own, "--name", "again"])
    assert EmoCLIPConfig.from_pretrained(checkpoint).label_temperatures == [entry]
    assert set(json.loads((checkpoint / "calibration.json").read_text())) == {"own_default_train", "again"}
    assert not list(checkpoint.glob("*.unfinished"))


def test_the_logits_are_the_models(checkpoint, own, own_videos):
    _, predictions, logits = command.predict(command.parse_options([str(checkpoint), *own]))
    model, processor = EmoCLIPModel.from_pretrained(checkpoint).eval(), EmoCLIPProcessor.from_pretrained(checkpoint)
    videos = [str(own_videos / f"{number}.mp4") for number in range(3)]
    inputs = processor(text=["a smile", "an expression of sadness."], videos=videos, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_video
    assert predictions.names == LABELS
    assert np.allclose(logits[:3], expected, atol=1e-4)


def test_without_a_data_set_the_clips_are_those_that_the_run_chose_its_epoch_on(checkpoint, make_recipe, tmp_path):
    recipe = make_recipe(tmp_path / "unused", "data.validation_share=0.5")
    (checkpoint / "recipe.yaml").write_text(json.dumps(recipe.to_dict()))
    data, predictions, logits = command.predict(command.parse_options([str(checkpoint)]))
    assert data.endswith("cut from train") and logits.shape == (12, 2) and len(predictions.targets) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["own", "--split", "test"], "has seen the clips that it will be judged by"),
        (["synthetic_faces", "--split", "test_imbalanced"], "has seen the clips that it will be judged by"),
        ([], "has no recipe.yaml"),
        (["nothing"], "the data set nothing is unknown"),
        (["own", "--split", "validation", "--data-dir", "OWN"], "has no split validation"),
        (["own", "--split", "test", "--on-the-test-split", "--data-dir", "OWN"], "has no split test"),
    ],
)
def test_refusals(checkpoint, own_videos, tmp_path, capsys, arguments, message):
    arguments = [str(own_videos) if argument == "OWN" else argument for argument in arguments]
    config = (checkpoint / "config.json").read_text()
    with pytest.raises(SystemExit):
        command.main([str(checkpoint), *arguments, "--cache-dir", str(tmp_path / "cache")])
    error = capsys.readouterr().err
    assert message in error and error.splitlines()[-1].startswith("error: ")
    assert (checkpoint / "config.json").read_text() == config and not list(checkpoint.glob("*.png"))


def test_checkpoints_that_have_no_labels_to_calibrate(clip_dir, own, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([str(tmp_path), *own])
    assert "is no folder with a config.json" in capsys.readouterr().err
    EmoCLIPForVideoClassification.from_clip(clip_dir, num_labels=2).save_pretrained(tmp_path)
    EmoCLIPProcessor.from_clip(clip_dir, num_frames=4).save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        command.main([str(tmp_path), *own])
    assert "is an EmoCLIPForVideoClassification" in capsys.readouterr().err


def test_a_write_that_fails_leaves_the_configuration_as_it_was(checkpoint, own, knowing, monkeypatch, capsys):
    config = (checkpoint / "config.json").read_text()

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "draw_reliability", full_disk)
    with pytest.raises(SystemExit):
        command.main([str(checkpoint), *own])
    assert "No space left" in capsys.readouterr().err
    assert (checkpoint / "config.json").read_text() == config
    assert not list(checkpoint.glob("*.unfinished"))


def test_labels_get_the_names_that_the_pipeline_reads(checkpoint, own_videos, knowing, tmp_path):
    """`about_to_cry` is one label, since nothing is called `about`; a compound of two labels is their sum."""
    names = ["about_to_cry", "bored", "tense", "bored_tense"]
    lines = [f"{own_videos}/{number}.mp4,{names[number % 4]},{number % 6}" for number in range(24)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metadata.csv").write_text("\n".join(["file_name,label,group", *lines]))
    where = ["--data-dir", str(tmp_path / "mine"), "--split", "train", "--cache-dir", str(tmp_path / "cache")]
    arguments = [str(checkpoint), "own", *where, "--options", "allow_outside=true"]
    labels = ["about_to_cry", "bored", "bored + tense", "tense"]
    assert command.main(arguments)["labels"] == labels
    assert command.main([*arguments, "--labels", "about_to_cry", "bored_tense"])["labels"] == labels[::2]
    assert [one["labels"] for one in EmoCLIPConfig.from_pretrained(checkpoint).label_temperatures] == [
        labels,
        labels[::2],
    ]

# SPDX-License-Identifier: Apache-2.0
"""The four metrics as `evaluate` loads them from a folder, against closed forms; bootstrap intervals; pictures."""

import re
import time
from pathlib import Path

import evaluate
import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from training.data.mafw import COMPOUNDS, EMOTIONS
from training.figures import draw_confusion, draw_history
from training.metrics.bootstrap import interval, resampled_sums
from training.metrics.scores import mean_over, metrics_of, table
from training.predictions import Predictions, write_results

METRICS = Path(__file__).parents[2] / "training" / "metrics"
NAMES = ("uar", "war", "pcc", "ccc")


@pytest.fixture(scope="module", params=NAMES)
def metric(request, tmp_path_factory):
    return evaluate.load(str(METRICS / request.param), cache_dir=str(tmp_path_factory.mktemp("evaluate")))


def random_labels(num_clips=200, num_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    references = rng.choice(num_classes, num_clips, p=np.arange(1, num_classes + 1) / sum(range(num_classes + 1)))
    return references, np.where(rng.random(num_clips) < 0.5, references, rng.integers(0, num_classes, num_clips))


def classification(references, predicted, names, groups=None):
    scores = np.eye(len(names))[predicted]
    return Predictions(list(names), scores, references, [str(number) for number in range(len(references))], groups)


def expected(name, references, predictions):
    if name in ("uar", "war"):
        return {"uar": balanced_accuracy_score, "war": accuracy_score}[name](references, predictions)
    pcc = stats.pearsonr(references, predictions).statistic
    sx, sy = np.std(references), np.std(predictions)
    return (
        pcc
        if name == "pcc"
        else 2 * pcc * sx * sy / (sx**2 + sy**2 + (np.mean(references) - np.mean(predictions)) ** 2)
    )


def test_at_once_and_batch_by_batch(metric):
    name = metric.name
    references, predictions = random_labels()
    if name in ("pcc", "ccc"):
        references, predictions = references + 0.5, predictions * 0.7
    assert metric.compute(references=references, predictions=predictions) == {
        name: pytest.approx(expected(name, references, predictions), abs=1e-12)
    }
    for start in range(0, len(references), 64):  # the last batch is smaller
        metric.add_batch(references=references[start : start + 64], predictions=predictions[start : start + 64])
    assert metric.compute()[name] == pytest.approx(expected(name, references, predictions), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "references", "predictions", "value"),
    [
        ("uar", [0, 0, 0, 1], [0, 0, 1, 1], 5 / 6),
        ("uar", [0, 0], [0, 7], 0.5),  # nothing shows class 7
        ("war", [0, 0, 0, 1], [0, 0, 1, 1], 3 / 4),
        ("pcc", [0, 1, 2], [10, 20, 30], 1),
        ("pcc", [0, 1, 2], [3, 3, 3], np.nan),
        ("pcc", [1], [1], np.nan),
        ("ccc", [0, 1, 2], [1, 2, 3], 4 / 7),
        ("ccc", [0, 1, 2], [3, 3, 3], 0),
        ("ccc", [3, 3], [3, 3], np.nan),
    ],
)
def test_closed_forms_and_what_is_undefined(name, references, predictions, value):
    metric = evaluate.load(str(METRICS / name / f"{name}.py"))
    found = metric.compute(references=references, predictions=predictions)[name]
    assert found == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_from_its_folder_and_its_card_is_right(name):
    assert {path.name for path in (METRICS / name).iterdir()} - {"__pycache__"} == {f"{name}.py", "README.md"}
    header, card = re.fullmatch(r"---\n(.*?)\n---\n(.*)", (METRICS / name / "README.md").read_text(), re.S).groups()
    assert yaml.safe_load(header)["tags"] == ["evaluate", "metric"]
    code = re.search(r"metric\.compute\((.*?)\)(?:  # .*)?\n# \{'(\w+)': (.*)\}", card)
    values = evaluate.load(str(METRICS / name)).compute(**eval(f"dict({code[1]})"))
    assert values == {name: pytest.approx(float(code[3]))} and code[2] == name


def test_resampling_sums_is_resampling_clips():
    """Against the plain way: draw clips, then compute."""
    references, predicted = random_labels(300)
    metrics = metrics_of(classification(references, predicted, "abcde"))
    rng = np.random.default_rng(1)
    draws = rng.integers(0, 300, (500, 300))
    for name, score in (("uar", balanced_accuracy_score), ("war", accuracy_score)):
        plain = np.quantile([score(references[rows], predicted[rows]) for rows in draws], [0.025, 0.975])
        assert metrics[f"{name}_interval"] == pytest.approx(plain, abs=0.015)
        assert metrics[f"{name}_interval"][0] < metrics[name] < metrics[f"{name}_interval"][1]


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        found = (rng.random((200, 1)) < 0.6).astype(float)
        low, high = interval(resampled_sums(found)[:, 0] / 200)
        hits += low <= 0.6 <= high
    assert 0.91 < hits / 300 < 0.98


def test_clips_of_one_person_are_drawn_together():
    references, predicted = random_labels(40)
    persons = [str(number) for number in range(40)]
    alone = metrics_of(classification(references, predicted, "abcde"))
    twenty_times = [np.tile(values, 20) for values in (references, predicted, persons)]
    repeated = metrics_of(classification(*twenty_times[:2], "abcde", list(twenty_times[2])))
    widths = [np.diff(metrics["war_interval"])[0] for metrics in (alone, repeated)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)  # 800 clips, but no more persons
    assert repeated["intervals"] == {"share": 0.95, "resamples": 1000, "resampled": "groups", "number": 40}
    as_clips = metrics_of(classification(*twenty_times[:2], "abcde"))
    assert np.diff(as_clips["war_interval"])[0] < widths[0] / 3


def test_regression_intervals_and_undefined_ones():
    rng = np.random.default_rng(0)
    truth = rng.normal(100, 1, (150, 2))
    predicted = truth + rng.normal(0, 1, truth.shape)
    metrics = metrics_of(Predictions(["a", "b"], predicted, truth, [str(number) for number in range(150)]))
    plain = []
    for rows in rng.integers(0, 150, (500, 150)):
        plain.append([expected(name, truth[rows, 1], predicted[rows, 1]) for name in ("pcc", "ccc")])
    for column, name in enumerate(("pcc", "ccc")):
        bounds = np.quantile(np.array(plain)[:, column], [0.025, 0.975])
        assert metrics["targets"]["b"][f"{name}_interval"] == pytest.approx(bounds, abs=0.02)
        assert metrics[name] == pytest.approx(np.mean([target[name] for target in metrics["targets"].values()]))
    predicted[:, 0] = 0.1  # one and the same number has no correlation
    metrics = metrics_of(Predictions(["a", "b"], predicted, truth, [str(number) for number in range(150)]))
    assert metrics["pcc"] is None and metrics["targets"]["a"]["pcc_interval"] is None
    assert metrics["targets"]["b"]["pcc"] > 0.5 and metrics["targets"]["a"]["mae_interval"]
    assert "PCC undefined" in table({"title": "x", "architecture": "y", "sets": {"test": metrics}, "mean": {}})


def test_intervals_cost_next_to_nothing():
    references, predicted = random_labels(2000, 11)
    started = time.process_time()
    metrics_of(classification(references, predicted, "abcdefghijk"))
    assert time.process_time() - started < 0.5  # 0.03 s on an idle machine


def test_the_mean_over_folds_is_the_papers():
    assert mean_over([{"uar": 0.2, "war": 0.4}, {"uar": 0.4, "war": 0.5}]) == pytest.approx({"uar": 0.3, "war": 0.45})
    assert mean_over([{"pcc": 0.2, "ccc": 0.1}, {"pcc": None, "ccc": 0.3}]) == {"pcc": None, "ccc": pytest.approx(0.2)}


@pytest.mark.parametrize("names", [("own $cost$", "contrast"), EMOTIONS, EMOTIONS + COMPOUNDS], ids=len)
def test_confusion_matrices_are_drawn_for_any_number_of_classes(names, tmp_path):
    references, predicted = random_labels(500, len(names))
    metrics = metrics_of(classification(references, predicted, names))
    draw_confusion(tmp_path / "picture.png", metrics, "a title")
    width, height = Image.open(tmp_path / "picture.png").size
    assert min(width, height) > 40 * len(names)  # pixels for each cell: two numbers can be read in it


def test_learning_curves_with_and_without_validation(tmp_path):
    history = [{"epoch": epoch, "loss": 1 / epoch, "validation_loss": 1.0} for epoch in range(1, 4)]
    for name, records in (("with", history), ("without", [{"epoch": 1, "loss": 2.0}])):
        draw_history(tmp_path / f"{name}.png", records, "a title")
        Image.open(tmp_path / f"{name}.png").verify()


def test_results_are_whole_or_not_there(tmp_path, monkeypatch):
    references, predicted = random_labels(20)
    predictions = {"a/b c": classification(references, predicted, "abcde")}
    metrics = {name: metrics_of(one) for name, one in predictions.items()}
    written = write_results(tmp_path, predictions, metrics, [{"epoch": 1, "loss": 2.0}], "a title")
    assert [path.name for path in written] == ["predictions_a_b_c.csv", "confusion_a_b_c.png", "learning_curves.png"]
    before = written[1].read_bytes()

    def fail(path, *_):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.predictions.draw_confusion", fail)
    with pytest.raises(OSError, match=r"cannot write .*confusion_a_b_c.png: No space left"):
        write_results(tmp_path, predictions, metrics)
    assert written[1].read_bytes() == before and not list(tmp_path.glob("*.unfinished"))

# SPDX-License-Identifier: Apache-2.0
"""Grids of tiny trainings: what is missing is run, nothing twice, interruption is survived, and the sums are right."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from data_set_trees import make_dfew

from training import train
from training.compare import run_grid
from training.metrics.over_seeds import over_rows, over_seeds, row_name
from training.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "training" / "recipes"


@pytest.fixture(scope="module")
def own_recipe(clip_dir, tmp_path_factory):
    """A recipe for DFEW's folds that trains in a second."""
    root = tmp_path_factory.mktemp("grid")
    make_dfew(root / "dfew", folds=(1, 2, 3, 4, 5))
    (root / "recipe.yaml").write_text(f"""
extends: {RECIPES / "emoclip_dfew_classes.yaml"}
title: tiny
reference: {{uar: 50, war: 40.5, source: a paper}}
model:
  init: {clip_dir}
  config: {{temporal_num_layers: 1, temporal_num_heads: 2, temporal_head_dim: 8, temporal_intermediate_size: 16}}
  video_processor: {{num_frames: 3, frame_sampling: segment_middle}}
data: {{data_dir: ./dfew, options: {{verify: false}}, cache_dir: ./cache, validation_share: 0, augmented_views: 0}}
optim: {{epochs: 2, batch_size: 3, milestones: []}}
run: {{output_dir: {root}/runs, mixed_precision: "no", num_workers: 0}}
""")
    return root / "recipe.yaml"


@pytest.fixture
def in_process(monkeypatch):
    """Trainings without a new process for each; the list of those that were begun."""
    begun = []

    def execute(command, handle):
        begun.append(command)
        train.main(command[2:])
        return 0, None

    monkeypatch.setattr(run_grid, "execute", execute)
    return begun


def names(output):
    return sorted(path.parent.name for path in output.glob("*/metrics.json"))


def test_all_folds_and_seeds_and_nothing_twice(own_recipe, in_process, tmp_path, capsys):
    command = [str(own_recipe), "--folds", "1-2", "--seeds", "0,1", "optim.epochs=1", "--output", str(tmp_path)]
    report = run_grid.main(command)
    assert len(in_process) == 4 and report["finished"] == report["runs"] == 4
    assert names(tmp_path) == ["fold1_seed0", "fold1_seed1", "fold2_seed0", "fold2_seed1"]
    wars = [
        [json.loads((tmp_path / f"fold{fold}_seed{seed}" / "metrics.json").read_text()) for fold in (1, 2)]
        for seed in (0, 1)
    ]
    wars = [sum(metrics["final"]["test"]["war"] for metrics in folds) / 2 for folds in wars]
    war = report["rows"]["test"]["war"]
    assert war["seeds"] == {"0": pytest.approx(wars[0]), "1": pytest.approx(wars[1])}
    assert war["mean"] == pytest.approx(sum(wars) / 2) and war["std"] == pytest.approx(abs(wars[0] - wars[1]) / 2**0.5)
    assert war["reference"] == 0.405 and war["difference"] == pytest.approx(war["mean"] - 0.405)
    assert json.loads((tmp_path / "summary.json").read_text()) == report
    assert "4 of 4 runs are finished\npaper: a paper\n" in (out := capsys.readouterr().out) and "  40.50  " in out
    (tmp_path / "fold2_seed1" / "metrics.json").unlink()
    run_grid.main(command)
    assert len(in_process) == 5 and "fold2_seed1" in " ".join(in_process[-1])
    with pytest.raises(SystemExit, match="2"):  # finished, but by another recipe
        run_grid.main([*command, "optim.batch_size=2"])
    assert "holds the run of another recipe" in capsys.readouterr().err and len(in_process) == 5


def test_every_class_left_out_once(own_recipe, in_process, tmp_path):
    command = [str(own_recipe), "--leave-out", "sadness,surprise", "--output", str(tmp_path), "optim.epochs=0"]
    rows = run_grid.main(command)["rows"]
    assert names(tmp_path) == ["without_sadness_seed0", "without_surprise_seed0"]
    assert list(rows) == ["sadness", "surprise", "mean of classes"]
    recalls = [rows[name]["recall"]["mean"] for name in ("sadness", "surprise")]
    assert rows["mean of classes"]["recall"]["mean"] == sum(recalls) / 2
    plan = run_grid.plan(
        load_recipe(own_recipe), run_grid.make_parser().parse_args([str(own_recipe), "--leave-out", "all"])
    )
    assert len(plan) == 7


def test_a_failure_stops_the_grid_or_not(own_recipe, monkeypatch, tmp_path, capsys):
    begun = []
    monkeypatch.setattr(run_grid, "execute", lambda command, handle: begun.append(command) or (1, None))
    command = [str(own_recipe), "--seeds", "0-2", "--output", str(tmp_path)]
    for options, number in ([], 1), (["--keep-going"], 3):
        begun.clear()
        with pytest.raises(SystemExit, match="1"):
            run_grid.main([*command, *options])
        assert len(begun) == number
    assert "failed with exit code 1" in (seen := capsys.readouterr()).err and "0 of 3 runs" in seen.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", "5-1"], "not of the form 1-5"),
        (["--folds", "1", "data.config_name=default"], "no number of a fold"),
        (["--leave-out", "boredom"], "boredom is not among the classes happiness"),
        (["optim.epoch=1"], "unknown recipe field optim.epoch"),
    ],
)
def test_errors_are_one_line(own_recipe, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        run_grid.main([str(own_recipe), *options])
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


CHILD = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1], "stopped").write_text(str(int(number)))
    time.sleep(0.2)
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
pathlib.Path(sys.argv[1], "ready").write_text("")
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGTERM)],
)
def test_signals_are_handed_on_and_the_end_is_waited_for(tmp_path, sent, arrives):
    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), sent)

    before = signal.getsignal(sent)
    threading.Thread(target=interrupt, daemon=True).start()
    with run_grid.lock(tmp_path) as handle:
        code, received = run_grid.execute([sys.executable, "-c", CHILD, str(tmp_path)], handle)
    assert (code, received) == (128 + arrives, sent) and signal.getsignal(sent) is before
    assert (tmp_path / "stopped").read_text() == str(int(arrives))


def test_a_run_that_outlives_its_grid_keeps_its_folder(own_recipe, tmp_path, in_process, capsys):
    folder = tmp_path / "seed0"
    with run_grid.lock(folder) as handle:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], pass_fds=[handle])
    try:
        report = run_grid.main([str(own_recipe), "--output", str(tmp_path)])
    finally:
        child.kill()
        child.wait()
    assert report["finished"] == 0 and in_process == [] and "another process" in capsys.readouterr().out
    with run_grid.lock(folder) as handle:
        assert handle is not None


def test_an_interrupted_training_in_its_own_process_goes_on(own_recipe, tmp_path, capsys, monkeypatch, request):
    command = [str(own_recipe), "--folds", "1", "--output", str(tmp_path), "optim.epochs=100000"]
    checkpoint = tmp_path / "fold1_seed0" / "checkpoint" / "progress.json"

    def interrupt():
        while not checkpoint.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(SystemExit, match="130"):
        run_grid.main(command)
    assert "goes on from" in capsys.readouterr().err and not (tmp_path / "fold1_seed0" / "metrics.json").exists()
    request.getfixturevalue("in_process")
    begun_at = []
    monkeypatch.setattr(train, "train_epoch", lambda training, *_: begun_at.append(training.progress.epoch) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_grid.main(command)
    assert begun_at == [json.loads(checkpoint.read_text())["epoch"]] and begun_at[0] >= 1


def test_means_over_seeds():
    assert over_seeds({0: 0.5, 1: 0.7}) == {
        "seeds": {"0": 0.5, "1": 0.7},
        "mean": 0.6,
        "std": pytest.approx(0.02**0.5),
    }
    assert over_seeds({0: 0.5})["std"] is None and over_seeds({})["mean"] is None
    assert over_rows([over_seeds({0: 0.5, 1: 0.7}), over_seeds({0: 0.7})])["seeds"] == {"0": pytest.approx(0.6)}
    assert [row_name(name) for name in ("test", "dfew_fold3", "fold2")] == ["test", "dfew", "fold2"]

# SPDX-License-Identifier: Apache-2.0
"""Stopping, going on, several processes, averages, adapters: what the loop promises beside the loss going down."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file

from emoclip import EmoCLIPModel
from training import checkpoint, train
from training.recipe import dump_recipe

ROOT = Path(__file__).parents[2]


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(one, other, tolerance=0.0):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name in one:
        difference = (one[name] - other[name]).abs().max().item()
        assert difference <= tolerance, f"{name} differs by {difference:.1e}"


def command(recipe, folder, *launcher):
    """A training in a process of its own."""
    folder.mkdir(exist_ok=True)
    path = folder / "given.yaml"
    path.write_text(dump_recipe(dataclasses.replace(recipe), folder))
    return [sys.executable, *launcher, str(ROOT / "training" / "train.py"), str(path)]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="module")
def undisturbed(make_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train.run(make_recipe(folder, "run.checkpoint_every=1"))
    return folder


def test_each_epoch_has_every_clip_once_in_another_order(make_recipe, tmp_path, monkeypatch):
    real_step, order = train.train_step, []

    def step(batch, *arguments):
        order.extend(batch["clip_index"].tolist())
        return real_step(batch, *arguments)

    monkeypatch.setattr(train, "train_step", step)
    train.run(make_recipe(tmp_path))
    first, second = order[:18], order[18:]
    assert sorted(first) == sorted(second) == list(range(18)) and first != second


class Killed(BaseException):
    """Not an Exception: nothing in the loop may catch it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("moment", range(8))
def test_killed_at_any_moment_of_a_checkpoint_write(make_recipe, undisturbed, tmp_path, monkeypatch, moment):
    """The process dies before the `moment`th file operation of its third checkpoint, or just after it."""
    operations = [
        (Accelerator, "save_state"),
        (Path, "write_text"),
        (os, "link"),
        (checkpoint.shutil, "rmtree"),
        (os, "replace"),
    ]
    count = {"checkpoints": 0, "operations": 0}
    real_save = checkpoint.save_checkpoint

    def save(*arguments, **options):
        count["checkpoints"] += 1
        real_save(*arguments, **options)
        if count["checkpoints"] == 3:
            raise Killed

    def dying(real):
        def operation(*arguments, **options):
            if count["checkpoints"] == 3:
                count["operations"] += 1
                if count["operations"] > moment:
                    raise Killed
            return real(*arguments, **options)

        return operation

    with monkeypatch.context() as patched:
        patched.setattr(train, "save_checkpoint", save)
        for owner, name in operations:
            patched.setattr(owner, name, dying(getattr(owner, name)))
        with pytest.raises(Killed):
            train.run(make_recipe(tmp_path, "run.checkpoint_every=1"))
    metrics = train.run(make_recipe(tmp_path, "run.checkpoint_every=1", "run.resume=true"))
    assert metrics["history"] == json.loads((undisturbed / "metrics.json").read_text())["history"]
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_with_a_checkpoint(make_recipe, undisturbed, tmp_path, monkeypatch, number, code):
    real_step, steps = train.train_step, []

    def step(*arguments):
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), number)
        return real_step(*arguments)

    monkeypatch.setattr(train, "train_step", step)
    with pytest.raises(SystemExit) as stopped:
        train.run(make_recipe(tmp_path))
    assert stopped.value.code == code and len(steps) == 2
    monkeypatch.setattr(train, "train_step", real_step)
    train.run(make_recipe(tmp_path, "run.resume=true"))
    assert_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_at_random_moments(make_recipe, tmp_path):
    """Ten SIGKILLs, whatever the process is doing."""
    longer = ["optim.epochs=40", "run.checkpoint_every=1"]
    started = time.monotonic()
    subprocess.run(
        command(make_recipe(tmp_path / "whole", *longer), tmp_path / "whole"), env=environment(), check=True
    )
    seconds = time.monotonic() - started
    rng = random.Random(0)
    recipe = make_recipe(tmp_path / "killed", *longer, "run.resume=true")
    for _ in range(10):
        process = subprocess.Popen(command(recipe, tmp_path / "killed"), env=environment())
        time.sleep(seconds * (0.5 + 0.3 * rng.random()))  # imports take the first half
        process.kill()
        process.wait()
    subprocess.run(command(recipe, tmp_path / "killed"), env=environment(), check=True)
    assert_same(tmp_path / "killed", tmp_path / "whole")


def test_two_processes_train_the_same_global_batch(make_recipe, undisturbed, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    recipe = make_recipe(tmp_path, "run.checkpoint_every=1")
    subprocess.run(command(recipe, tmp_path, *launcher), env=environment(), check=True, capture_output=True)
    assert_same(tmp_path, undisturbed, tolerance=1e-6)
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (undisturbed, tmp_path))
    assert two["final"]["own"]["num_clips"] == one["final"]["own"]["num_clips"] == 18
    assert [r["loss"] for r in two["history"]] == pytest.approx([r["loss"] for r in one["history"]], abs=1e-5)


def test_a_batch_in_chunks_is_the_same_batch(make_recipe, undisturbed, tmp_path):
    train.run(make_recipe(tmp_path, "optim.chunk_size=4"))
    assert_same(tmp_path, undisturbed, tolerance=1e-6)


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_an_error(make_recipe, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    recipe = make_recipe(tmp_path, "optim.batch_size=5")
    done = subprocess.run(command(recipe, tmp_path, *launcher), env=environment(), capture_output=True, text=True)
    assert done.returncode != 0 and "optim.batch_size=5 cannot be shared among 2 processes" in done.stderr


def test_the_average_of_the_weights_is_kept_and_resumed(make_recipe, undisturbed, tmp_path, monkeypatch):
    average = ["optim.ema=0.5", "run.checkpoint_every=1", "run.select_on=last"]
    train.run(make_recipe(tmp_path / "whole", *average))
    different = [
        name for name, weight in weights(tmp_path / "whole").items() if (weight != weights(undisturbed)[name]).any()
    ]
    assert different and all(name.startswith(("temporal.", "logit_scale")) for name in different)
    real_step, steps = train.train_step, []

    def step(*arguments):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real_step(*arguments)

    monkeypatch.setattr(train, "train_step", step)
    with pytest.raises(SystemExit):
        train.run(make_recipe(tmp_path / "stopped", *average))
    train.run(make_recipe(tmp_path / "stopped", *average, "run.resume=true"))
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_adapters_learn_and_are_merged(make_recipe, clip_dir, tmp_path):
    lora = ["model.lora={r: 2, target_modules: [q_proj, v_proj], lora_dropout: 0.1}"]
    rates = 'optim.learning_rates={".*lora_.*": 1e-2, ".*": null}'
    train.run(make_recipe(tmp_path, *lora, rates))
    trained, before = weights(tmp_path), load_file(clip_dir / "model.safetensors")
    moved = {name for name in trained if name in before and (trained[name] - before[name]).abs().max() > 1e-6}
    assert moved and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in moved)
    assert not any("lora" in name for name in trained)


def test_early_stop(make_recipe, tmp_path):
    still = 'optim.learning_rates={".*": 0.0}'  # nothing gets better
    metrics = train.run(make_recipe(tmp_path, still, "optim.epochs=9", "run.patience=2", "optim.weight_decay=0"))
    assert len(metrics["history"]) == 3


def test_selection_on_the_test_set_is_possible_and_recorded(make_recipe, tmp_path):
    metrics = train.run(make_recipe(tmp_path, "run.select_on=test_war"))
    best = max(record["test_war"] for record in metrics["history"])
    assert metrics["final"]["own"]["war"] == best


def test_memory_saving_and_tracking_change_no_weight(make_recipe, undisturbed, tmp_path):
    pytest.importorskip("tensorboard")
    train.run(make_recipe(tmp_path, "run.gradient_checkpointing=true", "run.trackers=[tensorboard]"))
    assert_same(tmp_path, undisturbed)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_a_loss_that_is_not_finite_stops_and_names_the_clips(make_recipe, tmp_path, monkeypatch):
    real_forward, steps = EmoCLIPModel.forward, []

    def forward(self, *arguments, **inputs):
        outputs = real_forward(self, *arguments, **inputs)
        if self.training:
            steps.append(1)
            outputs.loss = outputs.loss * (float("nan") if len(steps) == 5 else 1)
        return outputs

    monkeypatch.setattr(EmoCLIPModel, "forward", forward)
    message = r"the loss is nan in step 5 \(epoch 2\), with the clips \['\d+'.*last good checkpoint is .*checkpoint"
    with pytest.raises(FloatingPointError, match=message):
        train.run(make_recipe(tmp_path))
    assert json.loads((tmp_path / "checkpoint" / "progress.json").read_text())["epoch"] == 1
    assert not (tmp_path / "metrics.json").exists()


def test_an_output_folder_that_cannot_be_written(make_recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"run.output_dir: cannot write .*file/run: Not a directory"):
        train.run(make_recipe(tmp_path / "file" / "run"))


def test_a_full_disk_leaves_the_last_checkpoint(make_recipe, undisturbed, tmp_path, monkeypatch):
    real, calls = Accelerator.save_state, []

    def save_state(self, folder, **options):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(self, folder, **options)

    monkeypatch.setattr(Accelerator, "save_state", save_state)
    with pytest.raises(OSError, match=r"last whole checkpoint is .*checkpoint: cannot write .*No space left"):
        train.run(make_recipe(tmp_path))
    train.run(make_recipe(tmp_path, "run.resume=true"))
    assert_same(tmp_path, undisturbed)


def test_another_number_of_processes_does_not_go_on(make_recipe, tmp_path):
    train.run(make_recipe(tmp_path))
    written = tmp_path / "checkpoint" / "progress.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | {"num_processes": 2}))
    with pytest.raises(ValueError, match="written by 2 processes, but this run has 1"):
        train.run(make_recipe(tmp_path, "run.resume=true"))

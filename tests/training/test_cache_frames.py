# SPDX-License-Identifier: Apache-2.0
"""The command that fills the frame cache."""

import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from training.cache import cache_frames
from training.recipe import dump_recipe


@pytest.fixture
def recipe_file(make_recipe, tmp_path):
    """`recipe_file(a.b=c, ...)`: a recipe whose cache is a folder of its own."""

    def write(*overrides):
        recipe = make_recipe(tmp_path / "run", f"data.cache_dir={tmp_path / 'cache'}", *overrides)
        (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe, tmp_path))
        return str(tmp_path / "recipe.yaml")

    return write


def shards(tmp_path):
    return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "frame_embeds").rglob("*.safetensors")}


def test_it_fills_the_cache_once(recipe_file, tmp_path):
    cache_frames.main([recipe_file()])
    first = shards(tmp_path)
    cache_frames.main([recipe_file()])
    assert first and shards(tmp_path) == first


def test_a_recipe_that_trains_the_tower_is_refused(recipe_file, capsys):
    with pytest.raises(SystemExit):
        cache_frames.main([recipe_file('optim.learning_rates={".*": 1e-3}')])
    assert "this recipe trains the image tower" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_it_with_all_that_it_started(recipe_file, own_videos, tmp_path):
    (tmp_path / "many").mkdir()
    for number in range(800):  # so many that it is still at work
        os.link(own_videos / f"{number % 24}.mp4", tmp_path / "many" / f"{number}.mp4")
    lines = [f"{number}.mp4,happiness,a face,person{number % 6}" for number in range(800)]
    (tmp_path / "many" / "metadata.csv").write_text("\n".join(["file_name,label,caption,group", *lines]) + "\n")
    recipe = recipe_file(f"data.data_dir={tmp_path / 'many'}", "run.num_workers=2")
    command = [sys.executable, "-m", "training.cache.cache_frames", recipe]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    printed = b""
    # Python loses a Ctrl-C that comes while it forks. Clips arrive in order: with the second, both workers are there.
    while not re.search(rb" ([2-9]|\d\d+)/600", printed):
        printed += (line := os.read(process.stderr.fileno(), 4096))
        assert line, printed
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 4  # the workers, and a reader of each
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=20)
    _, alive = psutil.wait_procs(children, timeout=2)
    assert not alive
    assert process.returncode == -signal.SIGINT, errors
    assert errors.endswith(b"stopped; the same command goes on from here\n")

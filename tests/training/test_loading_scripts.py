# SPDX-License-Identifier: Apache-2.0
"""The builders as loading scripts of `datasets` 3.x, in an environment that knows nothing of this project."""

import json
import os
import subprocess
import sys
from pathlib import Path

import data_set_trees as trees
import datasets
import pytest

from training.data.afew import AFEW
from training.data.dfew import DFEW
from training.data.ferv39k import FERV39k
from training.data.mafw import MAFW
from training.data.own_videos import OwnVideos

pytestmark = pytest.mark.slow  # installs packages

SCRIPTS = Path(__file__).parents[2] / "training" / "data"
SETS = {
    "afew": (AFEW, "default"),
    "dfew": (DFEW, "fold1"),
    "ferv39k": (FERV39k, "all"),
    "mafw": (MAFW, "compound_fold1"),
    "own_videos": (OwnVideos, "default"),
}
LOAD = """
import importlib.util, json, sys
import datasets

assert datasets.__version__.startswith("3."), datasets.__version__
assert not importlib.util.find_spec("training") and not importlib.util.find_spec("modeling_emoclip")
script, config, data_dir, streaming = sys.argv[1:]
options = {"data_dir": data_dir or None, "trust_remote_code": True, "streaming": streaming == "streaming"}
options["verify"] = False  # the trees are not as large as the real sets
rows = datasets.load_dataset(script, config, **options)
labels = {split: part.features["label"].names for split, part in rows.items()}
print(json.dumps({"rows": {split: list(part) for split, part in rows.items()}, "labels": labels}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter with `datasets` 3.x and no more."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "datasets>=3.6,<4"], check=True)
    return python


@pytest.fixture
def load(python, tmp_path):
    """`load("dfew", folder)`: what `load_dataset` of the script gives; an `AssertionError` says what it printed."""

    def run(name: str, data_dir: Path | str, streaming: str = ""):
        script, config = str(SCRIPTS / f"{name}.py"), SETS[name][1]
        environment = {
            key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_DATASETS_CACHE")
        }
        done = subprocess.run(
            [python, "-I", "-c", LOAD, script, config, str(data_dir), streaming],
            cwd=tmp_path,
            env=environment | {"HF_HOME": str(tmp_path / "hub")},
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def roots(tmp_path, write_clip):
    """A folder of each set, some with frames and some with videos."""
    clip = write_clip(tmp_path / "clip.mp4", 4, 32, 32)
    own = [
        {"file_name": "train/a.mp4", "label": "joy", "t": 0.5},
        {"file_name": "test/b.mp4", "label": "fear", "t": 2},
    ]
    return {
        "afew": trees.make_afew(tmp_path / "AFEW"),
        "dfew": trees.make_dfew(tmp_path / "DFEW", media="Clip/original", clip=clip),
        "ferv39k": trees.make_ferv39k(tmp_path / "FERV39k", "common"),
        "mafw": trees.make_mafw(tmp_path / "MAFW", kind="compound"),
        "own_videos": trees.make_own(tmp_path / "mine", own, clip),
    }


@pytest.mark.parametrize("name", SETS)
def test_the_script_gives_the_rows_of_the_class(load, roots, tmp_path, name):
    builder_class, config = SETS[name]
    builder = builder_class(
        config_name=config, data_dir=str(roots[name]), cache_dir=str(tmp_path / "cache"), verify=False
    )
    builder.download_and_prepare()
    rows = builder.as_dataset()
    expected = {
        "rows": {split: list(part) for split, part in rows.items()},
        "labels": {split: part.features["label"].names for split, part in rows.items()},
    }
    assert load(name, roots[name]) == expected
    assert load(name, roots[name], "streaming") == expected


def test_a_script_says_what_is_wrong_and_never_gives_stale_rows(load, roots):
    root = roots["dfew"]
    path = root / "EmoLabel_DataSplit/train(single-labeled)/set_1.csv"
    assert len(load("dfew", root)["rows"]["train"]) == 4
    trees.write_text(path, ["1,8"])
    with pytest.raises(AssertionError, match=r"ValueError: DFEW in .*\n.*set_1.csv, line 1: label 8 is out of range"):
        load("dfew", root)
    trees.write_text(path, ["1,2"])
    assert [row["label"] for row in load("dfew", root)["rows"]["train"]] == [1]
    with pytest.raises(AssertionError, match="DFEW is given by its authors to those who sign their agreement"):
        load("dfew", "")


def test_datasets_without_scripts_says_so(roots):
    """Why the class is to be used with the version of `datasets` that this project needs."""
    with pytest.raises(RuntimeError, match=r"Dataset scripts are no longer supported, but found dfew.py"):
        datasets.load_dataset(str(SCRIPTS / "dfew.py"), "fold1", data_dir=str(roots["dfew"]))

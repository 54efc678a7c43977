# SPDX-License-Identifier: Apache-2.0
"""Space folders: whole or not there at all, with the packages that they need, and pushed. test_app.py runs one."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml
from local_hub import LocalHub

from training import train
from training.publish import space
from training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "training" / "recipes" / "synthetic_emoclip.yaml"
pytestmark = pytest.mark.skipif("gradio" not in packages_distributions(), reason='needs pip install "emoclip[app]"')


@pytest.fixture
def model_dir(tmp_path):
    """A folder that stands for an exported model."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    return tmp_path / "hub"


@pytest.fixture
def unchecked(monkeypatch):
    monkeypatch.setattr(space, "check_space", lambda folder: 7)
    monkeypatch.setattr(space, "draw_example", lambda path: path.write_bytes(b"drawn"))


def test_what_a_space_says_and_needs(model_dir, tmp_path, unchecked):
    assert space.write_space(tmp_path / "space", load_recipe(RECIPE), model_dir) == 7
    text = (tmp_path / "space" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---")[1])
    assert (head["sdk"], head["sdk_version"], head["app_file"]) == ("gradio", version("gradio"), "app.py")
    assert head["license"] == "apache-2.0" and "models" not in head and len(head["short_description"]) <= 60
    assert "drawn faces only" in text and "model/README.md" in text
    lines = (tmp_path / "space" / "requirements.txt").read_text().splitlines()[1:]
    pinned = dict(line.split("==") for line in lines)
    assert all(version(name).partition("+")[0] == number for name, number in pinned.items())
    provided = {name for name, owners in packages_distributions().items() if {*map(canonical, owners)} & {*pinned}}
    provided |= {"gradio", "starlette", *sys.stdlib_module_names}  # starlette comes with gradio
    provided |= {"emoclip", "modeling_emoclip"}  # which the folder holds
    paths = list((tmp_path / "space").rglob("*.py"))
    assert len(paths) > 30
    for path in paths:
        assert imported(path) - provided <= {"decord"}, path  # optional


def canonical(distribution: str) -> str:
    return next(
        (name for name in space.REQUIRED if name.replace("_", "-") == distribution.lower().replace("_", "-")), ""
    )


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names}


def test_nothing_half_written_is_left(model_dir, tmp_path, monkeypatch, unchecked):
    folder, recipe = tmp_path / "out" / "space", load_recipe(RECIPE)
    space.write_space(folder, recipe, "lab/emo")
    assert (folder / "model.txt").read_text() == "lab/emo\n" and not (folder / "model").exists()
    assert yaml.safe_load((folder / "README.md").read_text().split("---")[1])["models"] == ["lab/emo"]
    (folder / "app.py").write_text("raise SystemExit('broken on purpose')")
    old = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.undo()
    monkeypatch.setattr(space, "APP", "raise SystemExit('broken on purpose')")
    with pytest.raises(space.SpaceError, match=r"ended with exit code 1\n[^$]*broken on purpose"):
        space.write_space(folder, recipe, model_dir)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == old
    assert [path.name for path in folder.parent.iterdir()] == ["space"]


def test_what_no_space_is_made_of(model_dir, tmp_path, unchecked):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(space.SpaceError, match="mine is not empty, and no Space"):
        space.write_space(tmp_path / "mine", load_recipe(RECIPE), model_dir)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    fixed = load_recipe(ROOT / "training" / "recipes" / "synthetic_dferclip.yaml")
    with pytest.raises(space.SpaceError, match="EmoCLIPForPromptClassification, but the app needs one that takes any"):
        space.write_space(tmp_path / "space", fixed, model_dir)


PUSH = """
import sys
from pathlib import Path
from training.publish.hub import HubPusher

pusher = HubPusher("lab/app", False, Path("."), "space")
pusher.finish(Path("space"), "The app")
print(pusher.url, pusher.visibility())
"""


def test_a_space_is_pushed_as_one(model_dir, tmp_path, unchecked):
    folder = tmp_path / "space"
    space.write_space(folder, load_recipe(RECIPE), model_dir)
    with LocalHub() as hub:
        env = hub.env(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
        for source in (model_dir, "lab/emo"):  # what was embedded is gone after the second
            space.write_space(folder, load_recipe(RECIPE), source)
            done = subprocess.run([sys.executable, "-c", PUSH], cwd=tmp_path, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert done.stdout == f"{hub.url}/spaces/lab/app public\n"
            pushed = hub.files("lab/app", "space")
            pushed.pop(".gitattributes")
            here = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            assert pushed == here


@pytest.mark.slow
def test_the_whole_command(make_recipe, tmp_path):
    """A run becomes a Space that holds its model, runs and is pushed; then one that downloads its model."""
    train.run(make_recipe(tmp_path / "run", "optim.epochs=1"))
    with LocalHub() as hub:
        env = hub.env(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}

        def run(module, *arguments):
            command = [sys.executable, "-m", f"training.publish.{module}", *arguments]
            return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

        assert run("export", tmp_path / "run").returncode == 0
        done = run("space", tmp_path / "run", tmp_path / "space")
        assert done.returncode == 0 and "stretches in its example" in done.stdout, done.stderr
        assert run("push", tmp_path / "space", "--repo", "lab/app").returncode == 0
        assert {"model/model.safetensors", "app.py", "README.md"} < hub.files("lab/app", "space").keys()
        done = run("space", tmp_path / "run", tmp_path / "named", "--model", "lab/emo")
        assert done.returncode == 1 and "the Space does not run" in done.stderr and "lab/emo" in done.stderr
        assert not (tmp_path / "named").exists()
        assert run("push", tmp_path / "run", "--repo", "lab/emo").returncode == 0
        assert run("space", tmp_path / "run", tmp_path / "named", "--model", "lab/emo").returncode == 0

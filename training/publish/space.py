# SPDX-License-Identifier: Apache-2.0
"""Writes a Space: the app with its code, an exported model and an example; it is run before the folder is complete.

python -m training.publish.space outputs/synthetic_emoclip outputs/space          holds the model, from RUN/hub
python -m training.publish.space outputs/synthetic_emoclip outputs/space --model me/emoclip    loads it from the Hub
"""

import argparse
import dataclasses
import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import yaml
from huggingface_hub import HfApi

import emoclip
import modeling_emoclip
from training.data import face_grammar, face_renderer, synthetic_faces
from training.publish.card import TAGS, data_sets, licence, render_card
from training.publish.check_space import check_space
from training.publish.export import check_is_run
from training.recipe import Recipe, load_recipe

APP = """# SPDX-License-Identifier: Apache-2.0
# A Space of EmoCLIP: the app's code, the model and an example lie beside this file.
from pathlib import Path

from emoclip.app import run

run(folder=Path(__file__).resolve().parent)
"""
CODE = [Path(package.__file__).parent for package in (emoclip, modeling_emoclip)]
# What the app's code imports, and what transformers needs for it; the Space itself brings gradio.
REQUIRED = "torch torchvision transformers huggingface_hub safetensors numpy pillow av opencv-python-headless".split()
REQUIRED += ["matplotlib", "pandas", "typer"]
# A Space has no GPU unless somebody pays for one; these wheels are a tenth of those with CUDA.
CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"
# What two people of the rendered set's test clips do in turn in the example; the numbers choose who they are.
EXPRESSIONS = {
    "happiness": ("smile", "cheek_raise"),
    "surprise": ("brow_raise", "eyes_wide", "mouth_open"),
    "sadness": ("inner_brow", "mouth_down", "lids_droop"),
    "anger": ("brow_lower", "lips_press", "nostril"),
    "disgust": ("nose_wrinkle", "eyes_narrow"),
}
PEOPLE = {15: ("happiness", "surprise", "sadness", "anger"), 23: ("surprise", "disgust", "happiness", "sadness")}
SECONDS, RATE, SIZE = 12, 8, 128


def draw_example(path: Path) -> Path:
    """Writes a video of two drawn people beside each other, each with one expression after the other."""
    people = []
    for index, shown in PEOPLE.items():
        turns = [((turn + 0.5) / len(shown), name) for turn, name in enumerate(shown)]
        actions = tuple(
            face_grammar.Action(component, 1.0, "flash", middle, 0.35 / len(shown))
            for middle, name in turns
            for component in EXPRESSIONS[name]
        )
        person = dataclasses.replace(face_grammar.sample_clip(0, "test", index), actions=actions)
        people.append(face_renderer.render_clip(person, SECONDS * RATE, SIZE))  # (T, SIZE, SIZE, 3)
    synthetic_faces.write_video(path, np.concatenate(people, axis=2), RATE)
    return path


class SpaceError(Exception):
    """A Space was not written; the message says why."""


SPACE_FILES = {"app.py", "README.md", "requirements.txt", "example.mp4", "model", "model.txt"}
SPACE_FILES |= {folder.name for folder in CODE}


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of training/train.py")
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--model", metavar="ORG/NAME", help="load this model from the Hub instead of holding it")
    options = parser.parse_args(arguments)
    check_is_run(options.run, parser)
    hub_dir = options.run / "hub"
    if options.model is None and not (hub_dir / "config.json").is_file():
        parser.error(f"{hub_dir} is not there: python -m training.publish.export {options.run}")
    try:
        recipe = load_recipe(options.run / "recipe.yaml")
        num_stretches = write_space(options.folder, recipe, options.model or hub_dir)
    except SpaceError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"wrote {options.folder}; in another process it found {num_stretches} stretches in its example")


def write_space(space_dir: Path, recipe: Recipe, model: Path | str) -> int:
    """Writes and checks a Space; returns the number of stretches that it found in its example.

    Nothing is left at `space_dir` unless the check succeeds; a Space that was there is replaced.

    Args:
        recipe: of the run that the model comes from; the README says what it was trained on.
        model: an exported folder, which the Space then holds, or a Hub id, which it only names.

    Raises:
        SpaceError: the model has fixed classes, `space_dir` holds something else, a package of the app is not
            installed, or the Space does not run.
    """
    if recipe.model.architecture != "EmoCLIPModel":
        raise SpaceError(f"the model is an {recipe.model.architecture}, but the app needs one that takes any words")
    if space_dir.exists() and any(space_dir.iterdir()) and not is_space(space_dir):
        raise SpaceError(f"{space_dir} is not empty, and no Space: give a new folder")
    space_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=space_dir.parent, prefix="space.unfinished.") as unfinished:
        folder = Path(unfinished) / "space"
        folder.mkdir()
        if isinstance(model, Path):
            shutil.copytree(model, folder / "model")
        else:
            # With the commit: whoever can push to the model's repository must not run other code in this Space.
            names = [model, commit_of(model)]
            (folder / "model.txt").write_text(" ".join(filter(None, names)) + "\n", encoding="utf-8")
        (folder / "app.py").write_text(APP, encoding="utf-8")
        for package in CODE:
            shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        draw_example(folder / "example.mp4")
        (folder / "README.md").write_text(readme(recipe, model) + "\n", encoding="utf-8")
        (folder / "requirements.txt").write_text(requirements(), encoding="utf-8")
        try:
            num_stretches = check_space(folder)
        except RuntimeError as error:
            raise SpaceError(str(error)) from error
        shutil.rmtree(space_dir, ignore_errors=True)
        shutil.move(folder, space_dir)
    return num_stretches


def commit_of(model: str) -> str | None:
    """The newest commit of a model's repository; `None` if the Hub cannot be asked."""
    try:
        return HfApi().model_info(model).sha
    except (OSError, ValueError, RuntimeError):
        return None


def is_space(folder: Path) -> bool:
    """Whether a folder is what `write_space` wrote, and nothing else: any other Gradio app is somebody's."""
    app, card = folder / "app.py", folder / "README.md"
    if not (app.is_file() and card.is_file()) or {one.name for one in folder.iterdir()} - SPACE_FILES:
        return False
    is_ours = app.read_text(encoding="utf-8", errors="replace").splitlines()[:2] == APP.splitlines()[:2]
    return is_ours and "sdk: gradio" in card.read_text(encoding="utf-8", errors="replace")


def readme(recipe: Recipe, model: Path | str) -> str:
    """With the YAML that the Hub starts a Space by."""
    model_id = None if isinstance(model, Path) else model
    learnt = [one for one in data_sets(recipe) if one.is_learnt]
    head = {
        "title": "EmoCLIP",
        "emoji": "🎭",
        "colorFrom": "indigo",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": installed("gradio"),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        **licence(learnt),
        "short_description": "Any words for the expression on any face in any video",
        "tags": TAGS,
        **({"models": [model_id], "preload_from_hub": [model_id]} if model_id else {}),
    }
    return render_card(
        "space.md",
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(),
        model_id=model_id,
        rendered_only=all(one.is_rendered for one in learnt),
        sdk_version=head["sdk_version"],
    )


def requirements() -> str:
    """The versions that the Space is checked with."""
    return "\n".join([CPU_WHEELS, *(f"{name}=={installed(name)}" for name in REQUIRED)]) + "\n"


def installed(name: str) -> str:
    try:
        return version(name).partition("+")[0]  # without "+cpu", which PyPI has not
    except PackageNotFoundError:
        raise SpaceError(f'a Space needs {name}, which is not installed: pip install "emoclip[app]"') from None


if __name__ == "__main__":
    main(sys.argv[1:])

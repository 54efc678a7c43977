# SPDX-License-Identifier: Apache-2.0
"""Exports a training run as a folder that is a Hub repository: code, weights, processor and card.

python -m training.publish.export outputs/synthetic_emoclip              writes outputs/synthetic_emoclip/hub

Another process loads the folder and compares logits before it is complete.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import yaml
from transformers import AutoModel, AutoProcessor

import modeling_emoclip
from emoclip import EmoCLIPModel, EmoCLIPProcessor
from modeling_emoclip.pipeline_emoclip import TASK, ZeroShotVideoClassificationPipeline
from training.publish.card import THIS, published_recipe, write_card
from training.publish.check_hub_folder import check
from training.recipe import Recipe, load_recipe

CUSTOM_PIPELINES = {
    TASK: {
        "impl": f"pipeline_emoclip.{ZeroShotVideoClassificationPipeline.__name__}",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}
# What an export consists of. A folder with anything else in it is not replaced.
_COMPILED = shutil.ignore_patterns("__pycache__")
EXPORTED_FILES = ("*.py", "*.json", "*.safetensors", "README.md", "recipe.yaml", "confusion_*.png", "*.txt", "*.model")


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of training/train.py")
    parser.add_argument("--hub-dir", type=Path, help="folder to write; default: RUN/hub")
    parser.add_argument("--repo", metavar="ORG/NAME", help="where it will be pushed, for the example in the card")
    options = parser.parse_args(arguments)
    check_is_run(options.run, parser)
    try:
        hub_dir, difference = export(options.run, options.hub_dir or options.run / "hub", options.repo)
    except (FileExistsError, RuntimeError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"wrote {hub_dir}; loaded in another process, its logits differ by at most {difference:.1e}")


def check_is_run(run_dir: Path, parser: argparse.ArgumentParser) -> None:
    """Ends the command unless a folder is that of a finished training run."""
    if not (run_dir / "metrics.json").is_file():
        parser.error(f"{run_dir} has no metrics.json: it is not the output folder of a finished training run")


def export(run_dir: Path, hub_dir: Path, repo: str | None = None) -> tuple[Path, float]:
    """Writes and checks the Hub folder; returns it and the largest difference of logits that the check found.

    Nothing is left at `hub_dir` unless the check succeeds; an earlier export there is replaced.

    Args:
        repo: where it will be pushed, for the example of use in the card.

    Raises:
        FileExistsError: `hub_dir` holds something else.
    """
    check_replaceable(hub_dir)
    model, processor, recipe = load_run(run_dir)
    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(dir=run_dir, prefix="hub.unfinished.") as unfinished:
        folder = Path(unfinished) / "hub"
        write_model(folder, model, processor)
        shutil.copy(run_dir / "metrics.json", folder)
        write_recipe(folder, recipe)
        pictures = copy_pictures(run_dir, folder, metrics)
        card = write_card(metrics, recipe, model, processor, pictures=pictures, repo=repo or THIS)
        (folder / "README.md").write_text(card, encoding="utf-8")
        difference = check(folder, model, processor)
        check_replaceable(hub_dir)  # once more: writing took a while
        shutil.rmtree(hub_dir, ignore_errors=True)
        shutil.move(folder, hub_dir)
    return hub_dir, difference


def check_replaceable(hub_dir: Path) -> None:
    """Raises a FileExistsError unless a folder is not there, is empty, or holds an earlier export and nothing else."""
    if not hub_dir.is_dir():
        if hub_dir.exists() or hub_dir.is_symlink():
            raise FileExistsError(f"{hub_dir} is no folder: give a new one, or that of an earlier export")
        return
    entries = sorted(hub_dir.iterdir())
    foreign = [
        one.name
        for one in entries
        if one.is_dir() or one.is_symlink() or not any(one.match(pattern) for pattern in EXPORTED_FILES)
    ]
    is_export = (hub_dir / "config.json").is_file() and (hub_dir / "recipe.yaml").is_file()
    if entries and (foreign or not is_export):
        what = f"holds {', '.join(foreign[:5])}" if foreign else "is not what an earlier export wrote"
        raise FileExistsError(f"{hub_dir} {what}, and would be replaced: give a new folder, or empty that one")


def load_run(run_dir: Path):
    """Loads model, processor and recipe of a finished run."""
    model = AutoModel.from_pretrained(run_dir).eval()
    return model, AutoProcessor.from_pretrained(run_dir), load_recipe(run_dir / "recipe.yaml")


def write_model(folder: Path, model, processor):
    """Writes configuration, weights, processor and the files of `modeling_emoclip`, flat, as the Hub loads them."""
    if isinstance(model, EmoCLIPModel) and isinstance(processor, EmoCLIPProcessor):
        model.config.custom_pipelines = CUSTOM_PIPELINES  # the pipeline needs a text side and a tokenizer
    try:
        model.save_pretrained(folder)
    finally:
        model.config.__dict__.pop("custom_pipelines", None)
    processor.save_pretrained(folder)
    # save_pretrained copies the files of the model's class only.
    shutil.copytree(Path(modeling_emoclip.__file__).parent, folder, ignore=_COMPILED, dirs_exist_ok=True)


def write_recipe(folder: Path, recipe: Recipe):
    """Writes recipe.yaml without secrets and folders of this machine."""
    text = yaml.safe_dump(published_recipe(recipe), sort_keys=False, allow_unicode=True)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")


def copy_pictures(run_dir: Path, folder: Path, metrics: dict) -> dict[str, str]:
    """Copies pictures of confusion matrices; returns name of an evaluation set with several classes -> its picture."""
    pictures = {}
    for name, final in metrics["final"].items():
        picture = run_dir / f"confusion_{re.sub(r'[^a-zA-Z0-9_.-]+', '_', name)}.png"
        if len(final.get("recall", ())) > 1 and picture.is_file():
            shutil.copy(picture, folder)
            pictures[name] = picture.name
    return pictures


if __name__ == "__main__":
    main(sys.argv[1:])

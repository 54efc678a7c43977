# SPDX-License-Identifier: Apache-2.0
"""A training run -> a folder that is a Hub repository: code, weights, processor, card; checked before it is done.

python training/export.py outputs/synthetic_emoclip              writes outputs/synthetic_emoclip/hub
python training/export.py outputs/synthetic_emoclip --push --repo me/emoclip       ... and pushes it, and loads it back
python training/export.py outputs/synthetic_tiny_clip --as-clip examples/tiny_clip
python training/export.py outputs/synthetic_emoclip --space outputs/space          the app with the model in it

A repository that --push makes is public, unless --private; what was trained on licensed data is not made public
without --i-have-the-right-to-publish. `run.push_to_hub` of a recipe pushes while training goes on.
"""

import argparse
import copy
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import yaml
from torch import nn
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

import modeling_emoclip
from modeling_emoclip.pipeline_emoclip import TASK, ZeroShotVideoClassificationPipeline
from training.build import Experiment, merge_adapters
from training.check_hub_folder import check
from training.checkpoint import Progress, load_selected
from training.hub_push import HubPusher, PushError, reason
from training.model_card import THIS, data_sets, published_recipe, render_card, write_card  # noqa: F401
from training.recipe import Recipe, load_recipe
from training.space import SpaceError, write_space

CUSTOM_PIPELINES = {
    TASK: {
        "impl": f"pipeline_emoclip.{ZeroShotVideoClassificationPipeline.__name__}",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}
# What an export consists of. A folder with anything else in it is somebody's, and is not replaced.
EXPORTED_FILES = ("*.py", "*.json", "*.safetensors", "README.md", "recipe.yaml", "confusion_*.png", "*.txt", "*.model")
RIGHT = "--i-have-the-right-to-publish"


def main(arguments: list[str] | None = None):
    options = parse_options(arguments)
    if options.as_clip:
        print(f"wrote {export_clip(options.run, options.as_clip)}")
        return
    try:
        recipe = load_recipe(options.run / "recipe.yaml")
        publishes_weights = options.push and not options.private and not options.space_model
        if publishes_weights and not options.has_right:
            refuse_licensed(recipe)
        if not options.space_model:
            hub_dir, difference = export(options.run, options.hub_dir or options.run / "hub", options.repo)
            print(f"wrote {hub_dir}; loaded in another process, its logits differ by at most {difference:.1e}")
        if options.space:
            num_stretches = write_space(options.space, recipe, options.space_model or hub_dir)
            print(f"wrote {options.space}; in another process it found {num_stretches} stretches in its example")
        repo_id = options.repo or recipe.run.push_to_hub or options.run.resolve().name
        if options.push and options.space:
            print(push_space(options.space, HubPusher(repo_id, options.private, options.run, "space")))
        elif options.push:
            print(push(options.run, hub_dir, HubPusher(repo_id, options.private, options.run)))
    except (PushError, SpaceError, FileExistsError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        sys.exit(1)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, if what it asks for goes together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of training/train.py")
    parser.add_argument("--hub-dir", type=Path, help="folder to write; default: RUN/hub")
    parser.add_argument("--as-clip", type=Path, metavar="DIR", help="write the towers as an ordinary CLIP checkpoint")
    parser.add_argument("--space", type=Path, metavar="DIR", help="write a Space too, which holds app and model")
    parser.add_argument("--space-model", metavar="ORG/NAME", help="the Space loads this model instead, from the Hub")
    parser.add_argument("--push", action="store_true", help="push the folder, or the Space, once it is checked")
    parser.add_argument("--repo", metavar="ORG/NAME", help="default: the recipe's run.push_to_hub, or the run's name")
    parser.add_argument("--private", action="store_true", help="only you may read the repository")
    parser.add_argument(RIGHT, action="store_true", dest="has_right", help="of what was trained on licensed data")
    options = parser.parse_args(arguments)
    if not (options.run / "metrics.json").is_file():
        parser.error(f"{options.run} has no metrics.json: it is not the output folder of a finished training run")
    if (options.repo or options.private or options.has_right) and not options.push:
        parser.error(f"--repo, --private and {RIGHT} need --push")
    if options.as_clip and (options.push or options.space):
        parser.error("--push and --space are of the model's own folder; they do not go with --as-clip")
    if options.space_model and (options.hub_dir or not options.space):
        parser.error("--space-model needs --space, and no --hub-dir")
    if options.space and options.push and not options.repo:
        parser.error("--push of a Space needs --repo")
    return options


def export(run_dir: Path, hub_dir: Path, repo: str | None = None) -> tuple[Path, float]:
    """Writes and checks the Hub folder; returns it and the largest difference of logits found by the check.

    Nothing is left at `hub_dir` unless the check succeeds; what an earlier export wrote there is replaced.

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
    """Model, processor and recipe of a finished run."""
    model = AutoModel.from_pretrained(run_dir).eval()
    return model, AutoProcessor.from_pretrained(run_dir), load_recipe(run_dir / "recipe.yaml")


def write_model(folder: Path, model, processor):
    """Configuration, weights, processor and all of `modeling_emoclip`, flat, as the Hub loads it."""
    if isinstance(model, modeling_emoclip.EmoCLIPModel) and isinstance(processor, modeling_emoclip.EmoCLIPProcessor):
        model.config.custom_pipelines = CUSTOM_PIPELINES  # it needs a text side and a tokenizer
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    copy_model_code(folder)


def copy_model_code(folder: Path):
    """save_pretrained copies the model's files only, and not the pipeline's."""
    for source in Path(modeling_emoclip.__file__).parent.glob("*.py"):
        if source.name != "__init__.py":
            shutil.copy(source, folder)


def write_recipe(folder: Path, recipe: Recipe):
    text = yaml.safe_dump(published_recipe(recipe), sort_keys=False, allow_unicode=True)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")


def copy_pictures(run_dir: Path, folder: Path, metrics: dict) -> dict[str, str]:
    """Evaluation set -> the picture of its confusion matrix, where it has several classes."""
    pictures = {}
    for name, final in metrics["final"].items():
        picture = run_dir / f"confusion_{re.sub(r'[^a-zA-Z0-9_.-]+', '_', name)}.png"
        if len(final.get("recall", ())) > 1 and picture.is_file():
            shutil.copy(picture, folder)
            pictures[name] = picture.name
    return pictures


def push(run_dir: Path, hub_dir: Path, pusher: HubPusher) -> str:
    """Pushes what `export` wrote and loads it back from the Hub; returns a line on it.

    Raises:
        PushError: see `HubPusher.finish`; or it is there, but is not what was pushed.
    """
    model, processor, _ = load_run(run_dir)
    revision = pusher.finish(hub_dir, f"EmoCLIP: {type(model).__name__}")
    try:
        difference = check(pusher.repo_id, model, processor, revision)
        visibility = pusher.visibility()
    except (OSError, RuntimeError) as error:
        last_line = str(error).strip().splitlines()[-1]
        raise PushError(
            f"pushed to {pusher.url}, but not loaded back: {last_line}; the folder is {hub_dir}"
        ) from error
    return f"pushed {pusher.url} ({visibility}); loaded back, its logits differ by at most {difference:.1e}"


def push_space(space_dir: Path, pusher: HubPusher) -> str:
    """Pushes what `write_space` wrote; returns a line on it. Raises a PushError, see `HubPusher.finish`."""
    pusher.finish(space_dir, "EmoCLIP: the app")
    return f"pushed {pusher.url} ({pusher.visibility()})"


def refuse_licensed(recipe: Recipe):
    """Raises a PushError if the weights come from data that an agreement protects."""
    if names := [one.name for one in data_sets(recipe) if one.is_learnt and one.is_licensed]:
        raise PushError(
            f"the weights were trained on licensed data ({', '.join(names)}), which may forbid to publish them; push "
            f"with --private, or with {RIGHT} if you have it",
            is_refusal=True,
        )


# While training goes on: `run.push_to_hub`.


def start_pushing(recipe: Recipe) -> HubPusher | None:
    """What `run.push_to_hub` asks for. Nobody is there to say that it may be public: it is private, unless it was
    trained on rendered faces only. A Hub that does not answer is no reason not to train.

    Raises:
        PushError: the repository would be refused at the end too, as without a token.
    """
    if recipe.run.push_to_hub is None:
        return None
    is_private = not all(one.is_rendered for one in data_sets(recipe) if one.is_learnt)
    pusher = HubPusher(recipe.run.push_to_hub, is_private, Path(recipe.run.output_dir))
    try:
        pusher.open()
    except PushError as error:
        if error.is_refusal:
            raise PushError(f"run.push_to_hub={recipe.run.push_to_hub}: {error}", is_refusal=True) from None
    return pusher


def push_checkpoint(
    pusher: HubPusher, experiment: Experiment, trained: nn.Module, recipe: Recipe, progress: Progress, checkpoint: Path
) -> None:
    """Takes a snapshot of the selected weights, with a card that says how far training is; returns at once.

    Args:
        trained: the unwrapped model that learns, or its average.
        checkpoint: folder of the last `save_checkpoint`.
    """

    def write(folder: Path):
        model = selected_copy(trained, checkpoint)
        metrics = {
            "title": recipe.title,
            "history": progress.history,
            "epochs": recipe.optim.epochs,
            "selected": progress.history[progress.selected],
            "parameters": model.num_parameters(),
        }
        write_model(folder, model, experiment.processor)
        write_recipe(folder, recipe)
        card = write_card(metrics, recipe, model, experiment.processor, "checkpoint.md", repo=pusher.repo_id)
        (folder / "README.md").write_text(card, encoding="utf-8")

    pusher.push_soon(write, f"Epoch {progress.epoch} of {recipe.optim.epochs}")


def selected_copy(trained: nn.Module, checkpoint: Path):
    """The selected weights in a model of its own, on the CPU, adapters merged; what learns is not touched."""
    parameters = {id(p): nn.Parameter(p.detach().to("cpu", copy=True), p.requires_grad) for p in trained.parameters()}
    buffers = {id(buffer): buffer.detach().to("cpu", copy=True) for buffer in trained.buffers()}
    copied = copy.deepcopy(trained, parameters | buffers)
    load_selected(copied, checkpoint)
    model = getattr(copied, "model", copied)  # without the component loss
    merge_adapters(model)
    return model.eval()


def push_result(pusher: HubPusher, output_dir: Path) -> str:
    """The finished run, exported, checked, pushed and loaded back; returns a line on it.

    Raises:
        PushError: with what is wrong and the folder that holds everything.
    """
    try:
        hub_dir, _ = export(output_dir, output_dir / "hub", pusher.repo_id)
    except (OSError, RuntimeError) as error:
        pusher.stop()
        raise PushError(f"not pushed to {pusher.repo_id}: {reason(error)}; the run is {output_dir}") from error
    return push(output_dir, hub_dir, pusher)


def export_clip(run_dir: Path, clip_dir: Path) -> Path:
    """The towers, projections and scale as a `CLIPModel` with tokenizer, image processor and card."""
    model, processor, recipe = load_run(run_dir)
    config = CLIPConfig(
        vision_config=model.config.vision_config.to_dict(),
        text_config=model.config.text_config.to_dict(),
        projection_dim=model.config.projection_dim,
        logit_scale_init_value=model.config.logit_scale_init_value,
    )
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("temporal.")}
    clip = CLIPModel(config)
    clip.load_state_dict(weights)
    clip.save_pretrained(clip_dir)
    video_processor = processor.video_processor
    fields = (
        "size",
        "crop_size",
        "image_mean",
        "image_std",
        "resample",
        "do_resize",
        "do_center_crop",
        "do_normalize",
    )
    image_processor = CLIPImageProcessor(**{name: getattr(video_processor, name) for name in fields})
    processor.tokenizer.init_kwargs.pop("auto_map", None)  # would send AutoProcessor after code of ours
    CLIPProcessor(image_processor, processor.tokenizer).save_pretrained(clip_dir)
    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    card = write_card(metrics, recipe, model, processor, "clip.md")
    (clip_dir / "README.md").write_text(card, encoding="utf-8")
    return clip_dir


if __name__ == "__main__":
    main(sys.argv[1:])

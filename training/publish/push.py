# SPDX-License-Identifier: Apache-2.0
"""Pushes an exported run, or a Space, to the Hub.

python -m training.publish.push outputs/synthetic_emoclip --repo me/emoclip    pushes outputs/synthetic_emoclip/hub
python -m training.publish.push outputs/space --repo me/emoclip-app            a folder of training.publish.space

A new repository is public, unless --private; what was trained on licensed data is not made public without
--i-have-the-right-to-publish. `run.push_to_hub` of a recipe pushes while training goes on.
"""

import argparse
import sys
from pathlib import Path

from huggingface_hub import ModelCard

from training.publish.card import data_sets
from training.publish.check_hub_folder import check
from training.publish.export import load_run
from training.publish.hub import HubPusher, PushError
from training.publish.space import is_space
from training.recipe import load_recipe

RIGHT = "--i-have-the-right-to-publish"


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of an exported run, or a Space")
    parser.add_argument("--hub-dir", type=Path, help="where the run was exported to; default: FOLDER/hub")
    parser.add_argument("--repo", metavar="ORG/NAME", help="default: the recipe's run.push_to_hub, or the run's name")
    parser.add_argument("--private", action="store_true", help="only you can read the repository")
    parser.add_argument(RIGHT, action="store_true", dest="has_right", help="for weights trained on licensed data")
    options = parser.parse_args(arguments)
    folder, hub_dir = options.folder, options.hub_dir or options.folder / "hub"
    if is_space(folder):
        if not options.repo:
            parser.error("a Space needs --repo")
    elif not (hub_dir / "recipe.yaml").is_file():
        parser.error(f"{hub_dir} is no exported run: python -m training.publish.export {folder}")
    try:
        if not options.private and not options.has_right:
            refuse_licensed(folder)
        if is_space(folder):
            pusher = HubPusher(options.repo, options.private, folder.parent, "space")
            pusher.finish(folder, "EmoCLIP: the app")
            print(f"pushed {pusher.url} ({pusher.visibility()})")
        else:
            repo_id = options.repo or load_recipe(folder / "recipe.yaml").run.push_to_hub or folder.resolve().name
            print(push(folder, hub_dir, HubPusher(repo_id, options.private, folder)))
    except PushError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def push(run_dir: Path, hub_dir: Path, pusher: HubPusher) -> str:
    """Pushes an exported folder and loads it back from the Hub; returns a line about it.

    Raises:
        PushError: see `HubPusher.finish`; or the repository is not what was pushed.
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


def refuse_licensed(folder: Path):
    """Raises a PushError if the weights in a run's or a Space's folder come from data under a licence agreement."""
    if is_space(folder):
        card = ModelCard.load(folder / "README.md").data
        is_open = not (folder / "model").is_dir() or card.license == "apache-2.0"
        names = [] if is_open else [card.license_name.removesuffix("-agreement")]
    else:
        sets = data_sets(load_recipe(folder / "recipe.yaml"))
        names = [one.name for one in sets if one.is_learnt and one.is_licensed]
    if names:
        raise PushError(
            f"the weights were trained on licensed data ({', '.join(names)}), which may forbid to publish them; push "
            f"with --private, or with {RIGHT} if you have it",
            is_refusal=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])

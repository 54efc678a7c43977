# SPDX-License-Identifier: Apache-2.0
"""Fills the frame cache for all splits of a recipe ahead of training; can be stopped and restarted.

python -m training.cache.cache_frames training/recipes/synthetic_emoclip.yaml [a.b=c ...]
"""

import argparse
import sys
from pathlib import Path

import datasets
from accelerate import Accelerator

from emoclip.cli import end_by_ctrl_c
from training.build import build
from training.recipe import Recipe, load_recipe


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a yaml file of training/recipes, or one of your own")
    parser.add_argument("overrides", nargs="*", help="recipe fields, as data.encode_every=2")
    options = parser.parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe, options.overrides)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    try:
        if not fill(recipe):
            parser.error("this recipe trains the image tower, or reads images: no frames can be encoded beforehand")
        return
    except KeyboardInterrupt:
        pass  # after this line nothing references the loader any more, and its workers have ended
    print("stopped; the same command goes on from here", file=sys.stderr)
    end_by_ctrl_c()


def fill(recipe: Recipe) -> bool:
    """Encodes the frames of all splits; returns `False` if the recipe does not use frame embeddings."""
    cache_dir = Path(recipe.data.cache_dir or datasets.config.HF_DATASETS_CACHE) / "frame_embeds"
    experiment = build(recipe, Accelerator().device, cache_dir)
    clips = [experiment.train_clips, *experiment.evaluation_clips.values()]
    return any(part is not None and part.frame_embeds is not None for part in clips)


if __name__ == "__main__":
    main(sys.argv[1:])

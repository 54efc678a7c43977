# SPDX-License-Identifier: Apache-2.0
"""A handful of one's own videos, and a recipe that trains on them in seconds."""

from pathlib import Path

import pytest

from training.recipe import load_recipe

RECIPE = Path(__file__).parents[2] / "training" / "recipes" / "own_videos.yaml"


@pytest.fixture(scope="session")
def own_videos(write_clip, tmp_path_factory):
    """24 clips of two kinds, by six people."""
    folder = tmp_path_factory.mktemp("own")
    lines = ["file_name,label,caption,tension,group"]
    for number in range(24):
        label = ("happiness", "sadness")[number % 2]
        (folder / f"{number}.mp4").parent.mkdir(exist_ok=True)
        write_clip(folder / f"{number}.mp4", num_frames=5 + number % 3)
        lines.append(f"{number}.mp4,{label},a face of {label},{number / 10},person{number % 6}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def make_recipe(clip_dir, own_videos, tmp_path_factory):
    cache_dir = tmp_path_factory.mktemp("cache")

    def make(output_dir, *overrides):
        small = [
            f"model.init={clip_dir}",
            "model.config={temporal_num_layers: 1, temporal_num_heads: 2, temporal_head_dim: 8, "
            "temporal_intermediate_size: 16, temporal_max_frames: 8}",
            "model.video_processor={num_frames: 4, frame_sampling: segment_middle}",
            "data.frame_sampling=segment_random",
            f"data.data_dir={own_videos}",
            f"data.cache_dir={cache_dir}",
            "data.validation_share=0.25",
            "data.evaluation={own: {split: train}}",
            "optim.epochs=2",
            "optim.milestones=[]",
            "optim.batch_size=6",
            f"run.output_dir={output_dir}",
        ]
        return load_recipe(RECIPE, [*small, *overrides])

    return make

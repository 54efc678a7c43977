# SPDX-License-Identifier: Apache-2.0
"""Clips with fewer frames than the model reads: repeated, masked or filled up with zeros."""

import pytest
import torch
from safetensors.torch import save_file

from emoclip import EmoCLIPVideoProcessor
from training.cache.feature_cache import FrameEmbeds
from training.collate import Clips, Collator
from training.recipe import DataRecipe

PROCESSOR = EmoCLIPVideoProcessor(num_frames=6, frame_stride=1)


@pytest.fixture
def frame_embeds(tmp_path):
    """Clips of 8 and of 3 frames, in turns, numbered from 1."""
    numbers = torch.cat([torch.arange(1.0, 9.0), torch.arange(1.0, 4.0)])
    save_file({"frame_embeds": numbers[:, None].repeat(1, 3)}, tmp_path / "shard.safetensors")
    places = [(tmp_path / "shard.safetensors", 0, 8), (tmp_path / "shard.safetensors", 8, 11)]
    return FrameEmbeds([places * 30])


def clips(frame_embeds, seed=0, **options):
    return Clips([{}] * 60, PROCESSOR, DataRecipe(**options), frame_embeds=frame_embeds, seed=seed)


def batch(frame_embeds, **options):
    found = clips(frame_embeds, **options)
    return Collator(processor=None)([found[0], found[1]])


def test_frames_repeat(frame_embeds):
    repeated = batch(frame_embeds)
    assert repeated["frame_mask"].all()
    assert repeated["frame_embeds"][1, :, 0].tolist() == [1, 1, 2, 2, 3, 3]


def test_missing_frames_are_masked(frame_embeds):
    masked = batch(frame_embeds, short_clips="mask")
    assert masked["frame_mask"].tolist() == [[True] * 6, [True] * 3 + [False] * 3]
    assert masked["frame_embeds"][1, :3, 0].tolist() == [1, 2, 3]


def test_zeros_count_as_frames(frame_embeds):
    zeros = batch(frame_embeds, short_clips="zeros")
    assert zeros["frame_mask"].all()
    assert zeros["frame_embeds"][1, :, 0].tolist() == [1, 2, 3, 0, 0, 0]


def test_clips_are_cut_to_a_length_that_depends_on_the_row_alone(frame_embeds):
    def lengths(seed):
        cut = clips(frame_embeds, short_clips="mask", shortest=2, seed=seed)
        return [len(cut[row]["frame_embeds"]) for row in range(60)]

    assert lengths(0) == lengths(1)
    assert set(lengths(0)[::2]) == {2, 3, 4, 5, 6}  # of those with 7 and 8 frames 6 are chosen
    assert set(lengths(0)[1::2]) == {2, 3}


def test_frames_that_are_not_encoded_cannot_be_cut():
    with pytest.raises(ValueError, match=r"data\.short_clips is mask and data\.shortest None"):
        Clips([{}], PROCESSOR, DataRecipe(short_clips="mask"))

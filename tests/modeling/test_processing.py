# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPTokenizer

from modeling_emoclip.processing_emoclip import EmoCLIPProcessor
from modeling_emoclip.video_processing_emoclip import EmoCLIPVideoProcessor

ROOT = str(Path(__file__).parents[2])
SPECIAL_TOKENS = {"unk_token": "<|unk|>", "pad_token": "<|pad|>", "bos_token": "<|start|>", "eos_token": "<|end|>"}
CLIP_ROOM = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["an expression of joy", "the brows are lowered and drawn together", "a neutral face"]
    tokenizer = CLIPTokenizer(**SPECIAL_TOKENS).train_new_from_iterator(texts, 300)
    tokenizer.model_max_length = 12
    return tokenizer


@pytest.fixture
def processor(tokenizer):
    return EmoCLIPProcessor(EmoCLIPVideoProcessor(num_frames=4, **CLIP_ROOM), tokenizer)


@pytest.fixture
def video():
    return np.random.default_rng(0).integers(0, 256, (9, 40, 50, 3), dtype=np.uint8)


def test_texts_and_videos(processor, video):
    inputs = processor(text=["joy", "the brows are lowered"], videos=[video, video[:2]], return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values_videos"}
    assert inputs.pixel_values_videos.shape == (2, 4, 3, 32, 32)
    assert inputs.input_ids.shape == inputs.attention_mask.shape
    assert inputs.attention_mask[0].sum() < inputs.attention_mask[1].sum()
    assert set(inputs) | {"frame_mask"} == set(processor.model_input_names)


def test_either_alone_gives_what_its_part_gives(processor, video):
    texts = processor(text="joy", return_tensors="pt")
    assert texts.input_ids.tolist() == processor.tokenizer(["joy"])["input_ids"]
    videos = processor(videos=video, return_tensors="pt")
    assert set(videos) == {"pixel_values_videos"}
    expected = processor.video_processor(video, return_tensors="pt").pixel_values_videos
    torch.testing.assert_close(videos.pixel_values_videos, expected)
    with pytest.raises(ValueError, match="at least one input"):
        processor()


def test_long_texts_are_cut_to_what_the_tokenizer_allows(processor):
    inputs = processor(text=["the brows are lowered " * 20, "joy"], return_tensors="pt")
    assert inputs.input_ids.shape == (2, 12)
    assert inputs.input_ids[0, -1] == processor.tokenizer.eos_token_id


def test_options_reach_the_video_processor(processor, video):
    inputs = processor(videos=[video, video[:3]], do_sample_frames=False, return_tensors="pt")
    assert inputs.frame_mask.sum(dim=1).tolist() == [9, 3]
    options = {"frame_sampling": "segment_random", "seed": 3, "num_frames": 2, "return_metadata": True}
    inputs = processor(videos=video, return_tensors="pt", **options)
    assert inputs.pixel_values_videos.shape[1] == 2
    expected = processor.video_processor(video, **options).video_metadata[0].frames_indices
    assert inputs.video_metadata[0].frames_indices.tolist() == expected.tolist()
    nested = processor(videos=video, videos_kwargs={"num_frames": 3}, return_tensors="pt")
    assert nested.pixel_values_videos.shape[1] == 3


def test_saved_and_loaded(processor, video, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = EmoCLIPProcessor.from_pretrained(tmp_path)
    assert loaded.video_processor.to_dict() == processor.video_processor.to_dict()
    before = processor(text="a neutral face", videos=video, return_tensors="pt")
    after = loaded(text="a neutral face", videos=video, return_tensors="pt")
    for name in before:
        torch.testing.assert_close(after[name], before[name])


def test_from_a_clip_checkpoint(tokenizer, tmp_path, video):
    settings = {"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}, "resample": 2}
    settings |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    image_processor = CLIPImageProcessor(**settings)
    image_processor.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    processor = EmoCLIPProcessor.from_clip(tmp_path, num_frames=9, frame_sampling="strided_window", frame_stride=1)
    assert processor.video_processor.frame_sampling == "strided_window"
    inputs = processor(text="joy", videos=video, return_tensors="pt")
    expected = image_processor(list(video), return_tensors="pt").pixel_values
    torch.testing.assert_close(inputs.pixel_values_videos[0], expected)
    assert inputs.input_ids.tolist() == tokenizer(["joy"])["input_ids"]
    overridden = EmoCLIPProcessor.from_clip(tmp_path, crop_size={"height": 24, "width": 24})
    assert overridden(videos=video, return_tensors="pt").pixel_values_videos.shape == (1, 16, 3, 24, 24)


def test_from_the_numbers_of_an_old_clip_checkpoint(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 48, "crop_size": 40, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    video_processor = EmoCLIPProcessor.from_clip(str(tmp_path)).video_processor.to_dict()
    assert video_processor["size"] == {"shortest_edge": 48}
    assert video_processor["crop_size"] == {"height": 40, "width": 40}


def test_from_a_checkpoint_of_this_package(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = EmoCLIPProcessor.from_clip(str(tmp_path), frame_stride=9)
    assert loaded.video_processor.to_dict() == processor.video_processor.to_dict() | {"frame_stride": 9}


def test_from_clip_says_what_is_missing(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"preprocessor_config\.json"):
        EmoCLIPProcessor.from_clip(str(tmp_path))


def test_travels_as_remote_code(tokenizer, tmp_path, video):
    folder, other = tmp_path / "hub", tmp_path / "elsewhere"
    other.mkdir()
    script = f"""
import sys
sys.path.insert(0, {ROOT!r})
from transformers import CLIPTokenizer
from modeling_emoclip.processing_emoclip import EmoCLIPProcessor
from modeling_emoclip.video_processing_emoclip import EmoCLIPVideoProcessor
EmoCLIPVideoProcessor.register_for_auto_class("AutoVideoProcessor")
EmoCLIPProcessor.register_for_auto_class("AutoProcessor")
tokenizer = CLIPTokenizer.from_pretrained({str(tmp_path / "tokenizer")!r})
EmoCLIPProcessor(EmoCLIPVideoProcessor(num_frames=4), tokenizer).save_pretrained({str(folder)!r})
"""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    load = f"""
import sys
sys.path = [path for path in sys.path if path not in ("", {ROOT!r})]
sys.modules["modeling_emoclip"] = None  # an editable install must not be used
import numpy as np
from transformers import AutoProcessor, AutoVideoProcessor
processor = AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
video_processor = AutoVideoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
inputs = processor(text=["joy"], videos=np.zeros((9, 40, 50, 3), np.uint8), return_tensors="pt")
assert video_processor.num_frames == 4 and inputs.pixel_values_videos.shape == (1, 4, 3, 224, 224)
assert type(video_processor).__module__.startswith("transformers_modules.")
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    for code, folder_of_work in ((script, ROOT), (load, other)):
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder_of_work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr[-3000:]

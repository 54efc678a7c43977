# SPDX-License-Identifier: Apache-2.0
"""The image tower in other precisions: how near the model's own numbers, and that the model stays as it is."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import pipeline
from transformers.activations import QuickGELUActivation

from emoclip import EmoCLIPConfig, EmoCLIPModel, EmoCLIPProcessor, ZeroShotVideoClassificationPipeline
from emoclip.frame_encoder import FRAMES_AT_ONCE_ON_CPU, FrameEncoder, fast_dtype

LABELS = ["a smile", "lowered eyebrows"]


def make_model(hidden_size: int = 64) -> EmoCLIPModel:
    torch.manual_seed(0)
    vision = {"hidden_size": hidden_size, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = EmoCLIPConfig(vision_config=vision | {"image_size": 32, "patch_size": 8}, text_config=text)
    return EmoCLIPModel(config).eval()


@pytest.fixture
def model():
    return make_model()


@pytest.fixture(scope="module")
def frames():
    return torch.randn(2 * FRAMES_AT_ONCE_ON_CPU + 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def own(model, frames):
    return model.visual_projection(model.vision_model(pixel_values=frames).pooler_output)


def test_in_the_models_dtype_numbers_are_the_models_and_weights_are_shared(model, frames):
    encoder = FrameEncoder(model)
    part = frames[:FRAMES_AT_ONCE_ON_CPU]
    assert torch.equal(encoder(part), own(model, part))
    torch.testing.assert_close(encoder(frames), own(model, frames), atol=1e-6, rtol=1e-5)  # in several parts
    tower = encoder._tower()
    shared = zip(tower.parameters(), model.vision_model.parameters(), strict=True)
    assert tower is not model.vision_model and all(one is other for one, other in shared)


@pytest.mark.parametrize(("options", "least"), [({"dtype": torch.bfloat16}, 0.999), ({"dtype": "bfloat16"}, 0.999)])
def test_rounded_towers_are_near_and_leave_the_model_alone(model, frames, options, least):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    embeds = FrameEncoder(model, **options)(frames)
    assert embeds.dtype is torch.float32 and not torch.equal(embeds, own(model, frames))
    assert cosine_similarity(embeds, own(model, frames)).min() > least
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model.vision_model.encoder.layers[0].mlp.activation_fn) is QuickGELUActivation
    model.vision_model(pixel_values=frames[:2]).pooler_output.sum().backward()  # it can still be trained


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}])
def test_weights_that_change_count(model, frames, options):
    encoder = FrameEncoder(model, **options)
    encoder(frames)
    with torch.no_grad():
        model.vision_model.encoder.layers[0].mlp.fc1.weight.mul_(-1)
    assert cosine_similarity(encoder(frames), own(model, frames)).min() > 0.99
    model.load_state_dict(make_model().state_dict())
    assert cosine_similarity(encoder(frames), own(make_model(), frames)).min() > 0.99


def test_bfloat16_is_chosen_where_the_processor_has_instructions_for_it(monkeypatch):
    wide, narrow = make_model(256), make_model(64)
    for instructions, expected in (({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=instructions: found)
        assert fast_dtype(wide) is FrameEncoder(wide, "fast").dtype is expected
        assert fast_dtype(narrow) is torch.float32
        assert FrameEncoder(wide, torch.float32).dtype is FrameEncoder(wide).dtype is torch.float32
    assert fast_dtype(make_model(256).half()) is torch.float16


def test_transformers_pipeline_takes_the_choice(clip_dir, write_clip, tmp_path, monkeypatch):
    model = EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=1)
    processor = EmoCLIPProcessor.from_clip(clip_dir, num_frames=4)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    task, clip = "zero-shot-video-classification", write_clip(tmp_path / "clip.mp4")
    expected = ZeroShotVideoClassificationPipeline(model=model, processor=processor)(clip, LABELS)
    monkeypatch.setattr("emoclip.frame_encoder._WIDE", 1)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    for given, dtype in (({"fast": True}, torch.bfloat16), ({}, torch.float32), ({"dtype": "float32"}, torch.float32)):
        pipe = pipeline(task, model=str(tmp_path), **given)
        assert pipe.encode_frames.dtype is dtype and pipe.model.dtype is torch.float32
        scores = {entry["label"]: entry["score"] for entry in pipe(clip, LABELS)}
        tolerance = 1e-6 if dtype is torch.float32 else 0.01
        assert scores == pytest.approx({entry["label"]: entry["score"] for entry in expected}, abs=tolerance)
        assert (pipe.embed(clip, progress=False).embeds == 0).sum() == 0


def test_a_dtype_that_is_none_is_refused(model):
    for wrong in ("faster", torch.int8, 16):
        with pytest.raises(ValueError, match="must be 'fast', None, or a torch dtype of floats"):
            FrameEncoder(model, wrong)


@pytest.mark.slow
def test_a_compiled_tower_gives_the_same(model, frames):
    compiled = FrameEncoder(model, compile=True)
    torch.testing.assert_close(compiled(frames), own(model, frames), atol=1e-5, rtol=1e-4)

# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from transformers import AutoModel, CLIPModel

from emoclip import EmoCLIPConfig, EmoCLIPModel

NUM_FRAMES, IMAGE_SIZE = 5, 32


@pytest.fixture
def model(clip_dir):
    return EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=2, temporal_num_heads=2, temporal_head_dim=8)


@pytest.fixture
def trained(model):
    """As after training: the last projection is no longer zero."""
    torch.manual_seed(1)
    torch.nn.init.normal_(model.temporal.output_projection.weight)
    return model


@pytest.fixture
def inputs(model):
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(4, model.config.text_config.vocab_size, (3, 7), generator=generator)
    input_ids[:, -1] = model.config.text_config.eos_token_id
    pixels = torch.randn(3, NUM_FRAMES, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return {"input_ids": input_ids, "pixel_values_videos": pixels}


def clip_mean_of_frames(clip_dir, inputs):
    clip = CLIPModel.from_pretrained(clip_dir).eval()
    frames = inputs["pixel_values_videos"]
    frame_embeds = clip.get_image_features(frames.flatten(0, 1)).pooler_output.view(*frames.shape[:2], -1)
    videos = torch.nn.functional.normalize(frame_embeds.mean(dim=1), dim=-1)
    texts = torch.nn.functional.normalize(clip.get_text_features(inputs["input_ids"]).pooler_output, dim=-1)
    return videos @ texts.t() * clip.logit_scale.exp()


@torch.no_grad()
def test_untrained_model_scores_exactly_like_clip_with_the_mean_of_its_frames(model, clip_dir, inputs):
    assert torch.equal(model(**inputs).logits_per_video, clip_mean_of_frames(clip_dir, inputs))


@torch.no_grad()
def test_no_temporal_layers_is_the_mean_of_the_frames_and_has_no_parameters(clip_dir, inputs):
    model = EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=0)
    assert not [name for name, _ in model.named_parameters() if name.startswith("temporal")]
    assert torch.equal(model(**inputs).logits_per_video, clip_mean_of_frames(clip_dir, inputs))


@torch.no_grad()
def test_without_residual_it_is_the_papers_class_token(clip_dir, inputs):
    model = EmoCLIPModel.from_clip(clip_dir, temporal_residual=False)
    features = model.get_video_features(inputs["pixel_values_videos"])
    assert torch.equal(features.pooler_output, features.last_hidden_state[:, 0])
    assert not torch.allclose(model(**inputs).logits_per_video, clip_mean_of_frames(clip_dir, inputs))


def test_from_pretrained_with_a_config_fills_both_towers(clip_dir, model):
    clip = CLIPModel.from_pretrained(clip_dir)
    loaded, info = EmoCLIPModel.from_pretrained(clip_dir, config=model.config, output_loading_info=True)
    assert all(name.startswith("temporal.") for name in info["missing_keys"]) and not info["unexpected_keys"]
    for name, weight in clip.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_every_parameter_missing_from_clip_is_initialised(model):
    for name, weight in model.named_parameters():
        assert torch.isfinite(weight).all() and weight.abs().max() < 10, name
    assert model.temporal.output_projection.weight.abs().sum() == 0


@torch.no_grad()
def test_save_and_load(trained, inputs, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is EmoCLIPModel
    assert torch.equal(loaded(**inputs).logits_per_video, trained(**inputs).logits_per_video)


@torch.no_grad()
def test_frame_embeds_may_be_fed_back(trained, inputs):
    outputs = trained(**inputs)
    again = trained(input_ids=inputs["input_ids"], frame_embeds=outputs.frame_embeds)
    assert torch.equal(again.logits_per_video, outputs.logits_per_video)
    with_texts = trained(text_embeds=outputs.text_embeds, frame_embeds=outputs.frame_embeds)
    torch.testing.assert_close(with_texts.logits_per_video, outputs.logits_per_video)


@pytest.mark.parametrize("temporal_num_layers", [0, 2])
@pytest.mark.parametrize("temporal_residual", [True, False])
@pytest.mark.parametrize("padding", [0.0, 1e4, float("nan"), float("inf")])
@torch.no_grad()
def test_padding_frames_never_change_a_result(clip_dir, temporal_num_layers, temporal_residual, padding):
    model = EmoCLIPModel.from_clip(
        clip_dir, temporal_num_layers=temporal_num_layers, temporal_residual=temporal_residual
    )
    frame_embeds = torch.randn(2, 4, 24)
    padded = torch.cat([frame_embeds, torch.full((2, 3, 24), padding)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]] * 2)
    expected = model.get_video_features(frame_embeds=frame_embeds).pooler_output
    actual = model.get_video_features(frame_embeds=padded, frame_mask=mask).pooler_output
    torch.testing.assert_close(actual, expected)


@torch.no_grad()
def test_order_of_frames_matters_once_trained(trained, inputs):
    forwards = trained.get_video_features(inputs["pixel_values_videos"]).pooler_output
    backwards = trained.get_video_features(inputs["pixel_values_videos"].flip(1)).pooler_output
    assert not torch.allclose(forwards, backwards, atol=1e-3)


@torch.no_grad()
def test_eager_and_sdpa_agree(trained, inputs):
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    sdpa = trained(**inputs, frame_mask=mask).logits_per_video
    trained.set_attn_implementation("eager")
    eager = trained(**inputs, frame_mask=mask, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(eager.logits_per_video, sdpa, atol=1e-5, rtol=1e-5)
    video_output = eager.video_model_output
    assert [tuple(a.shape) for a in video_output.attentions] == [(3, 2, 6, 6)] * 2
    assert [tuple(h.shape) for h in video_output.hidden_states] == [(3, 6, 24)] * 3
    assert len(video_output.vision_model_output.attentions) == 2 and len(eager.text_model_output.attentions) == 2


@torch.no_grad()
def test_return_dict_false_gives_the_same_values_as_a_tuple(trained, inputs):
    outputs = trained(**inputs, return_loss=True)
    values = trained(**inputs, return_loss=True, return_dict=False)
    assert isinstance(values, tuple) and torch.equal(values[0], outputs.loss)
    assert torch.equal(values[1], outputs.logits_per_video)


def test_gradient_checkpointing_gives_the_same_gradients(trained, inputs):
    trained.train()
    gradients = []
    for _ in range(2):
        trained.zero_grad()
        trained(**inputs, return_loss=True).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None})
        trained.gradient_checkpointing_enable()
    assert gradients[0].keys() == gradients[1].keys() and any("temporal" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@torch.no_grad()
def test_bfloat16_runs_and_stays_close(trained, inputs):
    expected = trained(**inputs).video_embeds
    outputs = trained.to(torch.bfloat16)(**inputs, return_loss=True)
    assert outputs.video_embeds.dtype == torch.bfloat16 and outputs.loss.dtype == torch.float32
    torch.testing.assert_close(outputs.video_embeds.float(), expected, atol=0.05, rtol=0.05)


def test_a_few_steps_lower_the_loss_from_pixels_and_from_cached_frames(model, inputs):
    model.requires_grad_(False)
    for parameter in (*model.temporal.parameters(), model.logit_scale):
        parameter.requires_grad_(True)
    frame_embeds = model(**inputs).frame_embeds.detach()
    for batch in (inputs, {"input_ids": inputs["input_ids"], "frame_embeds": frame_embeds}):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        losses = []
        for _ in range(8):
            loss = model(**batch, return_loss=True).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values_videos": None}, "either pixel_values_videos or frame_embeds"),
        ({"frame_embeds": torch.zeros(3, 2, 24)}, "either pixel_values_videos or frame_embeds"),
        ({"pixel_values_videos": torch.zeros(3, 3, 32, 32)}, r"\(3, 3, 32, 32\)"),
        ({"input_ids": None}, "input_ids or text_embeds"),
        ({"frame_mask": torch.ones(3, 4)}, r"frame_mask has shape \(3, 4\)"),
        ({"frame_mask": torch.tensor([[1] * 5, [0] * 5, [1] * 5])}, r"row\(s\) \[1\]"),
        ({"pixel_values_videos": torch.zeros(2, 5, 3, 32, 32), "return_loss": True}, r"\(3, 2\)"),
    ],
)
def test_bad_input_gets_one_clear_error(model, inputs, change, message):
    with pytest.raises(ValueError, match=message):
        model(**(inputs | change))


def test_bad_frame_embeds_and_too_many_frames(clip_dir):
    model = EmoCLIPModel.from_clip(clip_dir, temporal_max_frames=4)
    with pytest.raises(ValueError, match="projection_dim = 24"):
        model.get_video_features(frame_embeds=torch.zeros(1, 3, 23))
    with pytest.raises(ValueError, match="5 frames, but temporal_max_frames is 4"):
        model.get_video_features(frame_embeds=torch.zeros(1, 5, 24))


@pytest.mark.parametrize(
    ("field", "value"),
    [("temporal_num_heads", 0), ("temporal_num_layers", -1), ("temporal_max_frames", "8"), ("temporal_residual", 2)],
)
def test_config_refuses_impossible_values(field, value):
    with pytest.raises(Exception, match=field):
        EmoCLIPConfig(**{field: value})


def test_from_clip_refuses_a_misspelt_field(clip_dir):
    with pytest.raises(ValueError, match="temporal_layers"):
        EmoCLIPModel.from_clip(clip_dir, temporal_layers=1)


@pytest.mark.parametrize("texts", ["a smile", [], [""], [3]])
def test_config_refuses_bad_class_descriptions(texts):
    with pytest.raises(Exception, match="happiness"):
        EmoCLIPConfig(class_descriptions={"happiness": texts})

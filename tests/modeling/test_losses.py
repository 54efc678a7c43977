# SPDX-License-Identifier: Apache-2.0
"""The contrastive losses."""

import json
import math

import pytest
import torch

from emoclip import EmoCLIPConfig, EmoCLIPForPromptClassification, EmoCLIPForVideoClassification, EmoCLIPModel
from modeling_emoclip.losses import contrastive_loss, sigmoid_loss

SMALL = {"temporal_num_heads": 2, "temporal_head_dim": 8, "temporal_num_layers": 1}
SIGMOID = {"contrastive_loss": "sigmoid"} | SMALL


@pytest.fixture
def model(clip_dir):
    return EmoCLIPModel.from_clip(clip_dir, **SMALL)


@pytest.fixture
def inputs(model):
    end = model.config.text_config.eos_token_id
    texts = [[5, 6, end, 0], [7, 8, 9, end], [5, 6, end, 0]]
    return {"input_ids": torch.tensor(texts), "frame_embeds": torch.randn(3, 2, 24), "return_loss": True}


# ---- pure functions ----


def test_losses_by_hand():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0], [1.0, -4.0, 0.1]])
    belongs, probability = torch.eye(3), logits.sigmoid()
    pairs = belongs * probability.log() + (1 - belongs) * (1 - probability).log()
    torch.testing.assert_close(sigmoid_loss(logits), -pairs.sum() / 3)
    both_ways = logits.log_softmax(dim=0).diagonal() + logits.log_softmax(dim=1).diagonal()
    torch.testing.assert_close(contrastive_loss(logits), -both_ways.mean() / 2)


@pytest.mark.parametrize("loss", [contrastive_loss, sigmoid_loss])
def test_losses_are_finite_for_extreme_scores_and_in_16_bits(loss):
    logits = torch.full((3, 3), -300.0, requires_grad=True)
    loss(logits).backward()
    assert logits.grad.isfinite().all()
    assert loss(logits.detach().to(torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("loss", [contrastive_loss, sigmoid_loss])
def test_losses_need_a_text_for_each_video(loss):
    with pytest.raises(ValueError, match=r"one text for each video.*\(3, 2\)"):
        loss(torch.zeros(3, 2))


# ---- the sigmoid loss ----


@torch.no_grad()
def test_the_bias_exists_only_for_the_sigmoid_loss_and_is_in_the_scores(clip_dir, model, inputs):
    sigmoid = EmoCLIPModel.from_clip(clip_dir, **SIGMOID)
    assert set(sigmoid.state_dict()) - set(model.state_dict()) == {"logit_bias"}
    outputs = sigmoid(**inputs)
    cosines = outputs.text_embeds @ outputs.video_embeds.t()
    torch.testing.assert_close(outputs.logits_per_text, cosines * 10 - 10)
    torch.testing.assert_close(outputs.loss, sigmoid_loss(outputs.logits_per_text))


def test_scale_at_the_start(clip_dir, model):
    """SigLIP's 10 with the sigmoid loss, also over CLIP's weights; else the checkpoint's, else CLIP's 1 / 0.07."""
    assert EmoCLIPModel.from_clip(clip_dir, **SIGMOID).logit_scale.item() == pytest.approx(math.log(10))
    assert EmoCLIPModel.from_clip(clip_dir, **SIGMOID, logit_scale_init_value=3).logit_scale.item() == 3
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
    config = EmoCLIPConfig.from_dict(model.config.to_dict() | {"contrastive_loss": "sigmoid"})
    for weights, scale in ((model.state_dict(), 1.5), ({}, 2.6592)):  # 2.6592: the config's own
        loaded = EmoCLIPModel.from_pretrained(None, config=config, state_dict=dict(weights))
        assert loaded.logit_scale.item() == pytest.approx(scale) and loaded.logit_bias.item() == -10
    assert EmoCLIPConfig().logit_scale_init_value == 2.6592
    assert EmoCLIPConfig(contrastive_loss="sigmoid").logit_scale_init_value == math.log(10)


@torch.no_grad()
def test_a_model_with_the_sigmoid_loss_is_saved_and_loaded(clip_dir, inputs, tmp_path):
    model = EmoCLIPModel.from_clip(clip_dir, **SIGMOID)
    model.logit_bias.fill_(-3.0)
    model.save_pretrained(tmp_path)
    loaded, info = EmoCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and loaded.config.contrastive_loss == "sigmoid"
    assert torch.equal(loaded(**inputs).loss, model(**inputs).loss)
    names = {0: "joy", 1: "anger"}
    for head in (EmoCLIPForVideoClassification, EmoCLIPForPromptClassification):
        fields = {"id2label": names, "class_input_ids": [[5], [6]]}
        loaded, info = head.from_pretrained(tmp_path, output_loading_info=True, **fields)
        assert not info["unexpected_keys"] and getattr(loaded, "logit_bias", None) is None


def test_training_with_the_sigmoid_loss_moves_the_bias(clip_dir, inputs):
    model = EmoCLIPModel.from_clip(clip_dir, **SIGMOID).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0] and model.logit_bias.item() > -10


@pytest.mark.parametrize(("field", "value"), [("contrastive_loss", "softmin")])
def test_config_names_the_field(field, value):
    with pytest.raises(Exception, match=field):
        EmoCLIPConfig(**{field: value})


def test_a_field_of_older_checkpoints_is_passed_over(clip_dir, tmp_path):
    model = EmoCLIPModel.from_clip(clip_dir, **SMALL)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"same_text_positives": True}))
    loaded = EmoCLIPModel.from_pretrained(tmp_path)
    assert not hasattr(loaded.config, "same_text_positives")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())

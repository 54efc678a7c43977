# SPDX-License-Identifier: Apache-2.0
import copy
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForVideoClassification,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    pipeline,
)

from emoclip import (
    EmoCLIPConfig,
    EmoCLIPForPromptClassification,
    EmoCLIPForVideoClassification,
    EmoCLIPForVideoRegression,
    EmoCLIPModel,
    EmoCLIPProcessor,
)
from modeling_emoclip.configuration_emoclip import REGRESSION_LOSSES
from modeling_emoclip.losses import ccc_loss, classification_loss, regression_loss
from modeling_emoclip.prompts import PromptLearner, start_and_end_token_ids

TEXTS = {"joy": "a smile slowly appearing", "anger": "lowered eyebrows", "surprise": "wide open eyes"}
NAMES = {"target_names": ["affect", "rapport", "arousal"], "target_ranges": [[0, 6], [0, 6], [-1, 1]]}
SMALL = {"temporal_num_heads": 2, "temporal_head_dim": 8, "temporal_num_layers": 1}
IDS = [[5, 6], [7, 8, 9], [4]]  # of three classes, where the words do not matter
HEADS = ["prompt", "classification", "regression"]


def make(kind, clip_dir, **fields):
    torch.manual_seed(0)  # of what CLIP does not have
    if kind == "prompt":
        return EmoCLIPForPromptClassification.from_clip(clip_dir, class_descriptions=TEXTS, **(SMALL | fields))
    if kind == "classification":
        names = dict(enumerate(TEXTS))
        return EmoCLIPForVideoClassification.from_clip(clip_dir, id2label=names, **(SMALL | fields))
    return EmoCLIPForVideoRegression.from_clip(clip_dir, **(NAMES | SMALL | fields))


def labels_of(kind):
    if kind == "regression":
        return torch.tensor([[0.0, 6.0, 0.1], [1.0, 2.0, -1.0], [5.0, 0.5, 0.9], [3.0, 4.0, 0.3]])
    return torch.tensor([0, 1, 2, 1])


@pytest.fixture
def clips():
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values_videos": torch.randn(4, 3, 3, 32, 32, generator=generator)}


@pytest.fixture
def prompt_model(clip_dir):
    return make("prompt", clip_dir)


def train(model, batch, steps=20, lr=5e-3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


# ------------------------------------------------------------------------------------------------- all three heads


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("cached", [False, True], ids=["pixels", "frame_embeds"])
def test_a_few_steps_lower_the_loss(clip_dir, clips, kind, cached):
    model = make(kind, clip_dir)
    if cached:
        with torch.no_grad():
            clips = {"frame_embeds": model(**clips).frame_embeds}
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    losses = train(model.train(), clips | {"labels": labels_of(kind)})
    assert losses[-1] < 0.9 * losses[0]
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) >= (not weight.requires_grad), name
    assert not torch.equal(model.visual_projection.weight, before["visual_projection.weight"]) or cached


@pytest.mark.parametrize("loss", REGRESSION_LOSSES)
def test_each_regression_loss_goes_down(clip_dir, clips, loss):
    model = make("regression", clip_dir, regression_loss=loss)
    losses = train(model, clips | {"labels": labels_of("regression")})
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForVideoClassification])
@torch.no_grad()
def test_save_and_load_through_the_auto_classes(clip_dir, clips, kind, auto_class, tmp_path):
    model = make(kind, clip_dir)
    model.save_pretrained(tmp_path)
    loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model) and not any(info.values())
    assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
    assert torch.equal(loaded(**clips).logits, model(**clips).logits)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    reference = f"modeling_emoclip_heads.{type(model).__name__}"
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == auto_map["AutoModelForVideoClassification"] == reference


def test_auto_classes_without_a_checkpoint_take_the_first(clip_dir):
    config = EmoCLIPConfig.from_clip_config(CLIPConfig.from_pretrained(clip_dir), **SMALL)
    assert type(AutoModel.from_config(config)) is EmoCLIPModel
    assert type(AutoModelForVideoClassification.from_config(config)) is EmoCLIPForVideoClassification


def test_saved_by_one_class_and_by_another_the_config_names_the_last(clip_dir, tmp_path):
    make("prompt", clip_dir).save_pretrained(tmp_path)
    EmoCLIPModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_emoclip.EmoCLIPConfig",
        "AutoModel": "modeling_emoclip.EmoCLIPModel",
    }


@pytest.mark.slow
@torch.no_grad()
def test_as_remote_code_in_another_process(clip_dir, clips, tmp_path):
    expected = {}
    for kind in HEADS:
        model = make(kind, clip_dir)
        model.save_pretrained(tmp_path / kind)
        expected[kind] = model(**clips).logits
    torch.save([clips, expected], tmp_path / "expected.pt")
    script = (
        "import torch; from transformers import AutoModel, AutoModelForVideoClassification\n"
        "clips, expected = torch.load('expected.pt'); torch.set_grad_enabled(False)\n"
        "for kind, logits in expected.items():\n"
        "    for auto in (AutoModel, AutoModelForVideoClassification):\n"
        "        model = auto.from_pretrained(kind, trust_remote_code=True)\n"
        "        assert type(model).__module__.startswith('transformers_modules'), type(model)\n"
        "        assert torch.equal(model(**clips).logits, logits)\n"
    )
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_padding_frames_never_change_a_result(clip_dir, kind):
    model = make(kind, clip_dir)
    frame_embeds = torch.randn(2, 4, 24)
    padded = torch.cat([frame_embeds, torch.full((2, 3, 24), torch.nan)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]] * 2)
    expected = model(frame_embeds=frame_embeds)
    actual = model(frame_embeds=padded, frame_mask=mask)
    torch.testing.assert_close(actual.logits, expected.logits)


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_mean_of_frames_hidden_states_tuples_and_16_bits(clip_dir, clips, kind):
    model = make(kind, clip_dir, temporal_num_layers=0)
    outputs = model(**clips)
    mean = outputs.frame_embeds.mean(dim=1)
    mean = torch.nn.functional.normalize(mean, dim=-1) if kind == "prompt" else mean
    torch.testing.assert_close(outputs.video_embeds, mean)
    model = make(kind, clip_dir)
    model.set_attn_implementation("eager")
    outputs = model(**clips, labels=labels_of(kind), output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 2 and len(outputs.attentions) == 1
    values = model(**clips, labels=labels_of(kind), return_dict=False)
    assert torch.equal(values[0], outputs.loss) and torch.equal(values[1], outputs.logits)
    in_16_bits = model.to(torch.bfloat16)(**clips, labels=labels_of(kind))
    assert in_16_bits.logits.dtype == torch.bfloat16 and in_16_bits.loss.dtype == torch.float32


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_heads_without_a_text_tower_load_clip_without_a_warning(clip_dir, kind, caplog):
    model = make(kind, clip_dir)
    assert not any("text" in name or name == "logit_scale" for name in model.state_dict())
    clip = CLIPModel.from_pretrained(clip_dir)
    _, info = type(model).from_pretrained(clip_dir, config=model.config, output_loading_info=True)
    assert not info["unexpected_keys"] and "text_model" not in caplog.text
    for name, weight in clip.state_dict().items():
        if name.startswith("visi"):
            assert torch.equal(model.state_dict()[name], weight), name


@pytest.mark.parametrize("kind", HEADS)
def test_stock_pipeline_with_our_processor(clip_dir, kind, write_clip, tmp_path):
    model = make(kind, clip_dir)
    model.save_pretrained(tmp_path)
    EmoCLIPProcessor.from_clip(clip_dir, num_frames=4).save_pretrained(tmp_path)
    video = str(write_clip(tmp_path / "clip.mp4"))
    pipe = pipeline("video-classification", model=str(tmp_path))
    assert type(pipe.model) is type(model)
    assert (model.config.problem_type == "regression") == (kind == "regression")
    # Later releases of transformers read that from problem_type, 5.20 does not yet.
    result = pipe(video, function_to_apply="none") if kind == "regression" else pipe(video)
    names = NAMES["target_names"] if kind == "regression" else TEXTS
    assert {row["label"] for row in result} == set(names)
    if kind != "regression":
        assert sum(row["score"] for row in result) == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        inputs = EmoCLIPProcessor.from_pretrained(tmp_path)(videos=video, return_tensors="pt")
        logits = model(**inputs).logits[0]
    assert inputs.pixel_values_videos.shape[1] == 4
    expected = logits if kind == "regression" else logits.softmax(dim=-1)
    scores = {row["label"]: row["score"] for row in result}
    torch.testing.assert_close(torch.tensor([scores[name] for name in names]), expected)


# ----------------------------------------------------------------------------------------------------- the prompts


def tiny_config(**fields):
    towers = {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 16,
        },
        "text_config": {
            "vocab_size": 60,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 16,
            "bos_token_id": 58,
            "eos_token_id": 59,
        },
    }
    fields = {"projection_dim": 24, "class_input_ids": IDS, "num_labels": 3, "prompt_num_context_tokens": 5} | fields
    return EmoCLIPConfig(**(towers | SMALL | fields))


def order(position, class_ids, contexts):
    return {
        "end": contexts + class_ids,
        "middle": contexts[:2] + class_ids + contexts[2:],
        "front": class_ids + contexts,
    }[position]


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("specific", [True, False], ids=["specific", "shared"])
@pytest.mark.parametrize("legacy", [True, False], ids=["eos 2", "eos"])
@torch.no_grad()
def test_contexts_that_are_real_tokens_give_the_text_tower_of_clip(position, specific, legacy):
    config = tiny_config(prompt_class_position=position, prompt_class_specific_contexts=specific)
    if legacy:
        config.text_config.bos_token_id, config.text_config.eos_token_id = 0, 2
    model = EmoCLIPForPromptClassification(config).eval()
    table = model.text_model.embeddings.token_embedding.weight
    contexts = (
        [[20, 21, 22, 23, 24], [30, 31, 32, 33, 34], [40, 41, 42, 43, 44]] if specific else [[20, 21, 22, 23, 24]]
    )
    assert model.prompt_learner.context.shape == ((3, 5, 16) if specific else (5, 16))
    model.prompt_learner.context.copy_(table[torch.tensor(contexts if specific else contexts[0])])
    clip_config = CLIPConfig(
        text_config=config.text_config.to_dict(), vision_config=config.vision_config.to_dict(), projection_dim=24
    )
    clip = CLIPModel(clip_config).eval()
    clip.load_state_dict(model.state_dict(), strict=False)
    for index, class_ids in enumerate(IDS):
        prompt = [58, *order(position, class_ids, contexts[index if specific else 0]), 59]
        expected = clip.get_text_features(torch.tensor([prompt + [59 if not legacy else 0] * 3])).pooler_output
        expected = torch.nn.functional.normalize(expected, dim=-1)
        torch.testing.assert_close(model.get_class_embeds()[index : index + 1], expected, atol=1e-6, rtol=1e-5)


def test_layout_and_initial_contexts():
    learner = EmoCLIPForPromptClassification(tiny_config(prompt_num_context_tokens=14 - 3)).prompt_learner
    assert learner.input_ids.shape == (3, 16) and learner.end_positions.tolist() == [14, 15, 13]
    assert 0.01 < learner.context.std() < 0.03
    assert not [name for name in learner.state_dict() if name != "context"]


@torch.no_grad()
def test_no_contexts_at_all_is_the_text_itself():
    model = EmoCLIPForPromptClassification(tiny_config(prompt_num_context_tokens=0)).eval()
    expected = model.get_text_features(torch.tensor([[58, 7, 8, 9, 59]])).pooler_output
    torch.testing.assert_close(model.get_class_embeds()[1:2], torch.nn.functional.normalize(expected, dim=-1))


@torch.no_grad()
def test_from_clip_tokenizes_with_the_tokenizer_of_the_checkpoint(prompt_model, clip_dir):
    config = prompt_model.config
    tokenizer = AutoTokenizer.from_pretrained(clip_dir)
    assert config.id2label == dict(enumerate(TEXTS)) and config.label2id["surprise"] == 2
    assert config.class_descriptions == {label: [text] for label, text in TEXTS.items()}
    for ids, text in zip(config.class_input_ids, TEXTS.values(), strict=True):
        assert [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] == tokenizer(text)["input_ids"]
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == start_and_end_token_ids(
        config.text_config
    )
    by_ids = EmoCLIPForPromptClassification.from_clip(clip_dir, class_input_ids=IDS, num_labels=3)
    assert by_ids.prompt_learner.input_ids[1, -4:-1].tolist() == IDS[1]


@pytest.mark.parametrize("wrong", [{"bos_token_id": 0, "eos_token_id": 2}, {"bos_token_id": 0}])
@torch.no_grad()
def test_from_clip_corrects_the_token_ids_of_old_configs(prompt_model, clip_dir, wrong, tmp_path):
    shutil.copytree(clip_dir, tmp_path, dirs_exist_ok=True)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["text_config"] |= wrong
    (tmp_path / "config.json").write_text(json.dumps(fields))
    old = make("prompt", tmp_path)
    old.prompt_learner.context.copy_(prompt_model.prompt_learner.context)
    assert torch.equal(old.get_class_embeds(), prompt_model.get_class_embeds())


def test_fixed_and_learned_scale(clip_dir, clips):
    fixed = make("prompt", clip_dir)
    with torch.no_grad():
        outputs = fixed(**clips)
        torch.testing.assert_close(outputs.logits, 100 * outputs.video_embeds @ outputs.text_embeds.t())
    assert not fixed.logit_scale.requires_grad
    learned = make("prompt", clip_dir, prompt_logit_scale=None)
    with torch.no_grad():
        outputs = learned(**clips)
        scale = learned.logit_scale.exp()
        torch.testing.assert_close(outputs.logits, scale * outputs.video_embeds @ outputs.text_embeds.t())
    learned(**clips, labels=labels_of("prompt")).loss.backward()
    assert learned.logit_scale.grad is not None and learned.prompt_learner.context.grad is not None
    assert all(p.grad is None for p in (*learned.text_model.parameters(), *learned.text_projection.parameters()))


def test_text_tower_learns_if_a_recipe_says_so(prompt_model, clips):
    prompt_model.text_model.requires_grad_(True)
    prompt_model(**clips, labels=labels_of("prompt")).loss.backward()
    assert all(p.grad is not None for p in prompt_model.text_model.encoder.parameters())


class Runs:
    """Counts how often the text tower is run."""

    def __init__(self, model):
        self.number = 0
        model.text_model.encoder.register_forward_hook(self.count)

    def count(self, *_):
        self.number += 1


def changed_by_training(model):
    train(model, {"frame_embeds": torch.randn(3, 2, 24), "labels": torch.tensor([0, 1, 2])}, steps=1)


def changed_by_a_checkpoint(model):
    model.load_state_dict({name: weight + 0.1 for name, weight in model.state_dict().items()})


def changed_by_assigning_a_checkpoint(model):
    model.load_state_dict({name: weight + 0.1 for name, weight in model.state_dict().items()}, assign=True)


def changed_by_rounding(model):
    model.to(torch.bfloat16).to(torch.float32)


def changed_by_a_dtype(model):
    model.to(torch.float64)


def changed_in_the_text_tower(model):
    model.text_model.encoder.layers[0].mlp.fc1.weight.add_(0.5)


def changed_by_averaged_weights(model):
    model.prompt_learner.context.data.mul_(30)  # `.data` counts no version


def changed_by_replacing_the_contexts(model):
    model.prompt_learner.context = torch.nn.Parameter(torch.randn_like(model.prompt_learner.context))


CHANGES = [value for name, value in sorted(globals().items()) if name.startswith("changed_")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_class_embeds_follow_the_weights(prompt_model, change):
    with torch.no_grad():
        before = prompt_model.get_class_embeds()
    with torch.set_grad_enabled(change is changed_by_training):
        change(prompt_model)
    with torch.no_grad():
        after = prompt_model.get_class_embeds()
        assert torch.equal(after, prompt_model._encode_classes())
    assert after.dtype != before.dtype or not torch.equal(after, before)


def test_class_embeds_follow_an_adapter_in_the_text_tower(prompt_model):
    class Adapter(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.enabled = base, True

        def forward(self, hidden_states):
            return self.base(hidden_states) * (2 if self.enabled else 1)

    mlp = prompt_model.text_model.encoder.layers[0].mlp
    mlp.fc1 = adapter = Adapter(mlp.fc1)
    with torch.no_grad():
        switched_on = prompt_model.get_class_embeds()
        adapter.enabled = False
        assert not torch.equal(prompt_model.get_class_embeds(), switched_on)


@torch.no_grad()
def test_frozen_class_embeds_travel_and_the_text_tower_is_not_run(prompt_model, clips, tmp_path):
    expected = prompt_model(**clips).logits
    prompt_model.freeze_class_embeds()
    prompt_model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.config.prompt_class_embeds_frozen and not any(info.values())
    assert "class_embeds" in loaded.state_dict() and "prompt_learner.context" in loaded.state_dict()
    runs = Runs(loaded)
    assert torch.equal(loaded(**clips).logits, expected)
    with torch.enable_grad():
        assert torch.equal(loaded(**clips).logits, expected)
    assert runs.number == 0


def test_training_ends_the_freeze(prompt_model, clips, tmp_path):
    prompt_model.freeze_class_embeds()
    prompt_model.train()
    losses = train(prompt_model, clips | {"labels": labels_of("prompt")}, steps=2)
    assert losses[1] != losses[0] and not prompt_model.config.prompt_class_embeds_frozen
    prompt_model.save_pretrained(tmp_path)
    assert "class_embeds" not in prompt_model.state_dict()
    with torch.no_grad():
        assert torch.equal(prompt_model.eval().get_class_embeds(), prompt_model._encode_classes())


@torch.no_grad()
def test_freeze_and_checkpoints_that_disagree(prompt_model, tmp_path):
    prompt_model.save_pretrained(tmp_path / "free")
    config = copy.deepcopy(prompt_model.config)
    config.prompt_class_embeds_frozen = True  # the checkpoint has none: computed, never random
    loaded = EmoCLIPForPromptClassification.from_pretrained(tmp_path / "free", config=config)
    assert torch.equal(loaded.class_embeds, prompt_model.get_class_embeds())
    prompt_model.freeze_class_embeds()
    prompt_model.save_pretrained(tmp_path / "frozen")
    options = {"prompt_class_embeds_frozen": False, "output_loading_info": True}
    loaded, info = EmoCLIPForPromptClassification.from_pretrained(tmp_path / "frozen", **options)
    assert loaded.class_embeds is None and not info["unexpected_keys"]


@torch.no_grad()
def test_a_contrastive_checkpoint_fills_the_heads(clip_dir, tmp_path):
    contrastive = EmoCLIPModel.from_clip(clip_dir, **SMALL)
    contrastive.save_pretrained(tmp_path)
    head = EmoCLIPForVideoClassification.from_pretrained(tmp_path, num_labels=5)
    assert torch.equal(head.temporal.class_token, contrastive.temporal.class_token)
    assert head.classifier.weight.shape == (5, 24)


# ---------------------------------------------------------------------------------------------------------- losses


def test_ccc_loss_is_numpys():
    generator = np.random.default_rng(0)
    targets = generator.normal(3, 2, (20, 3))
    predictions = 0.5 * targets + generator.normal(0, 1, (20, 3))
    mean_p, mean_t = predictions.mean(0), targets.mean(0)
    covariance = ((predictions - mean_p) * (targets - mean_t)).mean(0)
    expected = 1 - 2 * covariance / (predictions.var(0) + targets.var(0) + (mean_p - mean_t) ** 2)
    actual = ccc_loss(torch.tensor(predictions), torch.tensor(targets))
    torch.testing.assert_close(actual, torch.tensor(expected.mean(), dtype=torch.float32))
    assert ccc_loss(actual.new_tensor(targets), actual.new_tensor(targets)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("num_clips", [1, 4])
def test_ccc_loss_without_variance_is_finite(num_clips):
    predictions = torch.full((num_clips, 2), 0.3, requires_grad=True)
    for target in (0.3, 5.0):
        loss = ccc_loss(predictions, torch.full((num_clips, 2), target))
        loss.backward()
        assert loss == 1 and torch.isfinite(predictions.grad).all()


def test_other_losses_are_torchs():
    predictions, targets = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(regression_loss(predictions, targets, "mse"), (predictions - targets).square().mean())
    torch.testing.assert_close(regression_loss(predictions, targets, "l1"), (predictions - targets).abs().mean())
    torch.testing.assert_close(regression_loss(predictions, targets, "ccc"), ccc_loss(predictions, targets))
    assert classification_loss(predictions.bfloat16(), torch.tensor([0, 1, 2, 0])).dtype == torch.float32


@pytest.mark.parametrize("kind", ["prompt", "classification"])
@torch.no_grad()
def test_class_weights_weigh_the_clips(clip_dir, clips, kind):
    model, labels = make(kind, clip_dir, class_weights=[1.0, 2.0, 5.0]), labels_of(kind)
    outputs = model(**clips, labels=labels)
    each = -outputs.logits.log_softmax(dim=-1).gather(1, labels[:, None])[:, 0]
    weights = torch.tensor([1.0, 2.0, 5.0])[labels]
    torch.testing.assert_close(outputs.loss, (each * weights).sum() / weights.sum())


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("kind", ["prompt", "classification"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 3, 0]), "labels holds 3, but num_labels is 3"),
        (torch.tensor([0, 1, -100, 0]), "labels holds -100"),
        (torch.tensor([0, 1, 1]), r"shape \(3,\).*\(4,\)"),
        (torch.zeros(4, 3), r"shape \(4, 3\)"),
        (torch.zeros(4), "float32.*integers"),
    ],
)
def test_bad_classes(clip_dir, clips, kind, labels, message):
    with pytest.raises(ValueError, match=message):
        make(kind, clip_dir)(**clips, labels=labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4, 2), r"shape \(4, 2\).*\(4, 3\)"),
        (torch.zeros(4), r"shape \(4,\).*\(4, 3\)"),
        (
            torch.tensor([[0.0] * 3, [0, 7, 0], [0] * 3, [0] * 3]),
            r"labels\[1\] has 7 for the target 'rapport'.*\[0, 6\]",
        ),
        (
            torch.tensor([[0.0] * 3, [0] * 3, [0, 0, float("nan")], [0] * 3]),
            r"labels\[2\] has nan.*'arousal'.*\[-1, 1\]",
        ),
    ],
)
def test_bad_targets(clip_dir, clips, labels, message):
    with pytest.raises(ValueError, match=message):
        make("regression", clip_dir)(**clips, labels=labels)


@pytest.mark.parametrize("kind", HEADS)
def test_bad_frames(clip_dir, kind):
    model = make(kind, clip_dir, temporal_max_frames=4)
    with pytest.raises(ValueError, match="5 frames, but temporal_max_frames is 4"):
        model(frame_embeds=torch.zeros(1, 5, 24))
    with pytest.raises(ValueError, match=r"no real frame in row\(s\) \[1\]"):
        model(frame_embeds=torch.zeros(2, 3, 24), frame_mask=torch.tensor([[1, 1, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match="either pixel_values_videos or frame_embeds"):
        model()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_input_ids": IDS[:2]}, "class_input_ids has 2 entries, but num_labels is 3"),
        ({"class_input_ids": [[1], [2], [60]]}, r"class_input_ids\[2\] is \[60\].*59"),
        ({"class_input_ids": [[1], [2], "abc"]}, r"class_input_ids\[2\] is 'abc'"),
        (
            {"class_input_ids": [[1], [2], [3] * 10]},
            r"\[2\] has 10 tokens.*17.*tokens = 5.*max_position_embeddings is 16",
        ),
        ({"prompt_num_context_tokens": 14}, r"\[0\] has 2 tokens.*18.*tokens = 14.*max_position_embeddings is 16"),
        ({"prompt_num_context_tokens": -1}, "prompt_num_context_tokens is -1"),
        ({"prompt_class_position": "back"}, "prompt_class_position is 'back'"),
        ({"prompt_logit_scale": 0}, "prompt_logit_scale is 0"),
        ({"class_weights": [1.0, 2.0]}, "class_weights has 2 entries, but num_labels is 3"),
        ({"class_weights": [1.0, 2.0, 0.0]}, "class_weights.*greater than 0"),
        ({"target_names": ["a", "b"]}, "target_names has 2 entries, but num_labels is 3"),
        ({"target_names": ["a", "b", "a"]}, "target_names.*distinct"),
        ({"target_ranges": [[0, 1]]}, "target_ranges has 1 entries, but num_labels is 3"),
        ({"target_ranges": [[0, 1], [0, 1], [2, 1]]}, r"target_ranges\[2\] is \[2, 1\]"),
        ({"target_ranges": [[0, 1], [0, 1], [2]]}, r"target_ranges\[2\] is \[2\]"),
        ({"regression_loss": "rmse"}, "regression_loss is 'rmse'"),
    ],
)
def test_config_names_the_field_and_both_numbers(fields, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**fields)


def test_names_become_labels():
    config = EmoCLIPConfig(**NAMES)
    assert config.num_labels == 3 and config.id2label[2] == "arousal" and config.label2id["rapport"] == 1
    assert EmoCLIPConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_bad_descriptions(clip_dir):
    from_clip = EmoCLIPForPromptClassification.from_clip
    with pytest.raises(ValueError, match=r"'joy'\] has 2 texts"):
        from_clip(clip_dir, class_descriptions=TEXTS | {"joy": ["a smile", "a grin"]})
    with pytest.raises(ValueError, match="class_input_ids is None"):
        from_clip(clip_dir)
    with pytest.raises(ValueError, match="empty"):
        from_clip(clip_dir, class_descriptions={})
    with pytest.raises(Exception, match=r"class_input_ids\[1\].*max_position_embeddings is 24"):
        from_clip(clip_dir, class_descriptions=TEXTS | {"anger": "wide open eyes " * 10})


def test_a_config_changed_after_it_was_made_is_checked_again(clip_dir, tmp_path):
    make("prompt", clip_dir).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="class_input_ids has 3 entries, but num_labels is 4"):
        EmoCLIPForPromptClassification.from_pretrained(tmp_path, num_labels=4)


# ------------------------------------------------------------------------------------------------------- full sizes

# (image width, layers, heads, patch, image size), (text width, heads), D: OpenAI's models, whose sizes LAION's and
# MetaCLIP's conversions of the same names share. OpenAI's configs have the old eos_token_id 2, the others 49407.
FULL_SIZES = {
    "ViT-B/32": ((768, 12, 12, 32, 224), (512, 8), 512),
    "ViT-B/16": ((768, 12, 12, 16, 224), (512, 8), 512),
    "ViT-L/14": ((1024, 24, 16, 14, 224), (768, 12), 768),
    "ViT-L/14-336": ((1024, 24, 16, 14, 336), (768, 12), 768),
}


def full_size_config(size, eos_token_id, **fields):
    (width, layers, heads, patch, image), (text_width, text_heads), projection_dim = FULL_SIZES[size]
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": image,
    }
    text = {
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": 12,
        "num_attention_heads": text_heads,
        "eos_token_id": eos_token_id,
    }
    clip_config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim)
    return EmoCLIPConfig.from_clip_config(clip_config, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("eos_token_id", [2, 49407])
@pytest.mark.parametrize("size", FULL_SIZES)
@torch.no_grad()
def test_common_backbones_at_full_size(size, eos_token_id):
    image_size = FULL_SIZES[size][0][-1]
    pixels = torch.randn(1, 2, 3, image_size, image_size)
    fields = {"class_input_ids": [[320, 3490], [320, 6243, 269]], "id2label": {0: "joy", 1: "anger"}}
    config = full_size_config(size, eos_token_id, **fields)
    assert start_and_end_token_ids(config.text_config) == (49406, 49407)
    outputs = EmoCLIPForPromptClassification(config).eval()(pixels)
    assert outputs.logits.shape == (1, 2) and torch.isfinite(outputs.logits).all()
    frames = outputs.frame_embeds
    for head in (EmoCLIPForVideoClassification, EmoCLIPForVideoRegression):
        assert head(config).eval()(frame_embeds=frames).logits.shape == (1, 2)


def test_prompt_learner_alone_needs_texts():
    with pytest.raises(ValueError, match="class_input_ids is None"):
        PromptLearner(EmoCLIPConfig())


def test_old_configs_still_name_clips_start_and_end():
    assert start_and_end_token_ids(CLIPTextConfig(bos_token_id=0, eos_token_id=2)) == (49406, 49407)

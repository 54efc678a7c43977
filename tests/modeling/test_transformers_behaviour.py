# SPDX-License-Identifier: Apache-2.0
"""What users of transformers expect of any model: attention kernels, 16 bits, devices, compile, export, adapters.

`make common-tests` runs transformers' own model tests besides.
"""

import pytest
import torch
from torch import nn
from transformers.utils import is_flash_attn_2_available

from emoclip import (
    EmoCLIPConfig,
    EmoCLIPForPromptClassification,
    EmoCLIPForVideoClassification,
    EmoCLIPForVideoRegression,
    EmoCLIPModel,
)

BATCH, FRAMES, MAX_FRAMES, WIDTH, IMAGE, VOCABULARY, LABELS = 3, 5, 8, 24, 16, 60, 3
START, END = VOCABULARY - 2, VOCABULARY - 1
CLASSES = (EmoCLIPModel, EmoCLIPForPromptClassification, EmoCLIPForVideoClassification, EmoCLIPForVideoRegression)
FRAME_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])

every_class = pytest.mark.parametrize("model_class", CLASSES, ids=lambda model_class: model_class.__name__)


def tiny_config(**fields) -> EmoCLIPConfig:
    tower = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": START, "eos_token_id": END}
    defaults = {
        "vision_config": {"image_size": IMAGE, "patch_size": 8, **tower},
        "text_config": {"vocab_size": VOCABULARY, "max_position_embeddings": 12, **special, **tower},
        "projection_dim": WIDTH,
        "temporal_num_heads": 2,
        "temporal_head_dim": 16,
        "temporal_intermediate_size": 40,
        "temporal_max_frames": MAX_FRAMES,
        "class_input_ids": [[5], [6, 7], [8, 9, 10]],
        "prompt_num_context_tokens": 4,
        "num_labels": LABELS,
    }
    return EmoCLIPConfig(**(defaults | fields))


def make(model_class, **fields):
    """A model as after training: neither the temporal output nor a head is (nearly) zero."""
    torch.manual_seed(0)
    model = model_class(tiny_config(**fields)).eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("classifier.", "mlp.")) or name == "temporal.output_projection.weight":
            nn.init.normal_(parameter, std=WIDTH**-0.5)
    return model


def make_inputs(model_class, num_frames: int = FRAMES, loss: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = {"pixel_values_videos": torch.randn(BATCH, num_frames, 3, IMAGE, IMAGE, generator=generator)}
    if model_class is EmoCLIPModel:
        input_ids = torch.randint(1, START, (BATCH, 7), generator=generator)
        input_ids[:, 0], input_ids[:, 5], input_ids[:, 6] = START, END, 0
        inputs |= {"input_ids": input_ids, "attention_mask": (input_ids > 0).long()}
        return inputs | ({"return_loss": True} if loss else {})
    regression = model_class is EmoCLIPForVideoRegression
    labels = torch.rand(BATCH, LABELS) if regression else torch.arange(BATCH) % LABELS
    return inputs | ({"labels": labels} if loss else {})


def scores(outputs) -> torch.Tensor:
    return outputs["logits" if "logits" in outputs else "logits_per_video"]


# ---- attention ----


@every_class
@pytest.mark.parametrize("implementation", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
@torch.no_grad()
def test_other_attention_kernels_agree_with_sdpa(model_class, implementation):
    model, inputs = make(model_class), make_inputs(model_class) | {"frame_mask": FRAME_MASK}
    assert model.config._attn_implementation == model.config.vision_config._attn_implementation == "sdpa"
    expected = scores(model(**inputs))
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == model.config.vision_config._attn_implementation == implementation
    torch.testing.assert_close(scores(model(**inputs)), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.skipif(is_flash_attn_2_available(), reason="FlashAttention2 is installed")
def test_flash_attention_that_is_not_installed_gets_a_clear_error():
    with pytest.raises(ImportError, match="FlashAttention2"):
        EmoCLIPModel._from_config(tiny_config(), attn_implementation="flash_attention_2")


@every_class
def test_attention_is_chosen_for_each_part(model_class, tmp_path):
    make(model_class).save_pretrained(tmp_path)
    choice = {"": "eager", "vision_config": "sdpa", "text_config": "eager"}
    config = model_class.from_pretrained(tmp_path, attn_implementation=choice).config
    chosen = [part._attn_implementation for part in (config, config.vision_config, config.text_config)]
    assert chosen == ["eager", "sdpa", "eager"]


# ---- outputs ----


@torch.no_grad()
def test_hidden_states_and_attentions_of_all_three_transformers():
    model, inputs = make(EmoCLIPModel), make_inputs(EmoCLIPModel)
    model.set_attn_implementation("eager")
    wanted = {"output_hidden_states": True, "output_attentions": True}
    # The capture hooks are put in by the first call of each part, and must not be put in twice.
    model.vision_model(pixel_values=inputs["pixel_values_videos"][0], **wanted)
    for _ in range(2):
        outputs = model(**inputs, **wanted)
        video, text = outputs.video_model_output, outputs.text_model_output
        assert [tuple(h.shape) for h in video.hidden_states] == [(BATCH, 1 + FRAMES, WIDTH)] * 3
        assert [tuple(a.shape) for a in video.attentions] == [(BATCH, 2, 1 + FRAMES, 1 + FRAMES)] * 2
        assert [tuple(h.shape) for h in video.vision_model_output.hidden_states] == [(BATCH * FRAMES, 5, 32)] * 3
        assert [tuple(a.shape) for a in video.vision_model_output.attentions] == [(BATCH * FRAMES, 2, 5, 5)] * 2
        assert [tuple(h.shape) for h in text.hidden_states] == [(BATCH, 7, 32)] * 3
        assert [tuple(a.shape) for a in text.attentions] == [(BATCH, 2, 7, 7)] * 2
    assert torch.equal(video.hidden_states[-1], video.last_hidden_state)


def test_hidden_states_and_attentions_keep_their_gradients():
    model, inputs = make(EmoCLIPModel, temporal_residual=False), make_inputs(EmoCLIPModel)
    model.set_attn_implementation("eager")
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    video, text = outputs.video_model_output, outputs.text_model_output
    for part in (video, video.vision_model_output, text):
        captured = (part.hidden_states[0], part.attentions[0])
        gradients = torch.autograd.grad(outputs.logits_per_video.sum(), captured, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


@every_class
@torch.no_grad()
def test_return_dict_from_the_call_and_from_the_config(model_class):
    model, inputs = make(model_class), make_inputs(model_class, loss=True)
    outputs = model(**inputs)
    model.config.return_dict = False
    for values in (model(**inputs), model(**inputs, return_dict=False)):
        assert isinstance(values, tuple) and torch.equal(values[0], outputs.loss)
        assert torch.equal(values[1], scores(outputs))
    assert torch.equal(scores(model(**inputs, return_dict=True)), scores(outputs))


# ---- frames ----


@torch.no_grad()
def test_a_clip_of_more_frames_than_positions_is_refused_unless_asked():
    model, inputs = make(EmoCLIPModel), make_inputs(EmoCLIPModel, num_frames=MAX_FRAMES + 3)
    with pytest.raises(ValueError, match=r"11 frames, but temporal_max_frames is 8.*interpolate_frame_positions=True"):
        model(**inputs)
    assert model(**inputs, interpolate_frame_positions=True).logits_per_video.isfinite().all()


def test_positions_are_stretched_linearly_over_a_longer_clip():
    temporal = make(EmoCLIPModel, temporal_max_frames=3).temporal
    table = temporal.position_embedding
    positions = temporal._positions(5, None, interpolate=True)
    expected = [table[0], table[1], (table[1] + table[2]) / 2, table[2], (table[2] + table[3]) / 2, table[3]]
    torch.testing.assert_close(positions[0], torch.stack(expected))
    assert torch.equal(temporal._positions(2, None, interpolate=True), table[:3])


@every_class
@torch.no_grad()
def test_padding_does_not_change_stretched_clips(model_class):
    """One clip is longer than the positions and is stretched; the other is not."""
    model, inputs = make(model_class), make_inputs(model_class)
    generator = torch.Generator().manual_seed(2)
    clips = [torch.randn(1, length, WIDTH, generator=generator) for length in (MAX_FRAMES + 2, FRAMES)]
    del inputs["pixel_values_videos"]
    padded = torch.full((2, MAX_FRAMES + 4, WIDTH), 7.0)
    mask = torch.zeros(2, MAX_FRAMES + 4)
    for row, clip in enumerate(clips):
        padded[row, : clip.shape[1]], mask[row, : clip.shape[1]] = clip, 1
    together = scores(model(frame_embeds=padded, frame_mask=mask, interpolate_frame_positions=True, **inputs))
    alone = [scores(model(frame_embeds=clip, interpolate_frame_positions=True, **inputs)) for clip in clips]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone[1], scores(model(frame_embeds=clips[1], **inputs)))


@every_class
@torch.no_grad()
def test_frames_of_another_size_are_refused_unless_asked(model_class):
    model, inputs = make(model_class), make_inputs(model_class)
    inputs["pixel_values_videos"] = torch.randn(BATCH, FRAMES, 3, 24, 24)
    with pytest.raises(ValueError, match=r"24\*24.*16\*16"):
        model(**inputs)
    assert scores(model(**inputs, interpolate_pos_encoding=True)).isfinite().all()


# ---- loading ----


@every_class
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_16_bits_load_and_run(model_class, dtype, tmp_path):
    model, inputs = make(model_class), make_inputs(model_class, loss=True) | {"frame_mask": FRAME_MASK}
    model.save_pretrained(tmp_path)
    expected = model(**inputs).video_embeds
    loaded = model_class.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(dtype)
    outputs = loaded(**inputs)
    assert outputs.video_embeds.dtype == dtype and outputs.loss.dtype == torch.float32
    error = (outputs.video_embeds.float() - expected).norm() / expected.norm()
    assert error < {torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    frames = torch.randn(1, MAX_FRAMES + 1, WIDTH, dtype=dtype)
    features = loaded.get_video_features(frame_embeds=frames, interpolate_frame_positions=True)
    assert features.pooler_output.dtype == dtype


@every_class
@pytest.mark.parametrize("device_map", ["cpu", "auto", "disk"])
@torch.no_grad()
def test_device_map(model_class, device_map, tmp_path):
    model, inputs = make(model_class), make_inputs(model_class)
    model.save_pretrained(tmp_path)
    if device_map == "disk":  # every weight that has a module of its own is read when it is needed
        device_map = {name: "disk" for name, _ in model.named_children()} | {"logit_scale": "cpu"}
        device_map |= {"prompt_learner": "cpu", "vision_model": "cpu"}
    loaded = model_class.from_pretrained(tmp_path, device_map=device_map, offload_folder=tmp_path / "offload")
    torch.testing.assert_close(scores(loaded(**inputs)), scores(model(**inputs)))


@every_class
def test_loading_leaves_nothing_uninitialised(model_class, tmp_path):
    """Models are built without memory and then filled: buffers that are not saved have to be made again."""
    model = make(model_class)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    expected = dict(model.named_parameters()) | dict(model.named_buffers())
    actual = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), name


def test_weights_are_saved_as_safetensors_only(tmp_path):
    make(EmoCLIPModel).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert not [path for path in tmp_path.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]


@every_class
def test_weights_missing_from_a_checkpoint_are_initialised_as_in_a_new_model(model_class):
    torch.manual_seed(0)
    new = model_class(tiny_config()).state_dict()
    loaded = model_class.from_pretrained(None, config=tiny_config(), state_dict={}).state_dict()
    assert new.keys() == loaded.keys()
    for name in new:
        if not name.startswith(("vision_model.", "text_model.")):  # transformers' own
            (mean, spread), (loaded_mean, loaded_spread) = (
                (weights[name].mean().item(), weights[name].std(correction=0).item()) for weights in (new, loaded)
            )
            assert loaded_spread == pytest.approx(spread, rel=0.5, abs=1e-6), name
            assert loaded_mean == pytest.approx(mean, abs=spread + 1e-6), name


@every_class
def test_other_sizes_are_refused_unless_asked(model_class, tmp_path):
    model = make(model_class)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"ignore_mismatched_sizes"):
        model_class.from_pretrained(tmp_path, temporal_max_frames=6)
    loaded, info = model_class.from_pretrained(
        tmp_path, temporal_max_frames=6, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key[0] for key in info["mismatched_keys"]} == {"temporal.position_embedding"}
    assert loaded.temporal.position_embedding.shape == (7, WIDTH)
    assert 0.5 < loaded.temporal.position_embedding.std() < 1.5
    assert torch.equal(loaded.temporal.class_token, model.temporal.class_token)


# ---- compile and export ----


@pytest.mark.parametrize("model_class", [CLASSES[0], *(pytest.param(c, marks=pytest.mark.slow) for c in CLASSES[1:])])
@pytest.mark.parametrize("masked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_forward_compiles_without_graph_breaks(model_class, masked):
    model, inputs = make(model_class), make_inputs(model_class, loss=True)
    inputs |= {"frame_mask": FRAME_MASK} if masked else {}
    expected = model(**inputs)
    torch._dynamo.reset()
    outputs = torch.compile(model.train(), fullgraph=True, backend="eager")(**inputs)
    torch.testing.assert_close(outputs.loss, expected.loss)
    del inputs["labels" if "labels" in inputs else "return_loss"]
    with torch.no_grad():
        outputs = torch.compile(model.eval(), fullgraph=True, backend="eager")(**inputs)
    torch.testing.assert_close(scores(outputs), scores(expected))


class VideoEncoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values_videos, frame_mask):
        return self.model.get_video_features(pixel_values_videos, frame_mask=frame_mask).pooler_output


class TextEncoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model.get_text_features(input_ids, attention_mask).pooler_output


@torch.no_grad()
def test_video_encoder_is_exported_with_any_batch_and_number_of_frames():
    model = make(EmoCLIPModel)
    example = (torch.randn(BATCH, FRAMES, 3, IMAGE, IMAGE), FRAME_MASK.bool())
    batch, frames = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("frames", min=1, max=MAX_FRAMES)
    program = torch.export.export(VideoEncoder(model), example, dynamic_shapes=({0: batch, 1: frames},) * 2)
    for batch_size, num_frames in ((BATCH, FRAMES), (2, 3), (5, MAX_FRAMES)):
        pixels = torch.randn(batch_size, num_frames, 3, IMAGE, IMAGE)
        mask = torch.arange(num_frames) <= torch.arange(batch_size)[:, None]
        expected = model.get_video_features(pixels, frame_mask=mask).pooler_output
        torch.testing.assert_close(program.module()(pixels, mask), expected)


@torch.no_grad()
def test_text_encoder_is_exported_with_any_batch_and_number_of_tokens():
    model, inputs = make(EmoCLIPModel), make_inputs(EmoCLIPModel)
    example = (inputs["input_ids"], inputs["attention_mask"])
    batch, tokens = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("tokens", min=2, max=12)
    program = torch.export.export(TextEncoder(model), example, dynamic_shapes=({0: batch, 1: tokens},) * 2)
    for input_ids in (example[0], torch.tensor([[START, 5, END]]), torch.tensor([[START, 5, 6, END, 0]] * 7)):
        attention_mask = (input_ids > 0).long()
        expected = model.get_text_features(input_ids, attention_mask).pooler_output
        torch.testing.assert_close(program.module()(input_ids, attention_mask), expected)


# ---- adapters ----


@every_class
def test_lora_on_the_towers_trains_and_merges(model_class):
    peft = pytest.importorskip("peft")
    model, inputs = make(model_class), make_inputs(model_class, loss=True)
    before = scores(model(**inputs)).detach()
    frozen = {name: parameter.clone() for name, parameter in model.named_parameters()}
    lora = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    adapted = [name for name, parameter in lora.named_parameters() if parameter.requires_grad]
    assert any("vision_model" in name for name in adapted) and any("temporal" in name for name in adapted)
    torch.testing.assert_close(scores(lora(**inputs)), before)
    optimizer = torch.optim.AdamW([parameter for parameter in lora.parameters() if parameter.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = lora(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    lora.eval()
    with torch.no_grad():
        trained = scores(lora(**inputs))
        assert not torch.allclose(trained, before, atol=1e-3)
        with lora.disable_adapter():
            torch.testing.assert_close(scores(lora(**inputs)), before)
        merged = lora.merge_and_unload()
        assert type(merged) is model_class and dict(merged.named_parameters()).keys() == frozen.keys()
        torch.testing.assert_close(scores(merged(**inputs)), trained, atol=1e-4, rtol=1e-4)

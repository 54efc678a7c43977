# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the papers' code, converted: the same numbers. The original architectures are written down here."""

import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForVideoClassification, AutoVideoProcessor, CLIPModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from training.convert import dferclip_checkpoint, emoclip_checkpoint
from training.convert.checkpoint_file import read_checkpoint

IMAGE_SIZE = 32
CONTEXT_LENGTH = 20
VOCAB_SIZE = 514  # of `tokenizer_dir`
START, END = VOCAB_SIZE - 2, VOCAB_SIZE - 1
SEVEN_TEXTS = [[40 + number, 71, 300, 90][: 2 + number % 3] for number in range(7)]


# ---- OpenAI's CLIP, `model.py` ----


class Transformer(nn.Module):
    def __init__(self, width, num_layers):
        super().__init__()
        self.resblocks = nn.ModuleList(self.block(width) for _ in range(num_layers))

    @staticmethod
    def block(width):
        mlp = OrderedDict(c_fc=nn.Linear(width, 4 * width), c_proj=nn.Linear(4 * width, width))
        attention = nn.MultiheadAttention(width, width // 64, batch_first=True)
        parts = {"ln_1": nn.LayerNorm(width), "attn": attention, "ln_2": nn.LayerNorm(width)}
        return nn.ModuleDict(parts | {"mlp": nn.Sequential(mlp)})

    def forward(self, x, mask=None):
        for block in self.resblocks:
            normed = block["ln_1"](x)
            x = x + block["attn"](normed, normed, normed, attn_mask=mask, need_weights=False)[0]
            hidden = block["mlp"].c_fc(block["ln_2"](x))
            x = x + block["mlp"].c_proj(hidden * torch.sigmoid(1.702 * hidden))
        return x


class ImageTower(nn.Module):
    def __init__(self, width, num_layers, embed_dim, patch_size=16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((IMAGE_SIZE // patch_size) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, num_layers)
        self.proj = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Clip(nn.Module):
    def __init__(self, embed_dim, vision_width=64, text_width=64, num_layers=1, vocab_size=VOCAB_SIZE):
        super().__init__()
        self.visual = ImageTower(vision_width, num_layers, embed_dim)
        self.transformer = Transformer(text_width, num_layers + 1)
        self.token_embedding = nn.Embedding(vocab_size, text_width)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT_LENGTH, text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.randn(text_width, embed_dim) * text_width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))

    def encode_text(self, input_ids):
        return encode_embedded_text(self, self.token_embedding(input_ids), input_ids.argmax(dim=-1))


def encode_embedded_text(tower, x, ends):
    mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
    x = tower.ln_final(tower.transformer(x + tower.positional_embedding, mask))
    return x[torch.arange(len(x)), ends] @ tower.text_projection


# ---- the papers' temporal transformer, after vit-pytorch ----


class Temporal(nn.Module):
    def __init__(self, width, depth, heads, head_dim, mlp_dim, num_positions):
        super().__init__()
        self.heads = heads
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.randn(1, num_positions, width))
        layers = [self.layer(width, heads, head_dim, mlp_dim) for _ in range(depth)]
        self.temporal_transformer = nn.ModuleDict({"layers": nn.ModuleList(layers)})

    @staticmethod
    def layer(width, heads, head_dim, mlp_dim):
        attention = {"to_qkv": nn.Linear(width, 3 * heads * head_dim, bias=False), "to_out": nn.Identity()}
        if not (heads == 1 and head_dim == width):
            attention["to_out"] = nn.Sequential(nn.Linear(heads * head_dim, width), nn.Dropout(0.0))
        gelu = nn.GELU(approximate="tanh")
        net = nn.Sequential(nn.Linear(width, mlp_dim), gelu, nn.Dropout(0.0), nn.Linear(mlp_dim, width))
        return nn.ModuleList(
            nn.ModuleDict({"fn": nn.ModuleDict({"norm": nn.LayerNorm(width), "fn": nn.ModuleDict(function)})})
            for function in (attention, {"net": net})
        )

    def forward(self, x):
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embedding[:, : x.shape[1] + 1]
        for attention, mlp in self.temporal_transformer["layers"]:
            parts = attention["fn"]["fn"]
            qkv = parts["to_qkv"](attention["fn"]["norm"](x)).chunk(3, dim=-1)
            query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv)
            weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1)
            x = x + parts["to_out"]((weights @ value).transpose(1, 2).flatten(2))
            x = x + mlp["fn"]["fn"]["net"](mlp["fn"]["norm"](x))
        return x[:, 0]


# ---- EmoCLIP, `architecture/`; DFER-CLIP, `models/` ----


class VClip(nn.Module):
    def __init__(self, clip, temporal):
        super().__init__()
        self.backbone, self.temporal = clip, temporal
        self.logit_scale = nn.Parameter(torch.tensor(3.25))

    def forward(self, videos, input_ids):
        video_embeds = self.temporal(self.backbone.visual(videos.flatten(0, 1)).unflatten(0, videos.shape[:2]))
        text_embeds = self.backbone.encode_text(input_ids)
        cosine = nn.functional.normalize(video_embeds) @ nn.functional.normalize(text_embeds).t()
        return {
            "logits_per_video": cosine * self.logit_scale.exp(),
            "video_embeds": nn.functional.normalize(video_embeds),
            "text_embeds": nn.functional.normalize(text_embeds),
        }


class PromptLearner(nn.Module):
    def __init__(self, clip, texts, num_contexts, shared, position):
        super().__init__()
        placeholders = [5] * num_contexts
        ids = [[START, *placeholders, *text, END] for text in texts]
        self.tokenized = torch.tensor([row + [0] * (CONTEXT_LENGTH - len(row)) for row in ids])
        self.name_lens, self.position = [len(text) for text in texts], position
        embedding = clip.token_embedding(self.tokenized).detach()
        width = embedding.shape[-1]
        self.ctx = nn.Parameter(torch.randn(*(() if shared else (len(texts),)), num_contexts, width))
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + num_contexts :])

    def forward(self):
        prompts = []
        for row, name_len in enumerate(self.name_lens):
            context = self.ctx if self.ctx.ndim == 2 else self.ctx[row]
            start, name, rest = self.token_prefix[row], *self.token_suffix[row].tensor_split([name_len])
            half = len(context) // 2
            middle = [context[:half], name, context[half:]]
            parts = {"end": [context, name], "middle": middle, "front": [name, context]}
            prompts.append(torch.cat([start, *parts[self.position], rest]))
        return torch.stack(prompts)


class DferClip(nn.Module):
    def __init__(self, clip, temporal, texts=SEVEN_TEXTS, num_contexts=4, shared=False, position="end"):
        super().__init__()
        self.prompt_learner = PromptLearner(clip, texts, num_contexts, shared, position)
        self.text_encoder = nn.Module()
        for name in ("transformer", "ln_final", "positional_embedding", "text_projection"):
            setattr(self.text_encoder, name, getattr(clip, name))
        self.image_encoder, self.temporal_net, self.clip_model_ = clip.visual, temporal, clip

    def forward(self, videos):
        video_embeds = self.temporal_net(self.image_encoder(videos.flatten(0, 1)).unflatten(0, videos.shape[:2]))
        ends = self.prompt_learner.tokenized.argmax(dim=-1)
        text_embeds = encode_embedded_text(self.text_encoder, self.prompt_learner(), ends)
        video_embeds, text_embeds = nn.functional.normalize(video_embeds), nn.functional.normalize(text_embeds)
        return {
            "logits": video_embeds @ text_embeds.t() / 0.01,
            "video_embeds": video_embeds,
            "text_embeds": text_embeds,
        }


# ---- the tests ----


def save_checkpoint(path, model, **others):
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, **others} if others else state, path)
    return path


def videos(num_frames=4):
    return torch.randn(2, num_frames, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))


def texts():
    generator = torch.Generator().manual_seed(2)
    input_ids = torch.randint(1, START, (3, CONTEXT_LENGTH), generator=generator)
    input_ids[0, 6:] = torch.tensor([END] + [0] * (CONTEXT_LENGTH - 7))
    input_ids[1, -1] = END
    return input_ids  # the last has no end of text: its highest id stands for it


def assert_equal(converted, expected, tolerance=2e-5):
    for name, value in expected.items():
        assert (converted[name] - value).abs().max() < tolerance, name


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    """CLIP's tokenizer without merges: 256 bytes, 256 bytes at the end of a word, start and end of text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("embed_dim", "clip", "temporal"),
    [
        (48, {}, {"depth": 2, "heads": 8, "head_dim": 16, "mlp_dim": 48, "num_positions": 50}),
        (32, {"vision_width": 128}, {"depth": 1, "heads": 3, "head_dim": 20, "mlp_dim": 64, "num_positions": 5}),
        (64, {"text_width": 128}, {"depth": 3, "heads": 2, "head_dim": 32, "mlp_dim": 8, "num_positions": 9}),
        (64, {"num_layers": 2}, {"depth": 1, "heads": 1, "head_dim": 64, "mlp_dim": 8, "num_positions": 9}),
    ],
    ids=["crossed sizes", "three heads", "three layers", "one head without an output layer"],
)
def test_emoclip_gives_the_same_numbers(tmp_path, embed_dim, clip, temporal):
    torch.manual_seed(0)
    original = VClip(Clip(embed_dim, **clip), Temporal(embed_dim, **temporal)).eval()
    checkpoint = save_checkpoint(tmp_path / "model.pth", original)
    heads = str(temporal["heads"])
    emoclip_checkpoint.main([str(checkpoint), str(tmp_path / "hub"), "--temporal-heads", heads])
    model = AutoModel.from_pretrained(tmp_path / "hub").eval()
    with torch.no_grad():
        converted = model(pixel_values_videos=videos(), input_ids=texts())
        assert_equal(converted, original(videos(), texts()))
    assert model.logit_scale.item() == 3.25  # VClip's own; backbone.logit_scale is 2.5
    assert model.config.temporal_head_dim == temporal["head_dim"]
    assert model.config.temporal_max_frames == temporal["num_positions"] - 1


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize(("num_contexts", "shared"), [(4, False), (5, True)])
def test_dferclip_gives_the_same_numbers(tmp_path, position, num_contexts, shared):
    torch.manual_seed(0)
    temporal = Temporal(32, depth=1 + shared, heads=2, head_dim=24, mlp_dim=40, num_positions=5)
    original = DferClip(Clip(32), temporal, num_contexts=num_contexts, shared=shared, position=position).eval()
    checkpoint = save_checkpoint(tmp_path / "model.pth", original, epoch=1)
    options = ["--temporal-heads", "2", "--class-token-position", position]
    dferclip_checkpoint.main([str(checkpoint), str(tmp_path / "hub"), *options])
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "hub").eval()
    with torch.no_grad():
        assert_equal(model(pixel_values_videos=videos()), original(videos()))
    assert model.config.class_input_ids == SEVEN_TEXTS
    assert list(model.config.id2label.values()) == list(dferclip_checkpoint.LABELS[7])


def test_folders_load_in_another_process_with_their_own_code(tmp_path, tokenizer_dir):
    torch.manual_seed(0)
    temporal = {"depth": 1, "heads": 8, "head_dim": 8, "mlp_dim": 8, "num_positions": 5}
    emoclip = VClip(Clip(32), Temporal(32, **temporal)).eval()
    dferclip = DferClip(Clip(32), Temporal(32, **temporal), texts=SEVEN_TEXTS[:2]).eval()
    checkpoint = save_checkpoint(tmp_path / "emoclip.pth", emoclip)
    emoclip_checkpoint.main([str(checkpoint), str(tmp_path / "emoclip"), "--tokenizer", str(tokenizer_dir)])
    checkpoint = save_checkpoint(tmp_path / "dferclip.pth", dferclip)
    dferclip_checkpoint.main([str(checkpoint), str(tmp_path / "dferclip"), "--labels", "calm, amused"])
    save_file({"videos": videos(), "texts": texts()}, tmp_path / "inputs.safetensors")
    program = """
import sys
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForVideoClassification, AutoProcessor, AutoVideoProcessor, pipeline
inputs, trust = load_file("inputs.safetensors"), {"trust_remote_code": True}
emoclip = AutoModel.from_pretrained("emoclip", **trust).eval()
dferclip = AutoModelForVideoClassification.from_pretrained("dferclip", **trust).eval()
assert AutoProcessor.from_pretrained("emoclip", **trust)(text="a smile").input_ids[-1] == 513
pixels = (inputs["videos"][0] * 50).byte()
labelled = pipeline(model="emoclip", **trust)(pixels, candidate_labels=["a text of more than 20 bytes", "calm"])
assert {entry["label"] for entry in labelled} == {"a text of more than 20 bytes", "calm"}
assert AutoVideoProcessor.from_pretrained("dferclip", **trust).num_frames == 4
scores = emoclip(pixel_values_videos=inputs["videos"], input_ids=inputs["texts"]).logits_per_video
logits = dferclip(pixel_values_videos=inputs["videos"]).logits
assert list(dferclip.config.id2label.values()) == ["calm", "amused"]
assert "modeling_emoclip" not in sys.modules
save_file({"scores": scores.detach().contiguous(), "logits": logits.detach()}, "outputs.safetensors")
"""
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, stdin=subprocess.DEVNULL, check=True)
    outputs = load_file(tmp_path / "outputs.safetensors")
    with torch.no_grad():
        scores = emoclip(videos(), texts())["logits_per_video"]
        assert_equal(outputs, {"scores": scores, "logits": dferclip(videos())["logits"]})


def test_each_processor_prepares_as_its_paper_does(tmp_path):
    temporal = {"depth": 1, "heads": 8, "head_dim": 4, "mlp_dim": 8, "num_positions": 17}
    checkpoint = save_checkpoint(tmp_path / "dferclip.pth", DferClip(Clip(32), Temporal(32, **temporal)))
    dferclip_checkpoint.main([str(checkpoint), str(tmp_path / "dferclip")])
    checkpoint = save_checkpoint(
        tmp_path / "emoclip.pth", VClip(Clip(32), Temporal(32, **temporal | {"num_positions": 99}))
    )
    emoclip_checkpoint.main([str(checkpoint), str(tmp_path / "emoclip")])
    gradient = torch.arange(256, dtype=torch.uint8).expand(64, 3, 20, 256)  # wide, brighter to the right
    squashed = AutoVideoProcessor.from_pretrained(tmp_path / "dferclip")(gradient, return_tensors="pt")
    pixels = squashed.pixel_values_videos
    assert pixels.shape == (1, 16, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert pixels.min() < 0.02 and pixels.max() > 0.98  # the whole width, from 0 to 1: no crop, no mean/std
    emoclip = AutoVideoProcessor.from_pretrained(tmp_path / "emoclip")
    assert (emoclip.num_frames, emoclip.frame_sampling, emoclip.frame_stride) == (32, "strided_window", 4)
    cropped = emoclip(gradient, return_tensors="pt").pixel_values_videos
    assert cropped.shape == (1, 32, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert cropped[0, 0, 0].std() < squashed.pixel_values_videos[0, 0, 0].std()  # the middle of the width alone
    assert tuple(emoclip.image_mean) == (0.48145466, 0.4578275, 0.40821073)


def test_the_tokenizer_gives_the_class_texts_in_words(tmp_path, tokenizer_dir, capsys):
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_dir)
    words = {"amused": "a grin, wide.", "calm": "even"}
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in words.values()]
    temporal = Temporal(32, depth=1, heads=8, head_dim=4, mlp_dim=8, num_positions=5)
    checkpoint = save_checkpoint(tmp_path / "model.pth", DferClip(Clip(32), temporal, texts=ids, num_contexts=2))
    options = ["--labels", "amused,calm", "--tokenizer", str(tokenizer_dir)]
    dferclip_checkpoint.main([str(checkpoint), str(tmp_path / "hub"), *options])
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "hub")
    assert model.config.class_descriptions == {label: [text] for label, text in words.items()}
    assert model.config.class_input_ids == ids
    assert "amused: a grin, wide." in capsys.readouterr().out


@pytest.fixture
def without_towers(tmp_path):
    """A trained VClip whose width is that of the CLIP of `clip_dir`, and its temporal transformer in a file."""
    torch.manual_seed(0)
    original = VClip(Clip(24), Temporal(24, depth=1, heads=8, head_dim=4, mlp_dim=8, num_positions=9)).eval()
    torch.save({f"temporal.{key}": value for key, value in original.temporal.state_dict().items()}, tmp_path / "t.pth")
    return original, tmp_path / "t.pth"


def test_temporal_only_file_takes_its_towers_from_clip(tmp_path, without_towers, clip_dir, capsys):
    original, checkpoint = without_towers
    emoclip_checkpoint.main([str(checkpoint), str(tmp_path / "hub"), "--clip", str(clip_dir)])
    message = f"not in the checkpoint, taken from {clip_dir}: the image tower, the text tower, logit_scale"
    assert message in capsys.readouterr().out
    model, clip = AutoModel.from_pretrained(tmp_path / "hub").eval(), CLIPModel.from_pretrained(clip_dir).eval()
    frames = torch.randn(2, 3, 24)
    with torch.no_grad():
        assert torch.allclose(model.get_video_features(frame_embeds=frames).pooler_output, original.temporal(frames))
    for name, value in clip.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_bare_temporal_state_dict(tmp_path, without_towers, clip_dir):
    original, _ = without_towers
    torch.save(original.temporal.state_dict(), tmp_path / "bare.pth")
    emoclip_checkpoint.convert(tmp_path / "bare.pth", tmp_path / "hub", clip=str(clip_dir))
    assert (tmp_path / "hub" / "config.json").is_file()


def test_downstream_file_keeps_its_image_tower_and_names_its_head(tmp_path, without_towers, clip_dir, capsys):
    original, _ = without_towers
    downstream = nn.Module()  # DownstreamTask
    downstream.backbone, downstream.temporal = original.backbone.visual, original.temporal
    downstream.mlp = nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 4))
    checkpoint = save_checkpoint(tmp_path / "downstream.pth", downstream)
    emoclip_checkpoint.main([str(checkpoint), str(tmp_path / "hub"), "--clip", str(clip_dir)])
    printed = capsys.readouterr().out
    assert "left out: the head of the downstream task (mlp.0.weight, mlp.0.bias, mlp.2.weight, mlp.2.bias)" in printed
    assert f"taken from {clip_dir}: the text tower, logit_scale" in printed
    model = AutoModel.from_pretrained(tmp_path / "hub").eval()
    with torch.no_grad():
        converted = model.get_video_features(pixel_values_videos=videos()).pooler_output
        expected = original(videos(), texts())["video_embeds"]
        assert torch.allclose(nn.functional.normalize(converted), expected, atol=2e-5)


def test_half_precision_weights_become_float32(tmp_path):
    original = VClip(Clip(32), Temporal(32, depth=1, heads=8, head_dim=4, mlp_dim=8, num_positions=9)).half()
    checkpoint = save_checkpoint(tmp_path / "half.pth", original)
    assert read_checkpoint(checkpoint)["logit_scale"].dtype == torch.float16
    emoclip_checkpoint.convert(checkpoint, tmp_path / "hub")
    assert {weight.dtype for weight in load_file(tmp_path / "hub" / "model.safetensors").values()} == {torch.float32}

# SPDX-License-Identifier: Apache-2.0
"""Mapping from the state dict of OpenAI's CLIP (https://github.com/openai/CLIP, `model.py`) to EmoCLIP's towers.

Supports only CLIPs with a vision transformer, because `CLIPVisionModel` has no ResNet.
"""

import math
import re

import torch
from transformers import CLIPTextConfig, CLIPVisionConfig

WIDTH_OF_A_HEAD = 64  # in every CLIP that OpenAI released, in both towers
OPENAI_VOCAB_SIZE = 49408  # the last two ids are start and end of text
LEGACY_EOS_TOKEN_ID = 2  # not an id: makes `CLIPTextModel` take the highest id as the end of a text, as OpenAI does

_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers' spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_PARTS_OF_A_LAYER = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def convert_clip_tensor(key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Converts one entry of OpenAI's state dict to the equivalent entries of `EmoCLIPModel`.

    Args:
        key: name in OpenAI's `CLIP`: `visual.proj`, `transformer.resblocks.0.attn.in_proj_weight`, ...
        tensor: value of the entry.

    Returns:
        Name -> tensor: three entries for `in_proj`, whose rows are query, key and value; the transpose for the
        projections, which OpenAI multiplies from the right.

    Raises:
        KeyError: no vision-transformer CLIP has this key.
    """
    if key in _TRANSPOSED:
        return {_TRANSPOSED[key]: tensor.t()}
    if key in _NAMES:
        return {_NAMES[key]: tensor}
    match = _LAYER.fullmatch(key)
    if match is None:
        raise KeyError(key)
    visual, number, part, kind = match.groups()
    layer = f"{'vision' if visual else 'text'}_model.encoder.layers.{int(number)}"
    if part == "attn.in_proj":
        return {
            f"{layer}.self_attn.{name}_proj.{kind}": rows for name, rows in zip("qkv", tensor.chunk(3), strict=True)
        }
    return {f"{layer}.{_PARTS_OF_A_LAYER[part]}.{kind}": tensor}


def vision_config_of(state: dict[str, torch.Tensor]) -> CLIPVisionConfig:
    """Infers the configuration of the image tower from converted tensors.

    Raises:
        ValueError: a tensor is missing, or its shape is not that of OpenAI's CLIP.
    """
    width, channels, patch_size, _ = shape_of(state, "vision_model.embeddings.patch_embedding.weight", 4)
    positions, _ = shape_of(state, "vision_model.embeddings.position_embedding.weight", 2)
    side = math.isqrt(positions - 1)
    if side * side != positions - 1:
        raise ValueError(f"the image tower has {positions} positions: {positions - 1} patches are not a square")
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shape_of(state, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_hidden_layers=number_of_layers(state, "vision_model.encoder.layers."),
        num_attention_heads=_heads(width, "image"),
        num_channels=channels,
        image_size=side * patch_size,
        patch_size=patch_size,
        projection_dim=shape_of(state, "visual_projection.weight", 2)[0],
    )


def text_config_of(state: dict[str, torch.Tensor]) -> CLIPTextConfig:
    """Infers the configuration of the text tower from converted tensors.

    OpenAI takes the highest id of a text as its end. With OpenAI's vocabulary this is id 49407, which becomes
    `eos_token_id`; for any other vocabulary size, `LEGACY_EOS_TOKEN_ID` selects the same rule.

    Raises:
        ValueError: a tensor is missing, or its shape is not that of OpenAI's CLIP.
    """
    vocab_size, width = shape_of(state, "text_model.embeddings.token_embedding.weight", 2)
    openai = vocab_size == OPENAI_VOCAB_SIZE
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=shape_of(state, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_hidden_layers=number_of_layers(state, "text_model.encoder.layers."),
        num_attention_heads=_heads(width, "text"),
        max_position_embeddings=shape_of(state, "text_model.embeddings.position_embedding.weight", 2)[0],
        projection_dim=shape_of(state, "text_projection.weight", 2)[0],
        pad_token_id=0,  # OpenAI's `tokenize` pads with zeros
        bos_token_id=OPENAI_VOCAB_SIZE - 2 if openai else None,
        eos_token_id=OPENAI_VOCAB_SIZE - 1 if openai else LEGACY_EOS_TOKEN_ID,
    )


def end_of_text(config: CLIPTextConfig) -> int:
    """Returns the id that ends a text: the configured one, or by OpenAI's rule the highest id."""
    return config.vocab_size - 1 if config.eos_token_id == LEGACY_EOS_TOKEN_ID else config.eos_token_id


def shape_of(state: dict[str, torch.Tensor], name: str, num_dimensions: int) -> tuple[int, ...]:
    """Returns the shape of a tensor that must exist and have `num_dimensions`.

    Raises:
        ValueError: it does not exist, has another number of dimensions, or is empty.
    """
    if name not in state:
        raise ValueError(f"the checkpoint is incomplete: it holds nothing for {name}")
    shape = tuple(state[name].shape)
    if len(shape) != num_dimensions or 0 in shape:
        raise ValueError(f"{name} would have the shape {shape}, but must have {num_dimensions} dimensions, none empty")
    return shape


def number_of_layers(state: dict[str, torch.Tensor], prefix: str) -> int:
    """Counts the distinct layer numbers that follow `prefix` in the names of `state`."""
    # Using the highest number instead would let a file create a model much larger than itself.
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _heads(width: int, tower: str) -> int:
    if width % WIDTH_OF_A_HEAD:
        raise ValueError(
            f"the {tower} tower is {width} wide, which is no multiple of {WIDTH_OF_A_HEAD}, CLIP's width of a head"
        )
    return width // WIDTH_OF_A_HEAD

# SPDX-License-Identifier: Apache-2.0
"""Mapping from the state dict of the papers' temporal transformer to `EmoCLIPTemporalTransformer`.

EmoCLIP (`architecture/transformer.py`) and DFER-CLIP (`models/Temporal_Model.py`) implement it in the same way, after
vit-pytorch: query, key and value in one bias-free linear layer, two residual blocks per layer.
"""

import re

import torch

from training.convert.openai_clip_keys import number_of_layers, shape_of

_LAYER = re.compile(r"temporal_transformer\.layers\.(\d+)\.([01]\.fn\..+)\.(weight|bias)")
_PARTS_OF_A_LAYER = {
    "0.fn.norm": "layer_norm1",
    "0.fn.fn.to_out.0": "self_attn.out_proj",
    "1.fn.norm": "layer_norm2",
    "1.fn.fn.net.0": "mlp.fc1",
    "1.fn.fn.net.3": "mlp.fc2",
}


def convert_temporal_tensor(key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Converts one entry of the temporal transformer's state dict to the equivalent entries `temporal.*`.

    Args:
        key: name without the module: `cls_token (1, 1, D)`, `pos_embedding (1, P, D)`,
            `temporal_transformer.layers.0.0.fn.fn.to_qkv.weight (3 H E, D)`, ...
        tensor: value of the entry.

    Raises:
        KeyError: the papers' modules have no such key.
    """
    if key == "cls_token":
        return {"temporal.class_token": tensor.flatten()}
    if key == "pos_embedding":
        return {"temporal.position_embedding": tensor.flatten(0, -2)}
    match = _LAYER.fullmatch(key)
    if match is None:
        raise KeyError(key)
    number, part, kind = match.groups()
    layer = f"temporal.layers.{int(number)}"
    if (part, kind) == ("0.fn.fn.to_qkv", "weight"):
        return {
            f"{layer}.self_attn.{name}_proj.weight": rows for name, rows in zip("qkv", tensor.chunk(3), strict=True)
        }
    return {f"{layer}.{_PARTS_OF_A_LAYER[part]}.{kind}": tensor}


def temporal_config_of(state: dict[str, torch.Tensor], num_heads: int) -> dict[str, int | bool]:
    """Infers the `temporal_*` fields of `EmoCLIPConfig` from converted tensors.

    Args:
        state: see `convert_temporal_tensor`. If the original omitted the output projection of the attention, as it
            does for a single head as wide as the model, the identity is added.
        num_heads: number of heads, which cannot be inferred from the tensors.

    Raises:
        ValueError: a tensor is missing, or `num_heads` does not divide the width of the attention.
    """
    positions, width = shape_of(state, "temporal.position_embedding", 2)
    inner_width, _ = shape_of(state, "temporal.layers.0.self_attn.q_proj.weight", 2)
    if num_heads < 1 or inner_width % num_heads:
        raise ValueError(f"the temporal attention is {inner_width} wide, which {num_heads} heads cannot share evenly")
    num_layers = number_of_layers(state, "temporal.layers.")
    for number in range(num_layers):
        output = f"temporal.layers.{number}.self_attn.out_proj"
        if num_heads == 1 and inner_width == width and f"{output}.weight" not in state:
            state |= {f"{output}.weight": torch.eye(width), f"{output}.bias": torch.zeros(width)}
    return {
        "temporal_num_layers": num_layers,
        "temporal_num_heads": num_heads,
        "temporal_head_dim": inner_width // num_heads,
        "temporal_intermediate_size": shape_of(state, "temporal.layers.0.mlp.fc1.weight", 2)[0],
        "temporal_max_frames": positions - 1,  # the class token takes position 0
        "temporal_residual": False,
    }

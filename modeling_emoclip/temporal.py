# SPDX-License-Identifier: Apache-2.0
"""Pooling of frame embeddings to a video embedding: the mean, or the papers' temporal transformer.

Both papers use the same module in different sizes: EmoCLIP `architecture/transformer.py`, DFER-CLIP
`models/Temporal_Model.py`. Shapes: B clips, T frames, D embedding width, H heads, E width of a head.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import capture_outputs

from .configuration_emoclip import EmoCLIPConfig


def masked_mean(frame_embeds: torch.Tensor, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Averages `(B, T, D)` over the real frames, where the mask `(B, T)` is true, to `(B, D)`."""
    if frame_mask is None:
        return frame_embeds.mean(dim=1)
    weights = frame_mask.to(frame_embeds.dtype)[..., None]  # (B, T, 1)
    return (frame_embeds * weights).sum(dim=1) / weights.sum(dim=1)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    attn_weights = torch.matmul(query, key.transpose(-1, -2)) * scaling  # (B, H, T, T)
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()  # (B, T, H, E)
    return attn_output, attn_weights


class EmoCLIPTemporalAttention(nn.Module):
    """Self-attention over the frames of a clip, whose inner width H x E need not be D."""

    def __init__(self, config: EmoCLIPConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.temporal_head_dim
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        inner_dim = config.temporal_num_heads * config.temporal_head_dim
        self.q_proj = nn.Linear(config.projection_dim, inner_dim, bias=False)
        self.k_proj = nn.Linear(config.projection_dim, inner_dim, bias=False)
        self.v_proj = nn.Linear(config.projection_dim, inner_dim, bias=False)
        self.out_proj = nn.Linear(inner_dim, config.projection_dim)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs):
        batch_and_time = hidden_states.shape[:-1]
        per_head = (*batch_and_time, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(per_head).transpose(1, 2)  # (B, H, T, E)
        key = self.k_proj(hidden_states).view(per_head).transpose(1, 2)
        value = self.v_proj(hidden_states).view(per_head).transpose(1, 2)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs
        )
        attn_output = attn_output.reshape(*batch_and_time, -1).contiguous()
        return self.out_proj(attn_output), attn_weights


class EmoCLIPTemporalMLP(nn.Module):
    def __init__(self, config: EmoCLIPConfig):
        super().__init__()
        self.activation_fn = ACT2FN["gelu_pytorch_tanh"]  # both papers' code writes the tanh form out by hand
        self.fc1 = nn.Linear(config.projection_dim, config.temporal_intermediate_size)
        self.fc2 = nn.Linear(config.temporal_intermediate_size, config.projection_dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class EmoCLIPTemporalLayer(GradientCheckpointingLayer):
    """Pre-norm attention and MLP block."""

    def __init__(self, config: EmoCLIPConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.projection_dim, eps=config.temporal_layer_norm_eps)
        self.self_attn = EmoCLIPTemporalAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.projection_dim, eps=config.temporal_layer_norm_eps)
        self.mlp = EmoCLIPTemporalMLP(config)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs):
        attn_output, _ = self.self_attn(self.layer_norm1(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + attn_output
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class EmoCLIPTemporalTransformer(PreTrainedModel):
    """Transformer over a class token (position 0) and the frames (positions 1 to T).

    `temporal_residual=False` returns the class token's output, as the papers do (without a final norm); `True` the
    mean of the frames plus `output_projection` of the normalised class token, which starts at zero.
    """

    config: EmoCLIPConfig
    config_class = EmoCLIPConfig
    base_model_prefix = "temporal"
    main_input_name = "frame_embeds"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["EmoCLIPTemporalLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": EmoCLIPTemporalLayer, "attentions": EmoCLIPTemporalAttention}

    def __init__(self, config: EmoCLIPConfig):
        super().__init__(config)
        self.gradient_checkpointing = False
        self.class_token = nn.Parameter(torch.empty(config.projection_dim))
        self.position_embedding = nn.Parameter(torch.empty(config.temporal_max_frames + 1, config.projection_dim))
        self.layers = nn.ModuleList([EmoCLIPTemporalLayer(config) for _ in range(config.temporal_num_layers)])
        if config.temporal_residual:
            self.output_layer_norm = nn.LayerNorm(config.projection_dim, eps=config.temporal_layer_norm_eps)
            self.output_projection = nn.Linear(config.projection_dim, config.projection_dim, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, EmoCLIPTemporalTransformer):
            # The originals' `torch.randn`. CLIP-sized N(0, 0.02) trains worse: order is then lost beside the content.
            init.normal_(module.class_token)
            init.normal_(module.position_embedding)
            if self.config.temporal_residual:
                init.zeros_(module.output_projection.weight)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        frame_embeds: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        interpolate_frame_positions: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """`frame_embeds (B, T, D)` and mask `(B, T)` -> `last_hidden_state (B, 1 + T, D)`, `pooler_output (B, D)`."""
        batch_size, num_frames, _ = frame_embeds.shape
        class_tokens = self.class_token.expand(batch_size, 1, -1)
        hidden_states = torch.cat([class_tokens, frame_embeds], dim=1)  # (B, 1 + T, D)
        hidden_states = hidden_states + self._positions(num_frames, frame_mask, interpolate_frame_positions)
        attention_mask = None if frame_mask is None else nn.functional.pad(frame_mask, (1, 0), value=True)
        attention_mask = create_bidirectional_mask(self.config, hidden_states, attention_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        video_embeds = hidden_states[:, 0]
        if self.config.temporal_residual:
            video_embeds = self.output_projection(self.output_layer_norm(video_embeds))
            video_embeds = masked_mean(frame_embeds, frame_mask) + video_embeds
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=video_embeds)

    def _positions(self, num_frames: int, frame_mask: torch.Tensor | None, interpolate: bool) -> torch.Tensor:
        """`(1 + T, D)`, or `(B, 1 + T, D)` where clips longer than `temporal_max_frames` are stretched."""
        max_frames = self.config.temporal_max_frames
        if num_frames <= max_frames:
            return self.position_embedding[: num_frames + 1]
        if not interpolate:
            raise ValueError(
                f"the clip has {num_frames} frames, but temporal_max_frames is {max_frames}: "
                "give fewer frames, or interpolate_frame_positions=True"
            )
        # Linear, first and last frame fixed. By each clip's own length: its padding must not change its result.
        time = torch.arange(num_frames, device=self.position_embedding.device)
        frame_mask = torch.ones_like(time)[None] if frame_mask is None else frame_mask
        last_frame = (frame_mask * time).amax(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
        place = (time * ((max_frames - 1) / last_frame).clamp(max=1.0)).clamp(max=max_frames - 1)  # (B, T)
        below = place.long()
        above = (below + 1).clamp(max=max_frames - 1)
        table = self.position_embedding[1:].float()
        frame_positions = torch.lerp(table[below], table[above], (place - below)[..., None])
        class_position = self.position_embedding[:1].expand(len(frame_positions), 1, -1)
        return torch.cat([class_position, frame_positions.to(class_position.dtype)], dim=1)

# SPDX-License-Identifier: Apache-2.0
"""Configuration of the EmoCLIP models."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class EmoCLIPConfig(PreTrainedConfig):
    r"""
    Two CLIP towers, a temporal transformer over the frame embeddings, and the texts that stand for the classes.

    Args:
        vision_config (`CLIPVisionConfig` or `dict`, *optional*): the image tower, applied to every frame.
        text_config (`CLIPTextConfig` or `dict`, *optional*): the text tower.
        projection_dim (`int`, defaults to 512): width D of frame, video and text embeddings.
        logit_scale_init_value (`float`, defaults to 2.6592): natural logarithm of the scale of the cosine, as CLIP's.
        temporal_num_layers (`int`, defaults to 2): depth of the temporal transformer; 0 is the mean of the frames.
        temporal_num_heads (`int`, defaults to 8): attention heads of each temporal layer.
        temporal_head_dim (`int`, defaults to 64): width of one head; the inner width is heads x head_dim and need not
            be D. Released EmoCLIP weights have 2048 here (their code passes two arguments crossed).
        temporal_intermediate_size (`int`, defaults to 1024): width of the MLP. 512 in released EmoCLIP weights.
        temporal_max_frames (`int`, defaults to 256): most frames a clip may have. 1023 in EmoCLIP, 16 in DFER-CLIP.
        temporal_residual (`bool`, defaults to `True`): the video embedding is the mean of the frame embeddings plus
            the temporal output, whose last projection starts at zero: an untrained model scores exactly like CLIP with
            the mean of its frames. `False` is the papers' model: the class token's output alone.
        temporal_layer_norm_eps (`float`, defaults to 1e-5).
        class_descriptions (`dict[str, list[str]]`, *optional*): label -> texts that stand for it. The pipeline uses
            them for a label that is given by its name only.

    Example:

    ```python
    >>> from modeling_emoclip import EmoCLIPConfig, EmoCLIPModel

    >>> model = EmoCLIPModel(EmoCLIPConfig(temporal_num_layers=1))
    ```"""

    model_type = "emoclip"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=CLIPVisionConfig),
        "text_config": SubConfigSpec(config_class=CLIPTextConfig),
    }

    vision_config: dict | CLIPVisionConfig | None = None
    text_config: dict | CLIPTextConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: float | int = 2.6592
    temporal_num_layers: int = 2
    temporal_num_heads: int = 8
    temporal_head_dim: int = 64
    temporal_intermediate_size: int = 1024
    temporal_max_frames: int = 256
    temporal_residual: bool = True
    temporal_layer_norm_eps: float = 1e-5
    class_descriptions: dict | None = None

    @classmethod
    def from_clip_config(cls, clip_config: CLIPConfig, **overrides) -> "EmoCLIPConfig":
        """The configuration that takes its towers, projection and scale from `clip_config`; `overrides` win."""
        from_clip = {
            "vision_config": clip_config.vision_config.to_dict(),
            "text_config": clip_config.text_config.to_dict(),
            "projection_dim": clip_config.projection_dim,
            "logit_scale_init_value": clip_config.logit_scale_init_value,
        }
        unknown = sorted(set(overrides) - set(cls.__dataclass_fields__))
        if unknown:  # PreTrainedConfig would keep a misspelt name as an attribute nobody reads
            raise ValueError(f"EmoCLIPConfig has no field {', '.join(unknown)}")
        return cls(**(from_clip | overrides))

    def validate_architecture(self):
        """Part of `@strict`: every size must be usable before any module is built."""
        smallest = {
            "projection_dim": 1,
            "temporal_num_layers": 0,
            "temporal_num_heads": 1,
            "temporal_head_dim": 1,
            "temporal_intermediate_size": 1,
            "temporal_max_frames": 1,
        }
        for field, least in smallest.items():
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}, but must be at least {least}")
        for label, texts in (self.class_descriptions or {}).items():
            if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(t, str) and t for t in texts):
                raise ValueError(f"class_descriptions[{label!r}] is {texts!r}, but must be a list of non-empty texts")


__all__ = ["EmoCLIPConfig"]

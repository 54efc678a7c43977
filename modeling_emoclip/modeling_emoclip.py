# SPDX-License-Identifier: Apache-2.0
"""EmoCLIP: CLIP on every frame, a temporal transformer over the frames, contrastive against any text.

Foteinopoulou and Patras, "EmoCLIP: A Vision-Language Method for Zero-Shot Video Facial Expression Recognition",
FG 2024, arXiv 2310.16640. Shapes: B clips, T frames, N texts, L tokens, D embedding width.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import CLIPConfig, CLIPTextModel, CLIPVisionModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .configuration_emoclip import EmoCLIPConfig
from .temporal import EmoCLIPTemporalTransformer, masked_mean

LOGIT_BIAS = -10.0  # at the start of training with the sigmoid loss, arXiv 2303.15343, section 3.2


@dataclass
class EmoCLIPVideoFeatures(BaseModelOutputWithPooling):
    """
    Args:
        last_hidden_state: `(B, 1 + T, D)`, class token and frames after the temporal transformer, if there is one.
        pooler_output: `(B, D)`, video embeddings, not normalised.
        hidden_states, attentions: those of the temporal layers.
        frame_embeds: `(B, T, D)`, projected, not normalised; zero where `frame_mask` is false.
        vision_model_output: output of the image tower for the `B x T` frames; `None` if `frame_embeds` were given.
    """

    frame_embeds: torch.FloatTensor | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None


@dataclass
class EmoCLIPOutput(ModelOutput):
    """
    Args:
        loss: scalar contrastive loss, if `return_loss`; in distributed training over the pairs of all processes.
        logits_per_video: `(B, N)`, cosine of video and text embeddings times `exp(logit_scale)`, plus `logit_bias`
            where the loss is the sigmoid.
        logits_per_text: `(N, B)`, its transpose.
        video_embeds: `(B, D)`, unit length.
        text_embeds: `(N, D)`, unit length.
        frame_embeds: `(B, T, D)`, not normalised.
        video_model_output, text_model_output: outputs of `get_video_features` and `get_text_features`.
    """

    loss: torch.FloatTensor | None = None
    logits_per_video: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    video_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    frame_embeds: torch.FloatTensor | None = None
    video_model_output: EmoCLIPVideoFeatures | None = None
    text_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self):
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


class EmoCLIPPreTrainedModel(PreTrainedModel):
    config: EmoCLIPConfig
    config_class = EmoCLIPConfig
    base_model_prefix = "emoclip"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video", "text")
    predicts: str  # what the model scores: "texts", "labels" (its classes) or "targets"
    # Trainer would take `**kwargs` for `num_items_in_batch` and no longer average over accumulated batches.
    accepts_loss_kwargs = False
    # Auto classes that load this class as remote code; `register_for_auto_class` alone takes one.
    _auto_classes = ("AutoModel",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["CLIPTextEmbeddings", "CLIPVisionEmbeddings", "CLIPEncoderLayer", "EmoCLIPTemporalLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        """Initialises what the towers and the temporal transformer do not initialise themselves."""
        super()._init_weights(module)
        if module is getattr(self, "visual_projection", None) or module is getattr(self, "text_projection", None):
            init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, EmoCLIPTowers):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if getattr(module, "logit_bias", None) is not None:
                init.constant_(module.logit_bias, LOGIT_BIAS)

    def save_pretrained(self, *args, **kwargs):
        """Saves the model as transformers does, with a config that names this class for all its Auto classes."""
        if self._auto_class is not None:
            reference = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
            auto_map = getattr(self.config, "auto_map", None) or {}
            others = {name: value for name, value in auto_map.items() if not name.startswith("AutoModel")}
            self.config.auto_map = others | dict.fromkeys(self._auto_classes, reference)
        return super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_clip(cls, name_or_path: str, *, revision: str | None = None, token=None, **config_overrides):
        """Builds a model with the towers, projections and scale of a CLIP checkpoint.

        Args:
            name_or_path: folder or Hub id of a checkpoint in CLIP's layout, such as `openai/clip-vit-base-patch32`.
            revision, token: see `from_pretrained`.
            config_overrides: fields of `EmoCLIPConfig`, such as `temporal_num_layers=1`.

        The model is in float32 and evaluation mode. With `temporal_residual=True` its temporal transformer does not
        change the scores until it is trained. With `contrastive_loss="sigmoid"` the scale starts at
        `logit_scale_init_value` (SigLIP's 10): CLIP's 100, with SigLIP's bias, would call every pair a match.
        """
        hub = {"revision": revision, "token": token}
        clip_config = CLIPConfig.from_pretrained(name_or_path, **hub)
        config = cls.config_class.from_clip_config(clip_config, **config_overrides)
        model = cls.from_towers(name_or_path, config=config, dtype=torch.float32, **hub)
        if getattr(model, "logit_bias", None) is not None:
            nn.init.constant_(model.logit_scale, config.logit_scale_init_value)
        return model

    @classmethod
    def from_towers(cls, name_or_path: str, **kwargs):
        """Loads the towers and the scale of a checkpoint, as `from_pretrained`, and initialises the rest silently.

        A missing weight of a tower raises a ValueError.
        """
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            model, found = cls.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
        finally:
            logging.set_verbosity(verbosity)
        towers = ("vision_model.", "text_model.", "visual_projection.", "text_projection.")
        if missing := sorted(name for name in found["missing_keys"] if name.startswith(towers)):
            raise ValueError(
                f"{name_or_path} lacks {len(missing)} weights of the towers, as {', '.join(missing[:3])}: it is no "
                "checkpoint in CLIP's layout, or not whole"
            )
        return model

    def _of_all_processes(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gathers `(B, ...)` tensors of a loss on one device; in distributed training from all processes."""
        from .losses import gather_batch, in_several_processes

        tensors = tuple(tensor.to(tensors[0].device) for tensor in tensors)
        if self.training and torch.is_grad_enabled() and in_several_processes():
            return gather_batch(*tensors)
        return tensors


class EmoCLIPVideoEncoder(EmoCLIPPreTrainedModel):
    """Base of all models: CLIP's image tower for each frame, and the pooling of frames to one video embedding."""

    def __init__(self, config: EmoCLIPConfig):
        super().__init__(config)
        self.vision_model = CLIPVisionModel._from_config(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.temporal = EmoCLIPTemporalTransformer(config) if config.temporal_num_layers > 0 else None

    def get_input_embeddings(self) -> nn.Module:
        return getattr(self, "text_model", self.vision_model).get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        getattr(self, "text_model", self.vision_model).set_input_embeddings(value)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        frame_embeds: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        interpolate_frame_positions: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | EmoCLIPVideoFeatures:
        """Encodes videos, given as pixels or as frame embeddings.

        Args:
            pixel_values_videos: `(B, T, 3, height, width)`; or
            frame_embeds: `(B, T, D)`, as an earlier call returned them.
            frame_mask: `(B, T)`, true (or 1) for real frames. Padding frames never change a result.
            interpolate_frame_positions: stretch the positions linearly over clips with more than
                `temporal_max_frames` frames, which are refused otherwise.

        Raises:
            ValueError: both or neither input, wrong shapes, a clip without a real frame, too many frames.
        """
        vision_outputs = None
        if (pixel_values_videos is None) == (frame_embeds is None):
            raise ValueError("give either pixel_values_videos or frame_embeds, and not both")
        if frame_embeds is None:
            frame_embeds, vision_outputs = self._encode_frames(pixel_values_videos, **kwargs)
        elif (
            frame_embeds.ndim != 3 or not frame_embeds.shape[1] or frame_embeds.shape[-1] != self.config.projection_dim
        ):
            raise ValueError(
                f"frame_embeds has shape {tuple(frame_embeds.shape)}, but must be (batch, frames, projection_dim = "
                f"{self.config.projection_dim}), with at least one frame"
            )
        if frame_mask is not None:
            frame_mask = self._checked_frame_mask(frame_mask, frame_embeds)
            # Not a product: padding may hold NaN, and 0 x NaN is NaN.
            frame_embeds = frame_embeds.masked_fill(~frame_mask[..., None], 0.0)
        if self.temporal is None:
            pooled = {"last_hidden_state": frame_embeds, "pooler_output": masked_mean(frame_embeds, frame_mask)}
        else:
            pooled = self.temporal(frame_embeds, frame_mask, interpolate_frame_positions, return_dict=True, **kwargs)
        return EmoCLIPVideoFeatures(**pooled, frame_embeds=frame_embeds, vision_model_output=vision_outputs)

    def _encode_frames(self, pixel_values_videos: torch.Tensor, **kwargs):
        if pixel_values_videos.ndim != 5 or not pixel_values_videos.shape[1]:
            raise ValueError(
                f"pixel_values_videos has shape {tuple(pixel_values_videos.shape)}, but must be "
                "(batch, frames, channels, height, width), with at least one frame"
            )
        batch_size, num_frames = pixel_values_videos.shape[:2]
        frames = pixel_values_videos.flatten(0, 1)  # (B * T, 3, height, width)
        vision_outputs = self.vision_model(pixel_values=frames, return_dict=True, **kwargs)
        frame_embeds = self.visual_projection(vision_outputs.pooler_output)  # (B * T, D)
        return frame_embeds.view(batch_size, num_frames, -1), vision_outputs

    @staticmethod
    def _checked_frame_mask(frame_mask: torch.Tensor, frame_embeds: torch.Tensor) -> torch.Tensor:
        if frame_mask.shape != frame_embeds.shape[:2]:
            raise ValueError(
                f"frame_mask has shape {tuple(frame_mask.shape)}, but the frames have {tuple(frame_embeds.shape[:2])}"
            )
        frame_mask = frame_mask.to(device=frame_embeds.device, dtype=torch.bool)
        if not torch.compiler.is_compiling() and not frame_mask.any(dim=1).all():
            empty = (~frame_mask.any(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"frame_mask has no real frame in row(s) {empty}: every clip needs at least one")
        return frame_mask


class EmoCLIPTowers(EmoCLIPVideoEncoder):
    """Adds CLIP's text tower and scale. Submodule names are CLIP's, so that any CLIP checkpoint fills the towers."""

    def __init__(self, config: EmoCLIPConfig):
        super().__init__(config)
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """Encodes texts `input_ids (N, L)`; `pooler_output (N, D)` of the result is projected, not normalised."""
        text_outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        text_outputs.pooler_output = self.text_projection(text_outputs.pooler_output)
        return text_outputs


class EmoCLIPModel(EmoCLIPTowers):
    """EmoCLIP's contrastive model, which scores videos against texts.

    ```python
    >>> from emoclip import EmoCLIPModel, EmoCLIPProcessor

    >>> clip = "openai/clip-vit-base-patch32"
    >>> model, processor = EmoCLIPModel.from_clip(clip), EmoCLIPProcessor.from_clip(clip)
    >>> inputs = processor(text=["a smile", "a frown"], videos="clip.mp4", return_tensors="pt")
    >>> model(**inputs).logits_per_video.softmax(dim=-1)
    ```"""

    predicts = "texts"

    def __init__(self, config: EmoCLIPConfig):
        super().__init__(config)
        self.logit_bias = nn.Parameter(torch.tensor(LOGIT_BIAS)) if config.contrastive_loss == "sigmoid" else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        frame_embeds: torch.FloatTensor | None = None,
        frame_mask: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_embeds: torch.FloatTensor | None = None,
        return_loss: bool | None = None,
        interpolate_frame_positions: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | EmoCLIPOutput:
        """Scores B videos against N texts, and computes the contrastive loss of B pairs.

        Args:
            pixel_values_videos, frame_embeds, frame_mask, interpolate_frame_positions: see `get_video_features`.
            input_ids, attention_mask: `(N, L)`.
            text_embeds: `(N, D)`, in place of `input_ids`; the text tower is then not run.
            return_loss: compute the loss too, see `contrastive_loss_of`; N must be B, and text i belong to video i.
        """
        if input_ids is None and text_embeds is None:
            raise ValueError("give input_ids or text_embeds")
        video_outputs = self.get_video_features(
            pixel_values_videos, frame_embeds, frame_mask, interpolate_frame_positions, return_dict=True, **kwargs
        )
        text_outputs = None
        if text_embeds is None:
            text_outputs = self.get_text_features(input_ids, attention_mask, return_dict=True, **kwargs)
            text_embeds = text_outputs.pooler_output
        video_embeds = nn.functional.normalize(video_outputs.pooler_output, dim=-1)
        text_embeds = nn.functional.normalize(text_embeds, dim=-1)
        logits_per_text = self._logits_per_text(video_embeds, text_embeds)
        loss = self.contrastive_loss_of(video_embeds, text_embeds) if return_loss else None
        return EmoCLIPOutput(
            loss=loss,
            logits_per_video=logits_per_text.t(),
            logits_per_text=logits_per_text,
            video_embeds=video_embeds,
            text_embeds=text_embeds,
            frame_embeds=video_outputs.frame_embeds,
            video_model_output=video_outputs,
            text_model_output=text_outputs,
        )

    def contrastive_loss_of(self, video_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Computes `config.contrastive_loss` of B pairs; in distributed training over the pairs of all processes.

        `video_embeds` and `text_embeds` are `(B, D)`, unit length; text i belongs to video i.
        """
        from .losses import CONTRASTIVE_LOSSES  # training only

        video_embeds, text_embeds = self._of_all_processes(video_embeds, text_embeds)
        return CONTRASTIVE_LOSSES[self.config.contrastive_loss](self._logits_per_text(video_embeds, text_embeds))

    def _logits_per_text(self, video_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        logits = text_embeds @ video_embeds.t() * self.logit_scale.exp()  # (N, B)
        return logits if self.logit_bias is None else logits + self.logit_bias


__all__ = ["EmoCLIPModel", "EmoCLIPPreTrainedModel", "EmoCLIPTowers", "EmoCLIPVideoEncoder"]

# SPDX-License-Identifier: Apache-2.0
"""Models with labels: learned prompts (DFER-CLIP), a linear classifier, and a regression of named targets.

Shapes: B clips, T frames, C labels or targets, D embedding width, W width of the text tower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoTokenizer, CLIPConfig
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_emoclip import EmoCLIPConfig
from .losses import classification_loss, regression_loss
from .modeling_emoclip import EmoCLIPTowers, EmoCLIPVideoEncoder
from .prompts import PromptLearner, prompt_fields

_TEXT_SIDE = [r"^text_model\.", r"^text_projection\.", r"^logit_(scale|bias)$"]  # CLIP's, which heads do not have


@dataclass
class EmoCLIPHeadOutput(ModelOutput):
    """
    Args:
        loss: scalar, float32, if `labels` were given; in distributed training over the clips of all processes.
        logits: `(B, C)`, scores of the classes before softmax, or the predicted targets.
        video_embeds: `(B, D)`, the head's input; of unit length in the prompt model, else not normalised.
        text_embeds: `(C, D)`, unit length, class embeddings of the prompt model; else `None`.
        frame_embeds, hidden_states, attentions: as in `EmoCLIPVideoFeatures`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    video_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    frame_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class EmoCLIPLabelledModel(EmoCLIPVideoEncoder):
    """Base of the models with labels, whose `_predict` returns logits, video embeddings and text embeddings."""

    input_modalities = ("video",)
    _auto_classes = ("AutoModel", "AutoModelForVideoClassification")
    predicts = "labels"

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        frame_embeds: torch.FloatTensor | None = None,
        frame_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | EmoCLIPHeadOutput:
        """Scores C classes or predicts n targets, and computes the loss if `labels` are given.

        Args:
            pixel_values_videos, frame_embeds, frame_mask, kwargs: see `get_video_features`.
            labels: `(B,)`, integers from 0 to C - 1; or `(B, n)`, targets within `config.target_ranges`, if any.
        """
        video_outputs = self.get_video_features(
            pixel_values_videos, frame_embeds, frame_mask, return_dict=True, **kwargs
        )
        logits, video_embeds, text_embeds = self._predict(video_outputs.pooler_output)
        return EmoCLIPHeadOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            video_embeds=video_embeds,
            text_embeds=text_embeds,
            frame_embeds=video_outputs.frame_embeds,
            hidden_states=video_outputs.hidden_states,
            attentions=video_outputs.attentions,
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return classification_loss(*self._of_all_processes(logits, labels), self.config.class_weights)


class EmoCLIPForPromptClassification(EmoCLIPLabelledModel, EmoCLIPTowers):
    """DFER-CLIP, which scores videos against class embeddings that are learned around the text of each class.

    Zhao and Patras, "Prompting Visual-Language Models for Dynamic Facial Expression Recognition", BMVC 2023,
    arXiv 2308.13382. The text tower and its projection are frozen, and so is `logit_scale` where `prompt_logit_scale`
    replaces it; `requires_grad_` changes that. `freeze_class_embeds` stores the class embeddings in the checkpoint;
    until then every forward computes them.

    ```python
    >>> from emoclip import EmoCLIPForPromptClassification

    >>> texts = {"happiness": "a smiling mouth, raised cheeks.", "sadness": "tears, a downward turned mouth."}
    >>> clip = "openai/clip-vit-base-patch32"
    >>> model = EmoCLIPForPromptClassification.from_clip(clip, class_descriptions=texts)
    >>> model(frame_embeds=frame_embeds, labels=labels).loss.backward()
    ```"""

    _keys_to_ignore_on_load_unexpected = [r"^class_embeds$", r"^logit_bias$"]

    def __init__(self, config: EmoCLIPConfig):
        super().__init__(config)
        self.prompt_learner = PromptLearner(config)
        shape = (config.num_labels, config.projection_dim)
        self.register_buffer("class_embeds", torch.empty(shape) if config.prompt_class_embeds_frozen else None)
        self.post_init()
        self._freeze_unused()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PromptLearner):
            init.normal_(module.context, std=0.02)
            for name, positions in module.layout().items():
                init.copy_(getattr(module, name), positions)
        elif module is self and self.class_embeds is not None:
            if not getattr(self.class_embeds, "_is_hf_initialized", False):  # the checkpoint has none
                init.copy_(self.class_embeds, self._encode_classes())

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)  # which sets requires_grad of all parameters it reads
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze_unused()
        return loaded

    @classmethod
    def from_clip(
        cls,
        name_or_path: str,
        *,
        class_descriptions: Mapping[str, str | Sequence[str]] | None = None,
        revision: str | None = None,
        token=None,
        **config_overrides,
    ):
        """Builds a model with the towers, projections and scale of a CLIP checkpoint: see `EmoCLIPModel.from_clip`.

        Args:
            class_descriptions: label -> its one text, in the order of the labels, for the checkpoint's tokenizer.
                Without it `class_input_ids` and `id2label` must be given.

        Raises:
            ValueError: a label without exactly one text, or a text longer than the text tower takes.
            OSError: the checkpoint has no tokenizer.
        """
        hub = {"revision": revision, "token": token}
        if class_descriptions is not None:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, **hub)
            text_config = CLIPConfig.from_pretrained(name_or_path, **hub).text_config
            config_overrides = prompt_fields(class_descriptions, tokenizer, text_config) | config_overrides
        return super().from_clip(name_or_path, **hub, **config_overrides)

    def _predict(self, video_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        video_embeds = nn.functional.normalize(video_embeds, dim=-1)
        text_embeds = self.get_class_embeds().to(video_embeds.device)
        scale = self.config.prompt_logit_scale
        logits = video_embeds @ text_embeds.t() * (self.logit_scale.exp() if scale is None else scale)  # (B, C)
        return logits, video_embeds, text_embeds

    def get_class_embeds(self) -> torch.Tensor:
        """Returns `(C, D)`, unit length: class embeddings of the current weights, or in evaluation the frozen ones."""
        if self.class_embeds is not None:
            if not self.training:
                return self.class_embeds
            self.unfreeze_class_embeds()
        return self._encode_classes()

    def freeze_class_embeds(self) -> None:
        """Computes the class embeddings once, and saves them with the model.

        Evaluation then does not run the text tower, until a forward in training mode or `unfreeze_class_embeds`.
        """
        with torch.inference_mode(False), torch.no_grad():
            self.class_embeds = self._encode_classes()
        self.config.prompt_class_embeds_frozen = True

    def unfreeze_class_embeds(self) -> None:
        """Makes class embeddings follow the weights again."""
        self.class_embeds = None
        self.config.prompt_class_embeds_frozen = False

    def _encode_classes(self) -> torch.Tensor:
        prompts, text_model = self.prompt_learner, self.text_model
        # CLIPTextModel takes token ids only; this is its forward for tokens that are embedded already.
        token_embeds = text_model.embeddings.token_embedding(prompts.input_ids)
        hidden_states = text_model.embeddings(inputs_embeds=prompts(token_embeds))
        # No padding and no cache; by position, as transformers 5.24 renamed `past_key_values` to `cache`.
        attention_mask = create_causal_mask(text_model.config, hidden_states, None, None)
        hidden_states = text_model.encoder(
            inputs_embeds=hidden_states, attention_mask=attention_mask, is_causal=True
        ).last_hidden_state  # (C, L, W)
        last_tokens = prompts.end_positions.to(hidden_states.device)[:, None, None]
        last_tokens = hidden_states.gather(1, last_tokens.expand(-1, -1, hidden_states.shape[-1]))[:, 0]  # (C, W)
        text_embeds = self.text_projection(text_model.final_layer_norm(last_tokens))
        return nn.functional.normalize(text_embeds, dim=-1)

    def _freeze_unused(self) -> None:
        self.text_model.requires_grad_(False)
        self.text_projection.requires_grad_(False)
        self.logit_scale.requires_grad_(self.config.prompt_logit_scale is None)


class EmoCLIPForVideoClassification(EmoCLIPLabelledModel):
    """Linear classifier on the video embedding, for a linear probe or full fine-tuning.

    With `temporal_num_layers=0` the video embedding is the mean of CLIP's frame embeddings.

    ```python
    >>> from emoclip import EmoCLIPForVideoClassification

    >>> names = {0: "happiness", 1: "sadness"}
    >>> model = EmoCLIPForVideoClassification.from_clip("openai/clip-vit-base-patch32", id2label=names)
    >>> model(frame_embeds=frame_embeds, labels=labels).loss.backward()
    ```"""

    _keys_to_ignore_on_load_unexpected = _TEXT_SIDE

    def __init__(self, config: EmoCLIPConfig):
        super().__init__(config)
        config.validate_targets()  # again: the config may have been changed since it was made, as by `num_labels=`
        self.classifier = nn.Linear(config.projection_dim, config.num_labels)
        self.post_init()

    def _predict(self, video_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return self.classifier(video_embeds), video_embeds, None


class EmoCLIPForVideoRegression(EmoCLIPLabelledModel):
    """EmoCLIP's estimation of symptoms: a small network on the video embedding that predicts `num_labels` numbers.

    `architecture/downstream.py` of the released code: D -> D/2 -> ReLU -> n.

    ```python
    >>> from emoclip import EmoCLIPForVideoRegression

    >>> scales = {"target_names": ["flat affect", "poor rapport"], "target_ranges": [[0, 6], [0, 6]]}
    >>> model = EmoCLIPForVideoRegression.from_clip("openai/clip-vit-base-patch32", regression_loss="ccc", **scales)
    >>> model(frame_embeds=frame_embeds, labels=labels).loss.backward()
    ```"""

    predicts = "targets"
    _keys_to_ignore_on_load_unexpected = _TEXT_SIDE

    def __init__(self, config: EmoCLIPConfig):
        super().__init__(config)
        config.validate_targets()  # again: see the classifier
        if config.problem_type is None:
            config.problem_type = "regression"  # else transformers' pipeline takes the softmax of the targets
        width = config.projection_dim
        self.mlp = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, config.num_labels))
        self.post_init()

    def _predict(self, video_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return self.mlp(video_embeds), video_embeds, None

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = regression_loss(*self._of_all_processes(logits, labels), self.config.regression_loss)
        self._check_ranges(labels)
        return loss

    def _check_ranges(self, labels: torch.Tensor) -> None:
        if self.config.target_ranges is None or torch.compiler.is_compiling():
            return
        low, high = torch.tensor(self.config.target_ranges, dtype=torch.float32, device=labels.device).unbind(dim=1)
        values = labels.float()
        outside = ~((values >= low) & (values <= high))  # so that NaN is outside
        if outside.any():
            clip, target = outside.nonzero()[0].tolist()
            name = self.config.target_names[target] if self.config.target_names else self.config.id2label[target]
            raise ValueError(
                f"labels[{clip}] has {values[clip, target].item():g} for the target {name!r}, but its range in "
                f"target_ranges is {self.config.target_ranges[target]}"
            )


__all__ = ["EmoCLIPForPromptClassification", "EmoCLIPForVideoClassification", "EmoCLIPForVideoRegression"]

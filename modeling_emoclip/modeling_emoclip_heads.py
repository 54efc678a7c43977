# SPDX-License-Identifier: Apache-2.0
"""Models with labels: learned prompts (DFER-CLIP), a linear classifier, and a regression of named targets.

Each takes `pixel_values_videos` or `frame_embeds`, `frame_mask` and `labels`, and returns an `EmoCLIPHeadOutput`.
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
from .modeling_emoclip import EmoCLIPTowers, EmoCLIPVideoEncoder, EmoCLIPVideoFeatures
from .prompts import PromptLearner, prompt_fields
from .weights_state import weights_state

AUTO_CLASSES = ("AutoModel", "AutoModelForVideoClassification")


@dataclass
class EmoCLIPHeadOutput(ModelOutput):
    """
    Args:
        loss: scalar, float32, if `labels` were given; while several processes train, that of all their clips.
        logits: `(B, C)`, scores of the classes before softmax, or the predicted targets.
        video_embeds: `(B, D)`, what the head reads; of unit length in the prompt model, else not normalised.
        text_embeds: `(C, D)`, unit length, the class embeddings of the prompt model; else `None`.
        frame_embeds: `(B, T, D)`, not normalised. May be fed back as `frame_embeds`.
        hidden_states, attentions: of the temporal layers.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    video_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    frame_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def _head_output(video_outputs: EmoCLIPVideoFeatures, **values) -> EmoCLIPHeadOutput:
    return EmoCLIPHeadOutput(
        frame_embeds=video_outputs.frame_embeds,
        hidden_states=video_outputs.hidden_states,
        attentions=video_outputs.attentions,
        **values,
    )


class EmoCLIPForPromptClassification(EmoCLIPTowers):
    """DFER-CLIP: video embeddings against class embeddings that are learned around the text of each class.

    Zhao and Patras, "Prompting Visual-Language Models for Dynamic Facial Expression Recognition", BMVC 2023,
    arXiv 2308.13382. The text tower and its projection are frozen, and so is a `logit_scale` that is not used
    (`prompt_logit_scale` given); `requires_grad_` changes that.

    In evaluation without gradients the class embeddings are computed once and kept until a weight of the text side
    changes. `freeze_class_embeds` stores them in the checkpoint.

    ```python
    >>> from modeling_emoclip import EmoCLIPForPromptClassification

    >>> texts = {"happiness": "a smiling mouth, raised cheeks.", "sadness": "tears, a downward turned mouth."}
    >>> clip = "openai/clip-vit-base-patch32"
    >>> model = EmoCLIPForPromptClassification.from_clip(clip, class_descriptions=texts)
    >>> model(frame_embeds=frame_embeds, labels=labels).loss.backward()
    ```"""

    input_modalities = ("video",)
    _auto_classes = AUTO_CLASSES
    _keys_to_ignore_on_load_unexpected = [r"^class_embeds$", r"^logit_bias$"]

    def __init__(self, config: EmoCLIPConfig):
        super().__init__(config)
        self.prompt_learner = PromptLearner(config)
        shape = (config.num_labels, config.projection_dim)
        self.register_buffer("class_embeds", torch.empty(shape) if config.prompt_class_embeds_frozen else None)
        self._cached_class_embeds: tuple | None = None
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
        """The model whose towers, projections and scale come from a CLIP checkpoint.

        Args:
            name_or_path, revision, token: see `EmoCLIPModel.from_clip`.
            class_descriptions: label -> its one text, in the order of the labels; tokenized by the checkpoint's
                tokenizer. Without it `class_input_ids` and `id2label` must be given.
            config_overrides: fields of `EmoCLIPConfig`.

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

    def train(self, mode: bool = True):
        self._cached_class_embeds = None
        return super().train(mode)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        frame_embeds: torch.FloatTensor | None = None,
        frame_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | EmoCLIPHeadOutput:
        """Scores of the C classes, and their cross-entropy if there are `labels`.

        Args:
            pixel_values_videos, frame_embeds, frame_mask: see `get_video_features`, which takes `kwargs` too.
            labels: `(B,)`, integers from 0 to C - 1.
        """
        video_outputs = self.get_video_features(
            pixel_values_videos, frame_embeds, frame_mask, return_dict=True, **kwargs
        )
        video_embeds = nn.functional.normalize(video_outputs.pooler_output, dim=-1)
        text_embeds = self.get_class_embeds().to(video_embeds.device)
        scale = self.config.prompt_logit_scale
        logits = video_embeds @ text_embeds.t() * (self.logit_scale.exp() if scale is None else scale)  # (B, C)
        loss = None
        if labels is not None:
            loss = classification_loss(*self._of_all_processes(logits, labels), self.config.class_weights)
        return _head_output(
            video_outputs, loss=loss, logits=logits, video_embeds=video_embeds, text_embeds=text_embeds
        )

    def get_class_embeds(self) -> torch.Tensor:
        """`(C, D)`, unit length: the class embeddings for the present weights, or the frozen ones in evaluation."""
        if self.class_embeds is not None:
            if not self.training:
                return self.class_embeds
            self.unfreeze_class_embeds()
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._encode_classes()
        state = weights_state(self.prompt_learner, self.text_model, self.text_projection)
        if state is None:
            return self._encode_classes()
        if self._cached_class_embeds is None or self._cached_class_embeds[0] != state:
            # A tensor made in inference mode could not be used in a gradient afterwards.
            with torch.inference_mode(False), torch.no_grad():
                self._cached_class_embeds = (state, self._encode_classes())
        return self._cached_class_embeds[1]

    def freeze_class_embeds(self) -> None:
        """Computes the class embeddings once and for all: they are saved with the model, beside the context tokens.

        The text tower is then not run in evaluation, whatever happens to the weights. The first forward in training
        mode, or `unfreeze_class_embeds`, ends that.
        """
        with torch.inference_mode(False), torch.no_grad():
            self.class_embeds = self._encode_classes()
        self.config.prompt_class_embeds_frozen = True

    def unfreeze_class_embeds(self) -> None:
        """Class embeddings follow the weights again."""
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


class EmoCLIPVideoHead(EmoCLIPVideoEncoder):
    """A head on the video embedding, without a text tower."""

    input_modalities = ("video",)
    _auto_classes = AUTO_CLASSES
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^logit_(scale|bias)$"]


class EmoCLIPForVideoClassification(EmoCLIPVideoHead):
    """A linear classifier on the video embedding: linear probe or full fine-tuning.

    `temporal_num_layers=0` makes the video embedding the mean of CLIP's frame embeddings.

    ```python
    >>> from modeling_emoclip import EmoCLIPForVideoClassification

    >>> names = {0: "happiness", 1: "sadness"}
    >>> model = EmoCLIPForVideoClassification.from_clip("openai/clip-vit-base-patch32", id2label=names)
    >>> model(frame_embeds=frame_embeds, labels=labels).loss.backward()
    ```"""

    def __init__(self, config: EmoCLIPConfig):
        super().__init__(config)
        config.validate_targets()  # again: a config may have been changed since it was made, as by `num_labels=`
        self.classifier = nn.Linear(config.projection_dim, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        frame_embeds: torch.FloatTensor | None = None,
        frame_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | EmoCLIPHeadOutput:
        """Scores of the C classes, and their cross-entropy if there are `labels`.

        Args:
            pixel_values_videos, frame_embeds, frame_mask: see `get_video_features`, which takes `kwargs` too.
            labels: `(B,)`, integers from 0 to C - 1.
        """
        video_outputs = self.get_video_features(
            pixel_values_videos, frame_embeds, frame_mask, return_dict=True, **kwargs
        )
        logits = self.classifier(video_outputs.pooler_output)  # (B, C)
        loss = None
        if labels is not None:
            loss = classification_loss(*self._of_all_processes(logits, labels), self.config.class_weights)
        return _head_output(video_outputs, loss=loss, logits=logits, video_embeds=video_outputs.pooler_output)


class EmoCLIPForVideoRegression(EmoCLIPVideoHead):
    """EmoCLIP's estimation of symptoms: a small network on the video embedding predicts `num_labels` numbers.

    `architecture/downstream.py` of the released code: D -> D/2 -> ReLU -> n.

    ```python
    >>> from modeling_emoclip import EmoCLIPForVideoRegression

    >>> scales = {"target_names": ["flat affect", "poor rapport"], "target_ranges": [[0, 6], [0, 6]]}
    >>> model = EmoCLIPForVideoRegression.from_clip("openai/clip-vit-base-patch32", regression_loss="ccc", **scales)
    >>> model(frame_embeds=frame_embeds, labels=labels).loss.backward()
    ```"""

    def __init__(self, config: EmoCLIPConfig):
        super().__init__(config)
        config.validate_targets()  # again: a config may have been changed since it was made, as by `num_labels=`
        if config.problem_type is None:
            config.problem_type = "regression"  # else transformers' pipeline takes the softmax of the targets
        width = config.projection_dim
        self.mlp = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, config.num_labels))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        frame_embeds: torch.FloatTensor | None = None,
        frame_mask: torch.Tensor | None = None,
        labels: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | EmoCLIPHeadOutput:
        """The n targets as `logits (B, n)`, in the labels' own units, and the loss if there are `labels`.

        Args:
            pixel_values_videos, frame_embeds, frame_mask: see `get_video_features`, which takes `kwargs` too.
            labels: `(B, n)`, within `target_ranges` if the config has them.
        """
        video_outputs = self.get_video_features(
            pixel_values_videos, frame_embeds, frame_mask, return_dict=True, **kwargs
        )
        predictions = self.mlp(video_outputs.pooler_output)  # (B, n)
        loss = None
        if labels is not None:
            loss = regression_loss(*self._of_all_processes(predictions, labels), self.config.regression_loss)
            self._check_ranges(labels)
        return _head_output(video_outputs, loss=loss, logits=predictions, video_embeds=video_outputs.pooler_output)

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

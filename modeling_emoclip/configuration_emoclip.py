# SPDX-License-Identifier: Apache-2.0
"""Configuration of the EmoCLIP models."""

import math
from difflib import get_close_matches

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

OWN_PREFIXES = ("temporal_", "prompt_", "class_", "target_", "contrastive_", "regression_")
CLASS_POSITIONS = ("end", "middle", "front")
REGRESSION_LOSSES = ("mse", "l1", "ccc")
# Logarithm of the scale that training starts from: CLIP's 1 / 0.07, and SigLIP's 10 (arXiv 2303.15343, section 3.2).
LOGIT_SCALES = {"softmax": 2.6592, "sigmoid": math.log(10)}


@strict
class EmoCLIPConfig(PreTrainedConfig):
    r"""
    Configuration of two CLIP towers, a temporal transformer over frame embeddings, and the classes' texts.

    Args:
        vision_config, text_config (`CLIPVisionConfig`, `CLIPTextConfig` or `dict`, *optional*): the two towers.
        projection_dim (`int`, defaults to 512): width D of frame, video and text embeddings.
        logit_scale_init_value (`float`, *optional*): natural logarithm of the cosine's scale at the start of training;
            by default CLIP's 2.6592, or SigLIP's log(10) with `contrastive_loss="sigmoid"`.
        contrastive_loss (`str`, defaults to `"softmax"`): `"softmax"` over the batch, as in both papers, or
            `"sigmoid"` of each pair (SigLIP, arXiv 2303.15343), which adds a `logit_bias` that starts at -10.
        temporal_num_layers (`int`, defaults to 2): depth of the temporal transformer; 0 is the mean of the frames.
        temporal_num_heads (`int`, defaults to 8): attention heads of each temporal layer.
        temporal_head_dim (`int`, defaults to 64): width of one head; heads x head_dim need not be D. Released EmoCLIP
            weights have 2048 here (their code passes two arguments crossed).
        temporal_intermediate_size (`int`, defaults to 1024): width of the MLP. 512 in released EmoCLIP weights.
        temporal_max_frames (`int`, defaults to 256): most frames in a clip. 1023 in EmoCLIP, 16 in DFER-CLIP.
        temporal_residual (`bool`, defaults to `True`): add the temporal output to the mean of the frame embeddings.
            Its last projection starts at zero, so that an untrained model scores exactly like CLIP with the mean of
            its frames, which `from_clip` relies on. `False` is the papers' model: the class token's output alone.
        temporal_layer_norm_eps (`float`, defaults to 1e-5).
        class_descriptions (`dict[str, list[str]]`, *optional*): label -> texts that stand for it. The pipeline uses
            them for labels that are given by name only.
        label_temperatures (`list[dict]`, *optional*): for each calibrated label set its sorted `labels`, the
            `temperature` that divides their logits, and how it was fitted (`ece_before`, `ece_after`, `data`).

        prompt_num_context_tokens (`int`, defaults to 8): learnable tokens beside each class text.
        prompt_class_specific_contexts (`bool`, defaults to `True`): contexts for each class, or one set for all.
        prompt_class_position (`str`, defaults to `"end"`): place of the class text among the contexts: `"end"`,
            `"front"`, or `"middle"`, with half of them (rounded down) before it.
        prompt_logit_scale (`float`, *optional*, defaults to 100): fixed scale of the cosine; `None` learns it.
        prompt_class_embeds_frozen (`bool`, defaults to `False`): set by `freeze_class_embeds()` of the model.
        class_input_ids (`list[list[int]]`, *optional*): token ids of each class's text, without start and end token,
            in the order of `id2label`. With them no tokenizer is needed.
        class_weights (`list[float]`, *optional*): weight of each class in the cross-entropy, in the same order.
        target_names (`list[str]`, *optional*): what a regression predicts; the default of `id2label`.
        target_ranges (`list[list[float]]`, *optional*): `[low, high]` of each target. Labels must lie in it;
            predictions are neither scaled nor clipped to it.
        regression_loss (`str`, defaults to `"mse"`): `"mse"`, `"l1"` or `"ccc"` (1 - concordance correlation).
        id2label, label2id, num_labels: the classes or targets, as in every transformers model.

    ```python
    >>> from emoclip import EmoCLIPConfig, EmoCLIPModel

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
    logit_scale_init_value: float | int | None = None
    contrastive_loss: str = "softmax"
    temporal_num_layers: int = 2
    temporal_num_heads: int = 8
    temporal_head_dim: int = 64
    temporal_intermediate_size: int = 1024
    temporal_max_frames: int = 256
    temporal_residual: bool = True
    temporal_layer_norm_eps: float = 1e-5
    class_descriptions: dict | None = None
    label_temperatures: list | None = None
    prompt_num_context_tokens: int = 8
    prompt_class_specific_contexts: bool = True
    prompt_class_position: str = "end"
    prompt_logit_scale: float | int | None = 100.0
    prompt_class_embeds_frozen: bool = False
    class_input_ids: list | None = None
    class_weights: list | None = None
    target_names: list | None = None
    target_ranges: list | None = None
    regression_loss: str = "mse"

    # `import emoclip` sets this. A pipeline of installed code needs no permission to run the repository's own, which
    # transformers asks for where a configuration names custom pipelines.
    runs_installed_code = False
    # What transformers' Trainer does not gather from every batch of an evaluation.
    keys_to_ignore_at_inference = ["hidden_states", "attentions", "video_embeds", "text_embeds", "frame_embeds"]

    def __post_init__(self, **kwargs):
        if self.architectures is None:
            self.architectures = []  # transformers iterates over it to choose among the classes of one Auto class
        if self.target_names is not None and self.id2label is None and "num_labels" not in kwargs:
            self.id2label = dict(enumerate(self.target_names))
            self.label2id = {name: index for index, name in self.id2label.items()}
        if self.logit_scale_init_value is None:
            self.logit_scale_init_value = LOGIT_SCALES.get(self.contrastive_loss)
        if self.runs_installed_code:
            kwargs.pop("custom_pipelines", None)
        kwargs.pop("same_text_positives", None)  # of checkpoints before 0.1; it only ever changed training
        # transformers keeps unknown fields, and nothing reads them. Those meant for this configuration are refused:
        # they are misspelt, or of a newer version that computes something else.
        known = list(type(self).__dataclass_fields__)
        for name in set(kwargs) - set(known):
            if name.startswith(OWN_PREFIXES) or get_close_matches(name, known, n=1, cutoff=0.85):
                near = get_close_matches(name, known, n=1)
                raise ValueError(f"EmoCLIPConfig has no field {name}{f'; is it {near[0]}?' if near else ''}")
        super().__post_init__(**kwargs)

    @property
    def num_frames(self) -> None:
        """Tells transformers' `video-classification` pipeline, by `None`, that the video processor decides."""

    @classmethod
    def from_clip_config(cls, clip_config: CLIPConfig, **overrides) -> "EmoCLIPConfig":
        """Returns a configuration with the towers, projection and scale of CLIP's, where `overrides` win."""
        from_clip = {
            "vision_config": clip_config.vision_config.to_dict(),
            "text_config": clip_config.text_config.to_dict(),
            "projection_dim": clip_config.projection_dim,
            "logit_scale_init_value": clip_config.logit_scale_init_value,
        }
        if overrides.get("contrastive_loss") == "sigmoid":
            del from_clip["logit_scale_init_value"]
        unknown = sorted(set(overrides) - set(cls.__dataclass_fields__) - {"num_labels"})
        if unknown:  # PreTrainedConfig would keep a misspelt name as an attribute nobody reads
            raise ValueError(f"EmoCLIPConfig has no field {', '.join(unknown)}")
        return cls(**(from_clip | overrides))

    def validate_architecture(self):
        """Checks, as part of `@strict`, that every size can be built, the loss exists, and every label has texts."""
        sizes = "projection_dim temporal_num_heads temporal_head_dim temporal_intermediate_size temporal_max_frames"
        for field in [*sizes.split(), "temporal_num_layers", "prompt_num_context_tokens"]:
            least = 0 if field in ("temporal_num_layers", "prompt_num_context_tokens") else 1
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}, but must be at least {least}")
        if self.contrastive_loss not in LOGIT_SCALES:
            raise ValueError(
                f"contrastive_loss is {self.contrastive_loss!r}, but must be one of {tuple(LOGIT_SCALES)}"
            )
        for label, texts in (self.class_descriptions or {}).items():
            if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(t, str) and t for t in texts):
                raise ValueError(f"class_descriptions[{label!r}] is {texts!r}, but must be a list of non-empty texts")

    def validate_label_temperatures(self):
        """Checks, as part of `@strict`, that each label set occurs once and has a temperature above 0."""
        known = set()
        for index, entry in enumerate(self.label_temperatures or []):
            entry = entry if isinstance(entry, dict) else {}
            labels, temperature = entry.get("labels"), entry.get("temperature")
            are_texts = isinstance(labels, list) and all(isinstance(label, str) and label for label in labels)
            if not labels or not are_texts or labels != sorted(set(labels)):
                raise ValueError(
                    f"label_temperatures[{index}] has the labels {labels!r}, but must have sorted, distinct texts"
                )
            if not _is_number(temperature) or temperature <= 0:
                raise ValueError(
                    f"label_temperatures[{index}] has the temperature {temperature!r}, but must be greater than 0"
                )
            if tuple(labels) in known:
                raise ValueError(f"label_temperatures has the labels {labels} more than once")
            known.add(tuple(labels))

    def validate_prompt(self):
        """Checks, as part of `@strict`, that class texts fit the labels and, with contexts, the text tower."""
        if self.prompt_class_position not in CLASS_POSITIONS:
            raise ValueError(f"prompt_class_position is {self.prompt_class_position!r}, but must be {CLASS_POSITIONS}")
        if self.prompt_logit_scale is not None and not 0 < self.prompt_logit_scale < math.inf:
            raise ValueError(f"prompt_logit_scale is {self.prompt_logit_scale}, but must be greater than 0 or None")
        if self.class_input_ids is None:
            return
        self._check_one_per_label("class_input_ids")
        vocab_size, max_tokens = self.text_config.vocab_size, self.text_config.max_position_embeddings
        for index, ids in enumerate(self.class_input_ids):
            if not isinstance(ids, (list, tuple)) or not all(_is_int(i) and 0 <= i < vocab_size for i in ids):
                raise ValueError(
                    f"class_input_ids[{index}] is {ids!r}, but must be a list of token ids from 0 to "
                    f"text_config.vocab_size - 1 = {vocab_size - 1}"
                )
            if (length := len(ids) + self.prompt_num_context_tokens + 2) > max_tokens:
                raise ValueError(
                    f"class_input_ids[{index}] has {len(ids)} tokens, which makes {length} with "
                    f"prompt_num_context_tokens = {self.prompt_num_context_tokens} and the start and end token, but "
                    f"text_config.max_position_embeddings is {max_tokens}"
                )

    def validate_targets(self):
        """Checks, as part of `@strict`, that weights, names and ranges fit the labels."""
        if self.regression_loss not in REGRESSION_LOSSES:
            raise ValueError(f"regression_loss is {self.regression_loss!r}, but must be one of {REGRESSION_LOSSES}")
        if self.class_weights is not None:
            self._check_one_per_label("class_weights")
            if not all(_is_number(weight) and weight > 0 for weight in self.class_weights):
                raise ValueError(f"class_weights is {self.class_weights}, but must hold numbers greater than 0")
        if self.target_names is not None:
            self._check_one_per_label("target_names")
            are_texts = all(isinstance(name, str) and name for name in self.target_names)
            if len(set(self.target_names)) < len(self.target_names) or not are_texts:
                raise ValueError(f"target_names is {self.target_names}, but must hold distinct, non-empty texts")
        for index, bounds in enumerate(self.target_ranges or []):
            self._check_one_per_label("target_ranges")
            if not (isinstance(bounds, (list, tuple)) and len(bounds) == 2 and all(map(_is_number, bounds))):
                raise ValueError(f"target_ranges[{index}] is {bounds!r}, but must be [low, high]")
            if not bounds[0] < bounds[1]:
                raise ValueError(f"target_ranges[{index}] is {bounds!r}, but low must be less than high")

    def _check_one_per_label(self, field: str):
        if len(getattr(self, field)) != self.num_labels:
            raise ValueError(f"{field} has {len(getattr(self, field))} entries, but num_labels is {self.num_labels}")


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(value)


__all__ = ["EmoCLIPConfig"]

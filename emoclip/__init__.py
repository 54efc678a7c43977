# SPDX-License-Identifier: Apache-2.0
"""EmoCLIP: zero-shot facial expression recognition in video.

Importing the package registers its classes with transformers' Auto classes, and its pipeline with
`transformers.pipeline`, which then need no remote code.
"""

from importlib import import_module

from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, AutoProcessor, AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from modeling_emoclip.configuration_emoclip import EmoCLIPConfig
from modeling_emoclip.modeling_emoclip import EmoCLIPModel, EmoCLIPPreTrainedModel
from modeling_emoclip.modeling_emoclip_heads import (
    EmoCLIPForPromptClassification,
    EmoCLIPForVideoClassification,
    EmoCLIPForVideoRegression,
)
from modeling_emoclip.pipeline_emoclip import TASK, VideoEmbeddings
from modeling_emoclip.processing_emoclip import EmoCLIPProcessor
from modeling_emoclip.video_processing_emoclip import EmoCLIPVideoProcessor

from .pipeline import ZeroShotVideoClassificationPipeline

EmoCLIPConfig.runs_installed_code = True
AutoConfig.register("emoclip", EmoCLIPConfig)
# Of several classes the one that `config.architectures` names is loaded, or else the first.
_WITH_LABELS = (EmoCLIPForVideoClassification, EmoCLIPForPromptClassification, EmoCLIPForVideoRegression)
AutoModel.register(EmoCLIPConfig, (EmoCLIPModel, *_WITH_LABELS))
AutoModelForVideoClassification.register(EmoCLIPConfig, _WITH_LABELS)
AutoVideoProcessor.register(EmoCLIPConfig, EmoCLIPVideoProcessor)
AutoProcessor.register(EmoCLIPConfig, EmoCLIPProcessor)
PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=ZeroShotVideoClassificationPipeline, pt_model=AutoModel, type="multimodal"
)

# Without these lines save_pretrained writes neither the code nor `auto_map`, even for a model that came with both.
EmoCLIPConfig.register_for_auto_class()
EmoCLIPModel.register_for_auto_class("AutoModel")
for _model_class in _WITH_LABELS:
    _model_class.register_for_auto_class("AutoModelForVideoClassification")
EmoCLIPVideoProcessor.register_for_auto_class("AutoVideoProcessor")
EmoCLIPProcessor.register_for_auto_class("AutoProcessor")

_LATE = {"EmotionAlignment": "alignment", "EmotionStream": "live.stream", "EmotionTimeline": "timeline.timeline"}


def __getattr__(name: str):
    """Imports what most uses do not need when it is first asked for."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATE[name]}", __name__), name)


__all__ = [
    "EmoCLIPConfig",
    "EmoCLIPForPromptClassification",
    "EmoCLIPForVideoClassification",
    "EmoCLIPForVideoRegression",
    "EmoCLIPModel",
    "EmoCLIPPreTrainedModel",
    "EmoCLIPProcessor",
    "EmoCLIPVideoProcessor",
    "EmotionAlignment",
    "EmotionStream",
    "EmotionTimeline",
    "VideoEmbeddings",
    "ZeroShotVideoClassificationPipeline",
]

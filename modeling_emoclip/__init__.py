# SPDX-License-Identifier: Apache-2.0
"""EmoCLIP: any words for the expression on any face in any video.

Importing the package registers its classes with the Auto API and its pipeline with `transformers.pipeline`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVideoClassification,
    AutoProcessor,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .alignment import EmotionAlignment
from .configuration_emoclip import EmoCLIPConfig
from .embeddings import VideoEmbeddings
from .live import EmotionStream
from .modeling_emoclip import EmoCLIPModel, EmoCLIPPreTrainedModel
from .modeling_emoclip_heads import (
    EmoCLIPForPromptClassification,
    EmoCLIPForVideoClassification,
    EmoCLIPForVideoRegression,
)
from .pipeline_emoclip import TASK, ZeroShotVideoClassificationPipeline
from .processing_emoclip import EmoCLIPProcessor
from .timeline import EmotionTimeline
from .video_processing_emoclip import EmoCLIPVideoProcessor

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

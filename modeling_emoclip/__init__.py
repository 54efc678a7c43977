# SPDX-License-Identifier: Apache-2.0
"""EmoCLIP: any words for the expression on any face in any video.

Importing the package registers its classes with the Auto API and its pipeline with `transformers.pipeline`.
"""

from transformers import AutoConfig, AutoModel, AutoProcessor, AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_emoclip import EmoCLIPConfig
from .modeling_emoclip import EmoCLIPModel, EmoCLIPPreTrainedModel
from .pipeline_emoclip import TASK, ZeroShotVideoClassificationPipeline
from .processing_emoclip import EmoCLIPProcessor
from .video_processing_emoclip import EmoCLIPVideoProcessor

AutoConfig.register("emoclip", EmoCLIPConfig)
AutoModel.register(EmoCLIPConfig, EmoCLIPModel)
AutoVideoProcessor.register(EmoCLIPConfig, EmoCLIPVideoProcessor)
AutoProcessor.register(EmoCLIPConfig, EmoCLIPProcessor)
PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=ZeroShotVideoClassificationPipeline, pt_model=AutoModel, type="multimodal"
)

# Without these lines save_pretrained writes neither the code nor `auto_map`, even for a model that came with both.
EmoCLIPConfig.register_for_auto_class()
EmoCLIPModel.register_for_auto_class("AutoModel")
EmoCLIPVideoProcessor.register_for_auto_class("AutoVideoProcessor")
EmoCLIPProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "EmoCLIPConfig",
    "EmoCLIPModel",
    "EmoCLIPPreTrainedModel",
    "EmoCLIPProcessor",
    "EmoCLIPVideoProcessor",
    "ZeroShotVideoClassificationPipeline",
]

# SPDX-License-Identifier: Apache-2.0
from transformers import AutoConfig, AutoModel

from .configuration_emoclip import EmoCLIPConfig
from .modeling_emoclip import EmoCLIPModel, EmoCLIPPreTrainedModel

AutoConfig.register("emoclip", EmoCLIPConfig)
AutoModel.register(EmoCLIPConfig, EmoCLIPModel)

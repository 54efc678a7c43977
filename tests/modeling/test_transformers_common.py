# SPDX-License-Identifier: Apache-2.0
"""transformers' common model tests against every class of the family: `make common-tests`."""

import unittest

import pytest
import torch
from common_skips import left_out
from common_suite import model_tester_mixin

import emoclip
from emoclip import EmoCLIPConfig

pytestmark = pytest.mark.slow
ModelTesterMixin = model_tester_mixin()

BATCH, FRAMES, IMAGE, TOKENS, VOCABULARY, LABELS = 3, 4, 30, 7, 99, 3
EOS = VOCABULARY - 1


def tiny_config(**fields) -> EmoCLIPConfig:
    tower = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": EOS}
    return EmoCLIPConfig(
        vision_config={"image_size": IMAGE, "patch_size": 15, **tower},
        text_config={"vocab_size": VOCABULARY, "max_position_embeddings": 16, **special, **tower},
        projection_dim=32,
        temporal_num_layers=2,
        temporal_num_heads=4,
        temporal_head_dim=8,
        temporal_intermediate_size=37,
        temporal_max_frames=8,
        **fields,
    )


class TinyModel:
    """What the suite wants to know of a model besides the model."""

    batch_size = BATCH
    is_training = True
    num_hidden_layers = 2
    num_attention_heads = 4
    seq_length = 1 + FRAMES
    hidden_size = 32

    def __init__(self, text_input: bool, **config_fields):
        self.text_input, self.config_fields = text_input, config_fields

    def get_config(self) -> EmoCLIPConfig:
        return tiny_config(**self.config_fields)

    def text_inputs(self):
        input_ids = torch.randint(2, EOS, (BATCH, TOKENS))
        input_ids[:, -1] = EOS
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    def prepare_config_and_inputs_for_common(self):
        inputs = {"pixel_values_videos": torch.rand(BATCH, FRAMES, 3, IMAGE, IMAGE)}
        if self.text_input:
            inputs |= self.text_inputs()[1] | {"return_loss": True}
        return self.get_config(), inputs


@left_out
class EmoCLIPModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (emoclip.EmoCLIPModel,)
    additional_model_inputs = ["input_ids", "attention_mask"]
    _is_composite = True

    def setUp(self):
        # Not the residual: its last projection is zero at first and would hide the temporal layers from every test.
        self.model_tester = TinyModel(text_input=True, temporal_residual=False)


class WithLabels(ModelTesterMixin):
    _is_composite = True
    labels = torch.arange(BATCH) % LABELS

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        return inputs | {"labels": self.labels} if return_labels else inputs


@left_out
class EmoCLIPForPromptClassificationTest(WithLabels, unittest.TestCase):
    all_model_classes = (emoclip.EmoCLIPForPromptClassification,)

    def setUp(self):
        prompt = {"class_input_ids": [[5, 6], [7], [8, 9, 10]], "prompt_num_context_tokens": 4}
        # Not 100: the suite's tolerances for 16 bits are absolute, for numbers near 1.
        self.model_tester = TinyModel(False, num_labels=LABELS, prompt_logit_scale=1.0, **prompt)

    def _text_features_prepare_config_and_inputs(self):
        return self.model_tester.text_inputs()


@left_out
class EmoCLIPForVideoClassificationTest(WithLabels, unittest.TestCase):
    all_model_classes = (emoclip.EmoCLIPForVideoClassification,)

    def setUp(self):
        self.model_tester = TinyModel(False, num_labels=LABELS, temporal_residual=False)


@left_out
class EmoCLIPForVideoRegressionTest(WithLabels, unittest.TestCase):
    all_model_classes = (emoclip.EmoCLIPForVideoRegression,)
    labels = torch.linspace(0, 1, BATCH * LABELS).view(BATCH, LABELS)

    def setUp(self):
        self.model_tester = TinyModel(False, num_labels=LABELS)

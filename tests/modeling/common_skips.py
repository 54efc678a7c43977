# SPDX-License-Identifier: Apache-2.0
"""The only place that says which tests of transformers' common suite do not run here, and why.

A skip that neither table knows fails: a later release may not drop a test unnoticed.
"""

import re
import unittest

VISION_EMBEDDINGS = "without a text tower the input embeddings are a convolution, as in every vision transformer"
TWO_TOWERS = (
    "two towers: hidden states and attentions are in video_model_output and text_model_output, as in CLIPOutput; "
    "test_transformers_behaviour.py looks there"
)

# test class -> test -> why we leave it out
LEFT_OUT = {
    "every class": {
        "test_can_init_all_missing_weights": "fails for CLIP's own towers; transformers skips it for models older "
        "than 2023. test_transformers_behaviour.py runs it on every weight that is not CLIP's",
    },
    "EmoCLIPModelTest": {
        "test_attention_outputs": TWO_TOWERS,
        "test_hidden_states_output": TWO_TOWERS,
        "test_retain_grad_hidden_states_attentions": TWO_TOWERS,
    },
    "EmoCLIPForPromptClassificationTest": {
        "test_resize_tokens_embeddings": "gives the model input_ids, and this one reads its class texts from the "
        "config; EmoCLIPModelTest resizes the same tower",
    },
    "EmoCLIPForVideoClassificationTest": {
        "test_model_get_set_embeddings": VISION_EMBEDDINGS,
        "test_resize_tokens_embeddings": VISION_EMBEDDINGS,
    },
    "EmoCLIPForVideoRegressionTest": {
        "test_model_get_set_embeddings": VISION_EMBEDDINGS,
        "test_resize_tokens_embeddings": VISION_EMBEDDINGS,
    },
}

# what the suite says when it skips a test by itself -> why that is right
SKIPS_OF_THE_SUITE = {
    r"test requires (accelerator|multiple accelerators|MPS|Flash Attention|the kernels library|deepspeed)": "hardware "
    "or an optional library that this machine lacks",
    r"language modeling head|take a cache as input": "no class generates text",
    r"sparse experts|output_router_logits|does not support grouped_mm": "no mixture of experts",
    r"_keep_in_fp32_modules": "every module may have 16 bits",
    r"no `base_model_class` defined": "no rotary positions",
    r"sliding window": "attention is over all frames, patches or tokens",
    r"TP plan": "CLIP's layers have no plan for tensor parallelism either",
    r"doesn't use `inputs_embeds`": "the inputs are pixels, frame embeddings and token ids",
    r"Model does not have position embeddings": "none that can be resized, as in CLIP: long clips interpolate",
    r"Only PrefixChange conversions found": "weights are saved under the names they have in the model",
    r"EmoCLIP\w+ does not support SDPA": "of the two dispatch tests, the one for composite models is the right one",
    r"both a non-text modality tower and a language sub-model": "the video heads have one tower; "
    "test_transformers_behaviour.py checks its dispatch",
    r"No model with a differentiable loss .* enable_input_require_grads": "the prompt model's token table is frozen",
}


def left_out(test_class: type[unittest.TestCase]) -> type[unittest.TestCase]:
    """Marks the tests of a class that `LEFT_OUT` lists."""
    for test, reason in (LEFT_OUT["every class"] | LEFT_OUT[test_class.__name__]).items():
        setattr(test_class, test, unittest.skip(reason)(getattr(test_class, test)))
    return test_class


def is_listed(reason: str) -> bool:
    listed = {reason for tests in LEFT_OUT.values() for reason in tests.values()}
    return reason in listed or any(re.search(pattern, reason) for pattern in SKIPS_OF_THE_SUITE)

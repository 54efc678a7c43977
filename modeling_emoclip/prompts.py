# SPDX-License-Identifier: Apache-2.0
"""Learnable prompts of DFER-CLIP: context tokens around the text of each class.

Shapes: C labels, M context tokens, L tokens of the longest prompt, W width of the text tower.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from transformers import CLIPTextConfig

from .configuration_emoclip import EmoCLIPConfig


def start_and_end_token_ids(text_config: CLIPTextConfig) -> tuple[int, int]:
    """Returns the ids of the start and end token of a CLIP text tower."""
    if text_config.eos_token_id == 2:
        # Configs older than transformers 4.31, such as OpenAI's, hold ids that CLIP never had (0 and 2); transformers
        # then takes the highest id of a text for its end. CLIP's two are the last of its vocabulary.
        return text_config.vocab_size - 2, text_config.vocab_size - 1
    return text_config.bos_token_id, text_config.eos_token_id


def prompt_fields(
    class_descriptions: Mapping[str, str | Sequence[str]], tokenizer: Callable, text_config: CLIPTextConfig
) -> dict:
    """Returns the fields of `EmoCLIPConfig` that `PromptLearner` needs for label -> its one text."""
    texts = {}
    for label, text in class_descriptions.items():
        text = [text] if isinstance(text, str) else list(text)
        if len(text) != 1:
            raise ValueError(f"class_descriptions[{label!r}] has {len(text)} texts, but a prompt is made of exactly 1")
        texts[label] = text
    if not texts:
        raise ValueError("class_descriptions is empty: give at least one label")
    input_ids = [tokenizer(text)["input_ids"] for (text,) in texts.values()]
    # The tokenizer knows its two ids; old CLIP configs hold others.
    fields = {"bos_token_id": input_ids[0][0], "eos_token_id": input_ids[0][-1]}
    text_config = CLIPTextConfig.from_dict(text_config.to_dict() | fields)
    if start_and_end_token_ids(text_config) != tuple(fields.values()):
        raise ValueError(
            f"the tokenizer's start and end token are {tuple(fields.values())}, but the text tower takes "
            f"{start_and_end_token_ids(text_config)}"
        )
    return {
        "text_config": text_config,
        "class_descriptions": texts,
        "class_input_ids": [ids[1:-1] for ids in input_ids],
        "id2label": dict(enumerate(texts)),
        "label2id": {label: index for index, label in enumerate(texts)},
    }


class PromptLearner(nn.Module):
    """Learnable context tokens around the class texts.

    DFER-CLIP, `models/Prompt_Learner.py`: [start] + contexts and class text, ordered by `prompt_class_position`, +
    [end]. Prompts are padded to the longest one and not to 77 tokens: attention is causal, so that what follows a
    text's end cannot change it. A config without fitting `class_input_ids` raises a ValueError.
    """

    def __init__(self, config: EmoCLIPConfig):
        super().__init__()
        if config.class_input_ids is None:
            raise ValueError(
                "class_input_ids is None, but prompts need the token ids of each class's text: give them, or give "
                "class_descriptions to from_clip"
            )
        config.validate_prompt()  # again: the config may have been changed since it was made, as by `num_labels=`
        self.config = config
        shape = (config.prompt_num_context_tokens, config.text_config.hidden_size)
        if config.prompt_class_specific_contexts:
            shape = (len(config.class_input_ids), *shape)
        self.context = nn.Parameter(torch.empty(shape))  # (C, M, W) or (M, W)
        for name, positions in self.layout().items():
            self.register_buffer(name, positions, persistent=False)

    def layout(self) -> dict[str, torch.Tensor]:
        """Returns the buffers, for `_init_weights`, since `from_pretrained` builds models on the meta device.

        They are `input_ids (C, L)`, with any id in the place of a context token, `context_positions (C, M)` and
        `end_positions (C,)`, indices into L.
        """
        config = self.config
        num_contexts = config.prompt_num_context_tokens
        start, end = start_and_end_token_ids(config.text_config)
        num_before = {"end": num_contexts, "middle": num_contexts // 2, "front": 0}[config.prompt_class_position]
        length = max(map(len, config.class_input_ids)) + num_contexts + 2
        input_ids, context_positions, end_positions = [], [], []
        for ids in config.class_input_ids:
            prompt = [start, *[end] * num_before, *ids, *[end] * (num_contexts - num_before), end]
            input_ids.append(prompt + [end] * (length - len(prompt)))
            after = range(1 + num_before + len(ids), 1 + num_contexts + len(ids))
            context_positions.append([*range(1, 1 + num_before), *after])
            end_positions.append(len(prompt) - 1)
        values = {"input_ids": input_ids, "context_positions": context_positions, "end_positions": end_positions}
        return {name: torch.tensor(value, dtype=torch.long, device="cpu") for name, value in values.items()}

    def forward(self, token_embeds: torch.Tensor) -> torch.Tensor:
        """Puts the contexts into embeddings of `input_ids (C, L, W)`; returns `(C, L, W)`, without positions."""
        num_classes, _, width = token_embeds.shape
        context = self.context.to(token_embeds).expand(num_classes, -1, -1)  # (C, M, W)
        positions = self.context_positions[..., None].expand(-1, -1, width).to(token_embeds.device)
        return token_embeds.scatter(1, positions, context)

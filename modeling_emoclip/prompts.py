# SPDX-License-Identifier: Apache-2.0
"""From labels to texts, and from texts to one embedding for each label; learnable prompts.

Shapes: C labels, D embedding width, M context tokens, L tokens of the longest prompt, W width of the text tower.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from transformers import CLIPTextConfig
from transformers.utils import logging

from .configuration_emoclip import EmoCLIPConfig

logger = logging.get_logger(__name__)

# EmoCLIP's and DFER-CLIP's second kind of prompt; a label that has descriptions of its own does not need it.
DEFAULT_TEMPLATE = "an expression of {}."
COMPOUND_SEPARATOR = "+"

# label -> its parts (one, unless it is a compound) -> the texts of each part
LabelTexts = dict[str, tuple[tuple[str, ...], ...]]


def label_texts(
    candidate_labels: Sequence[str] | Mapping[str, str | Sequence[str]],
    class_descriptions: Mapping[str, Sequence[str]] | None = None,
    hypothesis_template: str | None = None,
) -> LabelTexts:
    """The texts that stand for each label.

    Args:
        candidate_labels: a list of labels, or label -> its description or descriptions, or `None` for what a list
            would give it. In a list, a label such as `"anger + disgust"` is a compound and stands for the mean of its
            parts.
        class_descriptions: descriptions for labels of a list, used where no `hypothesis_template` is given.
        hypothesis_template: a text with `{}` in the place of the label, in which a blank stands for each underscore.

    Raises:
        ValueError: no labels, an empty or duplicate label or description, a template without `{}`.
    """
    if isinstance(candidate_labels, str) or not isinstance(candidate_labels, (Sequence, Mapping)):
        raise ValueError(f"candidate_labels is {candidate_labels!r}, but must be a list of labels or a dict")
    if not candidate_labels:
        raise ValueError("candidate_labels is empty: give at least one label")
    if hypothesis_template is not None and "{}" not in hypothesis_template:
        raise ValueError(f"hypothesis_template is {hypothesis_template!r}, but must contain {{}} for the label")
    if not isinstance(candidate_labels, Mapping):
        if repeated := sorted(str(label) for label, count in Counter(candidate_labels).items() if count > 1):
            raise ValueError(f"candidate_labels contains {', '.join(map(repr, repeated))} more than once")
        candidate_labels = dict.fromkeys(candidate_labels)
    known = class_descriptions if class_descriptions and hypothesis_template is None else {}
    template = hypothesis_template or DEFAULT_TEMPLATE
    _check_text("hypothesis_template", template)

    def texts_of(part: str) -> tuple[str, ...]:
        # CLIP has read words, and underscores stand for blanks in the names of classes, as in `about_to_cry`.
        return tuple(known.get(part, (template.replace("{}", part.replace("_", " ")),)))

    return {
        label: tuple(map(texts_of, _parts(label))) if texts is None else (_own_texts(label, texts),)
        for label, texts in candidate_labels.items()
    }


def parse_labels(lines: Sequence[str]) -> dict[str, list[str] | None]:
    """Candidate labels as people type them: `calm`, `anger + disgust`, or `calm: a relaxed face; closed lips`.

    A colon between two digits, as in `12:30`, is a part of the label.

    Raises:
        ValueError: a label that stands twice, or a colon with no label before it or no description behind it.
    """
    labels: dict[str, list[str] | None] = {}
    for line in filter(str.strip, lines):
        label, *rest = map(str.strip, re.split(r"(?<!\d):|:(?!\d)", line, maxsplit=1))
        colon, texts = bool(rest), [text.strip() for part in rest for text in part.split(";") if text.strip()]
        if not label:
            raise ValueError(f"{line.strip()!r} has no label before the colon")
        if label in labels:
            raise ValueError(f"the label {label!r} is given twice")
        if colon and not texts:
            raise ValueError(f"{line.strip()!r} has no description behind the colon")
        labels[label] = texts or None
    return labels


def _own_texts(label: str, texts: str | Sequence[str]) -> tuple[str, ...]:
    texts = (texts,) if isinstance(texts, str) else tuple(texts)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"candidate_labels[{label!r}] is {texts!r}, but must be a text or a list of texts")
    for text in (label, *texts):
        _check_text(f"candidate_labels[{label!r}]", text)
    return texts


def _parts(label: str) -> list[str]:
    """Of a compound; a label that is none has one part."""
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"candidate_labels contains {label!r}, but a label is a text that is not empty")
    _check_text("candidate_labels", label)
    parts = [part.strip() for part in label.split(COMPOUND_SEPARATOR)]
    if not all(parts):
        raise ValueError(
            f"the compound label {label!r} has an empty part; write it as 'anger + disgust'. Where + stands for "
            f"itself, give the label with its text: {{{label!r}: 'an expression of {label}'}}"
        )
    return parts


def _check_text(where: str, text: str) -> None:
    """Raises a ValueError for half a character, which JSON and broken files bring, and no tokenizer takes."""
    try:
        str(text).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} has {text!r}, whose character {error.start + 1} is half of one: {error}") from None


def warn_of_long_texts(texts: Sequence[str], tokenizer) -> None:
    """Warns of each text of which the text tower reads only the beginning."""
    most = tokenizer.model_max_length
    for text, ids in zip(texts, tokenizer(list(texts), truncation=False, verbose=False)["input_ids"], strict=True):
        if len(ids) > most:
            left_out = tokenizer.decode(ids[most - 1 : -1])  # the last token that is read is the end of a text
            logger.warning(
                f"a text of {len(ids)} tokens is cut, since the text tower reads {most}: {text[:60]!r}... without "
                f"its end, {left_out[:80]!r}"
            )


def encode_labels(texts_by_label: LabelTexts, encode_texts: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
    """One unit-length embedding `(C, D)` for each label: the mean over its parts of the mean over their texts.

    Args:
        texts_by_label: see `label_texts`.
        encode_texts: n texts -> `(n, D)`; it is called once, with every distinct text once.

    The mean over descriptions is CLIP's prompt ensemble; the mean over parts is the EmoCLIP paper's
    embedding of a compound emotion. All means are of unit vectors.
    """
    texts = list(dict.fromkeys(text for parts in texts_by_label.values() for part in parts for text in part))
    text_embeds = nn.functional.normalize(encode_texts(texts), dim=-1)
    row = {text: index for index, text in enumerate(texts)}

    def unit_mean(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        return nn.functional.normalize(torch.stack(tuple(vectors)).mean(dim=0), dim=-1)

    return torch.stack(
        [
            unit_mean([unit_mean([text_embeds[row[text]] for text in part]) for part in parts])
            for parts in texts_by_label.values()
        ]
    )


@torch.no_grad()
def embed_texts(pipe, *texts: str | Sequence[str]) -> np.ndarray:
    """Each text, or the mean of a list of texts, as the pipeline encodes labels: `(len(texts), D)`, unit length."""
    texts_by_label = label_texts({f"text {number}": text for number, text in enumerate(texts)})
    return pipe.class_embeds(texts_by_label).float().cpu().numpy()


def start_and_end_token_ids(text_config: CLIPTextConfig) -> tuple[int, int]:
    """The ids that open and close every text of a CLIP text tower."""
    if text_config.eos_token_id == 2:
        # Configs older than transformers 4.31, OpenAI's own among them, name ids that CLIP never had (0 and 2);
        # transformers then takes the highest id of a text for its end. CLIP's two are the last of its vocabulary.
        return text_config.vocab_size - 2, text_config.vocab_size - 1
    return text_config.bos_token_id, text_config.eos_token_id


def prompt_fields(
    class_descriptions: Mapping[str, str | Sequence[str]], tokenizer: Callable, text_config: CLIPTextConfig
) -> dict:
    """The fields of `EmoCLIPConfig` that follow from label -> its one text, for `PromptLearner`.

    Raises:
        ValueError: no labels, a label without exactly one text, or a tokenizer that is not this text tower's.
    """
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
    """Learnable context tokens placed around the class texts -> prompt embeddings.

    DFER-CLIP, `models/Prompt_Learner.py`: [start] + contexts and class text, in the order that
    `prompt_class_position` says, + [end]. Prompts end with the longest one instead of being padded to 77 tokens: what
    comes after a text's end cannot change it, since attention is causal.

    Raises:
        ValueError: no `class_input_ids`, or some that do not fit the labels or the text tower.
    """

    def __init__(self, config: EmoCLIPConfig):
        super().__init__()
        if config.class_input_ids is None:
            raise ValueError(
                "class_input_ids is None, but prompts need the token ids of each class's text: give them, or give "
                "class_descriptions to from_clip"
            )
        config.validate_prompt()  # again: a config may have been changed since it was made, as by `num_labels=`
        self.config = config
        shape = (config.prompt_num_context_tokens, config.text_config.hidden_size)
        if config.prompt_class_specific_contexts:
            shape = (len(config.class_input_ids), *shape)
        self.context = nn.Parameter(torch.empty(shape))  # (C, M, W) or (M, W)
        for name, positions in self.layout().items():
            self.register_buffer(name, positions, persistent=False)

    def layout(self) -> dict[str, torch.Tensor]:
        """What the buffers hold, made from the config alone.

        Returns:
            `input_ids (C, L)`, with any id in the place of a context token; `context_positions (C, M)` and
            `end_positions (C,)`, indices into L. All on the CPU: `from_pretrained` builds models on the meta device,
            which keeps no values, and the buffers are then filled by `_init_weights`.
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
        """Embeddings of `input_ids (C, L, W)` -> those of the prompts `(C, L, W)`, both without positions."""
        num_classes, _, width = token_embeds.shape
        context = self.context.to(token_embeds).expand(num_classes, -1, -1)  # (C, M, W)
        positions = self.context_positions[..., None].expand(-1, -1, width).to(token_embeds.device)
        return token_embeds.scatter(1, positions, context)

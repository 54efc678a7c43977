# SPDX-License-Identifier: Apache-2.0
"""From labels to texts, and from texts to one embedding for each label. C labels, D embedding width."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

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
        candidate_labels: a list of labels, or label -> its description or descriptions. In a list, a label such as
            `"anger + disgust"` is a compound and stands for the mean of its parts.
        class_descriptions: descriptions for labels of a list, used where no `hypothesis_template` is given.
        hypothesis_template: a text with `{}` in the place of the label.

    Raises:
        ValueError: no labels, an empty or duplicate label or description, a template without `{}`.
    """
    if isinstance(candidate_labels, str) or not isinstance(candidate_labels, (Sequence, Mapping)):
        raise ValueError(f"candidate_labels is {candidate_labels!r}, but must be a list of labels or a dict")
    if not candidate_labels:
        raise ValueError("candidate_labels is empty: give at least one label")
    if hypothesis_template is not None and "{}" not in hypothesis_template:
        raise ValueError(f"hypothesis_template is {hypothesis_template!r}, but must contain {{}} for the label")
    if isinstance(candidate_labels, Mapping):
        return {label: (_own_texts(label, texts),) for label, texts in candidate_labels.items()}
    if repeated := sorted({str(label) for label in candidate_labels if list(candidate_labels).count(label) > 1}):
        raise ValueError(f"candidate_labels contains {', '.join(map(repr, repeated))} more than once")
    known = class_descriptions if class_descriptions and hypothesis_template is None else {}
    template = hypothesis_template or DEFAULT_TEMPLATE

    def texts_of(part: str) -> tuple[str, ...]:
        return tuple(known.get(part, (template.replace("{}", part),)))

    return {label: tuple(texts_of(part) for part in _parts(label)) for label in candidate_labels}


def _own_texts(label: str, texts: str | Sequence[str]) -> tuple[str, ...]:
    texts = (texts,) if isinstance(texts, str) else tuple(texts)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"candidate_labels[{label!r}] is {texts!r}, but must be a text or a list of texts")
    return texts


def _parts(label: str) -> list[str]:
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"candidate_labels contains {label!r}, but a label is a text that is not empty")
    parts = [part.strip() for part in label.split(COMPOUND_SEPARATOR)]
    if not all(parts):
        raise ValueError(f"the compound label {label!r} has an empty part; write it as 'anger + disgust'")
    return parts


def encode_labels(texts_by_label: LabelTexts, encode_texts: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
    """One unit-length embedding `(C, D)` for each label: the mean over its parts of the mean over their texts.

    Args:
        texts_by_label: see `label_texts`.
        encode_texts: n texts -> `(n, D)`; it is called once, with every distinct text once.

    The mean over descriptions is CLIP's prompt ensemble; the mean over parts is EmoCLIP's compound emotion
    (paper, section 4.4). All means are of unit vectors.
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

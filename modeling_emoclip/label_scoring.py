# SPDX-License-Identifier: Apache-2.0
"""Zero-shot scoring: labels -> texts -> one embedding for each label; logits -> scores.

Shapes: N clips, C labels, D embedding width.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .configuration_emoclip import EmoCLIPConfig

logger = logging.get_logger(__name__)

# EmoCLIP's and DFER-CLIP's second kind of prompt, for labels without descriptions.
DEFAULT_TEMPLATE = "an expression of {}."
COMPOUND_SEPARATOR = "+"
TEXTS_PER_BATCH = 256  # of one pass through the text tower, whose memory grows with them
UNCERTAIN = "uncertain"  # the answer when no label reaches `abstain_below`
NEUTRAL_LABEL = "neutral"  # the label that each label competes with in multi-label mode
_NEUTRAL_ROW = ("neutral",)  # a key that no label can have: labels are texts

CandidateLabels = Sequence[str] | Mapping[str, str | Sequence[str] | None]
# label -> its parts (one, unless it is a compound) -> the texts of each part
LabelTexts = dict[str, tuple[tuple[str, ...], ...]]


def label_texts(
    candidate_labels: CandidateLabels,
    class_descriptions: Mapping[str, Sequence[str]] | None = None,
    hypothesis_template: str | None = None,
) -> LabelTexts:
    """Returns the texts that stand for each label.

    Args:
        candidate_labels: a list of labels; or label -> its description or descriptions, or `None` for those that a
            list would give it. In a list, `"anger + disgust"` is a compound and stands for the mean of its parts.
        class_descriptions: descriptions of the labels of a list, used without a `hypothesis_template`.
        hypothesis_template: text with `{}` for the label, in which underscores become blanks.

    Raises:
        ValueError: no labels, an empty or duplicate label or description, or a template without `{}`.
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
    _check_encodable("hypothesis_template", template)

    def texts_of(part: str) -> tuple[str, ...]:
        return tuple(known.get(part, (template.replace("{}", part.replace("_", " ")),)))

    return {
        label: tuple(map(texts_of, _parts(label))) if texts is None else (_descriptions(label, texts),)
        for label, texts in candidate_labels.items()
    }


def _descriptions(label: str, texts: str | Sequence[str]) -> tuple[str, ...]:
    texts = (texts,) if isinstance(texts, str) else tuple(texts)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"candidate_labels[{label!r}] is {texts!r}, but must be a text or a list of texts")
    for text in (label, *texts):
        _check_encodable(f"candidate_labels[{label!r}]", text)
    return texts


def _parts(label: str) -> list[str]:
    """Splits a compound label into its parts; other labels have one part."""
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"candidate_labels contains {label!r}, but a label is a text that is not empty")
    _check_encodable("candidate_labels", label)
    parts = [part.strip() for part in label.split(COMPOUND_SEPARATOR)]
    if not all(parts):
        raise ValueError(
            f"the compound label {label!r} has an empty part; write it as 'anger + disgust'. Where + stands for "
            f"itself, give the label with its text: {{{label!r}: 'an expression of {label}'}}"
        )
    return parts


def _check_encodable(where: str, text: str) -> None:
    """Raises a ValueError for a lone surrogate, which JSON and damaged files can contain and tokenizers refuse."""
    try:
        str(text).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} has {text!r}, whose character {error.start + 1} is half of one: {error}") from None


def warn_of_long_texts(texts: Sequence[str], tokenizer) -> None:
    """Warns of each text of which the text tower reads only the beginning."""
    most = tokenizer.model_max_length
    for text, ids in zip(texts, tokenizer(list(texts), truncation=False, verbose=False)["input_ids"], strict=True):
        if len(ids) > most:
            left_out = tokenizer.decode(ids[most - 1 : -1])  # the last token that is read ends the text
            logger.warning(
                f"a text of {len(ids)} tokens is cut, since the text tower reads {most}: {text[:60]!r}... without "
                f"its end, {left_out[:80]!r}"
            )


@torch.no_grad()
def encode_texts(model, processor, texts: Sequence[str]) -> torch.Tensor:
    """Encodes texts with an EmoCLIPModel's text tower: `(len(texts), D)`, on its device, not normalised."""
    parts = (texts[first : first + TEXTS_PER_BATCH] for first in range(0, len(texts), TEXTS_PER_BATCH))
    inputs = (processor(text=list(part), return_tensors="pt").to(model.device) for part in parts)
    return torch.cat([model.get_text_features(**one).pooler_output for one in inputs])


def encode_labels(texts_by_label: LabelTexts, encode_texts: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
    """Encodes labels as unit vectors `(C, D)`: means over the parts of each label of means over their texts.

    The mean over descriptions is CLIP's prompt ensemble, the mean over parts the EmoCLIP paper's embedding of a
    compound emotion. `encode_texts` (n texts -> `(n, D)`) is called once, with the distinct texts.
    """
    texts = list(dict.fromkeys(text for parts in texts_by_label.values() for part in parts for text in part))
    text_embeds = nn.functional.normalize(encode_texts(texts), dim=-1)
    row = {text: index for index, text in enumerate(texts)}

    def unit_mean(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        return nn.functional.normalize(torch.stack(tuple(vectors)).mean(dim=0), dim=-1)

    def label_embed(parts: tuple[tuple[str, ...], ...]) -> torch.Tensor:
        return unit_mean([unit_mean([text_embeds[row[text]] for text in part]) for part in parts])

    return torch.stack(list(map(label_embed, texts_by_label.values())))


def label_scores(
    logits: torch.Tensor, temperature: float = 1.0, neutral: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Turns logits `(N, C)`, the scaled cosines of clips and labels, into scores from 0 to 1, float32.

    Args:
        temperature: divides the logits; above 1 scores are less extreme. The order of labels stays.
        neutral: `None` for the softmax over the labels, whose rows sum to 1. Otherwise each label is scored by itself
            by the sigmoid of the difference to this logit, `(N, 1)` or a number: 0.5 is as close to the one as to the
            other. CheXzero (doi 10.1038/s41551-022-00936-9) compares with "no FINDING"; here it is a neutral face,
            since CLIP hardly reads negation (arXiv 2501.09425): with 24 movements of rendered faces the area under
            the ROC curve was 0.92 against "neutral", 0.12 against "no MOVEMENT" and 0.69 for the logit alone.
    """
    logits = logits.float()
    if neutral is None:
        return (logits / temperature).softmax(dim=-1)
    return ((logits - neutral) / temperature).sigmoid()


@dataclass(frozen=True)
class LabelScorer:
    """Turns logits of one label set into scores; see `make_label_scorer`."""

    labels: tuple[str, ...]
    texts: LabelTexts  # of each column of the logits: the labels, and in multi-label mode perhaps the neutral one
    temperature: float
    multi_label: bool
    abstain_below: float | None

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Computes scores `(N, C)` of logits `(N, len(texts))`: see `label_scores`."""
        if not self.multi_label:
            return label_scores(logits, self.temperature)
        if _NEUTRAL_ROW not in self.texts:
            return label_scores(logits, self.temperature, neutral=0.0)
        num_labels = len(self.labels)
        return label_scores(logits[:, :num_labels], self.temperature, neutral=logits[:, num_labels:].float())

    def ranked(self, scores: torch.Tensor | Sequence[float]) -> list[dict[str, Any]]:
        """Sorts labels by the scores `(C,)` of one clip: `[{"label": str, "score": float}, ...]`, the answer first.

        If no score reaches `abstain_below`, an entry "uncertain" with the highest score comes before all labels.
        """
        scores = scores.tolist() if isinstance(scores, torch.Tensor) else list(scores)
        pairs = sorted(zip(self.labels, scores, strict=True), key=lambda label_score: -label_score[1])
        if self.abstain_below is not None and pairs[0][1] < self.abstain_below:
            pairs = [(UNCERTAIN, pairs[0][1]), *pairs]
        return [{"label": label, "score": score} for label, score in pairs]


def make_label_scorer(
    config: EmoCLIPConfig,
    candidate_labels: CandidateLabels,
    hypothesis_template: str | None = None,
    *,
    temperature: float | None = None,
    multi_label: bool | str | Sequence[str] = False,
    abstain_below: float | None = None,
) -> LabelScorer:
    """Returns the scorer of a label set, from a call's arguments and what the checkpoint's configuration holds.

    Args:
        candidate_labels, hypothesis_template: see `label_texts`.
        temperature: by default the one fitted for exactly these labels by name, if any; 1 in multi-label mode, since
            temperatures are fitted for labels that compete.
        multi_label: score each label by itself against the label "neutral", or against the text, or texts, given here.
            With a model trained with the sigmoid loss `True` is the sigmoid of the logit.
        abstain_below: score from 0 to 1, see `LabelScorer.ranked`.

    Raises:
        ValueError: see `label_texts`; a temperature or score out of range; a label "uncertain" with `abstain_below`.
    """
    texts = label_texts(candidate_labels, config.class_descriptions, hypothesis_template)
    if temperature is not None and not (_is_number(temperature) and 0 < temperature < math.inf):
        raise ValueError(f"temperature is {temperature!r}, but must be a number greater than 0")
    if abstain_below is not None:
        if not (_is_number(abstain_below) and 0 <= abstain_below <= 1):
            raise ValueError(f"abstain_below is {abstain_below!r}, but scores are numbers from 0 to 1")
        if UNCERTAIN in texts:
            raise ValueError(f"candidate_labels has {UNCERTAIN!r}, which is the answer of abstain_below: rename it")
    labels = tuple(texts)
    if temperature is None:
        temperature = fitted_temperature(config, texts) if multi_label is False else 1.0
    if multi_label is True and config.contrastive_loss != "sigmoid":
        neutral = label_texts([NEUTRAL_LABEL], config.class_descriptions, hypothesis_template)
        texts[_NEUTRAL_ROW] = neutral[NEUTRAL_LABEL]
    elif not isinstance(multi_label, bool):
        texts[_NEUTRAL_ROW] = label_texts({"multi_label": multi_label})["multi_label"]
    return LabelScorer(labels, texts, float(temperature), multi_label is not False, abstain_below)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def fitted_temperature(config: EmoCLIPConfig, texts: LabelTexts) -> float:
    """Returns the temperature in `config.label_temperatures` of labels with the checkpoint's own texts, or 1."""
    for entry in config.label_temperatures or []:
        if set(entry["labels"]) == set(texts) and label_texts(list(texts), config.class_descriptions) == texts:
            return float(entry["temperature"])
    return 1.0

# SPDX-License-Identifier: Apache-2.0
"""Logits -> scores: among labels or of each by itself, with a fitted temperature, with "uncertain" for an answer.

Shapes: N clips, C labels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from .configuration_emoclip import EmoCLIPConfig
from .prompts import LabelTexts, label_texts

UNCERTAIN = "uncertain"  # the answer when no label scores `abstain_below`
BACKGROUND = "neutral"  # the label that every label has to beat in multi-label mode
_BACKGROUND_ROW = ("background",)  # a label of a user's is a text


def label_scores(
    logits: torch.Tensor, temperature: float = 1.0, background: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Scores from 0 to 1, float32.

    Args:
        logits: `(N, C)`, scaled cosines of clips and labels.
        temperature: above 1 scores are less extreme, below 1 more; their order stays.
        background: `None`: softmax over the labels. Else each label by itself, whatever the others are: its share
            in the softmax of two, of its own logit and of this one, `(N, 1)` or a number; which is the sigmoid of
            their difference. CheXzero (doi 10.1038/s41551-022-00936-9) tells findings that may occur together with
            CLIP so, against "no FINDING". Here it is a text of a face that shows nothing, since CLIP hardly reads
            negation (arXiv 2501.09425): on rendered faces, 24 facial movements, the mean area under the ROC curve
            was 0.92 against "neutral", 0.12 against "no MOVEMENT" and 0.69 for the logit alone.

    Returns:
        `(N, C)`; rows sum to 1 without `background`. With it, 0.5 means as near to the label's text as to the
        background's.
    """
    logits = logits.float()
    if background is None:
        return (logits / temperature).softmax(dim=-1)
    return ((logits - background) / temperature).sigmoid()


def ranked(
    labels: Sequence[str], scores: torch.Tensor | Sequence[float], abstain_below: float | None = None
) -> list[dict[str, Any]]:
    """`[{"label": str, "score": float}, ...]`, highest score first; the first entry is the answer.

    Args:
        labels, scores: C of each.
        abstain_below: where the best score is below this, `{"label": "uncertain", "score": best score}` comes first,
            and all labels follow as ever: C + 1 entries.
    """
    scores = scores.tolist() if isinstance(scores, torch.Tensor) else list(scores)
    pairs = sorted(zip(labels, scores, strict=True), key=lambda label_score: -label_score[1])
    if abstain_below is not None and pairs[0][1] < abstain_below:
        pairs = [(UNCERTAIN, pairs[0][1]), *pairs]
    return [{"label": label, "score": score} for label, score in pairs]


@dataclass(frozen=True)
class Scoring:
    """All that makes scores of logits, for one set of labels; see `make_scoring`."""

    labels: tuple[str, ...]
    texts: LabelTexts
    """Of the rows that logits must have columns for: the labels, and in multi-label mode perhaps the background."""
    temperature: float
    multi_label: bool
    abstain_below: float | None

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """`(N, len(texts))` -> `(N, C)`, see `label_scores`."""
        num_labels = len(self.labels)
        if not self.multi_label:
            return label_scores(logits, self.temperature)
        if _BACKGROUND_ROW not in self.texts:
            return label_scores(logits, self.temperature, background=0.0)
        return label_scores(logits[:, :num_labels], self.temperature, background=logits[:, num_labels:].float())

    def ranked(self, scores: torch.Tensor | Sequence[float]) -> list[dict[str, Any]]:
        """Of one clip, `(C,)`, see `ranked`."""
        return ranked(self.labels, scores, self.abstain_below)


def make_scoring(
    config: EmoCLIPConfig,
    candidate_labels: Sequence[str] | Mapping[str, str | Sequence[str]],
    hypothesis_template: str | None = None,
    *,
    temperature: float | None = None,
    multi_label: bool | str | Sequence[str] = False,
    abstain_below: float | None = None,
) -> Scoring:
    """How labels are scored, from what a user says and what the checkpoint knows.

    Args:
        config: of the model.
        candidate_labels, hypothesis_template: see `prompts.label_texts`.
        temperature: `None`: the one that was fitted for exactly these labels by their names, if any, or else 1. In
            multi-label mode 1: temperatures are fitted for labels that compete.
        multi_label: each label by itself, against the label "neutral", with the texts that a candidate of that name
            would have; or a text, or texts, to take in its place, as "a face". In a model trained with the sigmoid
            loss, whose logits are made for it, `True` is the sigmoid of the logit.
        abstain_below: a score from 0 to 1, see `ranked`.

    Raises:
        ValueError: as of `label_texts`; a temperature, or a score, out of range; a label "uncertain" that the answer
            "uncertain" could not be told from.
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
    if multi_label is not False and (background := _background(config, multi_label, hypothesis_template)):
        texts[_BACKGROUND_ROW] = background
    return Scoring(labels, texts, float(temperature), multi_label is not False, abstain_below)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _background(
    config: EmoCLIPConfig, multi_label: bool | str | Sequence[str], hypothesis_template: str | None
) -> tuple[tuple[str, ...], ...] | None:
    """Its texts; `None` if the model's logits need no background."""
    if multi_label is not True:
        return label_texts({"multi_label": multi_label})["multi_label"]
    if config.contrastive_loss == "sigmoid":
        return None
    return label_texts([BACKGROUND], config.class_descriptions, hypothesis_template)[BACKGROUND]


def fitted_temperature(config: EmoCLIPConfig, texts: LabelTexts) -> float:
    """That of `config.label_temperatures` for this set of labels, in any order; 1 if there is none.

    It was fitted with the texts that the checkpoint itself has for these names, and is used with no others.
    """
    for entry in config.label_temperatures or []:
        if set(entry["labels"]) == set(texts) and label_texts(list(texts), config.class_descriptions) == texts:
            return float(entry["temperature"])
    return 1.0


__all__ = ["BACKGROUND", "UNCERTAIN", "Scoring", "fitted_temperature", "label_scores", "make_scoring", "ranked"]

# SPDX-License-Identifier: Apache-2.0
"""The pipeline `zero-shot-video-classification`: a video and any labels -> scores."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import Pipeline

from .prompts import LabelTexts, encode_labels, label_texts

TASK = "zero-shot-video-classification"


class ZeroShotVideoClassificationPipeline(Pipeline):
    """Scores any labels on a video with an EmoCLIP model.

    ```python
    >>> from transformers import pipeline

    >>> pipe = pipeline(model="org/emoclip", trust_remote_code=True)
    >>> pipe("clip.mp4", candidate_labels=["amused", "bored", "about to cry"])
    ```"""

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_video_processor = _load_feature_extractor = False
    # A label set is C x D numbers: this many fit in a few megabytes, and a service with more is not slowed down much.
    _max_label_sets = 64

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tokenizer = self.processor.tokenizer  # transformers refuses to batch without a tokenizer
        self._class_embeds: OrderedDict[tuple, torch.Tensor] = OrderedDict()

    def __call__(
        self,
        videos: Any,
        candidate_labels: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        **kwargs,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Scores labels on one video or several.

        Args:
            videos: one video or a list of videos. A video is a path to a file or to a folder of frame images, the
                bytes of a file, a list of PIL images, or an array or tensor of frames.
            candidate_labels: a list of labels, or a dict label -> description or descriptions. Several descriptions
                are averaged. In a list, `"anger + disgust"` is a compound: the mean of its parts.
            hypothesis_template (`str`, *optional*): text with `{}` for the label, for labels given by name only.
                Without it the checkpoint's own descriptions are used where it has any, else "an expression of {}.".
            batch_size, num_workers: as in every pipeline.

        Returns:
            `[{"label": str, "score": float}, ...]`, highest score first, for each video. Scores are the softmax over
            the given labels of the scaled cosine: they sum to 1 and compare these labels with each other; they are
            not calibrated probabilities that a person feels anything.

        Raises:
            ValueError: bad labels, or a video that cannot be read; the message names it.
        """
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        if isinstance(videos, (list, tuple)) and not videos:
            raise ValueError("videos is an empty list: give a video or a list of videos")
        if isinstance(videos, (list, tuple)) and all(isinstance(v, Image.Image) for v in videos):
            videos = tuple(videos)  # one video: transformers takes a list, but not a tuple, for several inputs
        return super().__call__(videos, **kwargs)

    def _sanitize_parameters(self, candidate_labels=None, hypothesis_template=None, **kwargs):
        if kwargs:
            raise TypeError(f"{TASK} has no argument {', '.join(map(repr, kwargs))}")
        if candidate_labels is None:
            if hypothesis_template is not None:
                raise ValueError("hypothesis_template is given without candidate_labels")
            return {}, {}, {}
        texts = label_texts(candidate_labels, self.model.config.class_descriptions, hypothesis_template)
        return {}, {"texts_by_label": texts}, {"labels": list(texts)}

    def preprocess(self, video):
        video = list(video) if isinstance(video, tuple) else video
        return self.processor.video_processor(video, return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs, texts_by_label: LabelTexts | None = None):
        if texts_by_label is None:
            raise ValueError(f"{TASK} needs candidate_labels: a list of labels or a dict label -> description(s)")
        outputs = self.model(**model_inputs, text_embeds=self.class_embeds(texts_by_label))
        return {"logits_per_video": outputs.logits_per_video}

    def postprocess(self, model_outputs, labels):
        scores = model_outputs["logits_per_video"][0].float().softmax(dim=-1).tolist()
        ranked = sorted(zip(labels, scores, strict=True), key=lambda label_score: -label_score[1])
        return [{"label": label, "score": score} for label, score in ranked]

    def class_embeds(self, texts_by_label: LabelTexts) -> torch.Tensor:
        """`(C, D)` of a label set, encoded the first time it is asked for and kept."""
        key = tuple(texts_by_label.values())
        if key not in self._class_embeds:
            self._class_embeds[key] = encode_labels(texts_by_label, self._encode_texts)
        self._class_embeds.move_to_end(key)
        while len(self._class_embeds) > self._max_label_sets:
            self._class_embeds.popitem(last=False)
        return self._class_embeds[key]

    def _encode_texts(self, texts: list[str]) -> torch.Tensor:
        inputs = self.processor(text=texts, return_tensors="pt").to(self.device)
        return self.model.get_text_features(**inputs).pooler_output


__all__ = ["ZeroShotVideoClassificationPipeline"]

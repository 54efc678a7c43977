# SPDX-License-Identifier: Apache-2.0
"""The pipeline `zero-shot-video-classification`, which scores videos against any labels.

`pip install emoclip` has a subclass of it (emoclip/pipeline.py), which is faster, finds faces and draws time lines.
Shapes: B videos of a batch, T frames, N videos, D embedding width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, Pipeline
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

from .frame_sampling import check_counts
from .label_scoring import (
    CandidateLabels,
    LabelScorer,
    LabelTexts,
    encode_labels,
    encode_texts,
    make_label_scorer,
    warn_of_long_texts,
)
from .video_inputs import is_in_memory, split_batch, video_name

TASK = "zero-shot-video-classification"
logger = logging.get_logger(__name__)


class VideoEmbeddings(NamedTuple):
    """The result of `embeds, metadata, skipped = pipe.embed(videos)`.

    `embeds (N, D)`, float32, is the `pooler_output` of `get_video_features`, not of unit length. `metadata` has, for
    each row, `index` among the given videos, `video` (its path, if any), `num_frames`, `fps`, `duration` in seconds
    (`None` if unknown), `frames_used`, and `face_found` (`None`: not looked for). `skipped` has `index`, `video` and
    `error` of the videos without a row.
    """

    embeds: np.ndarray
    metadata: list[dict[str, Any]]
    skipped: list[dict[str, Any]]


class ZeroShotVideoClassificationPipeline(Pipeline):
    """Scores videos against any text labels with an EmoCLIP model.

    ```python
    >>> from transformers import pipeline

    >>> pipe = pipeline(model="org/emoclip", trust_remote_code=True)
    >>> pipe("clip.mp4", candidate_labels=["amused", "bored", "about to cry"])
    ```"""

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __init__(self, **kwargs):
        if kwargs.get("batch_size") is not None:
            check_counts(batch_size=kwargs["batch_size"])
        super().__init__(**kwargs)
        self.tokenizer = self.processor.tokenizer  # transformers refuses to batch without a tokenizer

    def __call__(
        self, videos: Any, candidate_labels: CandidateLabels | None = None, **kwargs
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Scores one video or several.

        Args:
            videos: one video or a list of videos. A video is a path to a file or to a folder of frame images, the
                bytes of a file, a list of PIL images, or an array or tensor of frames. It should show one face.
            candidate_labels: a list of labels, or a dict label -> description or descriptions (`None`: as in a list).
                Several descriptions are averaged. In a list, `"anger + disgust"` is a compound: the mean of its parts.
            hypothesis_template (`str`, *optional*): text with `{}` for the label, for labels given by name only. By
                default they have the checkpoint's descriptions, if it has any, or else "an expression of {}.".
            temperature, multi_label, abstain_below: see `label_scoring.make_label_scorer`.
            faces, no_face, detector: find faces, with `pip install "emoclip[faces]"`; see emoclip/pipeline.py.
            batch_size, num_workers: as in every pipeline.

        Returns:
            `[{"label": str, "score": float}, ...]`, highest score first, for each video. Scores are the softmax over
            the given labels of the scaled cosine: they sum to 1 and compare these labels with each other. They are not
            probabilities that a person feels anything.

        Raises:
            ValueError: bad labels, or a video that cannot be read; the message names it.
        """
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        if isinstance(videos, (list, tuple)) and not videos:
            raise ValueError("videos is an empty list: give a video or a list of videos")
        for name in ("batch_size", "num_workers"):
            if kwargs.get(name) is not None and (name == "batch_size" or kwargs[name]):
                check_counts(**{name: kwargs[name]})
        if isinstance(videos, (list, tuple)) or is_in_memory(videos):
            videos = _as_inputs(videos)
        return super().__call__(videos, **kwargs)

    def timeline(self, video: Any, candidate_labels: CandidateLabels, *args, **options):
        """Scores every person in every window of a video of any length; see emoclip/pipeline.py."""
        return self._installed().timeline(video, candidate_labels, *args, **options)

    def alignment(self, video: Any, text: str | Sequence[str], *args, **options):
        """Measures how well a video shows what a text says; see emoclip/pipeline.py."""
        return self._installed().alignment(video, text, *args, **options)

    def _installed(self) -> "ZeroShotVideoClassificationPipeline":
        """Returns the installed package's pipeline with this model."""
        try:
            from emoclip.pipeline import ZeroShotVideoClassificationPipeline as Installed
        except ImportError as error:
            raise ImportError(f"faces, time lines and alignment need pip install emoclip ({error})") from None
        return Installed(model=self.model, processor=self.processor)

    @torch.no_grad()
    def embed(
        self, videos: Any, *, batch_size: int = 8, on_error: str = "raise", progress: bool = True, **options
    ) -> VideoEmbeddings:
        """Embeds videos as one row each, for probes, clustering and search.

        Args:
            videos: as in a call.
            batch_size: videos that are encoded together.
            on_error: `"raise"`, or `"skip"` videos that cannot be read, and report them.
            progress: whether to show a progress bar.
            options: `faces`, `no_face` and `detector`, as in a call.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}, but must be one of raise, skip")
        check_counts(batch_size=batch_size)
        reading, _, _ = self._sanitize_parameters(**options)
        videos, embeds = split_batch(videos), [np.empty((0, self.model.config.projection_dim), np.float32)]
        metadata, skipped, waiting = [], [], []
        with self.device_placement(), tqdm(total=len(videos), unit="video", disable=not progress) as bar:
            for index, video in enumerate(videos):
                about, error = {"index": index, "video": _name(video, index, len(videos))}, None
                try:
                    clip, facts = self.read_clip(video, **reading)
                    face_found = bool(clip.pop("face_found")) if "face_found" in clip else None
                    if face_found is False and options.get("no_face") == "nothing":
                        error = "no face found"
                except (OSError, ValueError) as failure:
                    if on_error == "raise":
                        raise
                    error = str(failure)
                if error is not None:
                    logger.warning(f"skipped: {error}")
                    skipped.append(about | {"error": error})
                else:
                    waiting.append(clip)
                    about |= {"num_frames": facts.total_num_frames, "fps": facts.fps, "duration": facts.duration}
                    metadata.append(about | {"frames_used": int(clip["frame_mask"].sum()), "face_found": face_found})
                if waiting and (len(waiting) == batch_size or index == len(videos) - 1):
                    embeds.append(self._embed(waiting))
                    waiting = []
                bar.update()
        return VideoEmbeddings(np.concatenate(embeds), metadata, skipped)

    def _embed(self, clips: list[BatchFeature]) -> np.ndarray:
        """Encodes clips as `(B, D)`, one by one if their sizes differ."""
        pixels, masks = ([clip[name][0] for clip in clips] for name in ("pixel_values_videos", "frame_mask"))
        if len({clip.shape[1:] for clip in pixels}) > 1:
            return np.concatenate([self._embed([clip]) for clip in clips])
        padded = {"pixel_values_videos": pad_sequence(pixels, True), "frame_mask": pad_sequence(masks, True)}
        inputs = self.model_inputs(BatchFeature(padded).to(self.device, self.dtype))
        return self.model.get_video_features(**inputs).pooler_output.float().cpu().numpy()

    def _sanitize_parameters(self, candidate_labels=None, hypothesis_template=None, **kwargs):
        names = ("temperature", "multi_label", "abstain_below")
        options = {name: kwargs.pop(name) for name in names if name in kwargs}
        if kwargs:
            hint = "; faces are found by the pipeline of `import emoclip`" if "faces" in kwargs else ""
            raise TypeError(f"{TASK} has no argument {', '.join(map(repr, kwargs))}{hint}")
        if candidate_labels is None:
            given = {"hypothesis_template": hypothesis_template} | options
            if alone := [name for name, value in given.items() if value not in (None, False)]:
                raise ValueError(f"{', '.join(alone)} is given without candidate_labels")
            return {}, {}, {}
        scorer = make_label_scorer(self.model.config, candidate_labels, hypothesis_template, **options)
        return {}, {"texts_by_label": scorer.texts, "kept": {}}, {"scorer": scorer}

    def preprocess(self, video, **options):
        inputs, _ = self.read_clip(video, **options)
        return inputs.to(self.dtype)

    def read_clip(self, video: Any) -> tuple[BatchFeature, VideoMetadata]:
        """Reads one video as the model's inputs, and its metadata."""
        video = list(video) if isinstance(video, tuple) else video
        inputs = self.processor.video_processor(video, return_metadata=True, return_tensors="pt")
        (metadata,) = inputs.pop("video_metadata")
        # transformers pads clips of different lengths to one batch, and a mask with False.
        inputs.setdefault("frame_mask", torch.ones(inputs["pixel_values_videos"].shape[:2], dtype=torch.bool))
        return inputs, metadata

    def _forward(self, model_inputs, texts_by_label: LabelTexts | None = None, kept: dict[str, Any] | None = None):
        if texts_by_label is None:
            raise ValueError(f"{TASK} needs candidate_labels: a list of labels or a dict label -> description(s)")
        kept = {} if kept is None else kept  # for the batches of one call
        if "class_embeds" not in kept:
            kept["class_embeds"] = self.class_embeds(texts_by_label)
        outputs = self.model(**self.model_inputs(model_inputs), text_embeds=kept["class_embeds"])
        return {"logits_per_video": outputs.logits_per_video}

    def model_inputs(self, inputs) -> dict[str, torch.Tensor]:
        """Returns the inputs as the model takes them."""
        return dict(inputs)

    def class_embeds(self, texts_by_label: LabelTexts) -> torch.Tensor:
        """Encodes a label set as unit vectors `(number of labels, D)`."""

        def encode(texts: list[str]) -> torch.Tensor:
            warn_of_long_texts(texts, self.tokenizer)
            return encode_texts(self.model, self.processor, texts)

        return encode_labels(texts_by_label, encode)

    def postprocess(self, model_outputs, scorer: LabelScorer):
        (scores,) = scorer.scores(model_outputs["logits_per_video"])
        return scorer.ranked(scores)


def _as_inputs(videos: Any) -> Any:
    """Prepares a list or array for transformers, which takes a list for several inputs: single videos are tuples."""
    if isinstance(videos, (list, tuple)) and not is_in_memory(list(videos)):
        several = [one for video in videos for one in split_batch(video)]
        return [tuple(one) if isinstance(one, list) else one for one in several]
    several = split_batch(list(videos) if isinstance(videos, tuple) else videos)
    if len(several) > 1 or getattr(videos, "ndim", 0) == 5:
        return several
    return tuple(several[0]) if isinstance(several[0], list) else several[0]


def _name(video: Any, index: int, number: int) -> str:
    path = video.get("path") if isinstance(video, dict) else video[0] if isinstance(video, list) else video
    return str(path) if isinstance(path, (str, Path)) else video_name(index, number)


__all__ = ["VideoEmbeddings", "ZeroShotVideoClassificationPipeline"]

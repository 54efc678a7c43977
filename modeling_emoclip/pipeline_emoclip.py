# SPDX-License-Identifier: Apache-2.0
"""The pipeline `zero-shot-video-classification`: a video and any labels -> scores."""

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature, Pipeline
from transformers.video_utils import VideoMetadata

from .alignment import EmotionAlignment
from .background_texts import BACKGROUND_TEXTS
from .embeddings import VideoEmbeddings, embed_videos
from .face_clip import check_whose, face_clip
from .faces import FaceDetector, load_face_detector
from .frame_encoder import FrameEncoder
from .frame_sampling import check_counts
from .prompts import LabelTexts, encode_labels, parse_labels, warn_of_long_texts
from .read_ahead import PipelinedIterator
from .scores import Scoring, make_scoring
from .timeline import EmotionTimeline, make_timeline
from .video_frames import NO_FACE
from .video_inputs import is_in_memory, split_batch
from .weights_state import WeightsState, weights_state

TASK = "zero-shot-video-classification"


class ZeroShotVideoClassificationPipeline(Pipeline):
    """Scores any labels on a video with an EmoCLIP model.

    ```python
    >>> from transformers import pipeline

    >>> pipe = pipeline(model="org/emoclip", trust_remote_code=True)
    >>> pipe("clip.mp4", candidate_labels=["amused", "bored", "about to cry"])
    ```

    docs/performance.md says what the next options gain and cost. With each of them the model itself stays as it is,
    and so does what `pipe.model` computes.

    Args:
        fast (`bool`, defaults to `False`): the image tower in bfloat16 where the processor or GPU has instructions for
            it and the model is in float32, else as it is. Of 1,000 answers 5 changed where that was measured.
        dtype (`str` or `torch.dtype`, *optional*): of the image tower, if not the model's; `transformers.pipeline`
            loads the model in it.
        int8 (`bool`, defaults to `False`): the image tower's linear layers in 8 bits, on a CPU: faster where there is
            no fast bfloat16, and less exact.
        compile (`bool`, defaults to `False`): torch.compile for the image tower; needs a C++ compiler and a minute.
        model, processor, device, batch_size, num_workers: as of every pipeline.
    """

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_video_processor = _load_feature_extractor = False
    # Of the label sets that are kept, C x D each: 64 MB in float32. The newest is kept whatever its size.
    _most_kept_numbers = 2**24
    # Of one pass through the text tower, whose memory grows with them.
    _texts_at_once = 256
    parse_labels = staticmethod(parse_labels)

    def __init__(
        self,
        *,
        dtype: str | torch.dtype | None = None,
        fast: bool = False,
        int8: bool = False,
        compile: bool = False,
        **kwargs,
    ):
        if kwargs.get("batch_size") is not None:
            check_counts(batch_size=kwargs["batch_size"])
        super().__init__(**kwargs)
        self.tokenizer = self.processor.tokenizer  # transformers refuses to batch without a tokenizer
        dtype = None if dtype == "auto" else dtype  # transformers' word for the checkpoint's own
        self.encode_frames = FrameEncoder(self.model, "fast" if fast else dtype, int8, compile)
        self._class_embeds: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        self._text_side: WeightsState | None = None  # with which they were made
        self._detectors: dict[str, FaceDetector] = {}

    @property
    def model(self):
        """The model, which may be replaced by another one."""
        return self._model

    @model.setter
    def model(self, model):
        self._model = model
        if hasattr(self, "encode_frames"):  # else `__init__` is about to make it
            self.encode_frames.model = model

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
            candidate_labels: a list of labels, or a dict label -> description or descriptions (`None`: as in a list).
                Several descriptions are averaged. In a list, `"anger + disgust"` is a compound: the mean of its parts.
            hypothesis_template (`str`, *optional*): text with `{}` for the label, for labels given by name only.
                Without it the checkpoint's own descriptions are used where it has any, else "an expression of {}.".
            temperature (`float`, *optional*): logits are divided by it; by default what `training.calibrate` fitted
                for exactly these labels, else 1.
            multi_label (`bool` or `str`, defaults to `False`): each label stands alone, against a neutral face, or
                against the text that is given here.
            abstain_below (`float`, *optional*): if no score reaches it, the first entry is "uncertain".
            faces (`str` or function, defaults to `"none"`): `"none"` is for clips that are cropped to one face
                already, as the data sets' are: the whole frame is read. `"largest"` finds and follows the faces in
                the frames that are read, and takes that of one person; so does a function, see `timeline`, of the
                faces that it leaves. For everybody, and all of the time, there is `timeline`.
            no_face (`str`, defaults to `"frame"`): where no face is found the scores are of the whole frame, or there
                are none: `"nothing"`.
            detector (defaults to `"auto"`): see `timeline`.
            batch_size, num_workers: as in every pipeline.

        Returns:
            `[{"label": str, "score": float}, ...]`, highest score first, for each video. Scores are the softmax over
            the given labels of the scaled cosine: they sum to 1 and compare these labels with each other; they are
            not probabilities that a person feels anything (README, "What a score means"). If faces are looked for,
            each entry also has `"face_found"`; with `no_face="nothing"` the list is empty where it would be false.

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

    def timeline(
        self,
        video: Any,
        candidate_labels: Sequence[str] | Mapping[str, str | Sequence[str]],
        hypothesis_template: str | None = None,
        *,
        window: float = 2.0,
        stride: float = 1.0,
        faces: str | Callable = "all",
        no_face: str = "nothing",
        detector: str | Callable = "auto",
        fps: float | None = None,
        batch_size: int = 32,
        progress: bool = True,
        **options,
    ) -> EmotionTimeline:
        """Scores labels on every person in every window of a video of any length.

        The video is decoded once (one that is shorter than a window twice), and of each window as many frames are
        taken, evenly in time, as the checkpoint's video processor has `num_frames`. Each face in them is encoded once,
        however much windows overlap. Memory does not grow with the video's length, but for what is kept of each window
        (an embedding) and person (boxes, a few thumbnails): about 0.2 MB a minute and person with 512 numbers, one
        window a second.

        Args:
            video, candidate_labels, hypothesis_template: as of a call; one video.
            window: seconds; a shorter video is one window, whatever its header says of its length. At most 1,000
                frames a second are read.
            stride: seconds from window to window, rounded to the distance of two frames; at most `window`. The last
                window ends with the video.
            faces: `"all"`; `"largest"` in each frame; a function that gets the faces of a frame and returns those
                that count (`faces.choose_faces`); or `"none"` for clips that are cropped already: the whole frame.
            no_face: what stands for frames without a face: `"nothing"`, or `"frame"`, the whole frame. A window in
                which more than half of a person's frames are missing has no entry.
            detector: name of a face detector, see `faces.load_face_detector`: `"auto"` may ask the Hub for a file; or
                a function from a frame
                `(H, W, 3)`, uint8, RGB, to boxes `(n, 5)`: x0, y0, x1, y1, score.
            fps: frames per second of a folder, list or array of frames; files have time stamps.
            batch_size: faces, or windows, that are encoded at once.
            progress: whether to show a bar.
            options: `temperature`, `multi_label` and `abstain_below`, as of a call.

        Returns:
            `EmotionTimeline`. A video that breaks off, or is damaged, gives what was read of it, and `.error` says so.

        Raises:
            ValueError, FileNotFoundError: bad arguments, or a video of which nothing can be read.
        """
        how = {"window": window, "stride": stride, "fps": fps, "batch_size": batch_size, "progress": progress}
        how |= {"faces": faces, "no_face": no_face, "detector": detector}
        return make_timeline(self, video, candidate_labels, hypothesis_template, options, **how)

    def alignment(
        self, video: Any, text: str | Sequence[str], background_texts: Sequence[str] = BACKGROUND_TEXTS, **options
    ) -> EmotionAlignment:
        """How well a video shows what a text says: its cosine, and where that stands among those of other texts.

        Args:
            video, text, background_texts: see `EmotionTimeline.alignment`, which this is, of a new timeline.
            options: of `timeline`; by default `stride=0.5, faces="largest", no_face="frame"`.

        Returns:
            `EmotionAlignment`: `.cosine`, `.percentile`, and both for each window of time.
        """
        defaults = {"stride": 0.5, "faces": "largest", "no_face": "frame"}
        return self.timeline(video, {"text": text}, **(defaults | options)).alignment(text, background_texts)

    def embed(
        self,
        videos: Any,
        *,
        faces: str | Callable = "none",
        no_face: str = "frame",
        detector: str | Callable = "auto",
        batch_size: int = 8,
        on_error: str = "raise",
        progress: bool = True,
    ) -> VideoEmbeddings:
        """Embeddings of videos, for probes, clustering and search; see `embeddings.py`.

        Args:
            videos, faces, no_face, detector: as of a call.
            batch_size: videos that are encoded at once.
            on_error: what a video that cannot be read does: `"raise"`, or `"skip"`, and it is reported.
            progress: whether to show a bar.
        """
        face_options = self._face_options(faces, no_face, detector)
        return embed_videos(self, videos, face_options, no_face, batch_size, on_error, progress)

    def _sanitize_parameters(
        self,
        candidate_labels=None,
        hypothesis_template=None,
        temperature=None,
        multi_label=False,
        abstain_below=None,
        faces="none",
        no_face="frame",
        detector="auto",
        **kwargs,
    ):
        if kwargs:
            raise TypeError(f"{TASK} has no argument {', '.join(map(repr, kwargs))}")
        preprocess = self._face_options(faces, no_face, detector)
        options = {"temperature": temperature, "multi_label": multi_label, "abstain_below": abstain_below}
        if candidate_labels is None:
            given = {"hypothesis_template": hypothesis_template} | options
            if alone := [name for name, value in given.items() if value not in (None, False)]:
                raise ValueError(f"{', '.join(alone)} is given without candidate_labels")
            return preprocess, {}, {}
        scoring = make_scoring(self.model.config, candidate_labels, hypothesis_template, **options)
        return preprocess, {"texts_by_label": scoring.texts}, {"scoring": scoring, "no_face": no_face}

    def _face_options(self, faces: str | Callable, no_face: str, detector: str | Callable) -> dict[str, Any]:
        check_whose(faces)
        if no_face not in NO_FACE:
            raise ValueError(f"no_face is {no_face!r}, but must be one of {', '.join(NO_FACE)}")
        if faces == "none":
            return {}
        if isinstance(detector, (str, os.PathLike)):
            name = os.fspath(detector)
            detector = self._detectors.setdefault(name, self._detectors.get(name) or load_face_detector(name))
        return {"faces": faces, "detector": detector}

    def preprocess(self, video, **face_options):
        inputs, _ = self.read_clip(video, **face_options)
        # transformers pads clips of different lengths to one batch, and pads a mask with False.
        mask = torch.ones(inputs["pixel_values_videos"].shape[:2], dtype=torch.bool)
        inputs.setdefault("frame_mask", mask)
        return inputs.to(self.dtype)

    def read_clip(
        self, video: Any, faces: str | Callable = "none", detector: str | Callable = "auto"
    ) -> tuple[BatchFeature, VideoMetadata]:
        """One video as the model takes it, and its metadata; see `face_clip` for what faces add."""
        video = list(video) if isinstance(video, tuple) else video
        processor = self.processor.video_processor
        if faces != "none":
            inputs, metadata = face_clip(video, processor, faces, detector)
        else:
            inputs = processor(video, return_metadata=True, return_tensors="pt")
            metadata = inputs.pop("video_metadata")
        return inputs, metadata[0]

    def _forward(self, model_inputs, texts_by_label: LabelTexts | None = None):
        if texts_by_label is None:
            raise ValueError(f"{TASK} needs candidate_labels: a list of labels or a dict label -> description(s)")
        face_found = {name: model_inputs.pop(name) for name in ("face_found",) if name in model_inputs}
        outputs = self.model(**self.with_frame_embeds(model_inputs), text_embeds=self.class_embeds(texts_by_label))
        return {"logits_per_video": outputs.logits_per_video} | face_found

    def with_frame_embeds(self, model_inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`frame_embeds (B, T, D)` in the place of `pixel_values_videos`, if those are there."""
        inputs = dict(model_inputs)
        if "pixel_values_videos" in inputs:
            pixel_values = inputs.pop("pixel_values_videos")
            frame_embeds = self.encode_frames(pixel_values.flatten(0, 1))
            inputs["frame_embeds"] = frame_embeds.unflatten(0, pixel_values.shape[:2])
        return inputs

    def get_iterator(self, inputs, num_workers: int, *args, **kwargs):
        iterator = super().get_iterator(inputs, num_workers, *args, **kwargs)
        return iterator if num_workers else PipelinedIterator(iterator)

    def postprocess(self, model_outputs, scoring: Scoring, no_face: str = "frame"):
        (scores,) = scoring.scores(model_outputs["logits_per_video"])
        if "face_found" not in model_outputs:
            return scoring.ranked(scores)
        face_found = bool(model_outputs["face_found"])
        if not face_found and no_face == "nothing":
            return []
        return [entry | {"face_found": face_found} for entry in scoring.ranked(scores)]

    def class_embeds(self, texts_by_label: LabelTexts) -> torch.Tensor:
        """Returns `(C, D)` of a label set, encoded the first time it is asked for, and kept until a weight changes."""
        state = weights_state(self.model.text_model, self.model.text_projection)
        if state is None:
            return encode_labels(texts_by_label, self._encode_texts)
        if state != self._text_side:
            self._class_embeds, self._text_side = OrderedDict(), state
        kept, key = self._class_embeds, tuple(texts_by_label.values())
        # Each step is safe beside other threads', which a lock would be too, but not in workers that are spawned.
        embeds = kept.pop(key, None)
        if embeds is None:
            embeds = encode_labels(texts_by_label, self._encode_texts)
        kept[key] = embeds
        while len(kept) > 1 and sum(one.numel() for one in list(kept.values())) > self._most_kept_numbers:
            kept.popitem(last=False)
        return embeds

    def _encode_texts(self, texts: list[str]) -> torch.Tensor:
        """`(number of texts, D)`, part by part; says which texts are longer than the tower reads."""
        warn_of_long_texts(texts, self.tokenizer)
        parts = [texts[first : first + self._texts_at_once] for first in range(0, len(texts), self._texts_at_once)]
        inputs = (self.processor(text=part, return_tensors="pt").to(self.device) for part in parts)
        return torch.cat([self.model.get_text_features(**one).pooler_output for one in inputs])


def _as_inputs(videos: Any) -> Any:
    """A list or array, such that transformers tells one video from several: it takes a list for several inputs."""
    if isinstance(videos, (list, tuple)) and not is_in_memory(list(videos)):
        several = [one for video in videos for one in split_batch(video)]
        return [tuple(one) if isinstance(one, list) else one for one in several]
    several = split_batch(list(videos) if isinstance(videos, tuple) else videos)
    if len(several) > 1 or getattr(videos, "ndim", 0) == 5:
        return several
    return tuple(several[0]) if isinstance(several[0], list) else several[0]


__all__ = ["ZeroShotVideoClassificationPipeline"]

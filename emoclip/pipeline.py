# SPDX-License-Identifier: Apache-2.0
"""The pipeline of the installed package: that of a model repository, faster, and with faces and time lines."""

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import torch
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata

from modeling_emoclip import pipeline_emoclip
from modeling_emoclip.label_scoring import CandidateLabels, LabelScorer, LabelTexts, make_label_scorer

from .alignment import EmotionAlignment
from .faces.crops import NO_FACE_POLICIES, check_face_choice, crop_clip_to_face
from .faces.detection import FaceDetector, load_face_detector
from .frame_encoder import FrameEncoder, weights_state
from .reference_texts import REFERENCE_TEXTS
from .timeline.timeline import EmotionTimeline, TimelineOptions, make_timeline

# Numbers of the label sets that are kept, C x D each: 64 MB in float32. The newest is kept whatever its size.
MOST_KEPT_NUMBERS = 2**24


class ZeroShotVideoClassificationPipeline(pipeline_emoclip.ZeroShotVideoClassificationPipeline):
    """Scores videos against any text labels with an EmoCLIP model.

    ```python
    >>> import emoclip
    >>> from transformers import pipeline

    >>> pipe = pipeline("zero-shot-video-classification", model="org/emoclip")
    >>> pipe("clip.mp4", candidate_labels=["amused", "bored", "about to cry"])
    ```

    A call, see the base class, also takes

        faces (`str` or function, defaults to `"none"`): `"none"` is for clips that are cropped to one face already, as
            the data sets' are, and reads whole frames. `"largest"` finds and follows the faces in the sampled frames,
            and crops to the person whose face is largest; a function filters the faces first, see `timeline`. For all
            people, all of the time, there is `timeline`.
        no_face (`str`, defaults to `"frame"`): score the whole frame where no face is found, or return no scores
            (`"nothing"`).
        detector (defaults to `"auto"`): see `timeline`.

    If faces are looked for, each entry of the result also has `"face_found"`; with `no_face="nothing"` the list is
    empty where that would be false. docs/performance.md says what the following options gain and cost; none of them
    changes what `pipe.model` computes.

    Args:
        fast (`bool`, defaults to `False`): run the image tower in bfloat16 if the processor or GPU has instructions
            for it and the model is in float32. Of 1,000 answers 5 changed where that was measured.
        dtype (`str` or `torch.dtype`, *optional*): dtype of the image tower, if not the model's;
            `transformers.pipeline` loads the model in it.
        compile (`bool`, defaults to `False`): torch.compile the image tower; needs a C++ compiler and a minute.
        model, processor, device, batch_size, num_workers: as in every pipeline.
    """

    def __init__(self, *, dtype: str | torch.dtype | None = None, fast: bool = False, compile: bool = False, **kwargs):
        super().__init__(**kwargs)
        dtype = None if dtype == "auto" else dtype  # transformers' word for the checkpoint's own
        self.encode_frames = FrameEncoder(self.model, "fast" if fast else dtype, compile)
        self._class_embeds: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        self._text_state: tuple | None = None  # of the weights that they were made with
        self._detectors: dict[str, FaceDetector] = {}

    @property
    def model(self):
        """The model, which may be replaced."""
        return self._model

    @model.setter
    def model(self, model):
        self._model = model
        if hasattr(self, "encode_frames"):  # otherwise `__init__` is about to make it
            self.encode_frames.model = model

    def save_pretrained(self, folder: str | os.PathLike, **kwargs):
        """Saves model, processor and the code of a model repository, which needs no installed package."""
        base = pipeline_emoclip.ZeroShotVideoClassificationPipeline(model=self.model, processor=self.processor)
        base._registered_impl = {
            pipeline_emoclip.TASK: {"impl": type(base), "pt": self._registered_impl[pipeline_emoclip.TASK]["pt"]}
        }
        try:
            base.save_pretrained(folder, **kwargs)
            self.processor.save_pretrained(folder)
        finally:
            self.model.config.__dict__.pop("custom_pipelines", None)  # of the saved folder only

    def timeline(
        self,
        video: Any,
        candidate_labels: CandidateLabels,
        hypothesis_template: str | None = None,
        *,
        temperature: float | None = None,
        multi_label: bool | str | Sequence[str] = False,
        abstain_below: float | None = None,
        **options,
    ) -> EmotionTimeline:
        """Scores every person in every window of a video of any length.

        The video is decoded once (twice if it is shorter than a window), and of each window as many frames are taken,
        evenly in time, as the video processor has `num_frames`. Each face in them is encoded once, however windows
        overlap. Memory grows only with what is kept of each window (an embedding) and person (boxes, a few
        thumbnails): about 0.2 MB a minute and person with 512 numbers, one window a second.

        Args:
            video: one video.
            candidate_labels, hypothesis_template, temperature, multi_label, abstain_below: as in a call.
            window (`float`, defaults to 2.0): seconds; a shorter video is one window. At most 1,000 frames a second
                are read.
            stride (`float`, defaults to 1.0): seconds from window to window, rounded to the distance of two frames, at
                most `window`. The last window ends with the video.
            faces (defaults to `"all"`): `"all"`; `"largest"` in each frame; a function that takes the faces of a frame
                and returns those that count (`emoclip.faces.boxes.choose_faces`); or `"none"` for clips that are
                cropped already: the whole frame.
            no_face (defaults to `"nothing"`): what replaces frames without a face: `"nothing"`, or the `"frame"`. A
                window in which more than half of a person's frames are missing has no row.
            detector (defaults to `"auto"`): name of a face detector, see `emoclip.faces.detection.load_face_detector`
                (`"auto"` may ask the Hub for a file); or a function from a frame `(H, W, 3)`, uint8, RGB, to boxes
                `(n, 5)`: x0, y0, x1, y1, score.
            fps: frames per second of a folder, list or array of frames; files have time stamps.
            batch_size (defaults to 32): faces, or windows, that are encoded together.
            progress (defaults to `True`): whether to show a progress bar.

        Returns:
            `EmotionTimeline`. Of a video that breaks off, or is damaged, what could be read; `.error` says so.

        Raises:
            ValueError, FileNotFoundError: bad arguments, or a video of which nothing can be read.
        """
        scorer = make_label_scorer(
            self.model.config,
            candidate_labels,
            hypothesis_template,
            temperature=temperature,
            multi_label=multi_label,
            abstain_below=abstain_below,
        )
        return make_timeline(self, video, scorer, TimelineOptions(**options))

    def alignment(
        self, video: Any, text: str | Sequence[str], reference_texts: Sequence[str] = REFERENCE_TEXTS, **options
    ) -> EmotionAlignment:
        """Measures how well a video shows what a text says: its cosine, and the rank of that among other texts.

        Args:
            video, text, reference_texts: see `EmotionTimeline.alignment`, which this calls for a new time line.
            options: as in `timeline`; the defaults are `stride=0.5, faces="largest", no_face="frame"`.
        """
        defaults = {"stride": 0.5, "faces": "largest", "no_face": "frame"}
        return self.timeline(video, {"text": text}, **(defaults | options)).alignment(text, reference_texts)

    def _sanitize_parameters(
        self,
        candidate_labels=None,
        hypothesis_template=None,
        faces: str | Callable = "none",
        no_face: str = "frame",
        detector: str | Callable = "auto",
        **kwargs,
    ):
        _, forward, scoring = super()._sanitize_parameters(candidate_labels, hypothesis_template, **kwargs)
        check_face_choice(faces)
        if no_face not in NO_FACE_POLICIES:
            raise ValueError(f"no_face is {no_face!r}, but must be one of {', '.join(NO_FACE_POLICIES)}")
        if faces == "none":
            return {}, forward, scoring
        if isinstance(detector, (str, os.PathLike)):
            name = os.fspath(detector)
            detector = self._detectors.setdefault(name, self._detectors.get(name) or load_face_detector(name))
        return {"faces": faces, "detector": detector}, forward, scoring | {"no_face": no_face}

    def read_clip(
        self, video: Any, faces: str | Callable = "none", detector: str | Callable = "auto"
    ) -> tuple[BatchFeature, VideoMetadata]:
        """Reads one video as the model's inputs, cropped to a face if asked for, and its metadata."""
        if faces == "none":
            return super().read_clip(video)
        video = list(video) if isinstance(video, tuple) else video
        return crop_clip_to_face(video, self.processor.video_processor, faces, detector)

    def _forward(self, model_inputs, texts_by_label: LabelTexts | None = None, kept: dict[str, Any] | None = None):
        face_found = {name: model_inputs.pop(name) for name in ("face_found",) if name in model_inputs}
        return super()._forward(model_inputs, texts_by_label, kept) | face_found

    def model_inputs(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Replaces `pixel_values_videos`, if they are there, by `frame_embeds (B, T, D)`."""
        inputs = dict(inputs)
        if "pixel_values_videos" in inputs:
            pixel_values = inputs.pop("pixel_values_videos")
            frame_embeds = self.encode_frames(pixel_values.flatten(0, 1))
            inputs["frame_embeds"] = frame_embeds.unflatten(0, pixel_values.shape[:2])
        return inputs

    def postprocess(self, model_outputs, scorer: LabelScorer, no_face: str = "frame"):
        entries = super().postprocess(model_outputs, scorer)
        if "face_found" not in model_outputs:
            return entries
        face_found = bool(model_outputs["face_found"])
        if not face_found and no_face == "nothing":
            return []
        return [entry | {"face_found": face_found} for entry in entries]

    def get_iterator(self, inputs, num_workers: int, batch_size: int, preprocess_params: dict, *params):
        if num_workers:  # they read ahead
            return super().get_iterator(inputs, num_workers, batch_size, preprocess_params, *params)
        kind = _SizedReadAhead if hasattr(inputs, "__len__") else _ReadAhead
        reader = kind(inputs, partial(self.preprocess, **preprocess_params), 2 * batch_size)
        return _Results(super().get_iterator(reader, 0, batch_size, {}, *params), reader)

    def preprocess(self, video, **options):
        return video if isinstance(video, BatchFeature) else super().preprocess(video, **options)  # read ahead

    def class_embeds(self, texts_by_label: LabelTexts) -> torch.Tensor:
        """Encodes a label set as unit vectors `(number of labels, D)`, and keeps them until a weight changes."""
        state = weights_state(self.model.text_model, self.model.text_projection)
        if state is None:
            return super().class_embeds(texts_by_label)
        if state != self._text_state:
            self._class_embeds, self._text_state = OrderedDict(), state
        kept, key = self._class_embeds, tuple(texts_by_label.values())
        # Each step is safe beside other threads. A lock would be too, but cannot be pickled for workers.
        embeds = kept.pop(key, None)
        if embeds is None:
            embeds = super().class_embeds(texts_by_label)
        kept[key] = embeds
        while len(kept) > 1 and sum(one.numel() for one in list(kept.values())) > MOST_KEPT_NUMBERS:
            kept.popitem(last=False)
        return embeds


class _ReadAhead:
    """Reads videos in a thread while earlier ones are encoded; at most `depth` wait."""

    def __init__(self, videos: Iterable, read: Callable[[Any], Any], depth: int):
        self.videos, self.read, self.depth = videos, read, depth
        self.thread: ThreadPoolExecutor | None = None

    def __iter__(self) -> Iterator[Any]:
        self.thread, coming = ThreadPoolExecutor(1, "read_ahead"), deque()
        for video in self._each():
            coming.append(self.thread.submit(self.read, video))
            if len(coming) > self.depth:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

    def _each(self) -> Iterable:
        return self.videos

    def close(self) -> None:
        """Ends the thread after the video that it is reading."""
        if self.thread is not None:
            self.thread.shutdown(wait=False, cancel_futures=True)


class _SizedReadAhead(_ReadAhead):
    """The same for a list or data set, of which transformers asks for each item once, in order."""

    def __len__(self) -> int:
        return len(self.videos)

    def _each(self) -> Iterable:
        return (self.videos[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Any:
        if index == 0:
            self.items = iter(self)
        return next(self.items)


class _Results:
    """The results of several videos; the reader ends with them, also after an error."""

    def __init__(self, results, reader: _ReadAhead):
        self.results, self.reader = results, reader

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Any]:
        with closing(self.reader):
            yield from self.results


__all__ = ["ZeroShotVideoClassificationPipeline"]

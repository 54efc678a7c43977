# SPDX-License-Identifier: Apache-2.0
"""Video processor of EmoCLIP, which turns videos of any kind into `pixel_values_videos (B, T, 3, H, W)`."""

import copy
from difflib import get_close_matches
from typing import Any, get_type_hints

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata, make_batched_metadata

from .frame_sampling import check_strategy, sample_frames
from .video_inputs import channels_first, is_in_memory, is_rescaled, select_frames, split_batch, video_name
from .video_limits import make_limits
from .video_reading import read_video


class EmoCLIPVideoProcessorKwargs(VideosKwargs, total=False):
    """
    frame_sampling, frame_stride, seed:
        See `EmoCLIPVideoProcessor`.
    rng (`numpy.random.Generator`, *optional*):
        Replaces `seed`. Never saved. `EmoCLIPProcessor` draws from a copy and leaves the caller's unchanged.
    """

    frame_sampling: str | None
    frame_stride: int | None
    seed: int | None
    rng: np.random.Generator | None


# Fields, and what saved processors hold beside them.
_KNOWN = set(get_type_hints(EmoCLIPVideoProcessorKwargs)) | {"processor_class", "auto_map"}
_KNOWN |= {"video_processor_type", "image_processor_type", "feature_extractor_type"}


class EmoCLIPVideoProcessor(BaseVideoProcessor):
    r"""
    Samples frames, decodes only those, and resizes, crops, rescales and normalises them as CLIP does.

    A video is a path (`str` or `Path`) to a video file or to a folder of frame images; the bytes of a video file; a
    row `{"bytes", "path"}` of a `datasets` column `Video(decode=False)`; a list of PIL images, of arrays `(H, W, C)`
    or `(C, H, W)`, or of paths to images; or an array or tensor `(T, H, W, C)` or `(T, C, H, W)`, C being 1, 3 or 4.
    A list of these, or an array of 5 dimensions, is a batch, whose videos may differ in kind, size and length. Pixels
    are 0 to 255; a float video whose sampled frames hold no value above 1 is taken as rescaled already.

    Args:
        num_frames (`int`, defaults to 16): frames of each clip. Shorter videos repeat frames, evenly.
        frame_sampling (`str`, defaults to `"segment_middle"`): see `frame_sampling.py`. DFER-CLIP tests with
            `segment_middle` and trains with `segment_random`; EmoCLIP takes `strided_window(_random)`.
        frame_stride (`int`, defaults to 4): distance of neighbouring frames in a strided window.
        fps (`float`, *optional*): frames per second to sample, in place of `num_frames`.
        do_sample_frames (`bool`, defaults to `True`): `False` takes every frame.
        seed (`int`, *optional*): required by a random `frame_sampling` unless the call gives an `rng`; the same videos
            in the same order then give the same frames.
        video_limits (`dict`, *optional*): limits for one video, the fields of `VideoLimits` (video_limits.py) that
            differ from its defaults. Not an option of a call.
        guard_decoding (`bool`, defaults to `True`): decode files in another process, which can crash or hang without
            harm to this one. `False` is for trusted files. Not an option of a call.
        size, crop_size, resample, image_mean, ...: as in `CLIPImageProcessor`. DFER-CLIP:
            `size={"height": 224, "width": 224}, do_center_crop=False, do_normalize=False`.

    A call returns a `BatchFeature` with `pixel_values_videos`, `(B, T, 3, H, W)`, float32. If clips differ in length
    (without sampling, or with `fps`), shorter ones end in zeros and `frame_mask (B, T)`, bool, is true at real frames.
    `return_metadata=True` adds `video_metadata`, a list of `VideoMetadata`. It raises FileNotFoundError, or
    VideoDecodeError (a ValueError), for a video that cannot be read or exceeds a limit; the message names it.

    ```python
    >>> processor = EmoCLIPVideoProcessor(num_frames=8)
    >>> processor(["clip.mp4", "folder_of_frames"], return_tensors="pt").pixel_values_videos.shape
    torch.Size([2, 8, 3, 224, 224])
    ```"""

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = True
    num_frames = 16
    frame_sampling = "segment_middle"
    frame_stride = 4
    valid_kwargs = EmoCLIPVideoProcessorKwargs
    model_input_names = ["pixel_values_videos"]

    def __init__(
        self,
        video_limits: dict[str, float] | None = None,
        guard_decoding: bool = True,
        **kwargs: Unpack[EmoCLIPVideoProcessorKwargs],
    ):
        # transformers keeps and saves unknown fields: a misspelt one would do nothing, and a token be published.
        if unknown := sorted(name for name in kwargs if name not in _KNOWN and not name.startswith("_")):
            near = get_close_matches(unknown[0], _KNOWN, n=1)
            hint = f"; is it {near[0]}?" if near else ""
            raise ValueError(f"EmoCLIPVideoProcessor has no field {', '.join(unknown)}{hint}")
        super().__init__(**kwargs)
        check_strategy(self.frame_sampling)
        make_limits(video_limits)
        self.video_limits, self.guard_decoding = video_limits, guard_decoding

    def preprocess(self, videos: Any, **kwargs: Unpack[EmoCLIPVideoProcessorKwargs]) -> BatchFeature:
        # num_frames and fps exclude each other: the call's wins over the processor's.
        if kwargs.get("num_frames") is not None:
            kwargs.setdefault("fps", None)
        elif kwargs.get("fps") is not None or self.fps is not None:
            kwargs["num_frames"] = None
        seed = kwargs.get("seed", self.seed)
        if kwargs.get("rng") is None and seed is not None:
            kwargs["rng"] = np.random.default_rng(seed)
        return super().preprocess(videos, **kwargs)

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: float | None = None,
        frame_sampling: str | None = None,
        frame_stride: int | None = None,
        rng: np.random.Generator | None = None,
        **kwargs,
    ) -> np.ndarray:
        """Returns the indices `(T,)`, int64, that `num_frames` or `fps` and the strategy choose."""
        if num_frames is not None and fps is not None:
            raise ValueError(f"num_frames={num_frames} and fps={fps} exclude each other")
        if fps is not None:
            if metadata.fps is None:
                raise ValueError(f"fps={fps} needs the video's own frames per second: pass video_metadata with 'fps'")
            num_frames = max(1, int(metadata.total_num_frames / metadata.fps * fps))
        return sample_frames(
            frame_sampling or self.frame_sampling,
            metadata.total_num_frames,
            self.num_frames if num_frames is None else num_frames,
            stride=self.frame_stride if frame_stride is None else frame_stride,
            rng=rng,
        )

    def to_dict(self) -> dict[str, Any]:
        fields = super().to_dict()
        fields.pop("rng", None)
        return fields

    def _decode_and_sample_videos(self, videos, video_metadata, do_sample_frames=None, sample_indices_fn=None):
        videos = split_batch(videos)
        given = [None] * len(videos)
        if video_metadata is not None:
            given = copy.deepcopy(make_batched_metadata(videos, video_metadata))
        clips = []
        for index, (video, metadata) in enumerate(zip(videos, given, strict=True)):
            name = video_name(index, len(videos))
            if is_in_memory(video):
                metadata = metadata or VideoMetadata(total_num_frames=len(video))
                clips.append(select_frames(video, metadata, sample_indices_fn if do_sample_frames else None, name))
            else:
                choose_frames = sample_indices_fn if do_sample_frames else lambda facts: range(facts.total_num_frames)
                clips.append(read_video(video, choose_frames, name, self.video_limits, self.guard_decoding))
        frames, metadata = zip(*clips, strict=True)
        return list(frames), list(metadata)

    def _prepare_input_videos(self, videos, do_convert_rgb=None, input_data_format=None, device=None):
        prepared = []
        for index, video in enumerate(videos):
            frames = channels_first(video, input_data_format, video_name(index, len(videos)))
            if do_convert_rgb:
                scale = 255 if frames.shape[1] == 4 and is_rescaled(frames) else 1  # transparency is read as 0 to 255
                frames = self.convert_to_rgb(frames * scale) / scale if scale > 1 else self.convert_to_rgb(frames)
            prepared.append(frames if device is None else frames.to(device))
        return prepared

    def _preprocess(self, videos, do_rescale, rescale_factor, return_tensors=None, **kwargs) -> BatchFeature:
        if do_rescale:
            videos = [video / rescale_factor if is_rescaled(video) else video for video in videos]
        features = super()._preprocess(videos, do_rescale=do_rescale, rescale_factor=rescale_factor, **kwargs)
        clips = [clip.to(torch.float32) for clip in features["pixel_values_videos"]]
        sizes = sorted({tuple(clip.shape[1:]) for clip in clips})
        if len(sizes) > 1 and return_tensors is not None:
            raise ValueError(
                f"the videos have frames of the shapes {sizes} after resizing and cannot be stacked: set "
                "do_center_crop=True, or a size of 'height' and 'width', or return_tensors=None"
            )
        lengths = torch.tensor([len(clip) for clip in clips])
        data = {"pixel_values_videos": clips}
        if len(sizes) == 1 and len(set(lengths.tolist())) > 1:
            data["pixel_values_videos"] = list(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True))
            data["frame_mask"] = list(torch.arange(lengths.max()) < lengths[:, None])
        return BatchFeature(data=data, tensor_type=return_tensors)


__all__ = ["EmoCLIPVideoProcessor", "EmoCLIPVideoProcessorKwargs"]

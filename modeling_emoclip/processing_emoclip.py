# SPDX-License-Identifier: Apache-2.0
"""Processor of EmoCLIP, which turns texts and videos into the model's inputs."""

from transformers import AutoTokenizer, CLIPImageProcessor
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from .video_processing_emoclip import EmoCLIPVideoProcessor, EmoCLIPVideoProcessorKwargs

_FROM_IMAGE_PROCESSOR = (
    "do_resize size resample do_center_crop crop_size do_rescale rescale_factor do_normalize".split()
)
_FROM_IMAGE_PROCESSOR += ["image_mean", "image_std", "do_convert_rgb"]


class EmoCLIPProcessorKwargs(ProcessingKwargs, total=False):
    videos_kwargs: EmoCLIPVideoProcessorKwargs
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class EmoCLIPProcessor(ProcessorMixin):
    r"""
    An `EmoCLIPVideoProcessor` and a CLIP tokenizer.

    Args:
        video_processor (`EmoCLIPVideoProcessor`)
        tokenizer (`CLIPTokenizer`)

    A call, `processor(text=..., videos=..., return_tensors="pt")`, needs at least one of the two and returns a
    `BatchFeature` with `input_ids` and `attention_mask` `(number of texts, tokens)`, padded to the longest and cut to
    the tokenizer's `model_max_length`, and the output of the video processor.

    ```python
    >>> processor = EmoCLIPProcessor.from_clip("openai/clip-vit-base-patch32", num_frames=8)
    >>> inputs = processor(text=["amused", "bored"], videos="clip.mp4", return_tensors="pt")
    >>> inputs.pixel_values_videos.shape
    torch.Size([1, 8, 3, 224, 224])
    ```"""

    valid_processor_kwargs = EmoCLIPProcessorKwargs

    def __init__(self, video_processor=None, tokenizer=None, **kwargs):
        super().__init__(video_processor, tokenizer, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "frame_mask"]

    @classmethod
    def from_clip(
        cls,
        name_or_path: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        **video_kwargs,
    ) -> "EmoCLIPProcessor":
        """Builds a processor with the tokenizer and the image preparation of a CLIP or EmoCLIP checkpoint.

        Args:
            name_or_path, revision, token, cache_dir, local_files_only: see `from_pretrained`.
            video_kwargs: fields of `EmoCLIPVideoProcessor`, such as `num_frames`; they win over the checkpoint's.
                Unknown ones raise a ValueError.
        """
        hub = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        hub |= {} if revision is None else {"revision": revision}
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **hub)
        try:
            clip = CLIPImageProcessor.from_pretrained(name_or_path, **hub).to_dict()
        except OSError:  # a checkpoint of this package has a video processor instead
            EmoCLIPVideoProcessor(**video_kwargs)  # refuses unknown fields, which from_pretrained passes over
            return cls(EmoCLIPVideoProcessor.from_pretrained(name_or_path, **hub, **video_kwargs), tokenizer)
        from_clip = {name: clip[name] for name in _FROM_IMAGE_PROCESSOR if name in clip}
        return cls(EmoCLIPVideoProcessor(**(from_clip | video_kwargs)), tokenizer)


__all__ = ["EmoCLIPProcessor", "EmoCLIPProcessorKwargs"]

# SPDX-License-Identifier: Apache-2.0
"""Loading a pipeline by the name of a checkpoint, EmoCLIP's or any CLIP's, with the installed code."""

from transformers import AutoConfig

from . import EmoCLIPConfig, EmoCLIPModel, EmoCLIPProcessor, ZeroShotVideoClassificationPipeline


def load_pipeline(name: str, revision: str | None = None, **options) -> ZeroShotVideoClassificationPipeline:
    """Loads the pipeline of an EmoCLIP checkpoint, or of a CLIP, which then scores with the mean of its frames.

    No code of the checkpoint is run.

    Args:
        name: folder or Hub id.
        revision: commit, branch or tag of a Hub id.
        options: of the pipeline, such as `fast=True` or `device="cuda"`.

    Raises:
        OSError, ValueError: there is no such checkpoint, or it is of another kind.
    """
    hub = {"revision": revision} if revision else {}
    config = AutoConfig.from_pretrained(name, **hub)
    if config.model_type not in ("clip", EmoCLIPConfig.model_type):
        raise ValueError(f"{name} is of the type {config.model_type}, but must be an EmoCLIP or a CLIP")
    if config.model_type == "clip":
        model = EmoCLIPModel.from_clip(name, temporal_num_layers=0, **hub)
        processor = EmoCLIPProcessor.from_clip(name, **hub)
    elif config.architectures and EmoCLIPModel.__name__ not in config.architectures:
        raise ValueError(f"{name} is an {config.architectures[0]}, which has fixed classes: give an EmoCLIPModel")
    else:
        model = EmoCLIPModel.from_pretrained(name, **hub)
        processor = EmoCLIPProcessor.from_pretrained(name, **hub)
    return ZeroShotVideoClassificationPipeline(model=model, processor=processor, **options)


__all__ = ["load_pipeline"]

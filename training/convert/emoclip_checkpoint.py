# SPDX-License-Identifier: Apache-2.0
"""Converts a checkpoint of EmoCLIP's released code to a Hub repository folder of `EmoCLIPModel`.

python -m training.convert.emoclip_checkpoint CHECKPOINT OUTPUT_DIR --tokenizer openai/clip-vit-base-patch32
python -m training.convert.emoclip_checkpoint TEMPORAL_ONLY OUTPUT_DIR --clip openai/clip-vit-base-patch32

The released code (https://github.com/NickyFot/EmoCLIP) saves one of three models: the whole `VClip` (`backbone.*` is
OpenAI's CLIP), its temporal transformer alone, or the `DownstreamTask` (`backbone.*` is the image tower, with or
without a head). Missing parts are reported and taken from `--clip`; without `--clip` the file is rejected.
"""

import argparse
import re
import sys
from pathlib import Path

import torch
from transformers import CLIPModel

from emoclip import EmoCLIPConfig, EmoCLIPModel, EmoCLIPVideoProcessor
from training.convert.checkpoint_file import read_checkpoint
from training.convert.hub_folder import (
    OPENAI_CLIP,
    build_model,
    convert_entry,
    does_not_fit,
    load_tokenizer,
    refuse_used_folder,
    write_hub_folder,
)
from training.convert.openai_clip_keys import convert_clip_tensor, shape_of, text_config_of, vision_config_of
from training.convert.temporal_keys import convert_temporal_tensor, temporal_config_of

SOURCE = "EmoCLIP (Foteinopoulou and Patras, FG 2024, arXiv 2310.16640), https://github.com/NickyFot/EmoCLIP"
NUM_FRAMES = 32
_HEAD = re.compile(r"(mlp|fc)\.(.+\.)?(weight|bias)")
_TOWERS = {
    "the image tower": ("vision_model.", "visual_projection."),
    "the text tower": ("text_model.", "text_projection."),
}


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output_dir", type=Path, help="folder to write; it must not exist, or be empty")
    parser.add_argument("--temporal-heads", type=int, default=8, help="no tensor tells it; 8 in the released code")
    parser.add_argument("--clip", help="folder or Hub id: towers for a file that does not hold them")
    parser.add_argument("--tokenizer", help="folder or Hub id; default: that of --clip")
    options = parser.parse_args(arguments)
    try:
        notes = convert(
            options.checkpoint, options.output_dir, options.temporal_heads, options.clip, options.tokenizer
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print("\n- ".join([f"wrote {options.output_dir}", *notes]))


def convert(
    checkpoint: Path, output_dir: Path, temporal_heads: int = 8, clip: str | None = None, tokenizer: str | None = None
) -> list[str]:
    """Converts a checkpoint and returns notes for the user about the result, one per line.

    Raises:
        ValueError, OSError: the file cannot be read, does not fit or is incomplete; `output_dir` is in use; `clip`
            cannot be loaded. Nothing is written in these cases.
    """
    refuse_used_folder(output_dir)
    state, notes = convert_state(read_checkpoint(checkpoint))
    config, state = complete(state, temporal_heads, clip, notes)
    model = build_model(EmoCLIPModel, config, state)
    tokenizer, note = load_tokenizer(tokenizer or clip, config.text_config)
    write_hub_folder(output_dir, model, video_processor_of(config), tokenizer, SOURCE, notes)
    return [*notes, note]


def convert_state(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Converts EmoCLIP's state dict, whole or partial, to the tensor names of `EmoCLIPModel`; also returns notes.

    Raises:
        ValueError: a key does not fit; the message names the first one.
    """
    if "cls_token" in state:  # the temporal transformer was saved alone
        state = {f"temporal.{key}": tensor for key, tensor in state.items()}
    # DownstreamTask stores `clip_model.backbone.visual` under the name of the whole CLIP in VClip.
    backbone = "visual." if "backbone.conv1.weight" in state else ""
    converted, head = {}, []
    for key, tensor in state.items():
        module, _, rest = key.partition(".")
        if module == "backbone" and key != "backbone.logit_scale":
            converted |= convert_entry(convert_clip_tensor, backbone + rest, tensor, key)
        elif module == "temporal":
            converted |= convert_entry(convert_temporal_tensor, rest, tensor, key)
        elif _HEAD.fullmatch(key):
            head.append(key)
        elif key not in ("logit_scale", "backbone.logit_scale"):
            raise ValueError(does_not_fit(key, tensor))
    notes = []
    if head:
        notes.append(
            f"left out: the head of the downstream task ({', '.join(head)}), which EmoCLIPModel does not have"
        )
    if "logit_scale" in state:  # VClip's own; it does not use CLIP's, which is backbone.logit_scale
        converted["logit_scale"] = state["logit_scale"]
    elif "backbone.logit_scale" in state:
        converted["logit_scale"] = state["backbone.logit_scale"]
        notes.append("logit_scale is CLIP's (backbone.logit_scale): the checkpoint holds no trained one")
    return converted, notes


def complete(
    state: dict[str, torch.Tensor], temporal_heads: int, clip: str | None, notes: list[str]
) -> tuple[EmoCLIPConfig, dict[str, torch.Tensor]]:
    """Infers the configuration, fills in missing tensors from the CLIP named `clip`, and returns both.

    Appends a note to `notes` about the parts that were filled in.

    Raises:
        ValueError: parts are missing without `clip`, nothing is missing but `clip` is given, or widths differ.
    """
    temporal = temporal_config_of(state, temporal_heads)
    parts = _TOWERS | {"logit_scale": ("logit_scale",)}
    missing = [part for part, prefixes in parts.items() if not any(name.startswith(prefixes) for name in state)]
    if missing and clip is None:
        raise ValueError(
            f"the checkpoint does not hold {', '.join(missing)}: name the CLIP that it was trained with, as in "
            f"--clip {OPENAI_CLIP}"
        )
    if clip is not None and not missing:
        raise ValueError(f"the checkpoint holds all of its CLIP: --clip {clip} would not be used")
    vision_config = text_config = None
    if missing:
        loaded = _load_clip(clip)
        prefixes = tuple(prefix for part in missing for prefix in parts[part])
        state = state | {name: value for name, value in loaded.state_dict().items() if name.startswith(prefixes)}
        vision_config = loaded.config.vision_config if "the image tower" in missing else None
        text_config = loaded.config.text_config if "the text tower" in missing else None
        notes.append(f"not in the checkpoint, taken from {clip}: {', '.join(missing)}")
    width = state["temporal.class_token"].shape[0]
    for name in ("visual_projection.weight", "text_projection.weight"):
        if shape_of(state, name, 2)[0] != width:
            raise ValueError(f"{name} gives embeddings of {state[name].shape[0]} numbers, the checkpoint has {width}")
    return EmoCLIPConfig(
        vision_config=vision_config or vision_config_of(state),
        text_config=text_config or text_config_of(state),
        projection_dim=width,
        logit_scale_init_value=state["logit_scale"].item(),
        **temporal,
    ), state


def _load_clip(name_or_path: str) -> CLIPModel:
    clip, report = CLIPModel.from_pretrained(name_or_path, dtype=torch.float32, output_loading_info=True)
    if report["missing_keys"]:  # transformers would initialize these at random
        raise ValueError(f"{name_or_path} is no whole CLIP: it holds nothing for {min(report['missing_keys'])}")
    return clip


def video_processor_of(config: EmoCLIPConfig) -> EmoCLIPVideoProcessor:
    """Reproduces EmoCLIP's `DataLoaders/get_loader.py`: 32 frames, every 4th; size, crop and mean/std of CLIP."""
    size = config.vision_config.image_size
    return EmoCLIPVideoProcessor(
        num_frames=min(NUM_FRAMES, config.temporal_max_frames),
        frame_sampling="strided_window",
        frame_stride=4,
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
    )


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Writes the towers of a training run as an ordinary CLIP checkpoint.

python -m training.publish.to_clip outputs/synthetic_tiny_clip examples/tiny_clip
"""

import argparse
import json
import sys
from pathlib import Path

from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from training.publish.card import write_card
from training.publish.export import check_is_run, load_run


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of training/train.py")
    parser.add_argument("folder", type=Path, help="folder to write")
    options = parser.parse_args(arguments)
    check_is_run(options.run, parser)
    print(f"wrote {export_clip(options.run, options.folder)}")


def export_clip(run_dir: Path, clip_dir: Path) -> Path:
    """Writes the towers, projections and scale as a `CLIPModel` with tokenizer, image processor and card."""
    model, processor, recipe = load_run(run_dir)
    config = CLIPConfig(
        vision_config=model.config.vision_config.to_dict(),
        text_config=model.config.text_config.to_dict(),
        projection_dim=model.config.projection_dim,
        logit_scale_init_value=model.config.logit_scale_init_value,
    )
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("temporal.")}
    clip = CLIPModel(config)
    clip.load_state_dict(weights)
    clip.save_pretrained(clip_dir)
    video_processor = processor.video_processor
    fields = (
        "size",
        "crop_size",
        "image_mean",
        "image_std",
        "resample",
        "do_resize",
        "do_center_crop",
        "do_normalize",
    )
    image_processor = CLIPImageProcessor(**{name: getattr(video_processor, name) for name in fields})
    processor.tokenizer.init_kwargs.pop("auto_map", None)  # would send AutoProcessor after code of ours
    CLIPProcessor(image_processor, processor.tokenizer).save_pretrained(clip_dir)
    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    card = write_card(metrics, recipe, model, processor, "clip.md")
    (clip_dir / "README.md").write_text(card, encoding="utf-8")
    return clip_dir


if __name__ == "__main__":
    main(sys.argv[1:])

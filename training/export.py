# SPDX-License-Identifier: Apache-2.0
"""A training run -> a folder that is a Hub repository: code, weights, processor, card; checked before it is done.

python training/export.py outputs/synthetic_emoclip              writes outputs/synthetic_emoclip/hub
python training/export.py outputs/synthetic_tiny_clip --as-clip examples/tiny_clip
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jinja2
import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

import modeling_emoclip
from modeling_emoclip.pipeline_emoclip import TASK, ZeroShotVideoClassificationPipeline

HUB_CARDS = Path(__file__).resolve().parents[1] / "hub_cards"
CUSTOM_PIPELINES = {
    TASK: {
        "impl": f"pipeline_emoclip.{ZeroShotVideoClassificationPipeline.__name__}",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of training/train.py")
    parser.add_argument("--hub-dir", type=Path, help="folder to write; default: RUN/hub")
    parser.add_argument("--as-clip", type=Path, metavar="DIR", help="write the towers as an ordinary CLIP checkpoint")
    options = parser.parse_args(arguments)
    if not (options.run / "metrics.json").is_file():
        parser.error(f"{options.run} has no metrics.json: it is not the output folder of a finished training run")
    if options.as_clip:
        print(f"wrote {export_clip(options.run, options.as_clip)}")
    else:
        hub_dir, difference = export(options.run, options.hub_dir or options.run / "hub")
        print(f"wrote {hub_dir}; loaded in another process, its logits differ by at most {difference:.1e}")


def export(run_dir: Path, hub_dir: Path) -> tuple[Path, float]:
    """Writes and checks the Hub folder; returns it and the largest difference of logits found by the check.

    Nothing is left at `hub_dir` unless the check succeeds; what an earlier export wrote there is replaced.
    """
    model = AutoModel.from_pretrained(run_dir).eval()
    processor = AutoProcessor.from_pretrained(run_dir)
    with tempfile.TemporaryDirectory(dir=run_dir, prefix="hub.unfinished.") as unfinished:
        folder = Path(unfinished) / "hub"
        model.config.custom_pipelines = CUSTOM_PIPELINES
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        copy_model_code(folder)
        for record in ("metrics.json", "recipe.yaml"):
            shutil.copy(run_dir / record, folder)
        (folder / "README.md").write_text(write_card(run_dir, "emoclip.md", model), encoding="utf-8")
        difference = check(folder, model, processor)
        shutil.rmtree(hub_dir, ignore_errors=True)
        shutil.move(folder, hub_dir)
    return hub_dir, difference


def copy_model_code(folder: Path):
    """All of `modeling_emoclip`, flat, as the Hub loads it; save_pretrained does not copy the pipeline's files."""
    for source in Path(modeling_emoclip.__file__).parent.glob("*.py"):
        if source.name != "__init__.py":
            shutil.copy(source, folder)


def check(folder: Path, model, processor, tolerance: float = 1e-5) -> float:
    """Loads `folder` as a stranger does, in another process and directory; returns how far its logits are off.

    Raises:
        RuntimeError: it cannot be loaded that way, or the logits differ by more than `tolerance`.
    """
    generator = torch.Generator().manual_seed(0)
    size = model.config.vision_config.image_size
    sample = {
        "pixel_values_videos": torch.randn(
            2, processor.video_processor.num_frames, 3, size, size, generator=generator
        ),
        **processor(text=["a smile slowly appearing", "lowered eyebrows"], return_tensors="pt"),
    }
    with tempfile.TemporaryDirectory() as elsewhere:
        with torch.inference_mode():
            logits = model(**sample).logits_per_video.contiguous()
        save_file(sample | {"logits_per_video": logits}, Path(elsewhere) / "sample.safetensors")
        command = [sys.executable, "-I", str(Path(__file__).with_name("check_hub_folder.py")), str(folder.resolve())]
        result = subprocess.run(
            [*command, "sample.safetensors"], cwd=elsewhere, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    if result.returncode != 0:
        raise RuntimeError(f"the exported folder cannot be loaded in another process:\n{result.stderr[-3000:]}")
    difference = json.loads(result.stdout.splitlines()[-1])["difference"]
    if not difference <= tolerance:
        raise RuntimeError(f"the exported folder's logits differ by {difference}, more than {tolerance}")
    return difference


def export_clip(run_dir: Path, clip_dir: Path) -> Path:
    """The towers, projections and scale as a `CLIPModel` with tokenizer, image processor and card."""
    model = AutoModel.from_pretrained(run_dir)
    processor = AutoProcessor.from_pretrained(run_dir)
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
    (clip_dir / "README.md").write_text(write_card(run_dir, "clip.md", model), encoding="utf-8")
    return clip_dir


def write_card(run_dir: Path, template: str, model) -> str:
    """A card of hub_cards/, filled from the run's metrics.json and recipe.yaml."""
    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    recipe_text = (run_dir / "recipe.yaml").read_text(encoding="utf-8")
    recipe = yaml.safe_load(recipe_text)
    data_set = recipe["data"]["builder"].split(".")[0]
    results = [
        EvalResult(
            task_type="video-classification",
            dataset_type=data_set,
            dataset_name=f"{data_set}, {name}",
            metric_type=metric,
            metric_value=round(100 * final[metric], 2),
        )
        for name, final in metrics["final"].items()
        for metric in ("uar", "war")
    ]
    is_clip = template == "clip.md"
    tags = ["facial-expression-recognition", "emotion-recognition", "clip"]
    card_data = ModelCardData(
        license="apache-2.0",
        language="en",
        library_name="transformers",
        # The Hub has no task of the pipeline's name.
        pipeline_tag="zero-shot-image-classification" if is_clip else "video-classification",
        tags=tags if is_clip else [TASK, *tags, "custom_code"],
        model_name=metrics["title"],
        eval_results=results or None,
    )
    return render_card(
        template,
        card_data=card_data.to_yaml(),
        metrics=metrics,
        recipe=recipe,
        recipe_text=recipe_text.rstrip(),
        data_set=data_set,
        config=model.config,
    )


def render_card(template: str, **values) -> str:
    """A template of hub_cards/, filled; a name that the template uses and `values` lack is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HUB_CARDS),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


if __name__ == "__main__":
    main(sys.argv[1:])

# SPDX-License-Identifier: Apache-2.0
"""Evaluates a model on the evaluation sets of a recipe, or on a data set given on the command line.

python -m training.evaluate_model CHECKPOINT DATASET --data-dir FOLDER [--fold all]

CHECKPOINT is the output folder of training/train.py, an exported folder or a Hub id; DATASET is dfew, ferv39k, mafw,
afew, own, synthetic_faces or the `module.Class` of a builder in training/data. A model with a text tower scores the
labels by their descriptions (zero-shot); a model with a head is evaluated on the classes or targets of the same names.
Writes predictions, confusion matrices and metrics.json. Frame embeddings are cached, so clips shared by folds are
decoded only once. Under `accelerate launch` the clips are divided among the processes.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import torch
import yaml
from accelerate import Accelerator
from transformers import AutoConfig, AutoModel, AutoTokenizer, AutoVideoProcessor, PreTrainedModel

from emoclip import EmoCLIPConfig, EmoCLIPModel, EmoCLIPProcessor
from emoclip.files import written
from training.build import load_builder
from training.cache.feature_cache import encode_frames
from training.collate import Clips, Collator
from training.data.data_set_table import BUILDERS
from training.evaluation import predict_set
from training.metrics.scores import mean_over, metrics_of, table
from training.predictions import Predictions, collect_outputs, write_results
from training.recipe import DataSource, EvaluationSet

DATA_SETS = {name: f"{builder.__module__.rpartition('.')[2]}.{builder.__name__}" for name, builder in BUILDERS.items()}
DATA_SETS["synthetic_faces"] = "synthetic_faces.SyntheticFaces"


def main(arguments: list[str] | None = None) -> dict:
    """Runs the command and returns the content of metrics.json."""
    options = parse_options(arguments)
    accelerator = Accelerator()
    try:
        output_dir = options.output or default_output(options)
        if (output_dir / "recipe.yaml").exists():
            raise FileExistsError(f"{output_dir} holds a training run, whose metrics.json must stay: give --output")
        report, predictions = score(options, accelerator)
        if accelerator.is_main_process:
            write_report(output_dir, report, predictions)
            print(f"{table(report)}\nwrote {output_dir}")
    except (OSError, ValueError) as error:
        if accelerator.is_main_process:
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    accelerator.end_training()
    return report


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub id")
    parser.add_argument("data_set", help=f"{', '.join(DATA_SETS)}, or module.Class")
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--config", help="as fold2; default: the data set's first")
    parser.add_argument("--fold", choices=["all"], help="every fold of --config, and the mean, as papers report it")
    parser.add_argument("--split", help="default: test; validation, if there is no test")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="NAME=VALUE", help="of the builder, as media=faces"
    )
    parser.add_argument("--labels", nargs="+", help="candidates; only clips with one of them; in zero-shot any words")
    parser.add_argument("--descriptions", type=Path, metavar="YAML", help="label: [texts]; default: the checkpoint's")
    parser.add_argument("--output", type=Path, help="folder; default: outputs/CHECKPOINT_on_DATASET")
    parser.add_argument("--batch-size", type=int, default=64, help="of each process; default: 64")
    parser.add_argument("--cache-dir", help="of prepared data sets and encoded frames; default: that of `datasets`")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode clips; default: none but this")
    parser.add_argument("--on-error", choices=["raise", "skip"], default="raise", help="for clips that cannot be read")
    return parser.parse_args(arguments)


def default_output(options: argparse.Namespace) -> Path:
    """Returns the folder outputs/CHECKPOINT_on_DATASET, where CHECKPOINT is run_hub for `outputs/run/hub`."""
    parts = Path(options.checkpoint).parts[-2:]
    name = parts[-1] if parts[-1] != "hub" else "_".join(parts)
    return Path("outputs") / f"{name}_on_{options.data_set.rpartition('.')[2]}"


def score(options: argparse.Namespace, accelerator: Accelerator) -> tuple[dict, dict[str, Predictions]]:
    """Evaluates all requested configurations; returns the content of metrics.json and the predictions."""
    model, processor = load_model(options.checkpoint)
    model.to(accelerator.device)
    descriptions = read_descriptions(options.descriptions) if options.descriptions else model.config.class_descriptions
    predictions = {}
    for source in sources(options):
        with accelerator.main_process_first():  # the others then reuse the prepared data and embeddings
            split, clips = load_clips(source, options, model, processor)
        rows, outputs = collect_outputs(model, clips, Collator(processor), options.batch_size, accelerator)
        by_captions = isinstance(model, EmoCLIPModel) and "label" not in clips.rows.features
        evaluation_set = EvaluationSet(split, source, options.labels, own_captions=by_captions)
        predictions[f"{source.config_name}_{split}"] = predict_set(
            evaluation_set, model, processor, descriptions, clips.rows.select(rows), outputs, any_words=True
        )
    metrics = {name: metrics_of(one) for name, one in predictions.items()}
    report = {
        "title": default_output(options).name.replace("_on_", " on "),
        "architecture": type(model).__name__,
        "class_descriptions": descriptions if isinstance(model, EmoCLIPModel) else None,
        "sets": metrics,
        "mean": mean_over(list(metrics.values())),
    }
    return report, predictions


def load_model(checkpoint: str) -> tuple[PreTrainedModel, EmoCLIPProcessor | SimpleNamespace]:
    """Loads a model of this package and its processor; without a text tower only the video processor is loaded.

    Raises:
        ValueError: the checkpoint cannot be loaded; the message is one line.
    """
    try:
        model_type = AutoConfig.from_pretrained(checkpoint).model_type
        if model_type != EmoCLIPConfig.model_type:
            raise ValueError(f"it is a {model_type} model; recipes as clip_zero_shot.yaml evaluate a CLIP")
        model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
        video_processor = AutoVideoProcessor.from_pretrained(checkpoint)
        if not isinstance(model, EmoCLIPModel):
            return model, SimpleNamespace(video_processor=video_processor)
        return model, EmoCLIPProcessor(video_processor, AutoTokenizer.from_pretrained(checkpoint))
    except (OSError, ValueError) as error:
        raise ValueError(f"the checkpoint {checkpoint} cannot be loaded: {str(error).splitlines()[0]}") from None


def read_descriptions(path: Path) -> dict[str, list[str]]:
    """Reads a YAML file that maps each label to a text or a list of texts.

    Raises:
        OSError, ValueError: the file cannot be read or has another form.
    """
    try:
        texts_of = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if isinstance(texts_of, dict):
        texts_of = {str(name): [texts] if isinstance(texts, str) else texts for name, texts in texts_of.items()}
        if all(isinstance(texts, list) and texts and all(map(is_text, texts)) for texts in texts_of.values()):
            return texts_of
    raise ValueError(f"{path} must have the form `label: [text, text]`")


def is_text(value) -> bool:
    """Returns whether a value is a non-blank string."""
    return isinstance(value, str) and bool(value.strip())


def sources(options: argparse.Namespace) -> list[DataSource]:
    """Returns one data source per requested configuration."""
    name = DATA_SETS.get(options.data_set, options.data_set)
    module, _, class_name = name.rpartition(".")
    try:
        builder_class = getattr(importlib.import_module(f"training.data.{module}"), class_name)
    except (ImportError, AttributeError, TypeError):
        raise ValueError(
            f"the data set {name} is unknown; there are {', '.join(DATA_SETS)}, or module.Class"
        ) from None
    configs = list(builder_class.builder_configs)
    if wrong := [option for option in options.options if "=" not in option]:
        raise ValueError(f"--options has {wrong[0]!r}, which is not of the form name=value")
    settings = {key: yaml.safe_load(value) for key, _, value in (option.partition("=") for option in options.options)}
    if options.on_error == "skip" and hasattr(builder_class.BUILDER_CONFIG_CLASS, "on_error"):
        settings["on_error"] = "skip"
    config = options.config or configs[0]
    chosen = [config]
    if options.fold == "all":
        kind = config.rstrip("0123456789")
        chosen = [other for other in configs if other != kind and other.rstrip("0123456789") == kind]
        if not chosen:
            raise ValueError(f"{options.data_set} has no folds of {config}; it has {', '.join(configs)}")
    return [DataSource(name, one, options.data_dir, settings) for one in chosen]


def load_clips(source: DataSource, options: argparse.Namespace, model, processor) -> tuple[str, Clips]:
    """Prepares a split if needed and encodes its frames; returns the split's name and its clips."""
    builder = load_builder(source, options.cache_dir)
    builder.download_and_prepare()
    splits = list(builder.info.splits)
    split = options.split or next((name for name in ("test", "validation") if name in splits), "test")
    if split not in splits:
        raise ValueError(f"{options.data_set} has no split {split}; it has {', '.join(splits)}: give --split")
    rows = builder.as_dataset(split)
    cache_dir = Path(options.cache_dir or datasets.config.HF_DATASETS_CACHE) / "frame_embeds"
    title = f"frames of {source.config_name}, {split}"
    frame_embeds = encode_frames(
        model, processor.video_processor, rows, cache_dir, options.workers, title, on_error=options.on_error
    )
    kept = sorted(set(range(len(rows))) - set(frame_embeds.skipped))
    rows, frame_embeds = rows.select(kept), frame_embeds.select(kept)
    return split, Clips(rows, processor.video_processor, frame_embeds=frame_embeds)


def write_report(folder: Path, report: dict, predictions: dict[str, Predictions]) -> None:
    """Writes results and report to `folder`; metrics.json is last and marks the folder as complete."""
    (folder / "metrics.json").unlink(missing_ok=True)  # left by an earlier evaluation
    write_results(folder, predictions, report["sets"], title=report["title"])
    with written(folder / "metrics.json") as path:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

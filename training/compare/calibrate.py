# SPDX-License-Identifier: Apache-2.0
"""Fits the temperature of a label set on validation clips and writes it to the checkpoint's config.json.

python -m training.compare.calibrate CHECKPOINT [DATASET --data-dir FOLDER] [--labels NAME ...]

CHECKPOINT is the output folder of training/train.py or an exported folder; the model must be a zero-shot EmoCLIPModel.
By default the clips are the validation clips of the run, according to its recipe.yaml; DATASET selects another data
set, see evaluate_model.py. The pipeline then divides the logits of exactly these labels, given by their names, by the
temperature. calibration.json, beside config.json, contains the calibration error (ECE) before and after, and
reliability_NAME.png plots it. The result is valid for clips similar to those of the fit.
"""

import argparse
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from transformers.utils import logging

from emoclip import EmoCLIPConfig, EmoCLIPModel
from emoclip.files import written
from training.build import load_rows, validation_name
from training.collate import Clips, Collator
from training.compare.calibration import calibrate, draw_reliability
from training.evaluate_model import DATA_SETS, load_clips, load_model, sources
from training.evaluation import predict_set
from training.predictions import Predictions, collect_outputs
from training.recipe import EvaluationSet, load_recipe

logger = logging.get_logger(__name__)
TEST_SPLIT = "--on-the-test-split"


def main(arguments: list[str] | None = None) -> dict:
    """Runs the command and returns the entry it added to calibration.json."""
    options = parse_options(arguments)
    try:
        folder = checkpoint_folder(options)
        data, predictions, logits = predict(options)
        report = {"labels": sorted(predictions.pipeline_labels), "data": data}
        report |= calibrate(logits, predictions.targets, predictions.groups)
        files = write(folder, options.name or file_name(data, options.labels), report)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    before, after = report["before"], report["after"]
    print(
        f"{data}: {report['num_clips']} clips, {100 * report['accuracy']:.1f} % right\n"
        f"temperature {report['temperature']:.3f}\n"
        f"ECE {before['ece']:.3f} -> {after['ece']:.3f}; a calibrated model would have {after['ece_by_chance']:.3f}\n"
        f"wrote {', '.join(map(str, files))}"
    )
    return report


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line; option names match training/evaluate_model.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder")
    parser.add_argument("data_set", nargs="?", help=f"{', '.join(DATA_SETS)}, or module.Class; default: the run's own")
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--config", help="as fold2; default: the data set's first")
    parser.add_argument("--split", default="validation", help="of DATASET, clips that training never saw; %(default)s")
    parser.add_argument(
        TEST_SPLIT, action="store_true", help="allow --split test: what is measured on it later says less"
    )
    parser.add_argument("--options", nargs="+", default=[], metavar="NAME=VALUE", help="of the builder")
    parser.add_argument(
        "--labels", nargs="+", help="candidates; only clips with one of them; default: all of the data"
    )
    parser.add_argument("--name", help="of this label set in the names of files; default: that of the data")
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--cache-dir", help="of prepared data sets and encoded frames; default: that of `datasets`")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode clips; default: none but this")
    parser.add_argument("--on-error", choices=["raise", "skip"], default="raise", help="for clips that cannot be read")
    return parser.parse_args(arguments, argparse.Namespace(fold=None))  # evaluation.py's option for several folds


def checkpoint_folder(options: argparse.Namespace) -> Path:
    """Checks the options before any data is read, and returns the checkpoint's folder.

    Raises:
        OSError, ValueError: the folder has no config.json, or the split is the test split.
    """
    if options.split.startswith("test") and not options.on_the_test_split:
        raise ValueError(
            "a temperature that is fitted on the test split has seen the clips that it will be judged by: give "
            f"another --split, or {TEST_SPLIT} if you judge it on other clips"
        )
    if not (options.checkpoint / "config.json").is_file():
        raise FileNotFoundError(f"{options.checkpoint} is no folder with a config.json, into which to write")
    return options.checkpoint


def predict(options: argparse.Namespace) -> tuple[str, Predictions, np.ndarray]:
    """Returns a description of the data, the predictions, and their logits `(N, C)` as the pipeline computes them."""
    model, processor = load_model(str(options.checkpoint))
    if not isinstance(model, EmoCLIPModel):
        raise ValueError(
            f"{options.checkpoint} is an {type(model).__name__}: only the labels of an EmoCLIPModel have one"
        )
    if options.data_set is None:
        data, clips, evaluation_set = own_validation_clips(options, processor)
    else:
        (source,) = sources(options)
        split, clips = load_clips(source, options, model, processor)
        evaluation_set = EvaluationSet(split, source, options.labels)
        data = " ".join(filter(None, (options.data_set, source.config_name, split)))
    accelerator = Accelerator()
    model.to(accelerator.device)
    rows, outputs = collect_outputs(model, clips, Collator(processor), options.batch_size, accelerator)
    descriptions = model.config.class_descriptions  # the texts that the pipeline will use
    predictions = predict_set(evaluation_set, model, processor, descriptions, clips.rows.select(rows), outputs)
    if missing := sorted(set(predictions.names) - {predictions.names[number] for number in predictions.targets}):
        logger.warning(
            f"no clip shows {', '.join(missing)}: the temperature knows such clips only as what others are not"
        )
    return data, predictions, predictions.scores * model.logit_scale.exp().item()


def own_validation_clips(options: argparse.Namespace, processor) -> tuple[str, Clips, EvaluationSet]:
    """Loads the validation clips of a run: a split, or a part that was held out from the training clips.

    Raises:
        OSError, ValueError: there is no recipe beside the checkpoint, or it has no validation clips.
    """
    recipe_file = options.checkpoint / "recipe.yaml"
    if not recipe_file.is_file():
        raise FileNotFoundError(
            f"{options.checkpoint} has no recipe.yaml that names its validation clips: give DATASET"
        )
    given = {"data_dir": options.data_dir, "cache_dir": options.cache_dir}
    recipe = load_recipe(recipe_file, [f"data.{name}={json.dumps(value)}" for name, value in given.items() if value])
    name = validation_name(recipe.data)
    if name is None or "test" in (name, recipe.data.train_split):
        raise ValueError(f"{recipe_file} has {'no validation clips' if name is None else 'the test split for them'}")
    rows = load_rows(recipe)[name]
    data = " ".join(filter(None, (recipe.data.builder.rpartition(".")[2], recipe.data.config_name, name)))
    return (
        data,
        Clips(rows, processor.video_processor, replace(recipe.data, on_error=options.on_error)),
        EvaluationSet(name, None, options.labels),
    )


def file_name(data: str, labels: list[str] | None) -> str:
    """Builds a file name from the data and, if given, the labels."""
    return re.sub(r"[^a-zA-Z0-9]+", "_", " ".join([data, *(sorted(labels) if labels else [])])).lower()[:100]


def write(folder: Path, name: str, report: dict) -> list[Path]:
    """Writes the picture, the report and finally the configuration; each file is replaced atomically."""
    picture, reports, config = (
        folder / file for file in (f"reliability_{name}.png", "calibration.json", "config.json")
    )
    names = ", ".join(report["labels"])
    with written(picture) as path:
        title = f"{report['data']}: {names if len(names) < 80 else str(len(report['labels'])) + ' labels'}"
        draw_reliability(path, report, title)
    known = json.loads(reports.read_text(encoding="utf-8")) if reports.is_file() else {}
    with written(reports) as path:
        path.write_text(json.dumps(known | {name: report}, indent=2) + "\n", encoding="utf-8")
    fields = json.loads(config.read_text(encoding="utf-8"))
    others = [one for one in fields.get("label_temperatures") or [] if one["labels"] != report["labels"]]
    entry = {"labels": report["labels"], "temperature": report["temperature"]}
    entry |= {f"ece_{when}": report[when]["ece"] for when in ("before", "after")}
    fields["label_temperatures"] = [*others, entry | {"data": f"{report['data']}, {report['num_clips']} clips"}]
    EmoCLIPConfig(label_temperatures=fields["label_temperatures"])  # raises if it could not be loaded again
    with written(config) as path:
        path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [config, reports, picture]


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Computes a model's predictions for the clips of an evaluation set, and writes them to files.

N clips, C candidate texts or classes, n targets, D embedding width.
"""

import csv
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import logging

from emoclip import EmoCLIPModel
from emoclip.files import written
from emoclip.typed_text import csv_cell
from modeling_emoclip.label_scoring import encode_labels, label_texts
from training.collate import Clips, Collator
from training.data.views import TEXT_KINDS, class_text, compound_parts
from training.figures import draw_confusion, draw_history
from training.recipe import EvaluationSet

logger = logging.get_logger(__name__)

# Columns with a clip's group, for example the person; the first one present is used. A group's clips are dependent.
GROUP_COLUMNS = ("group", "identity")


@dataclass
class Predictions:
    """Predictions for the clips of one evaluation set, in the order of the data set."""

    names: list[str]
    """Names of the C classes or n targets."""
    scores: np.ndarray
    """`(N, C)`, higher is more likely; or `(N, n)`, predicted targets."""
    targets: np.ndarray
    """`(N,)`, class numbers; or `(N, n)`, true targets."""
    clip_ids: list[str]
    groups: list[str] | None = None
    """Group of each clip; `None` if the data set has none."""
    are_captions: bool = False
    """Whether `names` are the distinct captions of the clips, so that each clip has one of them."""
    pipeline_labels: list[str] | None = None
    """Labels to pass to the pipeline for zero-shot classes; a compound of MAFW becomes `fear + sadness`."""

    @property
    def is_regression(self) -> bool:
        return self.targets.ndim == 2


@torch.inference_mode()
def collect_outputs(
    model, clips: Clips, collator: Collator, batch_size: int, accelerator: Accelerator
) -> tuple[np.ndarray, torch.Tensor]:
    """Runs the model on all readable clips; returns their sorted row numbers and the outputs on the CPU: the head's
    logits `(N, C)` or, without a head, unit-length video embeddings `(N, D)`. The processes divide the clips, and each
    gets all results."""
    model.eval()
    loader = accelerator.prepare_data_loader(DataLoader(clips, batch_size, collate_fn=collator))
    indices, outputs = [], []
    for batch in tqdm(loader, "evaluation", unit="batch", leave=False, disable=not accelerator.is_main_process):
        if not batch:  # none of its clips can be decoded
            continue
        names = ("pixel_values_videos", "frame_embeds", "frame_mask")
        inputs = {name: batch[name] for name in names if name in batch}
        if isinstance(model, EmoCLIPModel):
            video_embeds = model.get_video_features(**inputs).pooler_output
            output = nn.functional.normalize(video_embeds.float(), dim=-1)
        else:
            output = model(**inputs).logits.float()
        indices.append(batch["clip_index"].cpu())
        outputs.append(output.cpu())
    # Gathered as objects, since processes may have skipped different numbers of clips, or all of theirs.
    parts = gather_object([(torch.cat(indices).numpy(), torch.cat(outputs).numpy())] if indices else [])
    if not parts:
        raise ValueError("not one clip to evaluate on can be decoded; the warnings above name them")
    indices, outputs = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    # The last batches are padded with clips from the beginning, so that all processes get the same number.
    unique, first = np.unique(indices, return_index=True)
    return unique, torch.from_numpy(outputs[first])


def predict_texts(
    evaluation_set: EvaluationSet,
    rows: datasets.Dataset,
    video_embeds: torch.Tensor,
    class_descriptions: dict[str, list[str]] | None,
    embeds_of: Callable[[list[str]], torch.Tensor],
    any_words: bool = False,
) -> Predictions:
    """Computes zero-shot scores: the cosine of each clip with candidate labels, all captions, or a pair of captions.

    Args:
        rows: the N clips.
        video_embeds: `(N, D)`, unit length.
        class_descriptions: label -> texts; labels without texts are put into a template.
        embeds_of: function texts -> `(number of texts, D)`.
        any_words: allow candidate labels that are not labels of the data set, as distractors.
    """
    if evaluation_set.contrast_captions:
        own, contrast = nn.functional.normalize(embeds_of([*rows["caption"], *rows["contrast_caption"]])).chunk(2)
        scores = torch.stack([(video_embeds * texts).sum(dim=-1) for texts in (own, contrast)], dim=1)
        return _predictions(rows, ["own", "contrast"], scores, np.zeros(len(rows), dtype=int))
    if evaluation_set.own_captions:
        return _of_captions(rows, video_embeds, embeds_of)
    candidates = _candidates(evaluation_set, rows, any_words)
    labels = {*candidates, *rows.features["label"].names}
    # A compound is represented by the mean of its parts, as in the paper.
    pipeline_labels = [" + ".join(compound_parts(name, labels, class_descriptions)) for name in candidates]
    if (kind := evaluation_set.texts) in TEXT_KINDS:
        texts = label_texts({name: class_text(name, kind, class_descriptions, labels) for name in candidates})
    else:
        if kind == "first_description":
            class_descriptions = {name: some[:1] for name, some in (class_descriptions or {}).items()}
        texts = label_texts(pipeline_labels, class_descriptions)
    scores = video_embeds @ encode_labels(texts, embeds_of).t()
    predictions = score_candidates(evaluation_set, rows, candidates, scores)
    return dataclasses.replace(predictions, pipeline_labels=pipeline_labels)


def _of_captions(rows: datasets.Dataset, video_embeds: torch.Tensor, embeds_of: Callable) -> Predictions:
    """Computes the cosine of each clip with the captions of all clips; clips without a caption are left out."""
    if "caption" not in rows.column_names:
        raise ValueError(f"the clips have no captions; their columns are {', '.join(rows.column_names)}")
    kept = [number for number, caption in enumerate(rows["caption"]) if caption]
    if not kept:
        raise ValueError("not one of the clips has a caption")
    rows, video_embeds = rows.select(kept), video_embeds[kept]
    captions = list(dict.fromkeys(rows["caption"]))
    place = {caption: number for number, caption in enumerate(captions)}
    scores = video_embeds @ nn.functional.normalize(embeds_of(captions), dim=-1).t()
    targets = np.array([place[caption] for caption in rows["caption"]])
    return replace(_predictions(rows, captions, scores, targets), are_captions=True)


def predict_labels(
    evaluation_set: EvaluationSet, rows: datasets.Dataset, logits: torch.Tensor, classes: dict[int, str]
) -> Predictions:
    """Selects the candidate labels among the classes of a head, by name.

    Args:
        logits: `(N, number of classes)`.
        classes: column -> name, `config.id2label`.

    Raises:
        ValueError: a candidate label is not a class of the head.
    """
    candidates = _candidates(evaluation_set, rows)
    column_of = {name: column for column, name in classes.items()}
    if missing := [name for name in candidates if name not in column_of]:
        raise ValueError(
            f"the model has no class {', '.join(missing)}; it has {', '.join(column_of)}. Name labels that both the "
            "clips and the model have: --labels, candidate_labels"
        )
    return score_candidates(evaluation_set, rows, candidates, logits[:, [column_of[name] for name in candidates]])


def predict_targets(rows: datasets.Dataset, values: torch.Tensor, names: list[str]) -> Predictions:
    """Pairs the predicted targets `(N, n)`, in their own units, with the true ones.

    Raises:
        ValueError: the data set has no column with a target's name.
    """
    if missing := [name for name in names if name not in rows.column_names]:
        raise ValueError(
            f"the model predicts {', '.join(missing)}, but the data set has the columns {', '.join(rows.column_names)}"
        )
    return _predictions(rows, list(names), values, np.stack([np.array(rows[name]) for name in names], axis=1))


def _candidates(evaluation_set: EvaluationSet, rows: datasets.Dataset, any_words: bool = False) -> list[str]:
    if "label" not in rows.features:
        raise ValueError(f"the clips have no labels; their columns are {', '.join(rows.column_names)}")
    names = rows.features["label"].names
    given = {*(evaluation_set.candidate_labels or ()), *(evaluation_set.only_labels or ())}
    if unknown := sorted(given - set(names)):
        message = f"the {evaluation_set.split} clips have no label {', '.join(unknown)}, but {', '.join(names)}"
        if not any_words:
            raise ValueError(message)
        logger.warning_once(f"{message}: no clip can be right with it, it only competes")
    return evaluation_set.candidate_labels or names


def score_candidates(
    evaluation_set: EvaluationSet, rows: datasets.Dataset, candidates: list[str], scores: torch.Tensor
) -> Predictions:
    """Selects the clips whose label is evaluated."""
    names = rows.features["label"].names
    wanted = set(evaluation_set.only_labels or candidates)
    if outside := sorted(wanted - set(candidates)):
        raise ValueError(f"only_labels names {', '.join(outside)}, which is not among the candidates {candidates}")
    labels = [names[label] for label in rows["label"]]
    kept = np.flatnonzero([label in wanted for label in labels])
    if len(kept) == 0:
        raise ValueError(f"no clip of {evaluation_set.split} has one of the labels {sorted(wanted)}")
    targets = np.array([candidates.index(labels[number]) for number in kept])
    return _predictions(rows.select(kept), candidates, scores[kept], targets)


def _predictions(rows: datasets.Dataset, names: list[str], scores: torch.Tensor, targets) -> Predictions:
    clip_ids = [str(name) for name in (rows["clip_id"] if "clip_id" in rows.column_names else range(len(rows)))]
    column = next((name for name in GROUP_COLUMNS if name in rows.column_names), None)
    # A clip without a group is its own group.
    groups = [group or f"clip {clip}" for group, clip in zip(rows[column], clip_ids, strict=True)] if column else None
    return Predictions(names, scores.cpu().numpy(), targets, clip_ids, groups)


def write_results(
    folder: Path,
    predictions: dict[str, Predictions],
    metrics: dict[str, dict],
    history: list[dict] | None = None,
    title: str = "",
    pictures: bool = True,
) -> list[Path]:
    """Writes predictions_NAME.csv and a confusion matrix for each evaluation set, and learning curves if given.

    Args:
        metrics: results of `metrics_of` by evaluation set.
        history: one record per epoch, with `epoch`, `loss` and optionally `validation_loss`.
        pictures: whether to draw pictures.

    Returns:
        The files, each written atomically.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, one in predictions.items():
        file_name = re.sub(r"[^a-zA-Z0-9_.-]+", "_", name)
        files.append(folder / f"predictions_{file_name}.csv")
        with written(files[-1]) as path:
            write_csv(one, path)
        if pictures and not one.is_regression and not one.are_captions:
            files.append(folder / f"confusion_{file_name}.png")
            with written(files[-1]) as path:
                draw_confusion(path, metrics[name], f"{title}, {name}" if title else name)
    if pictures and history:
        files.append(folder / "learning_curves.png")
        with written(files[-1]) as path:
            draw_history(path, history, title)
    return files


def write_csv(predictions: Predictions, path: Path) -> None:
    """Writes one line per clip: true label, predicted label and all scores; or caption, predicted caption and rank; or
    true and predicted targets."""
    names = [csv_cell(name) for name in predictions.names]
    head = ["clip_id", *(["group"] if predictions.groups else [])]
    first = [predictions.clip_ids, *([predictions.groups] if predictions.groups else [])]
    if predictions.is_regression:
        head += [column for name in names for column in (name, f"predicted_{name}")]
        pairs = np.stack([predictions.targets, predictions.scores], axis=-1).reshape(len(first[0]), -1)  # (N, 2n)
        columns = [*first, *pairs.T.tolist()]
    elif predictions.are_captions:  # no score columns, since there may be thousands of captions
        own = np.take_along_axis(predictions.scores, predictions.targets[:, None], axis=1)
        head += ["caption", "predicted", "rank"]
        numbers = (predictions.targets, predictions.scores.argmax(axis=1))
        ranks = 1 + (predictions.scores > own).sum(axis=1)
        columns = [*first, *([names[number] for number in some] for some in numbers), ranks.tolist()]
    else:
        head += ["label", "predicted", *(f"score_{name}" for name in names)]
        numbers = (predictions.targets, predictions.scores.argmax(axis=1))
        columns = [*first, *([names[number] for number in some] for some in numbers), *predictions.scores.T.tolist()]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(
            [f"{v:.6g}" if isinstance(v, float) else csv_cell(v) if isinstance(v, str) else v for v in row]
            for row in zip(*columns, strict=True)
        )

# SPDX-License-Identifier: Apache-2.0
"""What a model says of the clips of an evaluation set, and the files that it is kept in.

N clips, C candidate texts or classes, n targets, D embedding width.
"""

import contextlib
import csv
import dataclasses
import os
import re
import uuid
from collections.abc import Callable, Iterator
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

from modeling_emoclip import EmoCLIPModel
from modeling_emoclip.prompts import encode_labels, label_texts
from modeling_emoclip.typed_text import csv_cell
from training.collate import Clips, Collator
from training.data.views import TEXT_KINDS, class_text, compound_parts
from training.figures import draw_confusion, draw_history
from training.recipe import EvaluationSet

logger = logging.get_logger(__name__)

# Clips of one group, as of one person, are not independent. The first of these columns that there is names it.
GROUP_COLUMNS = ("group", "identity")


@dataclass
class Predictions:
    """Of the clips of one evaluation set, in the order of the data set."""

    names: list[str]
    """Of the C classes or n targets."""
    scores: np.ndarray
    """`(N, C)`, the higher the likelier; or `(N, n)`, predicted targets."""
    references: np.ndarray
    """`(N,)` class numbers; or `(N, n)`."""
    clip_ids: list[str]
    groups: list[str] | None = None
    """Of each clip; `None` if nothing is known of any."""
    are_captions: bool = False
    """The names are the clips' captions, each once, and every clip has one of them."""
    pipeline_labels: list[str] | None = None
    """Of zero-shot classes: the labels that the pipeline is asked for, a compound of MAFW's as `fear + sadness`."""

    @property
    def is_regression(self) -> bool:
        return self.references.ndim == 2


@torch.inference_mode()
def run_model(
    model, clips: Clips, collator: Collator, batch_size: int, accelerator: Accelerator
) -> tuple[np.ndarray, torch.Tensor]:
    """Rows of all clips that can be read, in their order, and what the model says of each, on the CPU: its head's
    logits `(N, C)`, or without a head unit-length video embeddings `(N, D)`. Each process takes a part; every process
    gets all."""
    model.eval()
    loader = accelerator.prepare_data_loader(DataLoader(clips, batch_size, collate_fn=collator))
    indices, outputs = [], []
    for batch in tqdm(loader, "evaluation", unit="batch", leave=False, disable=not accelerator.is_main_process):
        if not batch:  # not one of its clips can be decoded
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
    # Objects, since processes may have skipped different numbers of clips, or all of theirs.
    parts = gather_object([(torch.cat(indices).numpy(), torch.cat(outputs).numpy())] if indices else [])
    if not parts:
        raise ValueError("not one clip to evaluate on can be decoded; the warnings above name them")
    indices, outputs = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    # The last batches are filled up with clips from the beginning, so that all processes get the same number.
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
    """Zero-shot: cosine of each clip with the texts of the candidate labels, or with its own and another caption.

    Args:
        rows: N of them.
        video_embeds: `(N, D)`, of unit length.
        class_descriptions: label -> texts; a label that has none is put into a template.
        embeds_of: texts -> `(number of texts, D)`.
        any_words: candidate labels need not be labels of the data set; others only compete.
    """
    if evaluation_set.contrast_captions:
        own, contrast = nn.functional.normalize(embeds_of([*rows["caption"], *rows["contrast_caption"]])).chunk(2)
        scores = torch.stack([(video_embeds * texts).sum(dim=-1) for texts in (own, contrast)], dim=1)
        return _predictions(rows, ["own", "contrast"], scores, np.zeros(len(rows), dtype=int))
    if evaluation_set.own_captions:
        return _of_captions(rows, video_embeds, embeds_of)
    candidates = _candidates(evaluation_set, rows, any_words)
    labels = {*candidates, *rows.features["label"].names}
    # A compound stands for the mean of its parts, as in the paper.
    pipeline_labels = [" + ".join(compound_parts(name, labels, class_descriptions)) for name in candidates]
    if (kind := evaluation_set.texts) in TEXT_KINDS:
        texts = label_texts({name: class_text(name, kind, class_descriptions, labels) for name in candidates})
    else:
        if kind == "first_description":
            class_descriptions = {name: some[:1] for name, some in (class_descriptions or {}).items()}
        texts = label_texts(pipeline_labels, class_descriptions)
    scores = video_embeds @ encode_labels(texts, embeds_of).t()
    predictions = _of_candidates(evaluation_set, rows, candidates, scores)
    return dataclasses.replace(predictions, pipeline_labels=pipeline_labels)


def _of_captions(rows: datasets.Dataset, video_embeds: torch.Tensor, embeds_of: Callable) -> Predictions:
    """Cosine of each clip with every caption of these clips; clips without a caption are left out."""
    if "caption" not in rows.column_names:
        raise ValueError(f"the clips have no captions; their columns are {', '.join(rows.column_names)}")
    kept = [number for number, caption in enumerate(rows["caption"]) if caption]
    if not kept:
        raise ValueError("not one of the clips has a caption")
    rows, video_embeds = rows.select(kept), video_embeds[kept]
    captions = list(dict.fromkeys(rows["caption"]))
    place = {caption: number for number, caption in enumerate(captions)}
    scores = video_embeds @ nn.functional.normalize(embeds_of(captions), dim=-1).t()
    references = np.array([place[caption] for caption in rows["caption"]])
    return replace(_predictions(rows, captions, scores, references), are_captions=True)


def predict_labels(
    evaluation_set: EvaluationSet, rows: datasets.Dataset, logits: torch.Tensor, classes: dict[int, str]
) -> Predictions:
    """A head's classes, found by their names: the candidates among them compete.

    Args:
        logits: `(N, number of classes)`.
        classes: column -> name, `config.id2label`.

    Raises:
        ValueError: a candidate label that the head does not have.
    """
    candidates = _candidates(evaluation_set, rows)
    column_of = {name: column for column, name in classes.items()}
    if missing := [name for name in candidates if name not in column_of]:
        raise ValueError(
            f"the model has no class {', '.join(missing)}; it has {', '.join(column_of)}. Name labels that both the "
            "clips and the model have: --labels, candidate_labels"
        )
    return _of_candidates(evaluation_set, rows, candidates, logits[:, [column_of[name] for name in candidates]])


def predict_targets(rows: datasets.Dataset, values: torch.Tensor, names: list[str]) -> Predictions:
    """The targets `(N, n)`, in their own units.

    Raises:
        ValueError: the data set has no column of a target's name.
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


def _of_candidates(
    evaluation_set: EvaluationSet, rows: datasets.Dataset, candidates: list[str], scores: torch.Tensor
) -> Predictions:
    """Only the clips whose label is wanted."""
    names = rows.features["label"].names
    wanted = set(evaluation_set.only_labels or candidates)
    if outside := sorted(wanted - set(candidates)):
        raise ValueError(f"only_labels names {', '.join(outside)}, which is not among the candidates {candidates}")
    labels = [names[label] for label in rows["label"]]
    kept = np.flatnonzero([label in wanted for label in labels])
    if len(kept) == 0:
        raise ValueError(f"no clip of {evaluation_set.split} has one of the labels {sorted(wanted)}")
    references = np.array([candidates.index(labels[number]) for number in kept])
    return _predictions(rows.select(kept), candidates, scores[kept], references)


def _predictions(rows: datasets.Dataset, names: list[str], scores: torch.Tensor, references) -> Predictions:
    clip_ids = [str(name) for name in (rows["clip_id"] if "clip_id" in rows.column_names else range(len(rows)))]
    column = next((name for name in GROUP_COLUMNS if name in rows.column_names), None)
    # Who has no group is one of their own.
    groups = [group or f"clip {clip}" for group, clip in zip(rows[column], clip_ids, strict=True)] if column else None
    return Predictions(names, scores.cpu().numpy(), references, clip_ids, groups)


def write_results(
    folder: Path,
    predictions: dict[str, Predictions],
    metrics: dict[str, dict],
    history: list[dict] | None = None,
    title: str = "",
    pictures: bool = True,
) -> list[Path]:
    """Of each evaluation set predictions_NAME.csv and a picture of its confusion matrix; of a training its curves.

    Args:
        metrics: of each set, from `metrics_of`.
        history: a record for each epoch, with `epoch`, `loss` and perhaps `validation_loss`.
        pictures: whether to draw any.

    Returns:
        the files, each of which is whole or not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, one in predictions.items():
        file_name = re.sub(r"[^a-zA-Z0-9_.-]+", "_", name)
        written.append(folder / f"predictions_{file_name}.csv")
        with whole_file(written[-1]) as path:
            write_csv(one, path)
        if pictures and not one.is_regression and not one.are_captions:
            written.append(folder / f"confusion_{file_name}.png")
            with whole_file(written[-1]) as path:
                draw_confusion(path, metrics[name], f"{title}, {name}" if title else name)
    if pictures and history:
        written.append(folder / "learning_curves.png")
        with whole_file(written[-1]) as path:
            draw_history(path, history, title)
    return written


def write_csv(predictions: Predictions, path: Path) -> None:
    """A line for each clip: its label by name, the one that scores highest, and all scores; or targets, predicted and
    true."""
    names = [csv_cell(name) for name in predictions.names]
    head = ["clip_id", *(["group"] if predictions.groups else [])]
    first = [predictions.clip_ids, *([predictions.groups] if predictions.groups else [])]
    if predictions.is_regression:
        head += [column for name in names for column in (name, f"predicted_{name}")]
        pairs = np.stack([predictions.references, predictions.scores], axis=-1).reshape(len(first[0]), -1)  # (N, 2n)
        columns = [*first, *pairs.T.tolist()]
    elif predictions.are_captions:  # not a column for each of perhaps thousands
        own = np.take_along_axis(predictions.scores, predictions.references[:, None], axis=1)
        head += ["caption", "predicted", "rank"]
        numbers = (predictions.references, predictions.scores.argmax(axis=1))
        ranks = 1 + (predictions.scores > own).sum(axis=1)
        columns = [*first, *([names[number] for number in some] for some in numbers), ranks.tolist()]
    else:
        head += ["label", "predicted", *(f"score_{name}" for name in names)]
        numbers = (predictions.references, predictions.scores.argmax(axis=1))
        columns = [*first, *([names[number] for number in some] for some in numbers), *predictions.scores.T.tolist()]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(
            [f"{v:.6g}" if isinstance(v, float) else csv_cell(v) if isinstance(v, str) else v for v in row]
            for row in zip(*columns, strict=True)
        )


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the name `path` once all is written; another one for each who writes."""
    unfinished = path.with_name(f"{uuid.uuid4().hex}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)

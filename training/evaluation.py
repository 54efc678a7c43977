# SPDX-License-Identifier: Apache-2.0
"""Scores of the recipe's evaluation sets. N clips, C candidate texts or classes, n targets, D embedding width."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, mean_absolute_error, root_mean_squared_error
from torch import nn
from torch.utils.data import DataLoader

from modeling_emoclip import EmoCLIPModel
from modeling_emoclip.prompts import encode_labels, label_texts
from training.build import Experiment, encode_texts
from training.metrics.ccc.ccc import concordance_correlation
from training.metrics.pcc.pcc import pearson_correlation
from training.metrics.uar.uar import unweighted_average_recall
from training.metrics.war.war import weighted_average_recall
from training.recipe import EvaluationSet, Recipe


@dataclass
class Predictions:
    """Of the clips of one evaluation set, in the order of the data set."""

    names: list[str]
    """Of the C classes or n targets."""
    scores: np.ndarray
    """`(N, C)`, the higher the likelier; or `(N, n)`, predicted targets."""
    references: np.ndarray
    """`(N,)` class numbers; or `(N, n)`."""
    clips: np.ndarray
    """`(N,)`, row of each clip in its split."""

    def select(self, kept: np.ndarray) -> "Predictions":
        """Of some of the clips."""
        return Predictions(self.names, self.scores[kept], self.references[kept], self.clips[kept])


def evaluate(experiment: Experiment, recipe: Recipe) -> dict[str, dict]:
    """Name of each evaluation set -> its metrics; a clip goes through the model once, however many sets it is in."""
    experiment.model.eval()
    outputs = {
        split: run_model(experiment.model, DataLoader(clips, recipe.optim.batch_size, collate_fn=experiment.collator))
        for split, clips in experiment.evaluation_clips.items()
    }
    predict = {"texts": predict_texts, "labels": predict_labels, "targets": predict_targets}[experiment.predicts]
    metrics = regression_metrics if experiment.predicts == "targets" else classification_metrics
    return {
        name: metrics(predict(evaluation_set, experiment, *outputs[evaluation_set.split]))
        for name, evaluation_set in recipe.data.evaluation.items()
    }


@torch.inference_mode()
def run_model(model, loader: DataLoader) -> tuple[np.ndarray, torch.Tensor]:
    """Rows of a loader's clips, in their order, and what the model says of each: its head's logits, or without a head
    unit-length video embeddings `(N, D)`."""
    has_head = not isinstance(model, EmoCLIPModel)
    clips, outputs = [], []
    for batch in loader:
        names = ("pixel_values_videos", "frame_embeds", "frame_mask")
        inputs = {name: batch[name].to(model.device) for name in names if name in batch}
        clips.append(batch["clip_index"])
        if has_head:
            outputs.append(model(**inputs).logits.float())
        else:
            outputs.append(nn.functional.normalize(model.get_video_features(**inputs).pooler_output, dim=-1))
    return torch.cat(clips).numpy(), torch.cat(outputs)


@torch.inference_mode()
def validation_loss(trained: nn.Module, loader: DataLoader) -> float:
    """Mean loss over the validation clips, each batch in the same order every time."""
    trained.eval()
    losses, weights = [], []
    for batch in loader:
        weights.append(len(batch.pop("clip_index")))
        losses.append(trained(**batch).loss.item())
    return float(np.average(losses, weights=weights))


@torch.inference_mode()
def predict_texts(evaluation_set: EvaluationSet, experiment: Experiment, clips, video_embeds) -> Predictions:
    """Zero-shot: cosine of each clip with the texts of the candidate labels, or with its own and another caption."""
    rows = experiment.evaluation_clips[evaluation_set.split].rows

    def embeds_of(texts: list[str]) -> torch.Tensor:
        embeds = encode_texts(experiment.model, experiment.processor, texts)
        return torch.stack([embeds[text] for text in texts])

    if evaluation_set.contrast_captions:
        rows = rows.select(clips)
        pairs = [*rows["caption"], *rows["contrast_caption"]]
        own, contrast = nn.functional.normalize(embeds_of(pairs), dim=-1).chunk(2)  # (N, D) each
        scores = torch.stack([(video_embeds * texts).sum(dim=-1) for texts in (own, contrast)], dim=1)
        return Predictions(["own", "contrast"], scores.cpu().numpy(), np.zeros(len(clips), dtype=int), clips)
    names = rows.features["label"].names
    candidates = _candidates(evaluation_set, names)
    # A compound of MAFW, `fear_sadness`, stands for the mean of its parts, as in the paper.
    texts = label_texts([name.replace("_", " + ") for name in candidates], experiment.class_descriptions)
    scores = (video_embeds @ encode_labels(texts, embeds_of).t()).cpu().numpy()  # (N, C)
    return _of_candidates(evaluation_set, rows, clips, candidates, scores)


def predict_labels(evaluation_set: EvaluationSet, experiment: Experiment, clips, logits) -> Predictions:
    """The model's own classes; of a subset of candidates only those compete."""
    rows = experiment.evaluation_clips[evaluation_set.split].rows
    number_of = experiment.model.config.label2id
    candidates = _candidates(evaluation_set, list(number_of))
    scores = logits[:, [number_of[name] for name in candidates]].cpu().numpy()
    return _of_candidates(evaluation_set, rows, clips, candidates, scores)


def predict_targets(evaluation_set: EvaluationSet, experiment: Experiment, clips, logits) -> Predictions:
    """The targets, in their own units."""
    references = experiment.evaluation_clips[evaluation_set.split].labels[clips].numpy()
    return Predictions(list(experiment.model.config.target_names), logits.cpu().numpy(), references, clips)


def _candidates(evaluation_set: EvaluationSet, names: list[str]) -> list[str]:
    if unknown := sorted({*(evaluation_set.candidate_labels or ()), *(evaluation_set.only_labels or ())} - set(names)):
        raise ValueError(f"data.evaluation names the labels {unknown}; {evaluation_set.split} has {', '.join(names)}")
    return evaluation_set.candidate_labels or names


def _of_candidates(evaluation_set: EvaluationSet, rows, clips, candidates: list[str], scores) -> Predictions:
    """Only the clips whose label is wanted."""
    names = rows.features["label"].names
    wanted = set(evaluation_set.only_labels or candidates)
    labels = [names[label] for label in np.array(rows["label"])[clips]]
    kept = np.flatnonzero([label in wanted for label in labels])
    if len(kept) == 0:
        raise ValueError(f"no clip of {evaluation_set.split} has one of the labels {sorted(wanted)}")
    references = np.array([candidates.index(labels[number]) for number in kept])
    return Predictions(candidates, scores[kept], references, clips[kept])


def classification_metrics(predictions: Predictions) -> dict:
    """UAR, WAR, recall of each class that occurs, confusion matrix (rows: truth), and chance, all shares 0..1."""
    names, references = predictions.names, predictions.references
    predicted = predictions.scores.argmax(axis=1)
    confusion = confusion_matrix(references, predicted, labels=range(len(names)))
    occurring = [number for number in range(len(names)) if confusion[number].sum() > 0]
    return {
        "uar": unweighted_average_recall(references, predicted),
        "war": weighted_average_recall(references, predicted),
        "chance": 1 / len(names),
        "recall": {names[c]: float(confusion[c, c] / confusion[c].sum()) for c in occurring},
        "num_clips": len(references),
        "labels": list(names),
        "confusion_matrix": confusion.tolist(),
    }


def regression_metrics(predictions: Predictions) -> dict:
    """PCC, CCC, MAE and RMSE of each target, errors in its own units; the means of PCC and CCC over targets."""
    targets = {}
    for number, name in enumerate(predictions.names):
        truth, predicted = predictions.references[:, number], predictions.scores[:, number]
        targets[name] = {
            "pcc": pearson_correlation(truth, predicted),
            "ccc": concordance_correlation(truth, predicted),
            "mae": float(mean_absolute_error(truth, predicted)),
            "rmse": float(root_mean_squared_error(truth, predicted)),
        }
    means = {metric: float(np.mean([target[metric] for target in targets.values()])) for metric in ("pcc", "ccc")}
    return means | {"num_clips": len(predictions.clips), "targets": targets}

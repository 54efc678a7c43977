# SPDX-License-Identifier: Apache-2.0
"""Scores of the recipe's evaluation sets. N clips, C candidate texts or classes, n targets, D embedding width."""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from sklearn.metrics import confusion_matrix, mean_absolute_error, root_mean_squared_error
from torch import nn
from torch.utils.data import DataLoader

from modeling_emoclip import EmoCLIPModel
from modeling_emoclip.prompts import encode_labels, label_texts
from training.build import Experiment, encode_texts
from training.collate import Clips, Collator
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


def evaluate(
    experiment: Experiment, recipe: Recipe, accelerator: Accelerator, model: nn.Module | None = None
) -> dict[str, dict]:
    """Name of each evaluation set -> its metrics; a clip goes through the model once, however many sets it is in.

    Args:
        model: instead of the experiment's own, as an average of its weights.
    """
    model = experiment.model if model is None else getattr(model, "model", model)  # without the component loss
    outputs: dict[int, tuple] = {}
    for clips in experiment.evaluation_clips.values():
        if id(clips) not in outputs:
            outputs[id(clips)] = run_model(model, clips, experiment.collator, recipe.optim.batch_size, accelerator)
    predict = {"texts": predict_texts, "labels": predict_labels, "targets": predict_targets}[experiment.predicts]
    metrics = regression_metrics if experiment.predicts == "targets" else classification_metrics
    results = {}
    for name, evaluation_set in recipe.data.evaluation.items():
        clips = experiment.evaluation_clips[name]
        results[name] = metrics(predict(evaluation_set, experiment, model, clips.rows, *outputs[id(clips)]))
    return results


@torch.inference_mode()
def run_model(
    model, clips: Clips, collator: Collator, batch_size: int, accelerator: Accelerator
) -> tuple[np.ndarray, torch.Tensor]:
    """Rows of all clips, in their order, and what the model says of each: its head's logits `(N, C)`, or without a
    head unit-length video embeddings `(N, D)`. Each process takes a part; every process gets all."""
    model.eval()
    loader = accelerator.prepare_data_loader(DataLoader(clips, batch_size, collate_fn=collator))
    indices, outputs = [], []
    for batch in loader:
        names = ("pixel_values_videos", "frame_embeds", "frame_mask")
        inputs = {name: batch[name] for name in names if name in batch}
        if isinstance(model, EmoCLIPModel):
            video_embeds = model.get_video_features(**inputs).pooler_output
            output = nn.functional.normalize(video_embeds.float(), dim=-1)
        else:
            output = model(**inputs).logits.float()
        indices.append(accelerator.gather(batch["clip_index"]))
        outputs.append(accelerator.gather(output))
    indices, outputs = torch.cat(indices).cpu().numpy(), torch.cat(outputs)
    # The last batch is filled up so that all processes get the same number: those clips came before.
    unique, first = np.unique(indices, return_index=True)
    return unique, outputs[torch.from_numpy(first).to(outputs.device)]


@torch.inference_mode()
def validation_loss(model: nn.Module, experiment: Experiment, recipe: Recipe, accelerator: Accelerator) -> float:
    """Mean loss over the validation clips, each batch in the same order every time, in every process the same."""
    model.eval()
    losses, weights = [], []
    for batch in DataLoader(experiment.validation_clips, recipe.optim.batch_size, collate_fn=experiment.collator):
        weights.append(len(batch.pop("clip_index")))
        losses.append(model(**send_to_device(batch, accelerator.device)).loss.item())
    return float(np.average(losses, weights=weights))


@torch.inference_mode()
def predict_texts(
    evaluation_set: EvaluationSet, experiment: Experiment, model, rows, clips, video_embeds
) -> Predictions:
    """Zero-shot: cosine of each clip with the texts of the candidate labels, or with its own and another caption."""

    def embeds_of(texts: list[str]) -> torch.Tensor:
        embeds = encode_texts(model, experiment.processor, texts)
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


def predict_labels(evaluation_set: EvaluationSet, experiment: Experiment, model, rows, clips, logits) -> Predictions:
    """The model's own classes; of a subset of candidates only those compete."""
    number_of = model.config.label2id
    candidates = _candidates(evaluation_set, list(number_of))
    scores = logits[:, [number_of[name] for name in candidates]].cpu().numpy()
    return _of_candidates(evaluation_set, rows, clips, candidates, scores)


def predict_targets(evaluation_set: EvaluationSet, experiment: Experiment, model, rows, clips, values) -> Predictions:
    """The targets, in their own units."""
    names = list(model.config.target_names)
    references = np.stack([np.array(rows[name])[clips] for name in names], axis=1)
    return Predictions(names, values.cpu().numpy(), references, clips)


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

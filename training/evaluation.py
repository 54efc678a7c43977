# SPDX-License-Identifier: Apache-2.0
"""Zero-shot scores of the recipe's evaluation sets. N clips, C candidate texts, D embedding width."""

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import nn
from torch.utils.data import DataLoader

from modeling_emoclip.prompts import encode_labels, label_texts
from training.build import Experiment, encode_texts
from training.metrics.uar.uar import unweighted_average_recall
from training.metrics.war.war import weighted_average_recall
from training.recipe import EvaluationSet, Recipe


def evaluate(experiment: Experiment, recipe: Recipe) -> dict[str, dict]:
    """Name of each evaluation set -> its metrics; a clip is embedded once, however many sets it is in."""
    experiment.model.eval()
    batch_size = recipe.optim.batch_size
    video_embeds = {
        split: embed_videos(experiment.model, DataLoader(clips, batch_size, collate_fn=experiment.collator))
        for split, clips in experiment.evaluation_clips.items()
    }
    return {
        name: score_set(evaluation_set, experiment, video_embeds[evaluation_set.split])
        for name, evaluation_set in recipe.data.evaluation.items()
    }


@torch.inference_mode()
def embed_videos(model, loader: DataLoader) -> torch.Tensor:
    """Unit-length video embeddings `(N, D)` of a loader's clips, in their order."""
    embeds = []
    for batch in loader:
        names = ("pixel_values_videos", "frame_embeds", "frame_mask")
        inputs = {name: batch[name].to(model.device) for name in names if name in batch}
        embeds.append(nn.functional.normalize(model.get_video_features(**inputs).pooler_output, dim=-1))
    return torch.cat(embeds)


@torch.inference_mode()
def validation_loss(trained: nn.Module, loader: DataLoader) -> float:
    """Mean loss over the validation clips, each batch in the same order every time."""
    trained.eval()
    losses, weights = [], []
    for batch in loader:
        losses.append(trained(**batch).loss.item())
        weights.append(len(batch["input_ids"]))
    return float(np.average(losses, weights=weights))


@torch.inference_mode()
def score_set(evaluation_set: EvaluationSet, experiment: Experiment, video_embeds: torch.Tensor) -> dict:
    """Metrics of one set: nearest text by cosine, against the label."""
    rows = experiment.evaluation_clips[evaluation_set.split].rows

    def embeds_of(texts: list[str]) -> torch.Tensor:
        embeds = encode_texts(experiment.model, experiment.processor, texts)
        return torch.stack([embeds[text] for text in texts])

    if evaluation_set.contrast_captions:
        pairs = [*rows["caption"], *rows["contrast_caption"]]
        own, contrast = nn.functional.normalize(embeds_of(pairs), dim=-1).chunk(2)  # (N, D) each
        scores = torch.stack([(video_embeds * texts).sum(dim=-1) for texts in (own, contrast)], dim=1)
        return classification_metrics(scores.cpu().numpy(), np.zeros(len(rows), dtype=int), ["own", "contrast"])
    names = rows.features["label"].names
    candidates = evaluation_set.candidate_labels or names
    wanted = evaluation_set.only_labels or candidates
    labels = [names[label] for label in rows["label"]]
    kept = [index for index, label in enumerate(labels) if label in wanted]
    if unknown := sorted((set(candidates) | set(wanted)) - set(names)):
        raise ValueError(f"data.evaluation names labels that {evaluation_set.split} does not have: {unknown}")
    class_embeds = encode_labels(label_texts(candidates, experiment.class_descriptions), embeds_of)
    scores = (video_embeds[kept] @ class_embeds.t()).cpu().numpy()  # (N, C)
    return classification_metrics(scores, np.array([candidates.index(labels[i]) for i in kept]), candidates)


def classification_metrics(scores: np.ndarray, references: np.ndarray, names: list[str]) -> dict:
    """UAR, WAR, recall of each class that occurs, confusion matrix (rows: truth), and chance, all shares 0..1.

    Args:
        scores: `(N, C)`.
        references: `(N,)` class numbers.
        names: of the C classes.
    """
    predictions = scores.argmax(axis=1)
    confusion = confusion_matrix(references, predictions, labels=range(len(names)))
    occurring = [number for number in range(len(names)) if confusion[number].sum() > 0]
    return {
        "uar": unweighted_average_recall(references, predictions),
        "war": weighted_average_recall(references, predictions),
        "chance": 1 / len(names),
        "recall": {names[c]: float(confusion[c, c] / confusion[c].sum()) for c in occurring},
        "num_clips": len(references),
        "labels": list(names),
        "confusion_matrix": confusion.tolist(),
    }

# SPDX-License-Identifier: Apache-2.0
"""Scores of an experiment's model on its evaluation sets; evaluate.py is the command."""

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from emoclip import EmoCLIPProcessor
from training.build import Experiment, embed_texts
from training.metrics.scores import metrics_of
from training.predictions import Predictions, collect_outputs, predict_labels, predict_targets, predict_texts
from training.recipe import EvaluationSet, Recipe


def evaluate(
    experiment: Experiment, recipe: Recipe, accelerator: Accelerator, model: nn.Module | None = None
) -> dict[str, dict]:
    """Computes the metrics of each evaluation set: name -> metrics; see `predict`."""
    return {name: metrics_of(one) for name, one in predict(experiment, recipe, accelerator, model).items()}


def predict(
    experiment: Experiment, recipe: Recipe, accelerator: Accelerator, model: nn.Module | None = None
) -> dict[str, Predictions]:
    """Predicts each evaluation set; sets that share their clips also share the forward passes.

    Args:
        model: used instead of the experiment's own model, such as a moving average of its weights.
    """
    model = experiment.model if model is None else getattr(model, "model", model)  # without the component loss
    outputs: dict[int, tuple] = {}
    for clips in experiment.evaluation_clips.values():
        if id(clips) not in outputs:
            outputs[id(clips)] = collect_outputs(
                model, clips, experiment.collator, recipe.optim.batch_size, accelerator
            )
    predictions = {}
    for name, evaluation_set in recipe.data.evaluation.items():
        clips = experiment.evaluation_clips[name]
        rows, output = outputs[id(clips)]
        predictions[name] = predict_set(
            evaluation_set, model, experiment.processor, experiment.class_descriptions, clips.rows.select(rows), output
        )
    return predictions


@torch.inference_mode()
def validation_loss(model: nn.Module, experiment: Experiment, recipe: Recipe, accelerator: Accelerator) -> float:
    """Computes the mean loss over the validation clips, in the same batches every time and in every process."""
    model.eval()
    losses, weights = [], []
    for batch in DataLoader(experiment.validation_clips, recipe.optim.batch_size, collate_fn=experiment.collator):
        if not batch:
            continue
        weights.append(len(batch.pop("clip_index")))
        losses.append(model(**send_to_device(batch, accelerator.device)).loss.item())
    if not losses:
        raise ValueError("not one validation clip can be decoded; the warnings above name them")
    return float(np.average(losses, weights=weights))


@torch.inference_mode()
def predict_set(
    evaluation_set: EvaluationSet,
    model: PreTrainedModel,
    processor: EmoCLIPProcessor,
    class_descriptions: dict[str, list[str]] | None,
    rows: datasets.Dataset,
    outputs: torch.Tensor,
    any_words: bool = False,
) -> Predictions:
    """Converts `outputs` of `collect_outputs` for `rows` to label scores or targets; any_words: see predict_texts."""
    if model.predicts == "targets":
        return predict_targets(rows, outputs, model.config.target_names)
    if model.predicts == "labels":
        return predict_labels(evaluation_set, rows, outputs, model.config.id2label)

    def embeds_of(texts: list[str]) -> torch.Tensor:
        embeds = embed_texts(model, processor, texts)
        return torch.stack([embeds[text] for text in texts]).cpu()

    return predict_texts(evaluation_set, rows, outputs, class_descriptions, embeds_of, any_words)

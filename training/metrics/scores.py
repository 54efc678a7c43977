# SPDX-License-Identifier: Apache-2.0
"""Computes the metrics of predictions, with 95 % bootstrap intervals. N clips, C classes, n targets."""

import math

import numpy as np
from sklearn.metrics import confusion_matrix, mean_absolute_error, root_mean_squared_error

from training.metrics.bootstrap import NUM_RESAMPLES, SHARE, interval, resampled_sums
from training.metrics.ccc.ccc import concordance_correlation
from training.metrics.pcc.pcc import pearson_correlation
from training.metrics.uar.uar import unweighted_average_recall
from training.metrics.war.war import weighted_average_recall
from training.predictions import Predictions

MAIN_METRICS = ("uar", "war", "pcc", "ccc")  # as reported in papers
SHARES = ("uar", "war", "recall")  # printed in percent


def metrics_of(predictions: Predictions) -> dict:
    """Computes metrics: shares 0..1, correlations -1..1, `X_interval` as `[low, high]`; undefined values are `None`.

    Raises:
        ValueError: the model's scores are not finite; argmax would then silently return the wrong class.
    """
    finite = np.isfinite(predictions.scores).all(axis=1)
    if not finite.all():
        first = predictions.clip_ids[int(np.argmin(finite))]
        raise ValueError(
            f"the model's scores of {(~finite).sum():,} of {len(finite):,} clips are no finite numbers, as of "
            f"{first}: its weights or the clips' frames hold NaN or infinity"
        )
    kind = _regression if predictions.is_regression else _retrieval if predictions.are_captions else _classification
    values = kind(predictions)
    resampled = "clips" if predictions.groups is None else "groups"
    num_units = len(predictions.clip_ids if predictions.groups is None else set(predictions.groups))
    intervals = {"share": SHARE, "resamples": NUM_RESAMPLES, "resampled": resampled, "number": num_units}
    return _without_nan(values | {"num_clips": len(predictions.clip_ids), "intervals": intervals})


def _classification(predictions: Predictions) -> dict:
    """Computes UAR, WAR, recall of each class that occurs, confusion matrix (rows: truth), and chance level."""
    names, references = predictions.names, predictions.targets
    predicted = predictions.scores.argmax(axis=1)
    confusion = confusion_matrix(references, predicted, labels=range(len(names)))
    occurring = [number for number in range(len(names)) if confusion[number].sum() > 0]
    is_class = np.eye(len(names))[references]  # (N, C)
    sums = np.concatenate([is_class, is_class * (references == predicted)[:, None]], axis=1)
    present, found = np.split(resampled_sums(sums, predictions.groups), 2, axis=1)  # (R, C) each
    recalls = np.divide(found, present, out=np.full(found.shape, np.nan), where=present > 0)
    return {
        "uar": unweighted_average_recall(references, predicted),
        "uar_interval": interval(np.nanmean(recalls, axis=1)),
        "war": weighted_average_recall(references, predicted),
        "war_interval": interval(found.sum(axis=1) / present.sum(axis=1)),
        "chance": 1 / len(names),
        "recall": {names[c]: float(confusion[c, c] / confusion[c].sum()) for c in occurring},
        "recall_interval": {names[c]: interval(recalls[:, c]) for c in occurring},
        "labels": list(names),
        "confusion_matrix": confusion.tolist(),
    }


def _retrieval(predictions: Predictions) -> dict:
    """Computes recall at 1 and 5 and the median rank (at best 1) of each clip's own caption among all captions, and of
    each caption's best own clip among all clips."""
    values: dict = {"num_captions": len(predictions.names)}
    is_own = np.arange(len(predictions.names)) == predictions.targets[:, None]  # (N, captions)
    for name, scores, right in (
        ("video_to_text", predictions.scores, is_own),
        ("text_to_video", predictions.scores.T, is_own.T),
    ):
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)  # the best of several right clips
        ranks = 1 + (scores > best).sum(axis=1)
        values[name] = {f"recall_at_{most}": float((ranks <= most).mean()) for most in (1, 5)}
        values[name]["median_rank"] = float(np.median(ranks))
    return values


def _regression(predictions: Predictions) -> dict:
    """Computes PCC, CCC, MAE and RMSE of each target (errors in its own units), and the means of PCC and CCC."""
    truths, values = predictions.targets.T.astype(float), predictions.scores.T.astype(float)  # (n, N)
    pairs = list(zip(truths, values, strict=True))
    # All targets of a clip are resampled together.
    sums = resampled_sums(np.concatenate([powers(*pair) for pair in pairs], axis=1), predictions.groups)
    resampled = [scores_of_powers(part) for part in np.split(sums, len(pairs), axis=1)]
    targets = {}
    for name, (truth, predicted), scores in zip(predictions.names, pairs, resampled, strict=True):
        targets[name] = {
            "pcc": pearson_correlation(truth, predicted),
            "ccc": concordance_correlation(truth, predicted),
            "mae": float(mean_absolute_error(truth, predicted)),
            "rmse": float(root_mean_squared_error(truth, predicted)),
        }
        targets[name] |= {f"{metric}_interval": interval(values) for metric, values in scores.items()}
    means = {}
    for metric in ("pcc", "ccc"):
        means[metric] = float(np.mean([target[metric] for target in targets.values()]))
        means[f"{metric}_interval"] = interval(np.mean([scores[metric] for scores in resampled], axis=0))
    return means | {"targets": targets}


def powers(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Returns the terms `(N, 9)` whose sums determine the four scores."""
    error = predicted - truth
    x, y = truth - np.median(truth), predicted - np.median(predicted)  # centered, so that squares keep their precision
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y, error, np.abs(error), error * error], axis=1)


def scores_of_powers(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the four scores `(R,)` from sums `(R, 9)`."""
    mean_x, mean_y, mean_xx, mean_yy, mean_xy, offset, mae, mse = (sums[:, 1:] / sums[:, :1]).T
    var_x, var_y, covariance = mean_xx - mean_x**2, mean_yy - mean_y**2, mean_xy - mean_x * mean_y
    constant = (var_x <= 1e-12 * mean_xx) | (var_y <= 1e-12 * mean_yy)
    with np.errstate(divide="ignore", invalid="ignore"):
        pcc = np.where(constant, np.nan, covariance / np.sqrt(var_x * var_y))
        ccc = 2 * covariance / (var_x + var_y + offset**2)
    return {"pcc": pcc, "ccc": ccc, "mae": mae, "rmse": np.sqrt(mse)}


def _without_nan(value):
    """Replaces NaN with `None`, since JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def mean_over(parts: list[dict]) -> dict[str, float | None]:
    """Averages each main metric over the folds without weights, as the papers do for cross-validation."""
    means = {}
    for metric in MAIN_METRICS:
        if values := [part[metric] for part in parts if metric in part]:
            means[metric] = None if None in values else float(np.mean(values))
    return means


def number_text(metric: str, value: float | None) -> str:
    """Formats a score; shares are in percent, as in the papers."""
    if value is None:
        return "undefined"
    return f"{100 * value:.2f}" if metric in SHARES else f"{value:.3f}"


def score_text(metric: str, metrics: dict) -> str:
    """Formats a score with its interval."""
    bounds = metrics[f"{metric}_interval"]
    text = number_text(metric, metrics[metric])
    return text if bounds is None else f"{text} [{', '.join(number_text(metric, bound) for bound in bounds)}]"


def table(report: dict) -> str:
    """Formats the metrics of each set with intervals, then the mean over sets or, for one set, recalls or targets."""
    lines = [f"{report['title']} ({report['architecture']}); in brackets: 95 % bootstrap intervals"]
    for name, metrics in report["sets"].items():
        scores = [f"{key.upper()} {score_text(key, metrics)}" for key in MAIN_METRICS if key in metrics]
        for way in ("video_to_text", "text_to_video"):
            if way in metrics:
                found = metrics[way]
                scores += [f"{way.replace('_', ' ')} R@1 {100 * found['recall_at_1']:.2f}"]
                scores += [f"R@5 {100 * found['recall_at_5']:.2f}", f"median rank {found['median_rank']:g}"]
        lines.append(f"{name}: {metrics['num_clips']:,} clips, {', '.join(scores)}")
    if len(report["sets"]) > 1:
        means = [f"{key.upper()} {number_text(key, value)}" for key, value in report["mean"].items()]
        lines.append(f"mean of {len(report['sets'])}: {', '.join(means)}")
    else:
        (metrics,) = report["sets"].values()
        for label, recall in metrics.get("recall", {}).items():
            values = {"recall": recall, "recall_interval": metrics["recall_interval"][label]}
            lines.append(f"  recall of {label}: {score_text('recall', values)}")
        for target, scores in metrics.get("targets", {}).items():
            texts = [f"{key.upper()} {score_text(key, scores)}" for key in ("pcc", "ccc", "mae", "rmse")]
            lines.append(f"  {target}: {', '.join(texts)}")
    return "\n".join(lines)

# SPDX-License-Identifier: Apache-2.0
"""Temperature scaling of a label set, its expected calibration error (ECE), and the reliability diagram.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599. N clips, C labels, M bins.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from sklearn.model_selection import GroupKFold
from sklearn.utils.extmath import softmax

from emoclip.typed_text import PICTURE_TEXT

NUM_BINS = 15  # of equal width, as in the paper
NUM_FOLDS = 5
FEW = 10  # bins with fewer clips are drawn in a lighter color
LOWEST, HIGHEST = 1e-3, 1e3  # search range of the temperature


def calibrate(logits: np.ndarray, references: np.ndarray, groups: Sequence[str] | None = None) -> dict:
    """Fits a temperature and measures the calibration before and after.

    Args:
        logits: `(N, C)`, before any temperature.
        references: `(N,)`, the columns of the true labels.
        groups: group of each clip, such as the person: its clips are not independent. `None`: one group per clip.

    Returns:
        `temperature`, fitted on all clips, and a report `before` (temperature 1) and `after` (fitted), each with
        `ece`, see `calibration_error`; `ece_by_chance`, its expected value if the model were perfectly calibrated;
        `nll`, the mean negative log-likelihood; `score`, the mean top score; and for each bin the number of clips,
        their mean score and accuracy. `after` is cross-validated: each clip is scored with a temperature fitted
        without its group (5 folds), since scores on the clips of the fit would be too good.

    Raises:
        ValueError: there are too few clips, all predictions are right, or no finite temperature is optimal.
    """
    groups = np.arange(len(references)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if len(set(groups.tolist())) < NUM_FOLDS:
        raise ValueError(f"{len(set(groups.tolist()))} clips or groups of them are too few: {NUM_FOLDS} are needed")
    temperature = fit_temperature(logits, references)
    temperatures = np.empty(len(references))
    for others, fold in GroupKFold(NUM_FOLDS).split(logits, groups=groups):
        temperatures[fold] = _lowest_nll(logits[others], references[others])
    return {
        "temperature": temperature,
        "num_clips": len(references),
        "num_groups": len(set(groups.tolist())),
        "accuracy": float((logits.argmax(axis=1) == references).mean()),
        "before": _report(softmax(logits), references),
        "after": _report(softmax(logits / temperatures[:, None]), references),
    }


def fit_temperature(logits: np.ndarray, references: np.ndarray) -> float:
    """Fits the temperature that minimizes the mean negative log-likelihood, which is convex in 1 / temperature.

    Raises:
        ValueError: there is no minimum between 0.001 and 1000.
    """
    temperature = _lowest_nll(logits, references)
    if temperature < 2 * LOWEST:
        raise ValueError("every clip gets its right label: it takes some errors to see how sure scores may be")
    if temperature > HIGHEST / 2:
        raise ValueError("the right labels score no better than the others: no temperature makes up for that")
    return temperature


def _lowest_nll(logits: np.ndarray, references: np.ndarray) -> float:
    rows = np.arange(len(references))
    low, high = math.log(1 / HIGHEST), math.log(1 / LOWEST)  # range of log(1 / temperature)
    for _ in range(60):
        middle = (low + high) / 2
        probabilities = softmax(logits * math.exp(middle))
        slope = ((probabilities * logits).sum(axis=1) - logits[rows, references]).mean()  # increases monotonically
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def calibration_error(scores: np.ndarray, is_right: np.ndarray) -> float:
    """Computes the ECE: the mean |score - accuracy| of 15 bins of equal width, weighted by their numbers of clips.

    Args:
        scores: `(N,)`, the top score of each clip.
        is_right: `(N,)`, or `(..., N)` for several outcomes, over which the ECE is averaged.
    """
    in_bin = np.eye(NUM_BINS)[bins_of(scores)]  # (N, M)
    return float(np.abs((np.asarray(is_right, dtype=float) - scores) @ in_bin).sum(axis=-1).mean() / len(scores))


def bins_of(scores: np.ndarray) -> np.ndarray:
    return np.clip(np.ceil(scores * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)


def _report(probabilities: np.ndarray, references: np.ndarray) -> dict:
    scores, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == references
    right = np.maximum(probabilities[np.arange(len(references)), references], np.finfo(float).tiny)
    outcomes = np.random.default_rng(0).random((300, len(scores))) < scores
    bins = bins_of(scores)
    number, score, share = (
        np.bincount(bins, weights=weights, minlength=NUM_BINS) for weights in (None, scores, is_right)
    )
    filled = np.flatnonzero(number)
    return {
        "ece": calibration_error(scores, is_right),
        "ece_by_chance": calibration_error(scores, outcomes),
        "nll": float(-np.log(right).mean()),
        "score": float(scores.mean()),
        "bins": [
            {"bin": int(m), "clips": int(number[m]), "score": score[m] / number[m], "right": share[m] / number[m]}
            for m in filled
        ],
    }


@rc_context(PICTURE_TEXT)
def draw_reliability(path: Path, report: dict, title: str = "") -> None:
    """Draws reliability diagrams before and after, each above a histogram of the scores.

    Args:
        path: PNG file to write.
        report: result of `calibrate`.
    """
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
    headings = {"before": "before", "after": f"after: temperature {report['temperature']:.3g}"}
    for (above, below), (when, heading) in zip(axes.T, headings.items(), strict=True):
        one = report[when]
        left = [part["bin"] / NUM_BINS for part in one["bins"]]
        bars = {"width": 1 / NUM_BINS, "align": "edge", "edgecolor": "white"}
        colors = ["tab:blue" if part["clips"] >= FEW else "lightsteelblue" for part in one["bins"]]
        above.bar(left, [part["right"] for part in one["bins"]], color=colors, **bars)
        above.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="scores one may trust")
        points = [[part[name] for part in one["bins"]] for name in ("score", "right")]
        above.plot(
            *points, color="tab:orange", marker="o", markersize=4, linestyle="none", label="mean score of the bin"
        )
        above.set_title(
            f"{heading}\nECE {one['ece']:.3f}; {one['ece_by_chance']:.3f} if it were calibrated",
            loc="left",
            fontsize=11,
        )
        below.bar(left, [part["clips"] for part in one["bins"]], color="grey", **bars)
        below.set(xlim=(0, 1), xlabel="score of the label that scores highest")
        for one_axes in (above, below):
            one_axes.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set(ylim=(0, 1), ylabel="share of clips that are right")
    for color, label in (("tab:blue", "share that is right"), ("lightsteelblue", f"of fewer than {FEW} clips")):
        axes[0, 0].bar(0, 0, color=color, label=label)
    axes[0, 0].legend(loc="upper left", frameon=False, fontsize=9)
    axes[1, 0].set_ylabel("clips")
    numbers = f"{report['num_clips']:,} clips, {100 * report['accuracy']:.1f} % right"
    figure.suptitle(f"{title}\n{numbers}" if title else numbers, x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=110, format="png")

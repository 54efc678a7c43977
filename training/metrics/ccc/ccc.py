# SPDX-License-Identifier: Apache-2.0
"""Concordance correlation coefficient (Lin, 1989) between predicted and true values, -1..1: like Pearson's
correlation, but sensitive to errors of scale and offset.

Use `evaluate.load("training/metrics/ccc")`, or call the function directly.
"""

import datasets
import evaluate
import numpy as np


def concordance_correlation(references, predictions) -> float:
    """Computes the CCC of two sequences of numbers, with moments divided by N. Returns NaN, since it is undefined, if
    they are empty or both are the same constant."""
    references, predictions = np.asarray(references, float), np.asarray(predictions, float)
    if references.shape != predictions.shape or references.ndim != 1:
        raise ValueError(f"references have shape {references.shape} and predictions {predictions.shape}")
    if len(references) == 0:
        return float("nan")
    offset = references.mean() - predictions.mean()
    spread = references.var() + predictions.var() + offset**2
    covariance = ((references - references.mean()) * (predictions - predictions.mean())).mean()
    return float(2 * covariance / spread) if spread > 0 else float("nan")


class CCC(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions, references):
        return {"ccc": concordance_correlation(references, predictions)}

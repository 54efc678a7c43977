# SPDX-License-Identifier: Apache-2.0
"""Pearson's correlation coefficient between predicted and true values, -1..1: a measure of their linear relation,
independent of scale and offset.

Use `evaluate.load("training/metrics/pcc")`, or call the function directly.
"""

import datasets
import evaluate
import numpy as np


def pearson_correlation(references, predictions) -> float:
    """Computes the PCC of two sequences of numbers; NaN (undefined) if they have fewer than two or one is constant."""
    references, predictions = np.asarray(references, float), np.asarray(predictions, float)
    if references.shape != predictions.shape or references.ndim != 1:
        raise ValueError(f"references have shape {references.shape} and predictions {predictions.shape}")
    if len(references) < 2 or np.ptp(references) == 0 or np.ptp(predictions) == 0:
        return float("nan")
    return float(np.corrcoef(references, predictions)[0, 1])


class PCC(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions, references):
        return {"pcc": pearson_correlation(references, predictions)}

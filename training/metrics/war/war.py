# SPDX-License-Identifier: Apache-2.0
"""Weighted average recall: the share of correctly classified clips (accuracy). Every clip has the same weight.

Use `evaluate.load("training/metrics/war")`, or call the function directly.
"""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score


def weighted_average_recall(references, predictions) -> float:
    """Computes the share of correct predictions, 0..1; both are sequences of class numbers."""
    references = np.asarray(references)
    if references.size == 0:
        raise ValueError("WAR of no references is not defined")
    return float(accuracy_score(references, np.asarray(predictions)))


class WAR(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        return {"war": weighted_average_recall(references, predictions)}

# SPDX-License-Identifier: Apache-2.0
"""Unweighted average recall: the mean recall over the classes (macro recall, balanced accuracy). Every class has the
same weight, even if it is rare.

Use `evaluate.load("training/metrics/uar")`, or call the function directly.
"""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import recall_score


def unweighted_average_recall(references, predictions) -> float:
    """Computes the mean recall, 0..1, of the classes in `references`; both are sequences of class numbers."""
    references = np.asarray(references)
    if references.size == 0:
        raise ValueError("UAR of no references is not defined")
    classes = np.unique(references)
    return float(recall_score(references, np.asarray(predictions), labels=classes, average="macro", zero_division=0))


class UAR(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        return {"uar": unweighted_average_recall(references, predictions)}

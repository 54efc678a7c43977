# SPDX-License-Identifier: Apache-2.0
"""Computes mean and standard deviation over seeds, and their difference from published scores.

Rows are evaluation sets or left-out classes: row -> metric -> `{"seeds": {seed: mean over the folds}, "mean": ...,
"std": ...}`, with `"reference"` and `"difference"` if there is a reference. Shares are 0..1; references in recipes are
in percent, as in the papers.
"""

import re

import numpy as np

from training.metrics.scores import SHARES, number_text

ALL_CLASSES = "mean of classes"


def row_name(evaluation_set: str) -> str:
    """Removes the fold from a set's name; sets of one row, such as dfew_fold1 and dfew_fold2, are averaged."""
    return re.sub(r"_?fold\d+$", "", evaluation_set) or evaluation_set


def over_seeds(means: dict[int, float | None]) -> dict:
    """Computes mean and standard deviation (n - 1) of the seeds' means; the latter requires two seeds."""
    known = [value for value in means.values() if value is not None]
    return {
        "seeds": {str(seed): value for seed, value in means.items()},
        "mean": float(np.mean(known)) if known else None,
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }


def over_rows(rows: list[dict]) -> dict:
    """Averages rows seed by seed, over the seeds that all rows have."""
    seeds = [seed for seed in rows[0]["seeds"] if all(seed in row["seeds"] for row in rows)]
    return over_seeds({seed: float(np.mean([row["seeds"][seed] for row in rows])) for seed in seeds})


def add_reference(rows: dict[str, dict[str, dict]], reference: dict) -> None:
    """Adds published scores: `{uar: 58.04, war: 62.12}` to the mean of classes or else the first row,
    `{afew: {uar: 36.13}}` to the row of that name."""
    main_row = ALL_CLASSES if ALL_CLASSES in rows else next(iter(rows), None)
    for row, metrics in rows.items():
        own = reference.get(row, reference if row == main_row else {})
        for metric, values in metrics.items():
            if metric in own and values["mean"] is not None:
                values["reference"] = own[metric] / 100 if metric in SHARES else own[metric]
                values["difference"] = values["mean"] - values["reference"]


def table(report: dict) -> str:
    """Formats mean +- std, the published score, the difference and the scores by seed for each row and metric."""
    lines = [f"{report['title']}: {report['finished']} of {report['runs']} runs are finished"]
    if source := report["reference"].get("source"):
        lines.append(f"paper: {source}")
    width = max(map(len, report["rows"]), default=0)
    lines.append(f"{'':{width}}         {'mean +- std':>16} {'paper':>9} {'difference':>11}  by seed")
    for row, metrics in report["rows"].items():
        for metric, values in metrics.items():
            own = "not finished" if values["mean"] is None else number_text(metric, values["mean"])
            own += "" if values["std"] is None else f" +- {number_text(metric, values['std'])}"
            reference = number_text(metric, values["reference"]) if "reference" in values else ""
            difference = number_text(metric, values["difference"]) if "difference" in values else ""
            sign = "+" if values.get("difference", -1) >= 0 else ""
            seeds = ", ".join(number_text(metric, value) for value in values["seeds"].values())
            lines.append(
                f"{row:{width}}  {metric.upper():6} {own:>16} {reference:>9} {sign + difference:>11}  {seeds}"
            )
    return "\n".join(lines)

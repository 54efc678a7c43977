# SPDX-License-Identifier: Apache-2.0
"""Stores the records of runs in one file of the repository, from which the document's numbers are computed.

Data common to many runs, such as the clips of a test set and their labels, are stored once; per-clip outcomes are
stored only where they are compared.
"""

import json
from pathlib import Path

from emoclip.files import written
from training.reproduction.claims import Claims, Comparison
from training.reproduction.numbers import NEEDED

SHARED = ("clips", "groups", "labels", "truth")
OF_SCORES = ("confidence", "calibrated_confidence")


def keep(records: list[dict], claims: Claims, path: Path) -> None:
    """Writes the file, with one line per run, so that diffs are readable."""
    wanted = used_scores(claims)
    shared: list[dict] = []
    lines = [json.dumps(_shortened(record, wanted, shared)) for record in records]
    shared_text, runs_text = ",\n".join(json.dumps(one) for one in shared), ",\n".join(lines)
    with written(path) as unfinished:
        unfinished.write_text(f'{{"shared": [\n{shared_text}\n], "runs": [\n{runs_text}\n]}}\n', encoding="utf-8")


def load_kept(path: Path) -> list[dict]:
    """Loads the records written by `keep`, without outcomes that no comparison needs."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    for record in kept["runs"]:
        record["sets"] = {
            name: kept["shared"][outcome["shared"]] | outcome for name, outcome in record["sets"].items()
        }
    return kept["runs"]


def used_scores(claims: Claims) -> set[tuple[str, str, str]]:
    """Lists (row, evaluation set, metric) of every score in the document."""
    used = set()
    comparisons: list[Comparison] = [
        one for part in claims.parts.values() for claim in part for one in claim.comparisons
    ]
    comparisons += [one.more_than for one in comparisons if one.more_than is not None]
    for comparison in comparisons:
        used.update(comparison.operands)
    used |= {(row, clips, "uar") for curve in claims.curves for row in curve.rows for clips in curve.clips}
    used |= {(row, one.clips, one.metric) for one in claims.tuning for row in (one.used, *one.tried)}
    used |= {(row, clips, "uar") for row in claims.summary["rows"] for clips in claims.summary["sets"]}
    return used | {(row, "test", "uar") for row in claims.rows}


def _shortened(record: dict, wanted: set[tuple[str, str, str]], shared: list[dict]) -> dict:
    sets = {}
    for name, outcome in record["sets"].items():
        metrics = {metric for row, clips, metric in wanted if (row, clips) == (record["row"], name)}
        if metrics:
            common = {field: outcome[field] for field in SHARED if field in outcome}
            if common not in shared:
                shared.append(common)
            unused = {*OF_SCORES} - {NEEDED.get(metric) for metric in metrics}
            own = {field: value for field, value in outcome.items() if field not in unused | set(SHARED)}
            sets[name] = {"shared": shared.index(common)} | own
    return record | {"sets": sets}

# SPDX-License-Identifier: Apache-2.0
"""Executes the runs of claims.yaml that are missing, and writes a record of each, the source of all later results.

A record contains recipe, seed, commit, date, duration and the outcome for every clip of each evaluation set, so that
two methods can be compared clip by clip.
"""

import json
import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open
from sklearn.utils.extmath import softmax

from emoclip.files import written
from training import train
from training.checkpoint import check_output_dir
from training.compare.calibration import fit_temperature
from training.compare.run_grid import lock
from training.reproduction.claims import FOLDER, Claims, Run

ROOT = FOLDER.parents[1]
RECORD = "record.json"
CALIBRATED_ON = "validation"


def run_missing(claims: Claims, output_dir: Path, runs: list[Run]) -> None:
    """Executes the runs without a record, in order, but each after the runs it depends on.

    Several processes can call this concurrently and share the runs.

    Raises:
        FileExistsError: the folder of a run contains a run of another recipe.
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM; the same command continues from there.
    """
    for run in runs:
        check_done(claims, run, output_dir)
    waiting = runs
    while waiting:
        later = []
        for run in waiting:
            done = output_dir / run.name / RECORD
            if done.exists():
                continue
            if not all((output_dir / needed.name / RECORD).exists() for needed in claims.needs(run)):
                later.append(run)
                continue
            with lock(done.parent) as handle:
                if handle is None:
                    later.append(run)
                elif not done.exists():
                    number = runs.index(run) + 1
                    print(f"run {number} of {len(runs)}: {claims.rows[run.row].title}, {run.name}", flush=True)
                    run_one(claims, run, output_dir)
        if len(later) == len(waiting):
            time.sleep(1)  # other processes execute the remaining runs
        waiting = later


def check_done(claims: Claims, run: Run, output_dir: Path) -> None:
    """Raises a FileExistsError if the run's folder contains a run with other settings."""
    record = output_dir / run.name / RECORD
    if not record.exists():
        check_output_dir(claims.recipe(run, output_dir))
    elif json.loads(record.read_text(encoding="utf-8"))["overrides"] != claims.overrides(run):
        raise FileExistsError(
            f"{record} has other overrides than claims.yaml now: remove {record.parent} to run it anew"
        )


def run_one(claims: Claims, run: Run, output_dir: Path) -> None:
    """Trains and scores a run, and writes its record."""
    recipe = claims.recipe(run, output_dir)
    folder = output_dir / run.name
    metrics = train.run(recipe)
    history = metrics["history"]
    scale = logit_scale(folder, recipe.model.architecture)
    losses = [epoch.get("validation_loss") for epoch in history]
    record = {
        "row": run.row,
        "seed": run.seed,
        "part": run.part,
        "recipe": os.path.relpath(claims.recipe_file(run), ROOT),
        "overrides": claims.overrides(run),
        "sizes": claims.sizes,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": metrics["seconds"],
        "hardware": f"{metrics['hardware']}, {platform.machine()}",
        "versions": metrics["versions"],
        "epochs": len(history),
        "epoch": history[losses.index(min(losses))]["epoch"] if history and None not in losses else None,
        "sets": {name: outcome(folder, name, scores, scale) for name, scores in metrics["final"].items()},
    }
    with written(folder / RECORD) as path:
        path.write_text(json.dumps(record) + "\n", encoding="utf-8")


def commit() -> str:
    """Returns the current commit, with a + if tracked files are modified; "unknown" outside a git repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def outcome(folder: Path, name: str, metrics: dict, scale: float) -> dict:
    """Collects the scores, the clips and the per-clip outcomes of one evaluation set."""
    table = pd.read_csv(folder / f"predictions_{name}.csv", dtype={"clip_id": str, "group": str})
    found = {"num_clips": len(table), "clips": table["clip_id"].tolist()}
    if table["group"].duplicated().any():
        found["groups"] = table["group"].tolist()
    if "targets" in metrics:
        targets = list(metrics["targets"])
        predicted = table[[f"predicted_{target}" for target in targets]].to_numpy()
        return found | {
            "pcc": metrics["pcc"],
            "ccc": metrics["ccc"],
            "truth": table[targets].round(4).to_numpy().tolist(),
            "predicted": predicted.round(4).tolist(),
        }
    hits = table["label"] == table["predicted"]
    found |= {"uar": metrics["uar"], "war": metrics["war"], "chance": metrics["chance"], "recall": metrics["recall"]}
    found |= {"labels": table["label"].tolist(), "hits": "".join("01"[hit] for hit in hits)}
    return found | confidence(folder, table, metrics["labels"], scale)


def confidence(folder: Path, table: pd.DataFrame, names: list[str], scale: float) -> dict:
    """Computes the top scores before and after temperature scaling, fitted on the validation clips."""
    validation = folder / f"predictions_{CALIBRATED_ON}.csv"
    columns = [f"score_{name}" for name in names]
    fitted_on = pd.read_csv(validation) if validation.exists() else pd.DataFrame()
    if not set(columns) <= set(fitted_on.columns):
        return {}
    references = np.array([names.index(label) for label in fitted_on["label"]])
    try:
        temperature = fit_temperature(fitted_on[columns].to_numpy() * scale, references)
    except ValueError:  # no temperature can be fitted: all right, or no better than chance
        return {}
    logits = table[columns].to_numpy() * scale
    return {
        "temperature": temperature,
        "confidence": softmax(logits).max(axis=1).round(4).tolist(),
        "calibrated_confidence": softmax(logits / temperature).max(axis=1).round(4).tolist(),
    }


def logit_scale(folder: Path, architecture: str) -> float:
    """Returns the factor from predictions to logits: an EmoCLIPModel predicts cosines, the others predict logits."""
    if architecture != "EmoCLIPModel":
        return 1.0
    with safe_open(folder / "model.safetensors", "np") as weights:
        return float(np.exp(weights.get_tensor("logit_scale")))


def collect(claims: Claims, output_dir: Path) -> list[dict]:
    """Loads the records of all finished runs, in the order of claims.yaml."""
    files = [output_dir / run.name / RECORD for run in claims.runs()]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]

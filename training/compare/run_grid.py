# SPDX-License-Identifier: Apache-2.0
"""Runs a recipe for every fold and seed, as in the papers, and prints the means beside the published scores.

python -m training.compare.run_grid RECIPE --folds 1-5 --seeds 0-2 [--leave-out all] [a.b=c ...]

Each run has its own folder in OUTPUT. After an interruption, the same command continues where it stopped. Several
instances of the command, for example one per GPU, share the runs. Finished runs are never repeated.
"""

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from emoclip.files import written
from training.build import load_builder
from training.checkpoint import check_output_dir
from training.metrics.over_seeds import ALL_CLASSES, add_reference, over_rows, over_seeds, row_name, table
from training.metrics.scores import MAIN_METRICS
from training.recipe import Recipe, load_recipe

TRAIN = Path(__file__).parents[1] / "train.py"


@dataclass(frozen=True)
class Run:
    """One training run of the grid."""

    seed: int
    config_name: str | None
    """Configuration of the data set: the fold."""
    left_out: str | None

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        without = f"without_{self.left_out}" if self.left_out else None
        return "_".join(part for part in (without, self.config_name, f"seed{self.seed}") if part)

    def overrides(self, output_dir: Path) -> list[str]:
        """Returns the overrides that turn the recipe into this run; `run.resume` has no effect on a new run."""
        fields = {"run.output_dir": str(output_dir / self.name), "run.seed": self.seed, "run.resume": True}
        fields |= {"data.config_name": self.config_name} if self.config_name else {}
        fields |= {"data.leave_out": self.left_out} if self.left_out else {}
        return [f"{name}={json.dumps(value)}" for name, value in fields.items()]


def main(arguments: list[str] | None = None) -> dict:
    """Runs the command and returns the content of summary.json.

    Raises:
        SystemExit: 1 if a run failed, 130 after Ctrl-C, 143 after SIGTERM.
    """
    parser = make_parser()
    options = parser.parse_intermixed_args(arguments)
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        output_dir = options.output or Path(f"{recipe.run.output_dir}_grid")
        runs = plan(recipe, options)
        for run in runs:
            check_output_dir(load_recipe(options.recipe, [*options.overrides, *run.overrides(output_dir)]))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    code = run_missing(runs, options, output_dir)
    report = summarize(recipe, runs, output_dir)
    with written(output_dir / "summary.json") as path:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(report)}\nwrote {output_dir / 'summary.json'}")
    if code:
        raise SystemExit(code)
    return report


def make_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a yaml file")
    parser.add_argument("overrides", nargs="*", help="recipe fields for every run, as optim.epochs=3")
    parser.add_argument("--folds", type=numbers, help="as 1-5 or 1,3: of data.config_name; default: the recipe's own")
    parser.add_argument("--seeds", type=numbers, help="as 0-2; default: the recipe's own")
    parser.add_argument("--leave-out", help="classes, separated by commas, or all: each is left out once")
    parser.add_argument("--processes", type=int, default=1, help="of a run; on a machine with GPUs each has one")
    parser.add_argument("--output", type=Path, help="folder of the runs; default: the recipe's with _grid at its end")
    parser.add_argument("--keep-going", action="store_true", help="after a run that failed go on with the others")
    return parser


def numbers(text: str) -> list[int]:
    """Parses number ranges: `0-2,5` -> [0, 1, 2, 5]."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1-5 or 1,3")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(found))


def plan(recipe: Recipe, options: argparse.Namespace) -> list[Run]:
    """Lists all runs of the grid, ordered by seed, so that the first seed is complete early.

    Raises:
        ValueError: the data set does not have the requested folds or class.
    """
    configs: list[str | None] = [None]
    if options.folds:
        stem = re.fullmatch(r"(.*\D)\d+", recipe.data.config_name or "")
        if stem is None:
            raise ValueError(f"--folds: data.config_name is {recipe.data.config_name}, which has no number of a fold")
        configs = [f"{stem[1]}{fold}" for fold in options.folds]
    left_out: list[str | None] = [recipe.data.leave_out]
    if options.leave_out:
        features = load_builder(recipe.data, recipe.data.cache_dir).info.features
        classes = features["label"].names if "label" in features else []
        left_out = classes if options.leave_out == "all" else options.leave_out.split(",")
        if unknown := [name for name in left_out if name not in classes]:
            raise ValueError(f"--leave-out: {', '.join(unknown)} is not among the classes {', '.join(classes)}")
    seeds = options.seeds or [recipe.run.seed]
    return [Run(seed, config, label) for seed, label, config in itertools.product(seeds, left_out, configs)]


def run_missing(runs: list[Run], options: argparse.Namespace, output_dir: Path) -> int:
    """Runs the runs without a metrics.json; returns the exit code of the command."""
    failed = []
    for number, run in enumerate(runs, start=1):
        folder = output_dir / run.name
        with lock(folder) as handle:
            if handle is None:
                print(f"run {number} of {len(runs)}: {folder} is being run by another process")
                continue
            if (folder / "metrics.json").exists():
                continue
            print(f"run {number} of {len(runs)}: {folder}", flush=True)
            code, received = execute(command(run, options, output_dir), handle)
        if received is not None:
            print(f"stopped; the same command goes on from {folder}", file=sys.stderr)
            return 128 + received
        if code or not (folder / "metrics.json").exists():
            failed.append(folder)
            print(f"{folder} failed with exit code {code}", file=sys.stderr)
            if not options.keep_going:
                break
    return 1 if failed else 0


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[int | None]:
    """Locks a folder and yields its file descriptor, or `None` if another process holds the lock. The lock lasts as
    long as this process or any process that inherited the descriptor."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = True
    except BlockingIOError:
        is_ours = False
    try:
        yield handle if is_ours else None
    finally:
        os.close(handle)


def command(run: Run, options: argparse.Namespace, output_dir: Path) -> list[str]:
    """Returns the command that trains a run, in one process or in several with accelerate's launcher."""
    launcher = []
    if options.processes > 1:
        launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={options.processes}"]
        launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    overrides = [*options.overrides, *run.overrides(output_dir)]
    return [sys.executable, *launcher, str(TRAIN), options.recipe, *overrides]


def execute(arguments: list[str], handle: int) -> tuple[int, int | None]:
    """Runs a command that inherits `handle`; returns its exit code and the signal received meanwhile, if any. Signals
    are forwarded to the command, which may still write a checkpoint before it exits."""
    received: list[int] = []
    process = None

    def hand_on(number, _):
        received.append(number)
        if process is not None:
            process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    handlers = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    # torch detects a missing GPU by itself; accelerate's launcher has to be told.
    environment = os.environ | ({} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"})
    try:
        # In its own session, it does not get the terminal's Ctrl-C a second time.
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, env=environment, start_new_session=True, pass_fds=[handle]
        )
        if received:
            process.terminate()
        return process.wait(), received[0] if received else None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def summarize(recipe: Recipe, runs: list[Run], output_dir: Path) -> dict:
    """Summarizes the finished runs: one row per evaluation set, or per left-out class."""
    values: dict[tuple[str, str], dict[int, list]] = {}  # (row, metric) -> seed -> one value per fold
    finished = 0
    for run in runs:
        path = output_dir / run.name / "metrics.json"
        if path.exists():
            finished += 1
            final = json.loads(path.read_text(encoding="utf-8"))["final"]
            for row, metric, value in reported(run, final):
                values.setdefault((row, metric), {}).setdefault(run.seed, []).append(value)
    num_folds = len({run.config_name for run in runs})
    num_sets = Counter(row_name(name) for name in recipe.data.evaluation)  # evaluation sets may be folds too
    rows: dict[str, dict[str, dict]] = {}
    for (row, metric), by_seed in values.items():
        whole = {seed: some for seed, some in by_seed.items() if len(some) == num_folds * num_sets.get(row, 1)}
        means = {seed: None if None in some else float(np.mean(some)) for seed, some in whole.items()}
        rows.setdefault(row, {})[metric] = over_seeds(means)
    classes = list(dict.fromkeys(run.left_out for run in runs if run.left_out))
    if len(classes) > 1 and rows.keys() == set(classes):
        rows[ALL_CLASSES] = {"recall": over_rows([rows[name]["recall"] for name in classes])}
    add_reference(rows, recipe.reference)
    return {
        "title": recipe.title,
        "finished": finished,
        "runs": len(runs),
        "rows": rows,
        "reference": recipe.reference,
    }


def reported(run: Run, final: dict[str, dict]) -> Iterator[tuple[str, str, float | None]]:
    """Yields row, metric and value of each evaluation set; for a left-out class, only its recall on the first set."""
    if run.left_out:
        yield run.left_out, "recall", next(iter(final.values()))["recall"][run.left_out]
        return
    for name, metrics in final.items():
        for metric in MAIN_METRICS:
            if metric in metrics:
                yield row_name(name), metric, metrics[metric]


if __name__ == "__main__":
    main()

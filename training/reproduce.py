# SPDX-License-Identifier: Apache-2.0
"""The papers in miniature: runs what training/reproduction/claims.yaml says, and writes docs/reproduction.md.

python -m training.reproduce [--fast] [--processes 2] [--rows NAME ...]

What is done is not run again: stopped at any time, the same command goes on. The document says what has not been run.
"""

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from training.reproduction.claims import load_claims
from training.reproduction.runs import ROOT, run_missing


def main(arguments: list[str] | None = None) -> None:
    """The command.

    Raises:
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="small and with one seed: does everything run?")
    parser.add_argument("--processes", type=int, default=1, help="that share the runs; default: 1")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="of claims.yaml; default: all")
    parser.add_argument("--output", type=Path, help="folder of the runs; default: outputs/reproduction[_fast]")
    options = parser.parse_args(arguments)
    claims = load_claims(fast=options.fast)
    if unknown := sorted(set(options.rows or ()) - set(claims.rows)):
        parser.error(f"claims.yaml has no row {', '.join(unknown)}; it has {', '.join(claims.rows)}")
    output_dir = options.output or ROOT / "outputs" / ("reproduction_fast" if options.fast else "reproduction")
    runs = [run for run in claims.runs() if options.rows is None or run.row in options.rows]
    torch.set_num_threads(1)  # the tensors are too small to be shared among threads
    with helpers(arguments, options.processes - 1):
        run_missing(claims, output_dir, runs)


@contextlib.contextmanager
def helpers(arguments: list[str] | None, number: int) -> Iterator[None]:
    """So many processes of the same command, which share the runs with this one and end with it."""
    command = [sys.executable, "-m", "training.reproduce", *(sys.argv[1:] if arguments is None else arguments)]
    started = [subprocess.Popen([*command, "--processes", "1"], cwd=ROOT) for _ in range(number)]
    try:
        yield
        for process in started:
            process.wait()
    finally:
        for process in started:
            process.terminate()


if __name__ == "__main__":
    main()

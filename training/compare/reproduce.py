# SPDX-License-Identifier: Apache-2.0
"""Reproduces the papers in miniature: runs training/reproduction/claims.yaml and writes docs/reproduction.md.

python -m training.compare.reproduce [--fast] [--processes 2] [--rows NAME ...]
python -m training.compare.reproduce --document

Finished runs are not repeated: after an interruption, the same command continues. The document lists missing runs.
Records, document, pictures and the README's block are written to their places in the repository, those of --fast to
the folder of its runs. --document rewrites everything except the records, from the records.
"""

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from training.reproduction import records
from training.reproduction.claims import Claims, load_claims
from training.reproduction.document import write_document
from training.reproduction.numbers import Results
from training.reproduction.readme import readme_block, write_block
from training.reproduction.runs import ROOT, collect, run_missing

DOCUMENT, README = ROOT / "docs" / "reproduction.md", ROOT / "README.md"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Raises:
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM.
    """
    options = parse_options(arguments)
    claims = load_claims(fast=options.fast)
    if unknown := sorted(set(options.rows or ()) - set(claims.rows)):
        sys.exit(f"error: claims.yaml has no row {', '.join(unknown)}; it has {', '.join(claims.rows)}")
    output_dir = options.output or ROOT / "outputs" / ("reproduction_fast" if options.fast else "reproduction")
    target = output_dir / DOCUMENT.name if options.fast else DOCUMENT
    kept = target.with_suffix("") / "results.json"
    if not options.document:
        runs = [run for run in claims.runs() if options.rows is None or run.row in options.rows]
        torch.set_num_threads(1)  # the tensors are too small to benefit from threads
        with helpers(arguments, options.processes - 1):
            run_missing(claims, output_dir, runs)
        if options.runs_only:
            return
        kept.parent.mkdir(parents=True, exist_ok=True)
        records.keep(collect(claims, output_dir), claims, kept)
    write(claims, kept, target, None if options.fast else README)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="small and with one seed: does everything run?")
    parser.add_argument("--processes", type=int, default=1, help="that share the runs; default: 1")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="of claims.yaml; default: all")
    parser.add_argument("--output", type=Path, help="folder of the runs; default: outputs/reproduction[_fast]")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--document", action="store_true", help="run nothing, write the document from the kept records")
    only.add_argument("--runs-only", action="store_true", help="write no document")
    return parser.parse_args(arguments)


def write(claims: Claims, kept: Path, target: Path, readme: Path | None) -> None:
    """Writes the document, its pictures, and the README's block."""
    results = Results(claims, records.load_kept(kept))
    write_document(results, target)
    print(f"wrote {target}")
    if readme is not None:
        write_block(readme, readme_block(results))
        print(f"wrote the results of {readme}")


@contextlib.contextmanager
def helpers(arguments: list[str] | None, number: int) -> Iterator[None]:
    """Starts `number` processes of the same command, which share the runs with this one and end with it."""
    command = [sys.executable, "-m", "training.compare.reproduce", *(sys.argv[1:] if arguments is None else arguments)]
    started = [subprocess.Popen([*command, "--processes", "1", "--runs-only"], cwd=ROOT) for _ in range(number)]
    try:
        yield
        for process in started:
            process.wait()
    finally:
        for process in started:
            process.terminate()


if __name__ == "__main__":
    main()

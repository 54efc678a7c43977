# SPDX-License-Identifier: Apache-2.0
"""Benchmark of EmoCLIP's speed: ratios of medians timed in turns in one run, and the processor's peak.

python -m tools.benchmark [--full] [--json FILE] [--parts encoding calls ...] [--page docs/performance.md]

Random weights in the shape of ViT-B/32, no download. A few minutes on two idle cores, or an hour with --full.
"""

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from tools.benchmark.devices import gpu_lines
from tools.benchmark.encoding import encoding_lines
from tools.benchmark.growth import growth, plot
from tools.benchmark.measuring import DEFAULT, FULL, SMOKE
from tools.benchmark.memory import memory_lines
from tools.benchmark.over_time import live_lines, timeline_lines
from tools.benchmark.report import about, machine, table, write_page
from tools.benchmark.training_epoch import training_lines
from tools.benchmark.whole_call import again_lines, call_lines

PARTS = {
    "calls": call_lines,
    "again": again_lines,
    "timeline": timeline_lines,
    "live": lambda sizes, folder: live_lines(sizes),
    "training": training_lines,
    "memory": memory_lines,
    "gpu": gpu_lines,
}


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more rounds, longer films, 40,000 clips to cache")
    parser.add_argument("--smoke", action="store_true", help="a tiny model: whether it runs, its figures mean nothing")
    parser.add_argument("--rounds", type=int, help="how often each way is timed")
    parser.add_argument("--parts", nargs="+", choices=["encoding", *PARTS, "growth"], help="only these")
    parser.add_argument("--json", type=Path, help="file to write what is measured to")
    parser.add_argument("--page", type=Path, help="page whose table to replace, and the plot beside it")
    options = parser.parse_args(arguments)
    sizes = FULL if options.full else SMOKE if options.smoke else DEFAULT
    sizes = replace(sizes, rounds=options.rounds) if options.rounds else sizes
    measured = measure(sizes, options.parts or ["encoding", *PARTS, "growth"], options.json)
    print(about(measured), table(measured), sep="\n\n")
    if options.page:
        write_page(options.page, measured)
        if measured["growth"]:
            plot(measured["growth"], options.page.with_name(f"{options.page.stem}_growth.png"))
    return measured


def measure(sizes, parts: list[str], path: Path | None) -> dict:
    """Measures the parts and writes the results after each one, so that an interruption loses one part only."""
    measured = {"machine": machine({}), "lines": [], "growth": {}}
    with tempfile.TemporaryDirectory() as folder:
        for part in ["encoding", *PARTS, "growth"]:
            if part not in parts:
                continue
            if part == "encoding":
                lines, peaks = encoding_lines(sizes)
                measured["machine"]["peak_gflops"] = {name: round(value / 1e9, 1) for name, value in peaks.items()}
            elif part == "growth":
                lines, measured["growth"] = [], growth(sizes, Path(folder))
            else:
                lines = PARTS[part](sizes, Path(folder))
            measured["lines"] += [line.to_dict() for line in lines]
            if path:
                unfinished = path.with_name(f"{path.name}.tmp")
                unfinished.write_text(json.dumps(measured, indent=2))
                os.replace(unfinished, path)
    return measured


if __name__ == "__main__":
    main()

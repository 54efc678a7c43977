# SPDX-License-Identifier: Apache-2.0
"""Report of the benchmark: the table on screen and in docs/performance.md, whose other text is written by hand."""

import os
import platform
from pathlib import Path

import torch
import transformers

START, END = (
    "<!-- written by python -m tools.benchmark: start -->",
    "<!-- written by python -m tools.benchmark: end -->",
)
VERDICTS = {True: "holds", False: "missed", None: ""}


def machine(peaks: dict[str, float]) -> dict:
    can = torch.cpu.get_capabilities()
    return {
        "processor": f"{can.get('cpu_name') or platform.processor()}, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "instructions": [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if can.get(name)],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "peak_gflops": {name: round(value / 1e9, 1) for name, value in peaks.items()},
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(measured: dict) -> str:
    rows = ["| part | what | value | goal | | note |", "|---|---|---|---|---|---|"]
    for line in measured["lines"]:
        rows.append(
            f"| {line['part']} | {line['what']} | {value_of(line)} | {goal_of(line)} | {VERDICTS[line['holds']]} | "
            f"{line['note']} |"
        )
    return "\n".join(rows)


def value_of(line: dict) -> str:
    if line["value"] is None:
        return "not measured"
    unit = line["unit"]
    number = (
        f"{line['value']:.5f}"
        if unit == ""
        else f"{line['value']:.3g}"
        if line["value"] < 99
        else f"{line['value']:.1f}"
    )
    return f"{number}{' ' * bool(unit)}{unit}"


def goal_of(line: dict) -> str:
    if line["least"] is not None:
        return f"at least {line['least']:g}"
    return "" if line["most"] is None else f"at most {line['most']:g}"


def about(measured: dict) -> str:
    on = measured["machine"]
    peaks = ", ".join(f"{name} {value:g} GFLOP/s" for name, value in on["peak_gflops"].items())
    gpu = on["gpu"] or "no GPU"
    return (
        f"Processor: {on['processor']} with {', '.join(on['instructions']) or 'no vector instructions'}, "
        f"{on['threads']} threads, {gpu}; torch {on['torch']}, transformers {on['transformers']}. Peak of a matrix "
        f"product, measured in the same rounds: {peaks}. The machine's load at the start was {on['load']}; if that is "
        "above the number of threads, other work ran beside, and times are longer; ratios are of runs in turns."
    )


def write_page(page: Path, measured: dict) -> None:
    """Replaces the table between its markers and keeps the rest of the page."""
    text = page.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    page.write_text(f"{before}{START}\n\n{about(measured)}\n\n{table(measured)}\n\n{END}{after}", encoding="utf-8")

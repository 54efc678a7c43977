# SPDX-License-Identifier: Apache-2.0
"""What was recorded of the long runs -> the table of docs/reliability.md.

python -m tools.reliability.fuzz_video --number 3000 --record
python -m tools.reliability.fuzz_video --number 3000 --in-process --record
python -m tools.reliability.fuzz_video --number 980 --time-lines --record
python -m tools.reliability.fuzz_video --number 980 --time-lines --in-process --record
python -m tools.reliability.long_run --record
python -m tools.reliability.hostile_files --record
python -m tools.reliability.guard_cost --record
python -m tools.reliability.report
"""

import json
import os
import platform
import re
from datetime import date
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
RECORDS = DOCS / "reliability.json"
DOCUMENT = DOCS / "reliability.md"
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of table -->)", re.DOTALL)


def keep(name: str, result: dict) -> None:
    """Puts a result into the records, with the day and the machine."""
    records = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
    records[name] = result | {"date": date.today().isoformat(), "machine": machine}
    RECORDS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def fuzz_row(what: str, result: dict) -> list[str]:
    """Of fuzz_video.py."""
    outcomes = "; ".join(f"{number:,} {name}" for name, number in result["outcomes"].items())
    happened = f"{outcomes}; memory {result['memory_growth']:+.1%}; the slowest {result['slowest_seconds']:.1f} s"
    if result.get("reader_megabytes"):
        happened += f"; the guarded process took at most {result['reader_megabytes']:,} MB"
    how_often = f"{result['files']:,} files in {len(result['containers'])} containers, {result['kinds']} kinds"
    return [what, how_often, happened]


def cost_rows(result: dict) -> list[list[str]]:
    """Of guard_cost.py."""
    ends, rows = result["ctrl_c_seconds"], []
    for what, key in (("16 frames of a video", "costs"), ("a time line of 10 s", "time_line_costs")):
        ratios = ", ".join(f"{one['ratio']:.2f} for {size}" for size, one in result[key].items())
        rows.append([f"{what}, guarded against in the caller", f"{result['turns']} turns", f"times as long: {ratios}"])
    return [
        *rows,
        [
            "Ctrl-C while `emoclip classify` works",
            f"{len(ends)} times",
            f"ended after {ends[len(ends) // 2]:.1f} s (median; the longest {ends[-1]:.1f} s)",
        ],
    ]


def rows(records: dict) -> list[list[str]]:
    """What was done to it, how often, what happened."""
    long_run, hostile = records["long_run"], records["hostile_files"]
    return [
        fuzz_row("damaged videos, read in the guarded process (the default)", records["fuzz_guarded"]),
        fuzz_row("damaged videos, read in the caller's process", records["fuzz_in_process"]),
        fuzz_row("time lines of damaged videos, drawn into them with their sound", records["fuzz_time_lines_guarded"]),
        fuzz_row("the same, decoded in the caller's process", records["fuzz_time_lines_in_process"]),
        [
            "calls of one pipeline, every tenth with a damaged video, a thousand label sets",
            f"{long_run['calls']:,} calls",
            f"{long_run['errors']:,} clear errors; memory {long_run['memory_growth']:+.1%}",
        ],
        *cost_rows(records["guard_cost"]),
        *(
            [one["what"], "1 file", f"{one['outcome']}; {max(one['megabytes'], 0):.0f} MB more than a usual video"]
            for one in hostile["files"]
        ),
    ]


def table(records: dict) -> str:
    """In Markdown."""
    lines = ["| what was done to it | how often | what happened |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(records)]
    days = sorted({one["date"] for one in records.values()})
    machines = sorted({one["machine"] for one in records.values()})
    lines += ["", f"Run on {' and '.join(machines)}; {' to '.join(dict.fromkeys((days[0], days[-1])))}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    text = table(json.loads(RECORDS.read_text(encoding="utf-8")))
    DOCUMENT.write_text(TABLE.sub(lambda _: text, DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")

# SPDX-License-Identifier: Apache-2.0
"""What reading in another process costs, 16 frames of a video, and time lines, guarded and not in turns; and how soon
Ctrl-C ends it.

python -m tools.reliability.guard_cost [--record]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from emoclip import EmoCLIPModel, EmoCLIPProcessor, ZeroShotVideoClassificationPipeline
from modeling_emoclip.video_reading import read_video
from tools.reliability.report import keep
from tools.reliability.video_mutations import write_noise

TURNS = 12
SIZES = {"96 x 64": (96, 64), "640 x 480": (640, 480)}
# The first answer is printed, and then the answers go on.
CLASSIFY = """
import sys
from training.console import main
sys.exit(main(["classify", *10000 * [sys.argv[2]], "--model", sys.argv[1], "--labels", "a", "b", "--json"]))
"""
MODEL = Path(__file__).parents[2] / "examples" / "tiny_clip"


def sixteen(metadata) -> np.ndarray:
    return np.linspace(0, metadata.total_num_frames - 1, 16).round().astype(int)


def read_sixteen(path: Path) -> Callable[[bool], object]:
    """What takes the time: 16 frames."""
    return lambda guarded: read_video(path, sixteen, guarded=guarded)


def draw_time_line(path: Path) -> Callable[[bool], object]:
    """What takes the time: a time line with 8 frames a second, by the smallest model there is."""
    processor = EmoCLIPProcessor.from_clip(MODEL)
    pipe = ZeroShotVideoClassificationPipeline(model=EmoCLIPModel.from_clip(MODEL).eval(), processor=processor)

    def run(guarded: bool):
        processor.video_processor.guard_decoding = guarded
        return pipe.timeline(path, ["a smile", "a frown"], faces="none", progress=False)

    return run


def cost(work: Callable[[bool], object]) -> dict:
    """Medians over turns."""
    seconds = {True: [], False: []}
    for _ in range(TURNS):
        for guarded, found in seconds.items():
            start = time.perf_counter()
            work(guarded)
            found.append(time.perf_counter() - start)
    guarded, plain = (float(np.median(seconds[key][2:])) for key in (True, False))
    return {"guarded_ms": 1000 * guarded, "in_process_ms": 1000 * plain, "ratio": guarded / plain}


def seconds_to_end(path: Path) -> float:
    """From Ctrl-C to the end of the command."""
    command = [sys.executable, "-c", CLASSIFY, str(MODEL), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    process.stdout.readline()
    start = time.perf_counter()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    return time.perf_counter() - start


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="into docs/reliability.json")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have made it deaf to it
    with tempfile.TemporaryDirectory() as folder:
        result = {"turns": TURNS, "costs": {}, "time_line_costs": {}}
        for name, (width, height) in SIZES.items():
            path = write_noise(Path(folder) / f"{width}.mp4", num_frames=50, width=width, height=height)
            result["costs"][name] = cost(read_sixteen(path))
            path = write_noise(Path(folder) / f"{width}.long.mp4", num_frames=250, width=width, height=height)
            result["time_line_costs"][name] = cost(draw_time_line(path))
        result["ctrl_c_seconds"] = sorted(seconds_to_end(path) for _ in range(3))
    print(json.dumps(result, indent=2))
    if options.record:
        keep("guard_cost", result)


if __name__ == "__main__":
    main()

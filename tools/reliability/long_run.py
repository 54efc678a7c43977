# SPDX-License-Identifier: Apache-2.0
"""Calls the pipeline thousands of times, with good and bad videos and ever new labels, and watches its memory.

python -m tools.reliability.long_run [--number 10000] [--record]

Exit status 1 if memory, of this process and of those that read its videos, grows by 5 % from the second tenth of the
calls to the last.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from tqdm import tqdm

from emoclip import EmoCLIPModel, EmoCLIPProcessor, ZeroShotVideoClassificationPipeline
from tools.reliability.report import keep
from tools.reliability.video_mutations import make_videos, mutations

TINY_CLIP = Path(__file__).parents[2] / "examples" / "tiny_clip"
LARGEST_GROWTH = 0.05
NUM_DAMAGED = 90  # one of them in every tenth call


def memory_of(process: psutil.Process) -> int:
    """Bytes, with those of the processes that it started."""
    return sum(one.memory_info().rss for one in [process, *process.children()])


def main() -> int:
    """The command; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--record", action="store_true", help="into docs/reliability.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = EmoCLIPModel.from_clip(TINY_CLIP), EmoCLIPProcessor.from_clip(TINY_CLIP, num_frames=8)
    pipe = ZeroShotVideoClassificationPipeline(model=model, processor=processor)
    process, memory, errors, start = psutil.Process(), [], 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        videos = make_videos(Path(folder))
        good = sorted(path for path in Path(folder).iterdir())
        bad = [Path(folder, mutation.name) for mutation in mutations(videos, NUM_DAMAGED, seed=1)]
        for path, mutation in zip(bad, mutations(videos, NUM_DAMAGED, seed=1), strict=True):
            path.write_bytes(mutation.data)
        for call in tqdm(range(options.number), unit="call"):
            video = bad[call // 10 % len(bad)] if call % 10 == 9 else good[call % len(good)]
            labels = ["a smile", f"a face of kind {call % 1000}"]  # more label sets than are kept
            try:
                pipe(str(video), candidate_labels=labels)
            except ValueError:
                errors += 1
            memory.append(memory_of(process))
    tenth = options.number // 10
    tenths = [float(np.median(memory[first : first + tenth])) for first in range(0, 10 * tenth, tenth)]
    result = {
        "calls": options.number,
        "errors": errors,
        "seconds": time.perf_counter() - start,
        "megabytes_by_tenth": [round(one / 2**20, 1) for one in tenths],
        "memory_growth": tenths[-1] / tenths[1] - 1,
    }
    print(json.dumps(result, indent=2))
    if options.record:
        keep("long_run", result)
    return int(result["memory_growth"] >= LARGEST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())

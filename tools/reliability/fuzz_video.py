# SPDX-License-Identifier: Apache-2.0
"""Reads damaged videos as the package reads them, in a process that is watched from outside.

python -m tools.reliability.fuzz_video [--number 2000] [--seed 0] [--time-lines] [--in-process] [--record]

Each file must be decoded, or be one error that names it. What goes wrong otherwise is printed and makes the exit
status 1: a crash or a hang of the caller, another error, memory that grows. With --time-lines a time line is made of
each file, all its frames, and then drawn into it, with its sound; without, three of its frames are read. With
--in-process there is no guarded process, and a crash is the caller's: it is counted, and the next file is read in a
new one. --record puts the counts into docs/reliability.json, from which `python -m tools.reliability.report` writes
the table of docs/reliability.md.
"""

import argparse
import contextlib
import json
import re
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
from tqdm import tqdm

from emoclip import EmoCLIPModel, EmoCLIPProcessor, ZeroShotVideoClassificationPipeline
from modeling_emoclip.video_limits import VideoDecodeError
from modeling_emoclip.video_reading import read_video
from tools.reliability.report import keep
from tools.reliability.video_mutations import Mutation, make_videos, mutations

TIME_LIMIT = 10.0  # seconds for a file, of `VideoLimits`
# Of a service: a day of time line, or 25 pictures of 4096 x 4096 to draw into, are legal, and no hang.
LIMITS = {"time_limit": TIME_LIMIT, "max_seconds": 600, "max_pixels": 4096 * 2304}
HANG = 3 * TIME_LIMIT  # after which the caller is taken for hung
LARGEST_GROWTH = 0.05  # of the caller's memory, from the second tenth of the run to the last


def first_middle_last(metadata) -> np.ndarray:
    """Frames that make a decoder look at the whole file."""
    last = metadata.total_num_frames - 1
    return np.unique([0, last // 2, last])


def read_three(path: Path, guarded: bool) -> str:
    """Its first, middle and last frame."""
    frames, _ = read_video(path, first_middle_last, limits=LIMITS, guarded=guarded)
    return "decoded" if frames.dtype == np.uint8 and frames.ndim == 4 and len(frames) else "wrong error: no frames"


def make_reader(time_lines: bool, guarded: bool) -> Callable[[Path], str]:
    """What is done to each file; it returns "decoded", or what else is right."""
    if not time_lines:
        return partial(read_three, guarded=guarded)
    clip = Path(__file__).parents[2] / "examples" / "tiny_clip"
    how = {"num_frames": 8, "video_limits": LIMITS, "guard_decoding": guarded}
    processor = EmoCLIPProcessor.from_clip(clip, **how)
    pipe = ZeroShotVideoClassificationPipeline(model=EmoCLIPModel.from_clip(clip).eval(), processor=processor)

    def draw(path: Path) -> str:
        timeline = pipe.timeline(path, ["a smile", "a frown"], faces="none", progress=False)
        try:
            timeline.annotate(path.with_suffix(".drawn.mp4"), progress=False).unlink()
        except ValueError as error:
            if f"{path.name} has frames of" not in str(error):
                raise
            return "decoded but not drawn for its size"
        return "decoded" if timeline.complete else "decoded in part"

    return draw


def outcome(path: Path, read: Callable[[Path], str]) -> str:
    """What reading the file came to: as `read` says, "refused", "ended for its time", "crashed its decoder", or what
    must not be: "wrong error: ..."."""
    try:
        return read(path)
    except VideoDecodeError as error:
        if path.name not in str(error):
            return f"wrong error: does not name {path.name}: {error}"
        if "not read within" in str(error):
            return "ended for its time"
        return "crashed its decoder" if "crashed its decoder" in str(error) else "refused"
    except Exception as error:
        return f"wrong error: {type(error).__name__}: {error}"


def read_all(damaged: Iterator[Mutation], folder: Path, read: Callable[[Path], str]) -> Iterator[dict]:
    """A record of each file: its name, what came of it, seconds, and the bytes of memory of this process."""
    process = psutil.Process()
    for mutation in damaged:
        path, start = folder / mutation.name, time.perf_counter()
        path.write_bytes(mutation.data)
        result = outcome(path, read)
        path.unlink()
        if left := sorted(other.name for other in folder.glob(f"*{path.stem}*")):
            result = f"wrong error: it leaves {', '.join(left)} after {result}"
        seconds = time.perf_counter() - start
        about = {"name": mutation.name, "container": mutation.container, "kind": mutation.kind}
        memory = {"memory": process.memory_info().rss, "reader_megabytes": reader_megabytes(process)}
        yield about | {"outcome": result, "seconds": seconds} | memory


def reader_megabytes(process: psutil.Process) -> float:
    """The most memory that a guarded process of this one has ever had, as Linux counts it; 0 if there is none."""
    peaks = [0.0]
    for reader in process.children():
        with contextlib.suppress(psutil.Error, OSError, TypeError):  # it has ended, or this is not Linux
            status = Path(f"/proc/{reader.pid}/status").read_text(encoding="utf-8")
            peaks.append(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)
    return max(peaks)


def watched(arguments: list[str], number: int) -> Iterator[dict]:
    """The records of a process that reads all files; it is started again, one file on, when it crashes or hangs."""
    done = 0
    while done < number:
        command = [sys.executable, __file__, *arguments, "--child", str(done)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1)
        patience = 10 * HANG  # until torch is imported
        while done < number:
            ready, _, _ = select.select([child.stdout], [], [], patience)
            line = child.stdout.readline() if ready else ""
            if not line:
                child.kill()
                why = f"crashed the caller ({child.wait()})" if ready else "hung the caller"
                yield {"name": f"file {done}", "outcome": why}
                done += 1
                break
            yield json.loads(line)
            done, patience = done + 1, HANG
        child.stdout.close()
        child.wait()


def summary(records: list[dict]) -> dict:
    """Counts of what came of the files, the slowest one, how much memory grew, and the most that a reader took."""
    memory = [record["memory"] for record in records if "memory" in record]
    tenth = max(1, len(memory) // 10)
    counts = Counter(record["outcome"].partition(":")[0].partition(" (")[0] for record in records)
    return {
        "files": len(records),
        "containers": dict(Counter(record["container"] for record in records if "container" in record)),
        "kinds": len({record["kind"] for record in records if "kind" in record}),
        "outcomes": dict(counts.most_common()),
        "slowest_seconds": max(record.get("seconds", 0) for record in records),
        "reader_megabytes": round(max(record.get("reader_megabytes", 0) for record in records)),
        "memory_growth": float(np.median(memory[-tenth:]) / np.median(memory[tenth : 2 * tenth]) - 1),
    }


def main() -> int:
    """The command; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-lines", action="store_true", help="all frames and the sound, as `pipe.timeline` reads")
    parser.add_argument("--in-process", action="store_true", help="without the guarded process")
    parser.add_argument("--record", action="store_true", help="into docs/reliability.json")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        with tempfile.TemporaryDirectory() as folder:
            damaged = islice(mutations(make_videos(Path(folder)), options.number, options.seed), options.child, None)
            for record in read_all(damaged, Path(folder), make_reader(options.time_lines, not options.in_process)):
                print(json.dumps(record), flush=True)
        return 0
    arguments = [argument for argument in sys.argv[1:] if argument != "--record"]
    records = list(tqdm(watched(arguments, options.number), total=options.number, unit="file"))
    result = summary(records)
    for record in records:
        if "caller" in record["outcome"] or record["outcome"].startswith("wrong"):
            print(record["name"], record["outcome"])
    print(json.dumps(result, indent=2))
    if options.record:
        where = "in_process" if options.in_process else "guarded"
        keep(f"fuzz_time_lines_{where}" if options.time_lines else f"fuzz_{where}", result)
    bad = [name for name in result["outcomes"] if "caller" in name or name.startswith("wrong")]
    return int(bool(bad) or result["memory_growth"] > LARGEST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())

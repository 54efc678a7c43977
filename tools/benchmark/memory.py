# SPDX-License-Identifier: Apache-2.0
"""Part 6 of the benchmark: peak memory, measured in separate processes; only on Linux, whose kernel records it."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset

from tools.benchmark.measuring import LABELS, Line, Sizes, make_model, make_pipe, make_processor, write_film
from training.cache.feature_cache import encode_frames
from training.gradient_cache import backward_in_chunks

PART = "6 memory"
ROOT = Path(__file__).parents[2]
CHUNK = 32
FRAMES = 16
STATUS, PEAK_STARTS_ANEW = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory_lines(sizes: Sizes, folder: Path) -> list[Line]:
    if not PEAK_STARTS_ANEW.exists():
        return [Line(PART, "peaks", None, "", note="on Linux only")]
    few, many = sizes.cached_clips
    one, four = (peak("clips", sizes, folder, number) for number in (1, 4))
    small = peak("contrastive", sizes, folder, CHUNK, CHUNK)
    chunks = peak("contrastive", sizes, folder, sizes.contrastive_clips, CHUNK)
    whole = peak("contrastive", sizes, folder, sizes.contrastive_clips, sizes.contrastive_clips)
    cached_few, cached_many = (peak("caching", sizes, folder, number) for number in (few, many))
    return [
        Line(PART, "peak of a call, one clip", one["peak"], "MB", note=f"{four['peak']:.0f} MB for a batch of 4"),
        Line(
            PART,
            f"batch of {sizes.contrastive_clips:,} in chunks / batch of {CHUNK}",
            chunks["whole"] / small["whole"],
            most=1.1,
            note=f"whole processes; above the loaded model {chunks['peak']:.0f} and {small['peak']:.0f} MB, most of "
            f"the difference for scores of all pairs; without chunks {whole['peak']:.0f} MB",
        ),
        Line(
            PART,
            f"caching {many:,} clips / {few:,} clips",
            cached_many["whole"] / cached_few["whole"],
            most=1.1,
            note=f"whole processes; {cached_many['whole']:.0f} MB",
        ),
    ]


def peak(what: str, sizes: Sizes, folder: Path, *arguments: int) -> dict[str, float]:
    """Measures peaks in MB in a new process: `whole` of the process, `peak` of what it adds to the loaded model."""
    command = [sys.executable, "-m", "tools.benchmark.memory", what, json.dumps(asdict(sizes)), str(folder)]
    command += map(str, arguments)
    paths = [str(ROOT)]
    code = f"import runpy, sys; sys.path[:0] = {paths!r}; sys.argv = sys.argv[1:]; "
    code += "runpy.run_module('tools.benchmark.memory', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, *command[2:]], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def clips(sizes: Sizes, folder: Path, number: int):
    pipe = make_pipe(sizes)
    film = str(write_film(folder / f"memory_{number}.mp4", 1))
    return lambda: pipe([film] * number, LABELS, batch_size=number)


def contrastive(sizes: Sizes, folder: Path, number: int, chunk: int):
    """Prepares a training step of the temporal transformer on cached frames: 2 layers over 1 + 16 tokens."""
    model, accelerator = make_model(sizes), Accelerator(cpu=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("temporal.", "logit_scale")))
    width = model.config.projection_dim
    batch = {
        "frame_embeds": torch.randn(number, FRAMES, width),
        "text_embeds": torch.randn(number, width),
        "return_loss": True,
    }
    return lambda: backward_in_chunks(model.train(), batch, accelerator, chunk)


def caching(sizes: Sizes, folder: Path, number: int):
    """Prepares caching with the tiny tower, because memory per clip does not depend on the tower."""
    small = Sizes(vision="tiny", num_frames=4)
    film = write_film(folder / "clip.mp4", 1, width=64, height=48, fps=8)
    paths = [str(folder / f"clip_{index}.mp4") for index in range(number)]
    for path in paths:
        shutil.copyfile(film, path)
    model, processor = make_model(small), make_processor(small).video_processor
    processor.guard_decoding = False
    rows = Dataset.from_dict({"video": paths})
    return lambda: encode_frames(model, processor, rows, folder / f"cache_{number}")


def main(what: str, sizes: str, folder: str, *arguments: str) -> None:
    sizes = json.loads(sizes)
    run = {"clips": clips, "contrastive": contrastive, "caching": caching}[what](
        Sizes(**sizes | {"cached_clips": tuple(sizes["cached_clips"])}), Path(folder), *map(int, arguments)
    )
    before = memory("VmRSS")
    # Not getrusage's ru_maxrss, which a process inherits from its parent.
    PEAK_STARTS_ANEW.write_text("5")
    run()
    after = memory("VmHWM")
    print(json.dumps({"whole": after, "peak": after - before}))


def memory(field: str) -> float:
    """Reads a memory field of this process from the kernel, in MB."""
    return int(re.search(rf"{field}:\s+(\d+)", STATUS.read_text())[1]) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])

# SPDX-License-Identifier: Apache-2.0
"""Part 7 of the benchmark: a GPU, if available; the test runs the same code on a CPU."""

from pathlib import Path

import torch

from emoclip.frame_encoder import FrameEncoder
from tools.benchmark.measuring import (
    LABELS,
    Line,
    Sizes,
    in_turns,
    make_model,
    make_pipe,
    operations,
    product,
    random_frames,
    write_film,
)
from tools.benchmark.training_epoch import clips_per_second

PART = "7 GPU"
FRAMES = {"cuda": 256, "cpu": 8}
PRODUCT = {"cuda": 8192, "cpu": 64}


def gpu_lines(sizes: Sizes, folder: Path) -> list[Line]:
    if not torch.cuda.is_available():
        return [Line(PART, "frames a second, share of peak, training", None, "", note="no GPU at hand")]
    shapes = ["B/32", "L/14"] if sizes.vision == "B/32" else [sizes.vision]
    lines = [line for vision in shapes for line in encoding_on(sizes, "cuda", vision)]
    return lines + calls_on(sizes, "cuda", folder)


def encoding_on(sizes: Sizes, device: str, vision: str) -> list[Line]:
    """Measures frames per second, their share of the bfloat16 peak, and training speed."""
    model = make_model(sizes, vision=vision).to(device)
    frames = random_frames(sizes, FRAMES[device]).to(device)
    work = operations(lambda: model.vision_model(pixel_values=frames[:1])) * len(frames)
    run, flops = product(torch.bfloat16, PRODUCT[device], device)
    encoder, ready = FrameEncoder(model, torch.bfloat16), waits_for(device)
    ways = {"encode": lambda: (encoder(frames), ready()), "product": lambda: (run(), ready())}
    seconds = in_turns(ways, sizes.rounds, f"{vision} on {device}")
    share = 100 * work / seconds["encode"] / (flops / seconds["product"])
    clips = frames[:8].unflatten(0, (4, 2))
    frozen, trained = (max(clips_per_second(model, clips, towers) for _ in range(3)) for towers in (False, True))
    return [
        Line(PART, f"{vision}: frames a second", len(frames) / seconds["encode"], "/s"),
        Line(PART, f"{vision}: share of the bfloat16 peak", share, "%", least=50),
        Line(PART, f"{vision}: training, clips of 2 frames a second, towers frozen", frozen, "/s"),
        Line(PART, f"{vision}: training, clips of 2 frames a second, towers trained", trained, "/s"),
    ]


def calls_on(sizes: Sizes, device: str, folder: Path) -> list[Line]:
    """Measures whether decoding keeps up with encoding."""
    pipe, film = make_pipe(sizes, device=device), str(write_film(folder / "gpu.mp4", sizes.film_seconds))
    frames = random_frames(sizes, sizes.num_frames)
    ready = waits_for(device)
    ways = {
        "read": lambda: pipe.preprocess(film),
        "encode": lambda: (pipe.encode_frames(frames), ready()),
        "calls": lambda: pipe([film] * 8, LABELS),
    }
    seconds = in_turns(ways, sizes.rounds, f"calls on {device}")
    note = f"{8 / seconds['calls']:.1f} clips a second from files"
    return [Line(PART, "reading a clip / encoding it", seconds["read"] / seconds["encode"], most=1, note=note)]


def waits_for(device: str):
    return torch.cuda.synchronize if device == "cuda" else lambda: None

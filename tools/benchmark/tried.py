# SPDX-License-Identifier: Apache-2.0
"""Alternatives that might speed up encoding, each timed in turns against the code in use."""

import shutil

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import QuickGELUActivation

from emoclip.frame_encoder import FrameEncoder, _InPlaceQuickGELU
from tools.benchmark.measuring import Line, Sizes, in_turns, make_model, random_frames

PART = "tried"


@torch.no_grad()
def tried_lines(sizes: Sizes) -> list[Line]:
    model = make_model(sizes)
    frames = random_frames(sizes, 2 * sizes.num_frames)
    return [*part_lines(model, frames, sizes.rounds), *tower_lines(model, frames, sizes)]


def part_lines(model, frames: torch.Tensor, rounds: int) -> list[Line]:
    """Times parts of the tower in many rounds, since each takes milliseconds."""
    tower = model.vision_model
    convolution, layer = tower.embeddings.patch_embedding, tower.encoder.layers[0]
    channels_last = nn.Conv2d(3, convolution.out_channels, convolution.kernel_size, convolution.stride, bias=False)
    channels_last = channels_last.to(memory_format=torch.channels_last)
    turned = frames.to(memory_format=torch.channels_last)
    hidden = torch.randn(len(frames), tower.config.image_size // tower.config.patch_size + 1, tower.config.hidden_size)
    attention = [getattr(layer.self_attn, f"{name}_proj") for name in "qkv"]
    weight, bias = (torch.cat([getattr(part, name) for part in attention]) for name in ("weight", "bias"))
    wide, gelu, gelu_in_place = layer.mlp.fc1(hidden), QuickGELUActivation(), _InPlaceQuickGELU()
    ways = {
        "convolution": lambda: convolution(frames),
        "product": lambda: F.linear(patches(frames, convolution.kernel_size[0]), convolution.weight.flatten(1)),
        "channels last": lambda: channels_last(turned),
        "q, k, v": lambda: [part(hidden) for part in attention],
        "qkv": lambda: F.linear(hidden, weight, bias),
        "gelu": lambda: gelu(wide),
        "gelu in place": lambda: gelu_in_place(wide),
    }
    seconds = in_turns(ways, 5 * rounds, "parts of the tower")
    return [
        Line(PART, "patch embedding: convolution / matrix product", seconds["convolution"] / seconds["product"]),
        Line(PART, "patch embedding: convolution / channels last", seconds["convolution"] / seconds["channels last"]),
        Line(PART, "q, k, v: three products / one", seconds["q, k, v"] / seconds["qkv"]),
        Line(PART, "QuickGELU: three tensors / one", seconds["gelu"] / seconds["gelu in place"], note="in use"),
    ]


def patches(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Splits frames `(N, 3, H, W)` into flattened patches `(N, patches, 3 x size x size)`."""
    across = frames.unflatten(2, (-1, size)).unflatten(4, (-1, size))  # (N, 3, rows, size, columns, size)
    return across.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def tower_lines(model, frames: torch.Tensor, sizes: Sizes) -> list[Line]:
    in_use, half = FrameEncoder(model, torch.float32), len(frames) // 2
    eager = make_model(sizes, "eager")
    ways = {
        "in use": lambda: in_use(frames),
        "eager attention": lambda: FrameEncoder(eager, torch.float32)(frames),
        "half the batch": lambda: [in_use(part) for part in frames.split(half)],
        "a quarter": lambda: [in_use(part) for part in frames.split(half // 2)],
        "one thread": lambda: with_threads(1, lambda: in_use(frames)),
    }
    if sizes.compiles and shutil.which("g++"):
        compiled = FrameEncoder(model, torch.float32, compile=True)
        ways["compile"] = lambda: compiled(frames)
    seconds = in_turns(ways, sizes.rounds, "ways to encode")
    names = {
        "eager attention": "attention written out / sdpa",
        "half the batch": f"{half} frames at once / {2 * half}",
        "a quarter": f"{half // 2} frames at once / {2 * half}",
        "one thread": f"one thread / {torch.get_num_threads()}",
    }
    lines = [Line(PART, names[name], seconds[name] / seconds["in use"]) for name in names]
    compiles = seconds["in use"] / seconds["compile"] if "compile" in seconds else None
    return [*lines, Line(PART, "float32 / float32 compiled", compiles, note="an option, compile=True")]


def with_threads(number: int, run) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        run()
    finally:
        torch.set_num_threads(before)

# SPDX-License-Identifier: Apache-2.0
"""Shared functions of the benchmark parts: sizes, table lines, timing in turns, test models and films."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers import CLIPTokenizer

from emoclip import EmoCLIPConfig, EmoCLIPModel, EmoCLIPProcessor, EmoCLIPVideoProcessor
from emoclip import ZeroShotVideoClassificationPipeline as Pipeline
from training.build import SPECIAL_TOKENS

LABELS = ["happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"]  # DFEW's
VISION = {
    "B/32": {"patch_size": 32},
    "L/14": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    },
}


@dataclass(frozen=True)
class Sizes:
    """The sizes of the measurements."""

    vision: str = "B/32"
    rounds: int = 3
    num_frames: int = 16  # per clip
    num_clips: int = 2  # per batch
    film_seconds: int = 4
    timeline_seconds: int = 6
    live_frames: int = 40
    faces: int = 1000  # rendered clips whose answers are compared
    epoch_clips: int = 2000
    cached_clips: tuple[int, int] = (200, 800)
    contrastive_clips: int = 1024
    product: int = 2048  # rows and columns of the matrices that measure the machine's peak
    compiles: bool = True


DEFAULT = Sizes()
FULL = Sizes(
    rounds=7,
    num_clips=4,
    film_seconds=10,
    timeline_seconds=20,
    live_frames=400,
    epoch_clips=10_000,
    cached_clips=(2000, 40_000),
)
SMOKE = Sizes(
    vision="tiny",
    rounds=1,
    num_frames=4,
    num_clips=1,
    film_seconds=1,
    timeline_seconds=3,
    live_frames=4,
    faces=4,
    epoch_clips=256,
    cached_clips=(4, 8),
    contrastive_clips=64,
    product=128,
    compiles=False,
)


@dataclass
class Line:
    """One row of the table."""

    part: str
    what: str
    value: float | None  # None: not measured
    unit: str = "x"
    least: float | None = None  # goal: lower bound
    most: float | None = None  # goal: upper bound
    note: str = ""

    @property
    def holds(self) -> bool | None:
        if self.value is None or (self.least is None and self.most is None):
            return None
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    def to_dict(self) -> dict:
        return asdict(self) | {"holds": self.holds}


def in_turns(ways: dict[str, Callable], rounds: int, title: str) -> dict[str, float]:
    """Times each way and returns its median seconds; each round runs every way once, so that all see the same load."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in tqdm(range(-1, rounds), title, leave=False):  # round -1 is the warm-up
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def product(dtype: torch.dtype, size: int, device: str = "cpu") -> tuple[Callable, float]:
    """Returns a square matrix product to run, and its number of floating point operations."""
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: one @ other, 2.0 * size**3


@torch.no_grad()
def operations(run: Callable) -> float:
    """Counts the floating point operations of matrix products during a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def make_tokenizer() -> CLIPTokenizer:
    texts = [f"an expression of {label}." for label in LABELS]
    tokenizer = CLIPTokenizer(**SPECIAL_TOKENS).train_new_from_iterator(texts, 400)
    tokenizer.model_max_length = 77
    return tokenizer


def make_model(sizes: Sizes, attention: str = "sdpa", vision: str | None = None) -> EmoCLIPModel:
    """Builds a model with random weights, the same in every call."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    if sizes.vision == "tiny":
        text |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = EmoCLIPConfig(vision_config=VISION[vision or sizes.vision], text_config=text)
    return EmoCLIPModel._from_config(config, attn_implementation=attention).eval()


def make_processor(sizes: Sizes) -> EmoCLIPProcessor:
    size = VISION[sizes.vision].get("image_size", 224)
    how = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    return EmoCLIPProcessor(EmoCLIPVideoProcessor(num_frames=sizes.num_frames, **how), make_tokenizer())


def make_pipe(sizes: Sizes, **options) -> Pipeline:
    options = {"fast": True, "device": "cpu"} | options
    return Pipeline(model=make_model(sizes), processor=make_processor(sizes), **options)


def random_frames(sizes: Sizes, number: int) -> torch.Tensor:
    size = VISION[sizes.vision].get("image_size", 224)
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0))


def write_film(path: Path, seconds: int, width: int = 640, height: int = 360, fps: int = 25) -> Path:
    """Writes an H.264 film as cameras and the web do: moving noise with soft edges, a key frame every ten seconds."""
    noise = np.random.default_rng(0).integers(0, 255, (height // 20, width // 10, 3), dtype=np.uint8)
    picture = noise.repeat(20, axis=0).repeat(20, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"threads": "1", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(seconds * fps):
            frame = np.ascontiguousarray(np.roll(picture, 3 * number, axis=1)[:, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path

# SPDX-License-Identifier: Apache-2.0
"""Part 1 of the benchmark: encoding frames, compared to the originals' code and to the processor's peak."""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cosine_similarity
from tqdm.auto import tqdm

from emoclip import EmoCLIPModel, EmoCLIPProcessor
from emoclip.frame_encoder import FrameEncoder, fast_dtype
from modeling_emoclip.label_scoring import label_texts
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
)
from training.data.face_grammar import sample_clip
from training.data.face_renderer import render_clip
from training.data.face_vocabulary import EMOTION_NAMES

PART = "1 encoding"
TINY_CLIP = Path(__file__).parents[2] / "examples" / "tiny_clip"
NO_BFLOAT16 = "this processor has no bfloat16 instructions"


def encoding_lines(sizes: Sizes) -> tuple[list[Line], dict]:
    """Measures encoding; returns the lines, and the machine's peaks in floating point operations per second."""
    pipe = make_pipe(sizes)
    fast = fast_dtype(pipe.model)
    pixels = random_frames(sizes, sizes.num_clips * sizes.num_frames)
    clips = pixels.unflatten(0, (sizes.num_clips, sizes.num_frames))
    texts = {"texts_by_label": label_texts(LABELS)}
    plain = FrameEncoder(pipe.model, torch.float32)
    products = {name: product(getattr(torch, name), sizes.product) for name in peak_types(fast)}
    ways = {
        "originals": originals_way(sizes, pipe, clips),
        "ours": lambda: pipe.forward({"pixel_values_videos": clips}, **texts),
        "float32": lambda: plain(pixels),
        **{f"peak {name}": run for name, (run, _) in products.items()},
    }
    seconds = in_turns(ways, sizes.rounds, "encoding")
    peaks = {name: products[name][1] / seconds[f"peak {name}"] for name in products}
    work = operations(lambda: pipe.model.vision_model(pixel_values=pixels[:1])) * len(pixels)
    lines = [*speed_lines(seconds, peaks, work, fast), *accuracy_lines(sizes)]
    return lines, peaks


def peak_types(fast: torch.dtype) -> list[str]:
    # Without bfloat16 instructions, a product takes minutes, and nothing here uses bfloat16.
    return ["float32", "bfloat16"] if fast is torch.bfloat16 else ["float32"]


def originals_way(sizes: Sizes, pipe, clips: torch.Tensor):
    """Returns a call as in the originals: float32, eager attention, one batch, texts padded to 77 in every call."""
    model = make_model(sizes, "eager")
    texts = [f"an expression of {label}." for label in LABELS]
    tokens = pipe.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
    return torch.no_grad()(lambda: model(pixel_values_videos=clips, **tokens))


def speed_lines(seconds: dict, peaks: dict, work: float, fast: torch.dtype) -> list[Line]:
    ours, has_bfloat16 = seconds["ours"], fast is torch.bfloat16
    against_bfloat16 = ours / (work / peaks["bfloat16"]) if has_bfloat16 else None
    missing = "" if has_bfloat16 else NO_BFLOAT16
    return [
        Line(PART, "originals' time / ours", seconds["originals"] / ours, least=6, note=missing),
        Line(PART, "ours / bfloat16 ceiling", against_bfloat16, most=1.25, note=missing),
        Line(PART, "float32 / float32 ceiling", seconds["float32"] / (work / peaks["float32"]), most=1.25),
    ]


@torch.no_grad()
def accuracy_lines(sizes: Sizes) -> list[Line]:
    """Compares bfloat16 to float32: embeddings of a full-size random model, answers of a trained CLIP."""
    model, frames = make_model(sizes), random_frames(sizes, 8)
    cosine = least_cosine(FrameEncoder(model)(frames), FrameEncoder(model, torch.bfloat16)(frames))
    model = EmoCLIPModel.from_clip(str(TINY_CLIP), temporal_num_layers=0)
    faces, class_embeds = faces_and_classes(sizes, model)
    exact, rounded = (answers(FrameEncoder(model, dtype)(faces), class_embeds) for dtype in (None, torch.bfloat16))
    share, note = float((rounded == exact).float().mean()) * 100, f"{sizes.faces} rendered clips, trained tiny CLIP"
    return [
        Line(PART, "least cosine, bfloat16 and float32", cosine, "", 0.999),
        Line(PART, "same answer, bfloat16 and float32", share, "%", 99.9, note=note),
    ]


def faces_and_classes(sizes: Sizes, model) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns two frames of each rendered clip, `(2 x clips, 3, H, W)`, and embeddings of emotion names, `(C, D)`."""
    processor = EmoCLIPProcessor.from_clip(str(TINY_CLIP), num_frames=2)
    clips = [render_clip(sample_clip(0, "test", number), num_frames=2) for number in tqdm(range(sizes.faces), "faces")]
    pixels = processor(videos=list(np.stack(clips)), return_tensors="pt").pixel_values_videos
    texts = processor(text=[f"a {name} face" for name in EMOTION_NAMES], return_tensors="pt")
    return pixels.flatten(0, 1), model.get_text_features(**texts).pooler_output


def answers(frame_embeds: torch.Tensor, class_embeds: torch.Tensor) -> torch.Tensor:
    video_embeds = frame_embeds.unflatten(0, (-1, 2)).mean(dim=1)
    return cosine_similarity(video_embeds[:, None], class_embeds[None], dim=-1).argmax(dim=1)


def least_cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(cosine_similarity(one, other).min())

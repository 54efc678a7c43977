# SPDX-License-Identifier: Apache-2.0
"""Parts 2 and 3 of the benchmark: from a file to scores; a second call, and start-up."""

import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import av
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from modeling_emoclip import video_processing_emoclip
from tools.benchmark.measuring import LABELS, Line, Sizes, in_turns, make_pipe, write_film

CALL, AGAIN = "2 mp4 to scores", "3 again, and start"
IMPORTS = {
    "ours": "import modeling_emoclip",
    "theirs": "import torch; from transformers import CLIPModel, CLIPProcessor, pipeline",
    "names only": "import torch, transformers",
}


def call_lines(sizes: Sizes, folder: Path) -> list[Line]:
    pipe, film = make_pipe(sizes), write_film(folder / "film.mp4", sizes.film_seconds)
    naive = NaiveCLIP(pipe, sizes)
    films = [str(film)] * 4
    ways = {
        "ours": lambda: pipe(str(film), LABELS),
        "every frame": lambda: naive(film),
        "same frames": lambda: naive(film, sizes.num_frames),
        "ahead": lambda: pipe(films, LABELS),
        "in a row": lambda: [pipe(one, LABELS) for one in films],
    }
    seconds = in_turns(ways, sizes.rounds, "mp4 to scores")
    frames = f"{sizes.num_frames} of {sizes.film_seconds * 25} frames"
    lines = [
        Line(CALL, "CLIP over every frame / ours", seconds["every frame"] / seconds["ours"], least=4, note=frames),
        Line(CALL, "CLIP over the same frames / ours", seconds["same frames"] / seconds["ours"]),
        Line(CALL, "four calls / a list of four", seconds["in a row"] / seconds["ahead"], note="read while encoded"),
    ]
    shares = time_shares(pipe, film, sizes.rounds)
    lines += [Line(CALL, f"share of {name}", 100 * share, "%") for name, share in shares.items()]
    lines[-1].most = 5
    return lines


class NaiveCLIP:
    """transformers' CLIP, used as its documentation shows for an image: every frame, texts in each call, float32."""

    def __init__(self, pipe, sizes: Sizes):
        config = pipe.model.config
        texts, vision = config.text_config.to_dict(), config.vision_config.to_dict()
        self.model = CLIPModel(CLIPConfig(text_config=texts, vision_config=vision)).eval()
        size = pipe.processor.video_processor
        self.image_processor = CLIPImageProcessor(size=dict(size.size), crop_size=dict(size.crop_size))
        self.tokenizer = pipe.tokenizer

    @torch.no_grad()
    def __call__(self, film: Path, num_frames: int | None = None) -> list[float]:
        with av.open(str(film)) as container:
            frames = [frame.to_image() for frame in container.decode(video=0)]
        if num_frames:
            frames = frames[:: len(frames) // num_frames][:num_frames]
        texts = self.tokenizer([f"an expression of {x}." for x in LABELS], padding=True, return_tensors="pt")
        pixels = self.image_processor(frames, return_tensors="pt")
        return self.model(**texts, **pixels).logits_per_image.softmax(dim=-1).mean(dim=0).tolist()


def time_shares(pipe, film: Path, rounds: int) -> dict[str, float]:
    """Measures the share of each stage in the time of a call, over all rounds."""
    spent = Counter()

    def timed(name, function):
        def run(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[name] += time.perf_counter() - start
            return result

        return run

    processor = pipe.processor.video_processor
    with ExitStack() as stack:
        for owner, attribute, name in (
            (video_processing_emoclip, "read_video", "decoding"),
            (processor, "_preprocess", "resizing"),
            (pipe, "encode_frames", "encoding"),
        ):
            stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        call = timed("all", lambda: pipe(str(film), LABELS))
        for _ in range(rounds):
            call()
    whole = spent.pop("all")
    return {name: spent[name] / whole for name in spent} | {"the rest": 1 - sum(spent.values()) / whole}


def again_lines(sizes: Sizes, folder: Path) -> list[Line]:
    """Measures a second call with the same labels, and the time of the import."""
    pipe, film = make_pipe(sizes), str(write_film(folder / "again.mp4", sizes.film_seconds))
    encode_texts, times = pipe._encode_texts, []
    with patch.object(pipe, "_encode_texts", lambda texts: times.append(texts) or encode_texts(texts)):
        pipe(film, LABELS)
        first = len(times)
        pipe(film, LABELS)
    seconds = in_turns(
        {name: lambda c=code: start_python(c) for name, code in IMPORTS.items()}, 2 * sizes.rounds, "import"
    )
    other = seconds["ours"] / seconds["names only"]
    note = (
        f"which also import CLIP and pipeline; {other:.1f} x a bare `import torch, transformers`, which loads neither"
    )
    return [
        Line(
            AGAIN, "texts encoded in the second call", len(times) - first, "times", most=0, note=f"first call: {first}"
        ),
        Line(AGAIN, "import ours / torch and transformers", seconds["ours"] / seconds["theirs"], most=1.2, note=note),
    ]


def start_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)

# SPDX-License-Identifier: Apache-2.0
"""Part 5 of the benchmark: a temporal training epoch from cached frames, against re-encoding them as the originals do.

The cached features are random, on disk as in training. Encoding is timed on some frames and scaled up.
"""

import time
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from tools.benchmark.measuring import Line, Sizes, in_turns, make_model, make_processor, random_frames
from training.cache.feature_cache import CLIPS_PER_SHARD, FrameEmbeds
from training.collate import Clips, Collator
from training.data.views import SeededSampler

PART = "5 training"
FRAMES = 32  # per clip, as in EmoCLIP's training
BATCH = 64
ENCODED_AT_ONCE = 32


def training_lines(sizes: Sizes, folder: Path) -> list[Line]:
    model, processor = make_model(sizes), make_processor(sizes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("temporal.", "logit_scale")))
    loader = make_loader(sizes, model, processor, folder)
    frames, eager = random_frames(sizes, ENCODED_AT_ONCE), make_model(sizes, "eager")
    encode = torch.inference_mode()(
        lambda: eager.visual_projection(eager.vision_model(pixel_values=frames).pooler_output)
    )
    seconds = in_turns({"epoch": lambda: train(model, loader), "encode": encode}, sizes.rounds, "training")
    encoding = seconds["encode"] / ENCODED_AT_ONCE * sizes.epoch_clips * FRAMES
    note = f"{sizes.epoch_clips:,} clips of {FRAMES} frames, {seconds['epoch']:.1f} s from cache"
    return [
        Line(
            PART, "encoding each epoch / epoch from cache", (encoding + seconds["epoch"]) / seconds["epoch"], note=note
        ),
        Line(PART, "step with its loading / step on one batch", fed_and_constant(model, loader), most=1.05),
    ]


def fed_and_constant(model, loader) -> float:
    """Returns the ratio of the median step times with loading of the next batch and on a constant batch, in turns."""
    step, batches = make_step(model), iter(loader)
    constant = next(batches)
    ways = {"fed": lambda: step(next(batches)), "constant": lambda: step(constant)}
    seconds = in_turns(ways, len(loader) - 2, "steps")
    return seconds["fed"] / seconds["constant"]


def make_loader(sizes: Sizes, model, processor, folder: Path):
    """Builds a loader of clips with cached frames, as `training.build` does."""
    frame_embeds = write_cache(folder, sizes.epoch_clips, model.config.projection_dim)
    captions = [f"caption number {number % 500}" for number in range(sizes.epoch_clips)]
    text_embeds = {caption: torch.randn(model.config.projection_dim) for caption in set(captions)}
    rows = Dataset.from_dict({"caption": captions})
    clips = Clips(rows, processor.video_processor, captions, frame_embeds=frame_embeds, text_embeds=text_embeds)
    sampler = SeededSampler(len(clips), seed=0)
    loader = DataLoader(clips, BATCH, sampler=sampler, drop_last=True, collate_fn=Collator(processor))
    return Accelerator(cpu=True).prepare(loader)


def write_cache(folder: Path, num_clips: int, width: int) -> FrameEmbeds:
    """Writes random embeddings in shards like those of `encode_frames`."""
    places = []
    for start in tqdm(range(0, num_clips, CLIPS_PER_SHARD), "writing random features", leave=False):
        count = min(CLIPS_PER_SHARD, num_clips - start)
        shard = folder / f"{start}.safetensors"
        save_file({"frame_embeds": torch.randn(count * FRAMES, width)}, shard)
        places += [(shard, clip * FRAMES, (clip + 1) * FRAMES) for clip in range(count)]
    return FrameEmbeds([places])


def train(model, batches) -> None:
    """Runs all training steps of an epoch."""
    step = make_step(model)
    for batch in batches:
        step(batch)


def make_step(model):
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    model.train()

    def step(batch: dict) -> None:
        batch = {name: value for name, value in batch.items() if name != "clip_index"}
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()

    return step


def clips_per_second(model, clips: torch.Tensor, trains_towers: bool) -> float:
    """Measures clips per second of one training step on pixels, for part 7."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains_towers or name.startswith(("temporal.", "logit_scale")))
    text_embeds = torch.randn(len(clips), model.config.projection_dim, device=clips.device)
    start = time.perf_counter()
    model(pixel_values_videos=clips, text_embeds=text_embeds, return_loss=True).loss.backward()
    if clips.device.type == "cuda":
        torch.cuda.synchronize()
    model.zero_grad()
    return len(clips) / (time.perf_counter() - start)

# SPDX-License-Identifier: Apache-2.0
"""What the frame cache saves: an epoch of the temporal head from cached frames, against encoding the same frames.

python examples/benchmark_training.py [--clips 10000] [--frames 32]

ViT-B/32's sizes with random weights; the cached features are random too, on disk as training finds them. Encoding is
timed on a part of the frames and scaled up; both are timed in turns, and medians are compared.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import CLIPTokenizer

from modeling_emoclip import EmoCLIPConfig, EmoCLIPModel, EmoCLIPProcessor, EmoCLIPVideoProcessor
from training.build import SPECIAL_TOKENS
from training.collate import Clips, Collator
from training.data.views import SeededSampler
from training.feature_cache import CLIPS_PER_SHARD, FrameEmbeds

ENCODED_AT_ONCE = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    captions = [f"caption number {number % 500}" for number in range(options.clips)]
    tokenizer = CLIPTokenizer(**SPECIAL_TOKENS).train_new_from_iterator(captions, 400)
    tokenizer.model_max_length = 77
    text_config = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    model = EmoCLIPModel(EmoCLIPConfig(vision_config={"patch_size": 32}, text_config=text_config))
    processor = EmoCLIPProcessor(EmoCLIPVideoProcessor(num_frames=options.frames), tokenizer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("temporal.", "logit_scale")))
    with tempfile.TemporaryDirectory() as folder:
        frame_embeds = write_cache(Path(folder), options.clips, options.frames, model.config.projection_dim)
        text_embeds = {caption: torch.randn(model.config.projection_dim) for caption in set(captions)}
        rows = Dataset.from_dict({"caption": captions})
        clips = Clips(rows, processor.video_processor, captions, frame_embeds=frame_embeds, text_embeds=text_embeds)
        epochs, encodings = [], []
        for _ in tqdm(range(options.rounds), "rounds"):
            epochs.append(time_epoch(model, clips, Collator(processor), options.batch_size))
            encodings.append(time_encoding(model) * options.clips * options.frames)
    epoch, encoding = statistics.median(epochs), statistics.median(encodings)
    result = {
        "clips": options.clips,
        "frames": options.frames,
        "epoch_from_cache_seconds": round(epoch, 1),
        "encoding_seconds": round(encoding, 1),
        "encoding_over_epoch": round(encoding / epoch, 1),
    }
    print(json.dumps(result, indent=2))


def write_cache(folder: Path, num_clips: int, num_frames: int, width: int) -> FrameEmbeds:
    """Random embeddings in shards as `encode_frames` leaves them."""
    places = []
    for start in tqdm(range(0, num_clips, CLIPS_PER_SHARD), "writing random features"):
        count = min(CLIPS_PER_SHARD, num_clips - start)
        shard = folder / f"{start}.safetensors"
        save_file({"frame_embeds": torch.randn(count * num_frames, width)}, shard)
        places += [(shard, clip * num_frames, (clip + 1) * num_frames) for clip in range(count)]
    return FrameEmbeds([places])


def time_epoch(model, clips: Clips, collator: Collator, batch_size: int) -> float:
    """Seconds for all steps, as training takes them."""
    accelerator = Accelerator()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    sampler = SeededSampler(len(clips), seed=0)
    loader = accelerator.prepare(DataLoader(clips, batch_size, sampler=sampler, drop_last=True, collate_fn=collator))
    model.train()
    started = time.perf_counter()
    for batch in tqdm(loader, "epoch", leave=False):
        del batch["clip_index"]
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - started


@torch.inference_mode()
def time_encoding(model) -> float:
    """Seconds a frame, without decoding it."""
    size = model.config.vision_config.image_size
    pixel_values = torch.randn(ENCODED_AT_ONCE, 3, size, size)
    started = time.perf_counter()
    model.visual_projection(model.vision_model(pixel_values=pixel_values).pooler_output)
    return (time.perf_counter() - started) / ENCODED_AT_ONCE


if __name__ == "__main__":
    main()

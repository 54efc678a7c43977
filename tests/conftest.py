# SPDX-License-Identifier: Apache-2.0
"""A CLIP checkpoint small enough for tests, and real video files."""

import os
import signal
import threading
from pathlib import Path

# Before anything imports a HuggingFace library: the tests need no network and must not wait for one.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
# Tests run in several processes, and their tensors are too small to be shared among threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background makes them ignore Ctrl-C, and so every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from video_files import picture, write_video

from emoclip import EmoCLIPModel, EmoCLIPProcessor

IMAGE_SIZE = 32


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory) -> Path:
    """A random CLIP in the layout of openai/clip-vit-*: weights, tokenizer, image processor."""
    folder = tmp_path_factory.mktemp("clip")
    special = {"unk_token": "<|unk|>", "pad_token": "<|pad|>", "bos_token": "<|start|>", "eos_token": "<|end|>"}
    captions = ["a smile slowly appearing", "lowered eyebrows", "wide open eyes", "an expression of anger."]
    tokenizer = CLIPTokenizer(**special).train_new_from_iterator(captions, 400)
    tokenizer.model_max_length = 24
    torch.manual_seed(0)
    config = CLIPConfig(
        projection_dim=24,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": 16,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 24,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def emoclip(clip_dir):
    """A random EmoCLIP of that CLIP, with texts for two labels, and its processor of 4 frames."""
    torch.manual_seed(0)
    texts = {"happiness": ["a smile"], "anger": ["lowered eyebrows"]}
    model = EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=1, class_descriptions=texts)
    torch.nn.init.normal_(model.temporal.output_projection.weight)
    return model, EmoCLIPProcessor.from_clip(clip_dir, num_frames=4)


@pytest.fixture(scope="session")
def write_clip():
    """`write_clip(path, num_frames, width, height)`: a real video whose frames get brighter; returns the path."""

    def write(path: Path, num_frames: int = 12, width: int = 96, height: int = 64, fps: int = 8) -> Path:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            ramp = np.linspace(0, 60, width)[None, :, None] + np.zeros((height, 1, 3))
            for number in range(num_frames):
                image = (ramp + 15 * number).clip(0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    for index in range(40):
        Image.fromarray(picture(index)).save(folder / f"{index}.png")  # 10.png would sort before 2.png as text
    (folder / "notes.txt").write_text("not a frame")
    (folder / ".hidden.png").write_text("not a frame either")
    return folder

# SPDX-License-Identifier: Apache-2.0
"""Is a Hub folder or repository what a stranger needs? It is loaded as they do, in a process of its own.

That process runs this file alone, so nothing of this package may be imported here:

python -I check_hub_folder.py FOLDER_OR_REPOSITORY SAMPLE.safetensors [REVISION]
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from huggingface_hub import get_token
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForVideoClassification, AutoProcessor, pipeline


def check(source: Path | str, model, processor, revision: str | None = None, tolerance: float = 1e-5) -> float:
    """Loads `source` in another process and directory and compares logits; returns how far they are off.

    Args:
        source: a folder; or a repository, which is then downloaded, whatever was downloaded before.
        model, processor: what `source` should be.

    Raises:
        RuntimeError: it cannot be loaded that way, or the logits differ by more than `tolerance`.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        save_file(sample_of(model, processor), Path(elsewhere) / "sample.safetensors")
        source, env = (str(source.resolve()), None) if isinstance(source, Path) else (source, empty_cache(elsewhere))
        command = [sys.executable, "-I", str(Path(__file__).resolve()), source, "sample.safetensors"]
        result = subprocess.run(
            [*command, *([revision] if revision else [])],
            cwd=elsewhere,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if result.returncode != 0:
        raise RuntimeError(f"{source} cannot be loaded in another process:\n{result.stderr[-3000:]}")
    difference = json.loads(result.stdout.splitlines()[-1])["difference"]
    if not difference <= tolerance:
        raise RuntimeError(f"the logits of {source} differ by {difference}, more than {tolerance}")
    return difference


@torch.inference_mode()
def sample_of(model, processor) -> dict[str, torch.Tensor]:
    """Inputs, and what the model makes of them: `expected`."""
    generator = torch.Generator().manual_seed(0)
    size, num_frames = model.config.vision_config.image_size, processor.video_processor.num_frames or 8
    sample = {"pixel_values_videos": torch.randn(2, num_frames, 3, size, size, generator=generator)}
    if type(model).__name__ == "EmoCLIPModel":
        sample |= processor(text=["a smile slowly appearing", "lowered eyebrows"], return_tensors="pt")
    return sample | {"expected": logits_of(model, sample)}


def logits_of(model, sample: dict[str, torch.Tensor]) -> torch.Tensor:
    outputs = model(**sample)
    return (outputs.logits_per_video if "input_ids" in sample else outputs.logits).contiguous()


def empty_cache(folder: str) -> dict[str, str]:
    """The environment of a process that has downloaded nothing yet, and may read what this one may."""
    caches = re.compile(r"(HF|HUGGINGFACE|TRANSFORMERS)_.*CACHE$")
    kept = {name: value for name, value in os.environ.items() if not caches.match(name)}
    return kept | {"HF_HOME": folder} | ({"HF_TOKEN": token} if (token := get_token()) else {})


def main(source: str, sample_file: str, revision: str | None = None):
    """The other process: prints the difference."""
    options = {"trust_remote_code": True, "revision": revision}
    sample = load_file(sample_file)
    expected = sample.pop("expected")
    video = torch.randint(0, 255, (8, 96, 80, 3), dtype=torch.uint8)
    AutoProcessor.from_pretrained(source, **options)
    if "input_ids" in sample:  # any words
        model = AutoModel.from_pretrained(source, **options).eval()
        labels = {"calm", "amused"}
        scores = pipeline(model=source, **options)(video, candidate_labels=sorted(labels))
    else:  # classes or targets
        model = AutoModelForVideoClassification.from_pretrained(source, **options).eval()
        labels = set(model.config.id2label.values())
        scores = pipeline("video-classification", model=source, **options)(video, top_k=len(labels))
    assert {entry["label"] for entry in scores} == labels, scores
    with torch.inference_mode():
        difference = (logits_of(model, sample) - expected).abs().max().item()
    installed = {"emoclip", "modeling_emoclip"} & set(sys.modules)
    assert not installed, "the installed package was used instead of the folder's own code"
    print(json.dumps({"difference": difference}))


if __name__ == "__main__":
    main(*sys.argv[1:])

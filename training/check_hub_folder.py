# SPDX-License-Identifier: Apache-2.0
"""Run by export.py in a process of its own: loads a Hub folder by remote code and prints how far its logits are off.

python -I check_hub_folder.py FOLDER SAMPLE.safetensors
"""

import json
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, pipeline

folder, sample_file = sys.argv[1:]
sample = load_file(sample_file)
expected = sample.pop("logits_per_video")
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.inference_mode():
    difference = (model(**sample).logits_per_video - expected).abs().max().item()
video = torch.randint(0, 255, (8, 96, 80, 3), dtype=torch.uint8)
scores = pipeline(model=folder, trust_remote_code=True)(video, candidate_labels=["calm", "amused"])
assert {entry["label"] for entry in scores} == {"calm", "amused"}, scores
assert "modeling_emoclip" not in sys.modules, "the installed package was used instead of the folder's own code"
print(json.dumps({"difference": difference}))

# SPDX-License-Identifier: Apache-2.0
"""Each class of the family on a handful of rendered clips: the loss goes down, from pixels and from cached frames."""

import pytest
import torch

from emoclip import (
    EmoCLIPForPromptClassification,
    EmoCLIPForVideoClassification,
    EmoCLIPForVideoRegression,
    EmoCLIPModel,
    EmoCLIPProcessor,
)
from training.data.face_vocabulary import EMOTION_NAMES
from training.data.synthetic_faces import TARGETS, SyntheticFaces

LABELS = {
    EmoCLIPForPromptClassification: {"class_descriptions": {name: name for name in EMOTION_NAMES}},
    EmoCLIPForVideoClassification: {"id2label": dict(enumerate(EMOTION_NAMES))},
    EmoCLIPForVideoRegression: {"target_names": list(TARGETS), "target_ranges": [[0, 1]] * 3},
    EmoCLIPModel: {},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    sizes = {"num_train": 8, "num_validation": 0, "num_test_per_class": 0, "num_order_pairs": 0}
    builder = SyntheticFaces(config_name="clips", cache_dir=str(tmp_path_factory.mktemp("faces")), **sizes)
    builder.download_and_prepare()
    return builder.as_dataset("train")


@pytest.fixture(scope="module")
def clips(rows, clip_dir):
    """`pixel_values_videos`, and what each class learns from."""
    processor = EmoCLIPProcessor.from_clip(clip_dir, num_frames=4)
    texts = processor(text=list(rows["caption"]), return_tensors="pt")
    labels = torch.tensor(rows["label"])
    targets = torch.tensor([[row[name] for name in TARGETS] for row in rows])
    goals = {EmoCLIPModel: {**texts, "return_loss": True}, EmoCLIPForVideoRegression: {"labels": targets}}
    pixels = processor(videos=list(rows["video"]), return_tensors="pt")["pixel_values_videos"]
    return pixels, lambda model_class: goals.get(model_class, {"labels": labels})


@pytest.mark.parametrize("from_cache", [False, True], ids=["pixels", "cached frames"])
@pytest.mark.parametrize("model_class", LABELS, ids=lambda model_class: model_class.__name__)
def test_the_loss_goes_down(model_class, from_cache, clip_dir, clips):
    torch.manual_seed(0)
    model = model_class.from_clip(clip_dir, temporal_num_layers=1, **LABELS[model_class]).train()
    pixels, goal = clips
    inputs = {"pixel_values_videos": pixels, **goal(model_class)}
    if from_cache:
        with torch.no_grad():
            inputs["frame_embeds"] = model.get_video_features(inputs.pop("pixel_values_videos")).frame_embeds
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(10):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]

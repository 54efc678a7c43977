# SPDX-License-Identifier: Apache-2.0
"""The floors of the house: imports go down only, and what travels to the Hub stands alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODEL_FILES = sorted((ROOT / "modeling_emoclip").glob("*.py"))
TRAINING_FILES = sorted((ROOT / "training").rglob("*.py"))

FLOORS = {
    "configuration_emoclip": 0,
    "losses": 0,
    "typed_text": 0,
    "weights_state": 0,
    "frame_sampling": 0,
    "video_limits": 0,
    "video_streams": 0.2,
    "frame_sequence": 0.3,
    "video_rights": 0.2,
    "video_worker": 0.4,
    "video_guard": 0.6,
    "video_inputs": 2,
    "video_decoding": 1,
    "faces": 1,
    "temporal": 1,
    "prompts": 1,
    "modeling_emoclip": 2,
    "modeling_emoclip_heads": 3,
    "video_processing_emoclip": 3,
    "processing_emoclip": 4,
    "video_frames": 3,
    "face_clip": 4,
    "embeddings": 4,
    "reference_texts": 0,
    "frame_encoder": 1,
    "read_ahead": 0,
    "thumbnails": 0,
    "timeline_files": 3.5,
    "timeline_folder": 4,
    "alignment": 4,
    "timeline_pictures": 4,
    "timeline": 4.5,
    "live_sources": 3.5,
    "live_windows": 3.5,
    "live": 4.5,
    "scores": 2,
    "pipeline_emoclip": 5,
    "__init__": 6,
}
# datasets 3.x copies a script and what it imports relatively; it knows no package.
LOADING_SCRIPTS = {
    ROOT / "training" / "data" / f"{name}.py"
    for name in "dfew ferv39k mafw afew own_videos expression_videos listed_clips".split()
}
ALLOWED_IN_MODEL = {"torch", "torchvision", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL", "av"}
ALLOWED_IN_MODEL |= {"decord", "cv2", "pandas", "matplotlib"}  # where they are missing, something else is done or said
STANDARD = set(
    "collections colorsys contextlib copy csv dataclasses difflib fractions functools heapq io itertools".split()
)
STANDARD |= set("hashlib html numbers uuid warnings json logging math operator os pathlib re threading".split())
STANDARD |= set("tempfile textwrap time typing".split())
STANDARD |= set(
    "atexit ctypes faulthandler queue resource select signal struct subprocess sys weakref".split()
)  # the guarded process


def imports(path):
    """(module, level, node) of every import statement."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level
            if node.module == "training":
                yield from ((f"training.{alias.name}", 0) for alias in node.names)


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.name)
def test_model_files_stand_alone_on_the_hub(path):
    floor = FLOORS[path.stem]
    for module, level in imports(path):
        if level:
            assert level == 1 and "." not in module, f"{path.name}: the Hub loads one flat folder, not {module}"
            assert FLOORS[module] < floor, f"{path.name} (floor {floor}) imports {module} (floor {FLOORS[module]})"
        else:
            assert module.split(".")[0] in ALLOWED_IN_MODEL | STANDARD, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", TRAINING_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_training_imports_go_down(path):
    floors = {
        "train": 6,
        "export": 6,
        "calibrate": 6,
        "check_hub_folder": 6,
        "check_space": 6,
        "space": 6,
        "cache_frames": 6,
        "run_grid": 6,
        "evaluation": 5.5,
        "build": 5,
        "feature_cache": 4.5,
    }
    floors |= {"convert": 6, "doctor": 6, "publish": 6, "reproduction": 6, "reproduce": 6}
    floor = floors.get(path.stem, floors.get(path.parent.name, 4))
    for module, level in imports(path):
        if level == 1 and path in LOADING_SCRIPTS and module in ("clip_lists", "expression_videos", "listed_clips"):
            continue
        assert level == 0, f"{path.name}: training uses absolute imports"
        if module.startswith("training.") and module.count(".") == 1:
            assert floors.get(module.split(".")[1], 4) <= floor, f"{path.name} imports {module}"


def test_the_loop_knows_no_task_and_no_data_set():
    source = (ROOT / "training" / "train.py").read_text(encoding="utf-8").lower()
    for name in ("dfew", "ferv39k", "mafw", "afew", "dferclip", "contrastive", "caption", "promptclassification"):
        assert name not in source

# SPDX-License-Identifier: Apache-2.0
"""The floors of the house: imports go down only, and what travels to the Hub stands alone and is small."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emoclip import EmoCLIPModel, EmoCLIPProcessor
from training.publish.export import write_model

ROOT = Path(__file__).parents[1]
HUB = ROOT / "modeling_emoclip"
MOST_LINES, MOST_LINES_OF_A_CALL = 3300, 2800
DOORS = ("configuration_emoclip", "modeling_emoclip", "modeling_emoclip_heads")
DOORS += ("processing_emoclip", "video_processing_emoclip", "pipeline_emoclip")

# A file may import those of lower floors, and its own folder's. The longest name that fits decides.
FLOORS = {
    "modeling_emoclip": 0,
    "emoclip.files": 1,
    "emoclip.typed_text": 1,
    "emoclip.reference_texts": 1,
    "emoclip.frame_encoder": 1,
    "emoclip.video": 1,
    "emoclip.faces": 2,
    "emoclip.alignment": 2,
    "emoclip.timeline": 3,
    "emoclip.live": 4,
    "emoclip.pipeline": 4,
    "emoclip": 5,  # the registration of the classes
    "emoclip.loading": 6,
    "emoclip.app": 7,
    "emoclip.cli": 8,
    "training.data": 9,
    "training.metrics": 10,
    "training.recipe": 9,
    "training.publish.hub": 9,
    "training.publish.redaction": 9,
    "training": 10,
    "training.cache": 10,
    "training.build": 11,
    "training.evaluation": 12,
    "training.train": 13,
    "training.evaluate_model": 13,
    "training.publish": 14,
    "training.convert": 14,
    "training.compare": 14,
    "training.reproduction": 14,
    "training.data.doctor": 14,  # commands, which use the bench
    "training.data.publish": 14,
    "training.data.describe_classes": 14,
    "training.cache.cache_frames": 14,
}
# Two arrows lead upward, and are followed when asked for: to the installed package, and `run.push_to_hub` of a recipe.
ALLOWED = {("modeling_emoclip.pipeline_emoclip", "emoclip.pipeline")}
ALLOWED |= {("training.train", "training.publish.while_training")}
# What a model repository may need: what transformers needs for a video model, and two decoders.
HUB_PACKAGES = {"torch", "torchvision", "transformers", "huggingface_hub", "numpy", "PIL", "av", "decord"}
# datasets copies a loading script with what it imports relatively; it knows no package.
RELATIVE = {f"training.data.{name}" for name in "dfew ferv39k mafw afew own_videos expression_videos".split()}
RELATIVE |= {"training.data.listed_clips"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_of(path): path for top in ("modeling_emoclip", "emoclip", "training") for path in (ROOT / top).rglob("*.py")
}


def imports(path: Path, module: str) -> set[str]:
    """Modules that a file imports anywhere, with absolute names; of ours the files, not the names in them."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name in FILES} or {base}
    return found


def floor_of(module: str) -> int:
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(FLOORS[name] for name in names if name in FLOORS)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_go_down(module):
    for other in imports(FILES[module], module) & FILES.keys():
        if (module, other) in ALLOWED or other.rpartition(".")[0] == module.rpartition(".")[0] != "training":
            continue
        assert floor_of(other) <= floor_of(module), f"{module} imports {other}, which is above it"


@pytest.mark.parametrize("module", sorted(name for name in FILES if name.startswith("modeling_emoclip")))
def test_what_travels_stands_alone(module):
    for other in imports(FILES[module], module):
        top = other.partition(".")[0]
        door = (module, top) == ("modeling_emoclip.pipeline_emoclip", "emoclip")  # which says how to install it
        assert door or top in HUB_PACKAGES | set(sys.stdlib_module_names) | {"modeling_emoclip"}, f"{module}: {other}"


@pytest.mark.parametrize("module", sorted(name for name in FILES if name.startswith("training")))
def test_training_imports_absolutely_but_for_loading_scripts(module):
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert module in RELATIVE, f"{module} imports {node.module} relatively"


def test_exported_files_are_those_of_the_folder_and_what_its_doors_import(clip_dir, tmp_path):
    write_model(tmp_path, EmoCLIPModel.from_clip(clip_dir), EmoCLIPProcessor.from_clip(clip_dir))
    exported = {path.name: path.read_bytes() for path in tmp_path.glob("*.py")}
    assert exported == {path.name: path.read_bytes() for path in HUB.glob("*.py")}
    assert [path.name for path in HUB.iterdir() if path.suffix != ".py"] in ([], ["__pycache__"])
    reached, waiting = {"modeling_emoclip"}, [f"modeling_emoclip.{name}" for name in DOORS]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += imports(FILES[module], module) & FILES.keys() - {"emoclip.pipeline"}
    assert reached == {name for name in FILES if name.startswith("modeling_emoclip")}
    config = (tmp_path / "config.json").read_text()
    assert all(f"{name}." in config for name in ("configuration_emoclip", "modeling_emoclip", "pipeline_emoclip"))


CALL = """
import sys
from pathlib import Path
import numpy as np
from transformers import pipeline
pipe = pipeline(model=sys.argv[1], trust_remote_code=True)
print(pipe(sys.argv[2], candidate_labels=["a", "b"]))
modules = [module for name, module in sys.modules.items() if name.startswith("transformers_modules.")]
remote = [Path(module.__file__) for module in modules if getattr(module, "__file__", None)]
assert not {"emoclip", "modeling_emoclip"} & set(sys.modules)
print(*sorted({path.name for path in remote if path.name != "__init__.py"}))
"""


def test_remote_code_is_small(clip_dir, write_clip, tmp_path):
    write_model(tmp_path / "hub", EmoCLIPModel.from_clip(clip_dir), EmoCLIPProcessor.from_clip(clip_dir, num_frames=2))
    clip = write_clip(tmp_path / "clip.mp4")
    command = [sys.executable, "-I", "-c", CALL, str(tmp_path / "hub"), str(clip)]
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"HF_HOME": str(tmp_path / "hf")}
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in HUB.glob("*.py")}
    of_a_call = sum(lines[name] for name in run.stdout.splitlines()[-1].split())
    print(f"remote code: {sum(lines.values())} lines, {of_a_call} imported for one zero-shot call")
    assert sum(lines.values()) <= MOST_LINES and of_a_call <= MOST_LINES_OF_A_CALL


def test_the_loop_knows_no_task_and_no_data_set():
    source = (ROOT / "training" / "train.py").read_text(encoding="utf-8").lower()
    for name in ("dfew", "ferv39k", "mafw", "afew", "dferclip", "contrastive", "caption", "promptclassification"):
        assert name not in source


def test_importing_the_package_loads_no_extras():
    code = "import emoclip, sys; print(*{'matplotlib', 'cv2', 'gradio', 'datasets', 'sklearn'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""

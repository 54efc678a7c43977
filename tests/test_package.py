# SPDX-License-Identifier: Apache-2.0
"""What `pip install emoclip` gives: two folders, a pipeline without remote code, and commands, without a checkout."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from emoclip import EmoCLIPForVideoClassification, EmoCLIPModel, EmoCLIPProcessor
from training.publish.export import write_model

ROOT = Path(__file__).parents[1]
# The environment of the tests, but with the wheel, or nothing, in place of this checkout.
WITHOUT_CHECKOUT = """
import json, os, runpy, sys
root, site = sys.argv[1:3]
sys.path[:] = ([site] if site else []) + [path for path in sys.path if os.path.realpath(path or ".") != root]
sys.argv[:] = sys.argv[2:]
"""
INSTALLED = """
import emoclip
from transformers import AutoModel, AutoModelForVideoClassification, pipeline
assert emoclip.__file__.startswith(sys.argv[0])
pipe = pipeline("zero-shot-video-classification", model=sys.argv[1])
assert type(pipe).__module__ == "emoclip.pipeline" and type(pipe.model).__module__.startswith("modeling_emoclip.")
again = pipeline("zero-shot-video-classification", model=sys.argv[1])
scores = pipe(sys.argv[3], candidate_labels=["a smile", "a frown"])
timeline = pipe.timeline(sys.argv[3], ["a smile", "a frown"], faces="none", progress=False)
head = AutoModelForVideoClassification.from_pretrained(sys.argv[2])
assert type(head).__module__.startswith("modeling_emoclip.")
for extra in ("training", "tools", "examples", "hub_cards"):
    try:
        __import__(extra)
    except ImportError:
        continue
    sys.exit(f"{extra} can be imported")
pipe.save_pretrained("saved")
print(json.dumps([scores, len(timeline)]))
"""
HUB_ALONE = """
from transformers import pipeline
pipe = pipeline(model=sys.argv[1], trust_remote_code=True)
scores = pipe(sys.argv[3], candidate_labels=["a smile", "a frown"])
assert pipe.embed(sys.argv[3], progress=False).embeds.shape == (1, 24)
messages = []
for call in (
    lambda: pipe.timeline(sys.argv[3], ["a smile"]),
    lambda: pipe.alignment(sys.argv[3], "a smile"),
    lambda: pipe(sys.argv[3], candidate_labels=["a", "b"], faces="largest"),
):
    try:
        call()
    except (ImportError, TypeError) as error:
        messages.append(str(error))
assert not {"emoclip", "modeling_emoclip"} & set(sys.modules)
print(json.dumps([scores, messages]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def run(wheel, clip_dir, write_clip, tmp_path_factory):
    """Runs code with the wheel, or with no package, on a model, a classifier and a clip; returns what it prints."""
    place = tmp_path_factory.mktemp("place")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    processor = EmoCLIPProcessor.from_clip(clip_dir, num_frames=4)
    write_model(place / "hub", EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=1), processor)
    names = {0: "happiness", 1: "sadness"}
    write_model(place / "head", EmoCLIPForVideoClassification.from_clip(clip_dir, id2label=names), processor)
    clip = write_clip(place / "clip.mp4", num_frames=24)

    def run(code, has_wheel=True, arguments=()):
        site = str(place / "site") if has_wheel else ""
        where = [str(ROOT), site, *map(str, arguments or (place / "hub", place / "head", clip))]
        command = [sys.executable, "-I", "-c", WITHOUT_CHECKOUT + code, *where]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run.place, run.clip = place, clip
    return run


def test_the_wheel_holds_two_packages_and_asks_for_what_inference_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("dist-info/METADATA"))
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"emoclip", "modeling_emoclip"}
    packages = {
        str(path.relative_to(ROOT)) for top in ("emoclip", "modeling_emoclip") for path in (ROOT / top).rglob("*.py")
    }
    assert packages <= set(names)
    required = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", metadata, re.MULTILINE)
    expected = "torch torchvision transformers huggingface-hub safetensors decord av pillow numpy typer"
    assert set(required) == set(expected.split())
    assert {"faces", "app", "train"} <= set(re.findall(r"^Provides-Extra: (\w+)", metadata, re.MULTILINE))


def test_the_installed_package_needs_no_remote_code_and_a_model_repository_no_package(run):
    scores, num_windows = json.loads(run(INSTALLED).splitlines()[-1])
    alone, messages = json.loads(run(HUB_ALONE, has_wheel=False).splitlines()[-1])
    assert num_windows == 2  # 3 s at 8 frames a second, windows of 2 s
    assert len(messages) == 3 and all("emoclip" in message for message in messages)
    assert "pip install emoclip" in messages[0] and "pip install emoclip" in messages[1]
    by_label = {entry["label"]: entry["score"] for entry in alone}
    assert {entry["label"]: entry["score"] for entry in scores} == pytest.approx(by_label, abs=1e-5)


def test_a_saved_pipeline_is_a_model_repository(run):
    run(INSTALLED)
    alone, _ = json.loads(run(HUB_ALONE, False, (run.place / "saved", "-", run.clip)).splitlines()[-1])
    assert {entry["label"] for entry in alone} == {"a smile", "a frown"}


def test_the_command_runs_from_the_wheel(run):
    code = "from emoclip.cli import main; sys.exit(main(sys.argv[1:]))"
    labels = ["--label", "a smile", "--label", "a frown", "--json"]
    printed = run(code, arguments=("classify", run.clip, "--model", run.place / "hub", *labels))
    assert {entry["label"] for entry in json.loads(printed)["scores"]} == {"a smile", "a frown"}
    printed = run(code, arguments=("timeline", run.clip, "--model", run.place / "hub", "--faces", "none", *labels))
    assert len(json.loads(printed)["windows"]) == 2

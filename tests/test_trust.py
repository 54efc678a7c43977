# SPDX-License-Identifier: Apache-2.0
"""What the code that is downloaded with a model does to the machine that it runs on, and what this package loads."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from emoclip import EmoCLIPModel, EmoCLIPProcessor
from emoclip.faces.detection import opencv
from training.publish.export import write_model

ROOT = Path(__file__).parents[1]

# Python tells the hook of every file, connection, program and pickled class that it is about to use.
LOAD_AND_CALL = """
import json, os, sys, warnings
import huggingface_hub
import av, decord, torch, torchvision, transformers  # what they read when they are imported is their business
from transformers import pipeline
folder, clip, report = sys.argv[1:]
events = []

def note(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if not isinstance(path, int):
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if mode is None else set(mode) & set("wxa+")
            events.append(["write" if writes else "read", os.path.realpath(os.fsdecode(path))])
    elif event in ("pickle.find_class", "os.system", "subprocess.Popen"):
        events.append([event, str(arguments)])
    elif event in ("socket.connect", "socket.getaddrinfo"):
        events.append([event, str(arguments)])
        raise OSError("a test has no network")
    elif event in ("os.remove", "os.rename", "os.mkdir", "shutil.rmtree"):
        events.append(["write", os.path.realpath(os.fsdecode(arguments[0]))])

sys.addaudithook(note)
pipe = pipeline(model=folder, trust_remote_code=True)
pipe(clip, candidate_labels=["a smile", "a frown"])
pipe.embed([clip], progress=False)
assert type(pipe).__module__.startswith("transformers_modules"), type(pipe)
assert not {"emoclip", "modeling_emoclip"} & set(sys.modules)
found = {"": events}
events = found["installed"] = []
pipe.timeline(clip, ["a smile", "a frown"], faces="none", progress=False)
for is_offline in (False, True):
    events = found["offline" if is_offline else "online"] = []
    huggingface_hub.constants.HF_HUB_OFFLINE = is_offline
    with warnings.catch_warnings(record=True) as caught:
        timeline = pipe.timeline(clip, ["a smile", "a frown"], no_face="frame", progress=False)
    assert timeline.detector == "haar" and "haar" in str(caught[0].message), caught
with open(report, "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def events(clip_dir, write_clip, tmp_path_factory):
    place = Path(os.path.realpath(tmp_path_factory.mktemp("trust")))
    folder, cache, clip = place / "hub", place / "cache", write_clip(place / "clip.mp4")
    write_model(folder, EmoCLIPModel.from_clip(clip_dir), EmoCLIPProcessor.from_clip(clip_dir, num_frames=4))
    (place / "empty").mkdir()
    command = [sys.executable, "-IB", "-c", LOAD_AND_CALL, str(folder), str(clip), str(place / "report.json")]
    env = {name: value for name, value in os.environ.items() if not re.search("proxy|^HF_", name, re.IGNORECASE)}
    env |= {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    run = subprocess.run(
        command, cwd=place / "empty", env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert run.returncode == 0, run.stderr
    found = json.loads((place / "report.json").read_text())
    return found, folder, cache, clip


def of_kind(events, *kinds, call=""):
    """`call` is a time line that looks for faces, "online" or "offline", or none, "installed"; by default a call."""
    return [what for kind, what in events[0][call] if kind in kinds]


def test_it_opens_no_connection_and_unpickles_nothing(events):
    for call in ("", "installed"):
        assert not of_kind(events, "socket.connect", "socket.getaddrinfo", "pickle.find_class", "os.system", call=call)


@pytest.mark.skipif(opencv() is None, reason="needs OpenCV 4: pip install emoclip[faces]")
def test_looking_for_faces_asks_the_hub_alone_for_the_detectors_file_and_nobody_when_offline(events):
    asked = of_kind(events, "socket.getaddrinfo", "socket.connect", call="online")
    assert asked and all(what.startswith("('huggingface.co', 443,") for what in asked)
    assert not of_kind(events, "socket.getaddrinfo", "socket.connect", call="offline")
    for call in ("online", "offline"):
        assert not of_kind(events, "pickle.find_class", "os.system", call=call)


def test_it_starts_python_alone_to_read_videos_in(events):
    for call, worker in (("", "guarded.video_worker"), ("installed", "emoclip.video.worker")):
        started = of_kind(events, "subprocess.Popen", call=call)
        assert started and all(sys.executable in what and worker in what for what in started)


def test_it_reads_its_folder_and_the_video_and_writes_what_transformers_keeps_of_its_code(events):
    _, folder, cache, clip = events
    installed = [os.path.realpath(path) for path in (sys.prefix, sys.base_prefix)]
    system = ["/proc", "/sys", "/dev/null", "/etc/", "/usr/"]  # what the libraries look up of the machine
    strange = [
        path
        for path in of_kind(events, "read")
        if not path.startswith((str(folder), str(cache), str(clip), *installed, *system))
    ]
    assert not strange
    allowed = (str(cache), "/dev/null", str(folder.parent / "report.json"))
    assert not [path for path in of_kind(events, "write") if not path.startswith(allowed)]
    assert sorted(path.name for path in cache.iterdir()) == ["modules"]


@pytest.mark.parametrize("package", ["modeling_emoclip", "emoclip", "training", "examples"])
def test_nothing_is_unpickled_but_weights_by_the_converters(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = ast.unparse(node.func)
                assert name not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load"), path
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if name == "torch.load":
                    assert keywords.get("weights_only") == "True" and path.parent.name == "convert", path
                if name in ("np.load", "numpy.load"):
                    assert keywords.get("allow_pickle", "False") == "False", path

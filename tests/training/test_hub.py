# SPDX-License-Identifier: Apache-2.0
"""Pushing to a Hub that fails: training goes on, what failed is tried again, and what arrives is what was trained.

Real HTTP on loopback and the real client, which reads its settings when it is imported: so each push is a process.
"""

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from local_hub import Handler, LocalHub, Reply

from emoclip import EmoCLIPModel, EmoCLIPProcessor
from training.recipe import dump_recipe

ROOT = Path(__file__).parents[2]
REPO = "lab/emo"
COMMIT = f"/api/models/{REPO}/commit/main"


class BreakingHandler(Handler):
    """Hangs up in the middle of what it is sent, or says nothing for a while."""

    def answer(self):
        for breaks in self.server.hub.breaks:
            method, path, what = breaks
            if method == self.command and re.search(path, self.path):
                self.server.hub.breaks.remove(breaks)
                self.rfile.read(int(self.headers["Content-Length"]) // 2)
                time.sleep(what)
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
        super().answer()

    do_GET = do_POST = do_PUT = answer


class BreakingHub(LocalHub):
    """Also knows which repositories are private."""

    def __init__(self):
        super().__init__()
        self.breaks: list[tuple] = []  # (method, pattern of the path, seconds of silence before the end)
        self.visibility = {}

    def __enter__(self):
        super().__enter__()
        self.server.RequestHandlerClass = BreakingHandler
        return self

    def answer(self, method, url, headers, body):
        if url == "/api/repos/create":
            wanted = json.loads(body)
            self.visibility.setdefault(f"{wanted['organization']}/{wanted['name']}", wanted["visibility"])
        reply = super().answer(method, url, headers, body)
        if isinstance(reply.content, dict) and "private" in reply.content:
            return Reply(reply.content | {"private": self.visibility.get(reply.content["id"]) == "private"})
        return reply

    def titles(self) -> list[str]:
        """Of the commits, the first first; one comes with the repository."""
        return [commit.title for commit in self.find("model", REPO).commit_at("main").history[-2::-1]]


@pytest.fixture
def hub():
    with BreakingHub() as hub:
        yield hub


def run(hub, folder: Path, code: str, *arguments, env=()) -> subprocess.CompletedProcess:
    env = hub.env(folder / "home") | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | dict(env)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=env, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)


PUSH = """
import sys, time
from pathlib import Path
from training.publish import hub

hub.FIRST_WAIT, hub.LONGEST_SILENCE = 0.05, 1.0
hub.ATTEMPTS = 3


def write(folder, text):
    folder.mkdir()
    (folder / "notes.txt").write_text(text)
    (folder / "model.safetensors").write_bytes(b"\\0" + 100_000 * text.encode())


Path("run").mkdir()
pusher = hub.HubPusher("lab/emo", False, Path("run"))
for epoch in range(1, int(sys.argv[1]) + 1):
    started = time.perf_counter()
    pusher.push_soon(lambda folder: write(folder, str(epoch)), f"Epoch {epoch}")
    assert time.perf_counter() - started < 0.5  # importing, connecting, waiting: all that is the thread's
while sys.argv[2:] and any(Path("run").iterdir()):  # what waits and what is being pushed
    time.sleep(0.02)
print("trained", flush=True)
write(Path("final"), "final")
try:
    print(pusher.finish(Path("final"), "The end"))
except hub.PushError as error:
    sys.exit(f"refused: {error}")
finally:
    assert sorted(path.name for path in Path("final").iterdir()) == ["model.safetensors", "notes.txt"]
    assert not list(Path("run").iterdir())
"""


def test_failed_pushes_are_repeated_and_the_newest_wins(hub, tmp_path):
    hub.fail("POST", COMMIT, 500, times=2)
    hub.breaks = [("POST", COMMIT, 0), ("PUT", "/lfs/", 0)]
    done = run(hub, tmp_path, PUSH, 3, "wait")
    assert done.returncode == 0, done.stderr
    assert hub.titles()[-2:] == ["Epoch 3", "The end"]
    assert hub.files(REPO)["notes.txt"] == b"final"
    assert hub.files(REPO)["model.safetensors"] == b"\0" + 100_000 * b"final"
    warnings = [line for line in done.stderr.splitlines() if "training goes on" in line]
    assert len(warnings) == 3 and "disconnected" in warnings[0] and "500" in warnings[1]


def test_a_connection_that_falls_silent_counts_as_lost(hub, tmp_path):
    hub.breaks = [("POST", COMMIT, 20)]
    started = time.perf_counter()
    done = run(hub, tmp_path, PUSH, 0)
    assert done.returncode == 0 and "next attempt" in done.stderr, done.stderr
    assert hub.titles() == ["The end"] and time.perf_counter() - started < 15


def test_what_cannot_be_pushed_is_still_here(hub, tmp_path):
    hub.fail("POST", COMMIT, 500, times=100)
    done = run(hub, tmp_path, PUSH, 2)
    assert done.stdout == "trained\n" and hub.titles() == []
    last = done.stderr.splitlines()[-1]
    assert last.startswith("refused: not pushed to lab/emo (3 attempts): ") and "500" in last
    assert last.endswith("; the complete folder is final")


@pytest.mark.parametrize(
    "trouble, message",
    [
        ({"HF_TOKEN": ""}, "no token was found; log in with `hf auth login` or set HF_TOKEN"),
        ({"HF_TOKEN": "hf_wrong"}, "Invalid user token"),
        ({"HF_HUB_OFFLINE": "1"}, "offline mode"),
        (403, "403 Forbidden"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),
    ],
)
def test_one_line_says_why(hub, tmp_path, trouble, message):
    if trouble == 403:
        hub.fail("POST", COMMIT, 403, times=100)
    done = run(hub, tmp_path, PUSH, 1, env=trouble if isinstance(trouble, dict) else {})
    assert done.stdout == "trained\n" and done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("refused: not pushed to lab/emo") and message in last and "folder is final" in last
    # What would be refused again is not tried again.
    assert ("attempts" in last) == ("9" in str(trouble))


PRIVATE = """
import sys
from pathlib import Path
from training.publish.hub import HubPusher, PushError

try:
    print(HubPusher(sys.argv[1], sys.argv[2] == "private", Path()).open())
except PushError as error:
    sys.exit(str(error))
"""


def test_what_must_be_private_is_not_pushed_to_an_open_repository(hub, tmp_path):
    assert run(hub, tmp_path, PRIVATE, REPO, "private").stdout == f"{hub.url}/{REPO}\n"
    assert hub.visibility == {REPO: "private"}
    assert run(hub, tmp_path, PRIVATE, REPO, "private").returncode == 0
    hub.visibility[REPO] = "public"
    assert "exists and is public" in run(hub, tmp_path, PRIVATE, REPO, "private").stderr
    assert run(hub, tmp_path, PRIVATE, "emo", "public").stdout == f"{hub.url}/local-user/emo\n"


TRAIN = """
import sys, time
from pathlib import Path
from training import train
from training.publish import export, hub, push, while_training

hub.FIRST_WAIT = 0.05
push_result = while_training.Publisher.push_result


def push_after_the_last_checkpoint(self):
    while list(self.output_dir.glob("hub.p*")):  # hub.pending, hub.pushing: this test wants to see one arrive
        time.sleep(0.02)
    return push_result(self)


export.check = lambda *rest: 0.0  # folders: test_export.py
while_training.Publisher.push_result = push_after_the_last_checkpoint
train.main([sys.argv[1]])
"""

STRANGER = """
import json, sys
from transformers import AutoModel, AutoProcessor, pipeline

video, *revisions = sys.argv[1:]
texts, seen = ["a smile", "a frown"], []
for revision in revisions:
    there = {"revision": revision, "trust_remote_code": True}
    model, processor = AutoModel.from_pretrained("lab/emo", **there), AutoProcessor.from_pretrained("lab/emo", **there)
    logits = model(**processor(text=texts, videos=video, return_tensors="pt")).logits_per_video[0]
    scores = pipeline(model="lab/emo", **there)(video, candidate_labels={text: text for text in texts})
    seen.append([logits.tolist(), [{s["label"]: s["score"] for s in scores}[text] for text in texts]])
assert "modeling_emoclip" not in sys.modules
print(json.dumps(seen))
"""


def test_from_training_to_a_stranger_while_the_hub_fails(hub, make_recipe, own_videos, tmp_path):
    """500 for a commit, hung up on in the middle of another and of the weights: all of it arrives."""
    hub.fail("POST", COMMIT, 500)
    hub.breaks = [("POST", COMMIT, 0), ("PUT", "/lfs/", 0)]
    run_dir = tmp_path / "run"
    recipe = make_recipe(run_dir, f"run.push_to_hub={REPO}", "optim.epochs=3", "run.select_on=last")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe, tmp_path))
    done = run(hub, tmp_path, TRAIN, "recipe.yaml", env={"ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr
    assert f"pushed {hub.url}/{REPO} (private); loaded back" in done.stdout
    assert hub.visibility == {REPO: "private"}  # videos of one's own: nobody has said that they may be shown
    assert done.stderr.count("not pushed: ") == 2, done.stderr
    *_, last, final = hub.titles()
    assert last == "Epoch 3 of 3" and final == "EmoCLIP: EmoCLIPModel"
    assert hub.files(REPO)["model.safetensors"] == (run_dir / "hub" / "model.safetensors").read_bytes()
    assert not list(run_dir.glob("hub.*"))

    history = hub.find("model", REPO).commit_at("main").history
    assert b"Training in progress**: epoch 3 of 3" in history[1].files["README.md"].data
    video, revisions = str(own_videos / "3.mp4"), [history[1].sha, history[0].sha]
    seen = run(hub, own_videos, STRANGER, video, *revisions, env={"HF_HOME": str(tmp_path / "new")})
    assert seen.returncode == 0, seen.stderr
    model, processor = EmoCLIPModel.from_pretrained(run_dir), EmoCLIPProcessor.from_pretrained(run_dir)
    with torch.inference_mode():
        logits = model(**processor(text=["a smile", "a frown"], videos=video, return_tensors="pt")).logits_per_video[0]
    for found, scores in json.loads(seen.stdout.splitlines()[-1]):
        assert found == pytest.approx(logits.tolist(), abs=1e-5)
        assert scores == pytest.approx(logits.softmax(dim=-1).tolist(), abs=1e-5)

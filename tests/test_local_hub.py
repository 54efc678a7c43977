# SPDX-License-Identifier: Apache-2.0
"""The loopback Hub in front of the real client: one process does everything, in order, and tells what it saw."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from local_hub import ENDPOINTS, USER, LocalHub
from safetensors.numpy import save

EMO = f"{USER}/emo"
WEIGHTS = save({"weight": np.arange(6, dtype=np.float32)})
BROKEN = b"\0 what is not text goes through LFS"

CLIENT = r"""
import json
import sys
import warnings
from pathlib import Path

from datasets import Dataset, load_dataset
from huggingface_hub import HfApi, HfFileSystem, ModelCard, hf_hub_download, snapshot_download

warnings.filterwarnings("error", "Warnings while validating metadata")
api, stranger, seen = HfApi(), HfApi(token=False), {}


def read(repo_id, path, **kwargs):
    return Path(hf_hub_download(repo_id, path, **kwargs)).read_text()


def refusal(function, *args, **kwargs):
    try:
        return f"nothing was raised, but there is {function(*args, **kwargs)}"
    except Exception as error:
        causes = [error]
        while causes[-1].__cause__:
            causes.append(causes[-1].__cause__)
        return [type(error).__name__, "\n".join(str(cause) for cause in causes)]


# Revisions
seen["who"] = api.whoami()["name"]
seen["created"] = [api.create_repo("emo", exist_ok=True).repo_id for _ in range(2)]
emo = seen["created"][0]
first = api.upload_folder(folder_path="folder", repo_id=emo).oid
seen["nothing new"] = api.upload_folder(folder_path="folder", repo_id=emo).oid == first
api.create_tag(emo, tag="v1")
Path("folder/notes.txt").write_text("second")
Path("folder/sub/old.json").unlink()
second = api.upload_folder(folder_path="folder", repo_id=emo, delete_patterns=["*.json"]).oid
api.create_branch(emo, branch="try/this", revision="v1")
api.upload_file(path_or_fileobj=b"on a branch", path_in_repo="notes.txt", repo_id=emo, revision="try/this")
api.create_branch(emo, branch="try/this", revision="main", exist_ok=True)
seen["notes"] = [read(emo, "notes.txt", revision=revision) for revision in (first, "v1", "try/this", "main")]
seen["shas"] = [api.model_info(emo, revision="v1").sha == first, api.model_info(emo).sha == second, first != second]
seen["files"] = [sorted(api.list_repo_files(emo, revision=revision)) for revision in ("v1", "main")]
seen["entries"] = sorted(entry.path for entry in api.list_repo_tree(emo, revision="v1"))
seen["no file of this name"] = refusal(api.delete_file, "sub", emo, revision="try/this")
api.delete_folder("sub", emo, revision="try/this")
snapshot_download(emo, revision="v1", allow_patterns=["*.safetensors", "sub/*"], local_dir="snapshot")
with HfFileSystem().open(f"{emo}/model.safetensors") as file:
    file.seek(8)
    seen["range"] = file.read(1).decode()
card = ModelCard("---\nlicense: apache-2.0\n---\nHello.")
card.validate()
card.push_to_hub(emo)
seen["no metadata"] = refusal(api.upload_file, path_or_fileobj=b"Hello.", path_in_repo="README.md", repo_id=emo)
api.create_repo("me/app", repo_type="space", space_sdk="gradio")
app = {"path_in_repo": "app.py", "repo_id": "me/app", "repo_type": "space"}
seen["there and back"] = [api.upload_file(path_or_fileobj=code, **app).oid for code in (b"1", b"2", b"1")]
seen["app"] = read("me/app", "app.py", repo_type="space")

# Refusals
seen["no repository"] = refusal(api.model_info, "me/nothing")
seen["no file"] = refusal(read, emo, "nothing.txt")
seen["no revision"] = refusal(read, emo, "notes.txt", revision="v2")
seen["created again"] = refusal(api.create_repo, "emo")
seen["tagged again"] = refusal(api.create_tag, emo, tag="v1")
late = {"path_or_fileobj": b"late", "path_in_repo": "late.txt", "repo_id": emo}
seen["old parent"] = refusal(api.upload_file, **late, parent_commit=first)
seen["pull request"] = refusal(api.upload_file, **late, create_pr=True)
seen["stranger creates"] = refusal(stranger.create_repo, "me/stolen")
seen["stranger uploads"] = refusal(stranger.upload_file, path_or_fileobj=b"", path_in_repo="stolen", repo_id=emo)
seen["wrong token"] = refusal(HfApi(token="hf_wrong").create_tag, emo, tag="stolen")
seen["who is this"] = refusal(HfApi(token="hf_wrong").whoami)
seen["stranger reads"] = stranger.model_info(emo).id

# Failures that were asked for, one each: of the storage, then of the commit
broken = {"path_or_fileobj": bytes.fromhex(sys.argv[1]), "path_in_repo": "x.bin", "repo_id": "me/broken"}
api.create_repo("me/broken")
seen["storage fails"], seen["commit fails"] = refusal(api.upload_file, **broken), refusal(api.upload_file, **broken)
seen["left behind"] = api.list_repo_files("me/broken")
api.upload_file(**broken)

# Data sets
faces = Dataset.from_dict({"caption": ["a smile", "a frown"], "label": [0, 1]})
faces.push_to_hub("me/faces", config_name="one", split="train", set_default=True)
faces.select([1]).push_to_hub("me/faces", config_name="two", split="test")
seen["train"] = load_dataset("me/faces", split="train").to_dict()
seen["test"] = list(load_dataset("me/faces", "two", split="test", streaming=True))
Path("seen.json").write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("client")
    (work / "folder" / "sub").mkdir(parents=True)
    (work / "folder" / "notes.txt").write_text("first")
    (work / "folder" / "sub" / "old.json").write_text("{}")
    (work / "folder" / "model.safetensors").write_bytes(WEIGHTS)
    return work


@pytest.fixture(scope="module")
def hub(work):
    """The Hub after the client is done."""
    with LocalHub() as hub:
        hub.fail("PUT", "^/me/broken/lfs/", 403)
        hub.fail("POST", "^/api/models/me/broken/commit/main$", 400)
        command = [sys.executable, "-c", CLIENT, BROKEN.hex()]
        env = hub.env(work / "home")
        result = subprocess.run(command, cwd=work, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        yield hub


@pytest.fixture(scope="module")
def seen(hub, work) -> dict:
    return json.loads((work / "seen.json").read_text())


def test_every_revision_stays(hub, seen, work):
    assert seen["who"] == USER and seen["created"] == [EMO, EMO]
    assert seen["nothing new"] is True
    assert seen["notes"] == ["first", "first", "on a branch", "second"]
    assert seen["shas"] == [True, True, True]
    always = [".gitattributes", "model.safetensors", "notes.txt"]
    assert seen["files"] == [[*always, "sub/old.json"], always]
    assert seen["entries"] == [*always, "sub"]
    assert hub.files(EMO).keys() == {*always, "README.md"}
    assert hub.files(EMO, revision="v1")["notes.txt"] == b"first"
    history = hub.find("model", EMO).commit_at("try/this").history
    assert [commit.title for commit in history[2:]] == ["Upload folder using huggingface_hub", "initial commit"]
    assert hub.files(EMO, revision="try/this").keys() == set(always)
    assert len(set(seen["there and back"])) == 3


def test_weights_go_through_lfs_and_come_back_whole(hub, seen, work):
    files = hub.find("model", EMO).commit_at("main").files
    assert {path for path, file in files.items() if file.in_lfs} == {"model.safetensors"}
    assert hub.files(EMO)["model.safetensors"] == WEIGHTS
    assert (work / "snapshot" / "model.safetensors").read_bytes() == WEIGHTS
    assert not (work / "snapshot" / "notes.txt").exists()
    assert seen["range"] == "{"  # of the header, after its length


def test_a_space_is_no_model(hub, seen):
    assert seen["app"] == "1"
    assert hub.files("me/app", "space")["app.py"] == b"1"
    assert ("model", "me/app") not in hub.repos


@pytest.mark.parametrize(
    "what, error, text",
    [
        ("no repository", "RepositoryNotFoundError", "404"),
        ("no file", "RemoteEntryNotFoundError", "404"),
        ("no file of this name", "RemoteEntryNotFoundError", "A file with this name doesn't exist: sub"),
        ("no revision", "RevisionNotFoundError", "404"),
        ("no metadata", "UserWarning", "empty or missing yaml metadata"),
        ("created again", "HfHubHTTPError", "You already created this model repo"),
        ("tagged again", "HfHubHTTPError", "Tag v1 already exists"),
        ("old parent", "HfHubHTTPError", "A commit has happened since"),
        ("pull request", "HfHubHTTPError", "501"),
        ("stranger creates", "HfHubHTTPError", "401"),
        ("stranger uploads", "RepositoryNotFoundError", "401"),
        ("wrong token", "HfHubHTTPError", "Invalid credentials"),
        ("who is this", "HfHubHTTPError", "Invalid user token"),
        ("storage fails", "RuntimeError", "403 Forbidden: this failure was asked for"),
        ("commit fails", "BadRequestError", "this failure was asked for"),
    ],
)
def test_refusals_are_the_errors_of_the_client(seen, what, error, text):
    assert seen[what][0] == error
    assert text in seen[what][1]


def test_the_client_remembers_what_is_not_there(seen, work):
    assert len(list(work.glob("home/hub/models--*/.no_exist/*/nothing.txt"))) == 1


def test_what_is_refused_changes_nothing(hub, seen):
    assert ("model", "me/stolen") not in hub.repos
    assert hub.find("model", EMO).tags.keys() == {"v1"}
    assert not {"stolen", "late.txt"} & hub.files(EMO).keys()
    assert seen["stranger reads"] == EMO
    assert seen["left behind"] == [".gitattributes"]
    assert hub.files("me/broken")["x.bin"] == BROKEN  # the third time
    assert hub.requests.count(("POST", "/api/models/me/broken/commit/main")) == 2


def test_data_sets_come_back(seen):
    assert seen["train"] == {"caption": ["a smile", "a frown"], "label": [0, 1]}
    assert seen["test"] == [{"caption": "a frown", "label": 1}]


def test_the_client_uses_every_endpoint_and_misses_none(hub):
    unused = {function.__name__ for *_, function in ENDPOINTS}
    for method, path in hub.requests:
        used = [f.__name__ for methods, pattern, _, f in ENDPOINTS if method in methods and pattern.fullmatch(path)]
        # What this one is for is to tell the real Hub which program called, and the client does without an answer.
        assert used or path == "/api/agent-harnesses", path
        unused -= set(used[:1])
    assert not unused


def status_of(hub: LocalHub, method: str, path: str, body: bytes = b"", **headers: str) -> int:
    try:
        return urlopen(Request(hub.url + path, body, headers, method=method)).status
    except HTTPError as error:
        return error.code


def test_the_storage_takes_only_what_was_announced(hub):
    """The client cannot be made to do this; a broken one would."""
    announced, unknown = hashlib.sha256(WEIGHTS).hexdigest(), hashlib.sha256(b"other").hexdigest()
    assert status_of(hub, "PUT", f"/{EMO}/lfs/{announced}", WEIGHTS) == 200
    assert status_of(hub, "PUT", f"/{EMO}/lfs/{announced}", WEIGHTS[:-1]) == 400
    assert status_of(hub, "PUT", f"/{EMO}/lfs/{unknown}", b"other") == 403
    assert hub.find("model", EMO).lfs == {announced: WEIGHTS}
    header = {"key": "header", "value": {"summary": "-", "description": ""}}
    pointer = {"key": "lfsFile", "value": {"path": "x", "algo": "sha256", "oid": unknown}}
    commit, token = f"{json.dumps(header)}\n{json.dumps(pointer)}".encode(), f"Bearer {hub.token}"
    assert status_of(hub, "POST", f"/api/models/{EMO}/commit/main", commit, Authorization=token) == 400


def test_what_is_not_there_says_so(hub):
    assert status_of(hub, "GET", "/api/models") == 501
    assert status_of(hub, "DELETE", "/api/repos/delete") == 501


def test_settings_of_who_runs_the_tests_stay_out(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "kept")
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "1")
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    env = hub.env(tmp_path)
    assert env.items() >= {**own, "PYTHONPATH": "kept", "PATH": os.environ["PATH"]}.items()
    assert {name for name in env if name.startswith(("HF_", "TRANSFORMERS_")) or "proxy" in name.lower()} == own.keys()

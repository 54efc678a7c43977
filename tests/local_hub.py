# SPDX-License-Identifier: Apache-2.0
"""A HuggingFace Hub on loopback: real HTTP for the real client, and nothing leaves the machine.

    with LocalHub() as hub:
        subprocess.run([sys.executable, "push.py"], env=hub.env(tmp_path / "home"), check=True)
        assert "config.json" in hub.files("local-user/emoclip")

The client reads its settings when it is imported, so what talks to this Hub has to be another process. It keeps the
rules that publishing code can break: writes need the token, what is not text goes through LFS and arrives whole, a
commit on a parent that is no longer the last one is refused, every revision stays. Requests for what it lacks (pull
requests, lists, ...) get 501 and a line that says so. All repositories are public; of a card it sees if YAML is there.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

USER = "local-user"  # whose token it is; repositories that are created without a namespace are theirs
LFS_SUFFIXES = (".safetensors", ".parquet")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
SETTINGS = re.compile(r"(HF|HUGGING_?FACE|TRANSFORMERS)_|(http|https|all|no)_proxy$", re.IGNORECASE)


class HubError(Exception):
    """A refusal. Its code decides which exception users of the client see, RepositoryNotFoundError for one."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **fields: Any):
        headers = {"X-Error-Message": ascii(message)[1:-1], **(headers or {})}
        self.reply = Reply({"error": message, **fields}, headers | ({"X-Error-Code": code} if code else {}), status)


class Reply(NamedTuple):
    content: Any  # bytes, or what becomes JSON
    headers: dict[str, str] = {}
    status: int = 200


class File:
    def __init__(self, data: bytes, in_lfs: bool):
        self.data, self.in_lfs = data, in_lfs
        sha256 = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n"
        blob = pointer.encode() if in_lfs else data  # what git itself would hold
        self.oid = hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
        self.etag = sha256 if in_lfs else self.oid
        self.lfs = {"lfs": {"oid": sha256, "size": len(data), "pointerSize": len(blob)}} if in_lfs else {}

    def entry(self, path: str) -> dict:
        return {"type": "file", "path": path, "size": len(self.data), "oid": self.oid, **self.lfs}


class Commit:
    def __init__(self, parent: "Commit | None", title: str, message: str, files: dict[str, File]):
        self.title, self.message, self.files = title, message, files
        # The parent is part of the sha, as in git, so going back to old files is a new commit; no date is.
        content = [parent and parent.sha, title, message, sorted((path, file.oid) for path, file in files.items())]
        self.sha = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.history: list[Commit] = [self, *(parent.history if parent else [])]

    def entries(self, folder: str = "") -> list[dict]:
        """The files and folders anywhere under a folder."""
        inside = [path for path in sorted(self.files) if not folder or path.startswith(f"{folder}/")]
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist on this revision", "EntryNotFound")
        folders = {str(parent) for path in inside for parent in PurePosixPath(path).parents}
        below = sorted(path for path in folders if path != "." and len(path) > len(folder))
        trees = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in below]
        return trees + [self.files[path].entry(path) for path in inside]


@dataclass
class Repo:
    url: str
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    lfs: dict[str, bytes | None] = field(default_factory=dict)  # by sha256; None until a file that is announced came

    def commit_at(self, revision: str) -> Commit:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def append(self, branch: str, commit: Commit):
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha


@dataclass
class Call:
    """A request as an endpoint sees it; `parts` are the named groups of its pattern, unquoted."""

    hub: "LocalHub"
    parts: dict[str, str]
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def repo(self) -> Repo:
        return self.hub.find(self.parts["kind"] or "model", self.parts["id"])

    @property
    def commit(self) -> Commit:
        return self.repo.commit_at(self.parts["revision"] or "main")


API = r"/api/(?P<kind>model|dataset|space)s/(?P<id>[^/]+(?:/[^/]+)?)"
PAGE = r"/(?:(?P<kind>dataset|space)s/)?(?P<id>[^/]+(?:/[^/]+)?)"
REVISION = r"/(?P<revision>[^/]+)"  # a branch named a/b comes as a%2Fb
ENDPOINTS = []  # (methods, pattern, whether it needs the token, function); the first that matches answers


def endpoint(methods: str, pattern: str, needs_token: bool = False):
    def register(function):
        ENDPOINTS.append((methods.split(), re.compile(pattern), needs_token, function))
        return function

    return register


@endpoint("GET", "/api/whoami-v2", needs_token=True)
def whoami(call: Call):
    return {"type": "user", "name": USER, "orgs": []}


@endpoint("POST", "/api/repos/create", needs_token=True)
def create_repo(call: Call):
    wanted = json.loads(call.body)
    kind, repo_id = wanted.get("type", "model"), f"{wanted['organization'] or USER}/{wanted['name']}"
    url = f"{call.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
    if (kind, repo_id) in call.hub.repos:
        raise HubError(409, f"You already created this {kind} repo", url=url)  # which exist_ok=True goes on with
    call.hub.repos[kind, repo_id] = repo = Repo(url)
    repo.append("main", Commit(None, "initial commit", "", {".gitattributes": File(GITATTRIBUTES, False)}))
    return {"url": url}


@endpoint("POST", "/api/validate-yaml")
def validate_yaml(call: Call):
    warning = {"message": "empty or missing yaml metadata in repo card"}
    return {"errors": [], "warnings": [] if json.loads(call.body)["content"].startswith("---\n") else [warning]}


@endpoint("POST", f"{API}/preupload{REVISION}", needs_token=True)
def preupload(call: Call):
    """Which files go through LFS. By the oid of the last version, the client leaves out files that did not change."""
    old, answers = call.commit.files, []
    for file in json.loads(call.body)["files"]:
        path, is_binary = file["path"], b"\0" in base64.b64decode(file["sample"])
        in_lfs = path.endswith(LFS_SUFFIXES) or is_binary or file["size"] > 10_000_000
        oid = old[path].etag if path in old else None
        answers.append({"path": path, "uploadMode": "lfs" if in_lfs else "regular", "shouldIgnore": False, "oid": oid})
    return {"files": answers}


@endpoint("POST", rf"{PAGE}\.git/info/lfs/objects/batch", needs_token=True)
def lfs_batch(call: Call):
    objects, lfs = json.loads(call.body)["objects"], call.repo.lfs
    for wanted in objects:
        if lfs.setdefault(wanted["oid"], None) is None:  # an object that gets no actions is here already
            wanted["actions"] = {"upload": {"href": f"{call.repo.url}/lfs/{wanted['oid']}"}}
    return {"transfer": "basic", "objects": objects}


@endpoint("PUT", f"{PAGE}/lfs/(?P<oid>[^/]+)")
def lfs_put(call: Call):
    """The client sends no token to the storage, on the real Hub neither; what allows this is the batch before it."""
    oid, lfs = call.parts["oid"], call.repo.lfs
    if oid not in lfs:
        raise HubError(403, "No batch has asked for this object")
    if hashlib.sha256(call.body).hexdigest() != oid:
        raise HubError(400, "The content does not have the sha256 that was announced")
    lfs[oid] = call.body
    return {}


@endpoint("POST", f"{API}/commit{REVISION}", needs_token=True)
def commit(call: Call):
    repo, branch, parent = call.repo, call.parts["revision"], call.commit
    if branch not in repo.branches or "create_pr" in call.query:
        raise HubError(501, "LocalHub commits to branches only, without pull requests")
    header, *operations = [json.loads(line) for line in call.body.splitlines()]
    if header["value"].get("parentCommit", parent.sha) != parent.sha:
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(parent.files)
    for operation in operations:
        apply(operation["key"], operation["value"], files, repo.lfs)
    new = Commit(parent, header["value"]["summary"], header["value"]["description"], files)
    repo.append(branch, new)
    return {"commitOid": new.sha, "commitUrl": f"{repo.url}/commit/{new.sha}"}


def apply(operation: str, value: dict, files: dict[str, File], lfs: dict[str, bytes | None]):
    path = value["path"]
    if operation == "file":
        files[path] = File(base64.b64decode(value["content"]), in_lfs=False)
    elif operation == "lfsFile":
        if lfs.get(value["oid"]) is None:
            raise HubError(400, f"The LFS pointer {path} points to a file that does not exist")
        files[path] = File(lfs[value["oid"]], in_lfs=True)
    else:  # deletedFile, deletedFolder
        folder = f"{path.rstrip('/')}/"
        gone = [name for name in files if name == path or (operation == "deletedFolder" and name.startswith(folder))]
        if not gone:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]


@endpoint("POST", f"{API}/branch/(?P<branch>[^/]+)", needs_token=True)
def create_branch(call: Call):
    repo, branch = call.repo, call.parts["branch"]
    if branch in repo.branches:
        raise HubError(409, f"Branch {branch} already exists")
    repo.branches[branch] = repo.commit_at(json.loads(call.body).get("startingPoint", "main")).sha
    return {}


@endpoint("POST", f"{API}/tag{REVISION}", needs_token=True)
def create_tag(call: Call):
    repo, tag = call.repo, json.loads(call.body)["tag"]
    if tag in repo.tags:
        raise HubError(409, f"Tag {tag} already exists")
    repo.tags[tag] = call.commit.sha
    return {}


@endpoint("GET", f"{API}/tree{REVISION}(?:/(?P<path>.+))?")
def tree(call: Call):
    folder, is_recursive = call.parts["path"] or "", "recursive=true" in call.query
    depth = len(PurePosixPath(folder).parts) + 1
    return [e for e in call.commit.entries(folder) if is_recursive or len(PurePosixPath(e["path"]).parts) == depth]


@endpoint("GET HEAD", f"{PAGE}/resolve{REVISION}/(?P<path>.+)")
def resolve(call: Call):
    at, path = call.commit, call.parts["path"]
    if path not in at.files:
        # With the sha, the client remembers which optional files are not there.
        raise HubError(404, f"{path} does not exist", "EntryNotFound", {"X-Repo-Commit": at.sha})
    data, headers = at.files[path].data, {"X-Repo-Commit": at.sha, "ETag": f'"{at.files[path].etag}"'}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", ""))
    if not asked:
        return Reply(data, headers)
    start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
    return Reply(data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}, 206)


@endpoint("GET", f"{API}(?:/revision{REVISION})?")
def repo_info(call: Call):
    siblings = [{"rfilename": path} for path in sorted(call.commit.files)]
    return {"id": call.parts["id"], "sha": call.commit.sha, "private": False, "tags": [], "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open, so the body is read even when the request is refused
    disable_nagle_algorithm = True  # else head and body, two packets, cost 40 ms per request

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with self.server.hub.lock:
                reply = self.server.hub.answer(self.command, self.path, self.headers, body)
        except HubError as error:
            reply = error.reply
        content = reply.content if isinstance(reply.content, bytes) else json.dumps(reply.content).encode()
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *args):
        pass  # `hub.requests` is the log


class LocalHub:
    def __init__(self):
        self.token = "hf_local"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[tuple[str, str]] = []  # (method, path): quoted as it came, without the query
        self.failures: list[tuple] = []
        self.lock = threading.Lock()

    def __enter__(self) -> "LocalHub":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def env(self, home: Path) -> dict[str, str]:
        """For a process that uses this Hub. Caches, proxies and offline switches that are set here stay out of it, so
        what it has downloaded before is under `home`, and it does ask 127.0.0.1."""
        kept = {name: value for name, value in os.environ.items() if not SETTINGS.match(name)}
        # With Xet, an upload asks for a write token of a storage that is not here.
        own = {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return {**kept, **own}

    def find(self, repo_type: str, repo_id: str) -> Repo:
        if (repo_type, repo_id) not in self.repos:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self.repos[repo_type, repo_id]

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        return {path: file.data for path, file in self.find(repo_type, repo_id).commit_at(revision).files.items()}

    def fail(self, method: str, path_regex: str, status: int, times: int = 1):
        """The next requests of this kind fail. On 408, 429, 500, 502, 503 and 504 the client waits (1, 2, 4, ... s)
        and tries again unless it creates or commits; a 403 ends everything at once."""
        self.failures += times * [(method, re.compile(path_regex), status)]

    def answer(self, method: str, url: str, headers: dict[str, str], body: bytes) -> Reply:
        path, _, query = url.partition("?")
        self.requests.append((method, path))
        for failure in self.failures:
            if failure[0] == method and failure[1].search(path):
                self.failures.remove(failure)
                raise HubError(failure[2], "this failure was asked for")
        for methods, pattern, needs_token, function in ENDPOINTS:
            match = pattern.fullmatch(path)
            if match and method in methods:
                given = headers.get("Authorization")
                if needs_token and given != f"Bearer {self.token}":
                    # The client makes RepositoryNotFoundError of no token too; by itself, over https only.
                    code = None if given or "id" not in pattern.groupindex else "RepoNotFound"
                    wrong = "Invalid credentials in Authorization header" if given else "Invalid username or password"
                    raise HubError(401, wrong, code)
                parts = {name: part and unquote(part) for name, part in match.groupdict().items()}
                answer = function(Call(self, parts, query, headers, body))
                return answer if isinstance(answer, Reply) else Reply(answer)
        raise HubError(501, f"LocalHub has no {method} {path}")

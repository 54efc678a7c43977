# SPDX-License-Identifier: Apache-2.0
"""Publishing data sets: what may not leave stays, what leaves can be loaded, and half of it is never there."""

import io
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import data_set_trees as trees
import datasets
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from local_hub import HubError, LocalHub, Reply

from modeling_emoclip.video_reading import read_video
from training.data import publish

FEW = ("--options", "{verify: false}")  # the trees are not as large as the real sets
SMALL = "{num_train: 3, num_validation: 2, num_test_per_class: 1, num_order_pairs: 1, num_frames: 2}"


class RecordingHub(LocalHub):
    """Also keeps what came, as (path, body), and knows whose token it is."""

    def __init__(self):
        super().__init__()
        self.received = []

    def answer(self, method, url, headers, body):
        self.received.append((url, body))
        if url == "/api/whoami-v2":
            if headers["Authorization"] != f"Bearer {self.token}":
                raise HubError(401, "Invalid username or password.")
            return Reply({"type": "user", "name": "lab"})
        return super().answer(method, url, headers, body)

    def visibilities(self) -> list[str]:
        """That the repositories were created with."""
        return [json.loads(body)["visibility"] for url, body in self.received if url == "/api/repos/create"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def run(hub, home: Path, *command, env=(), cwd=None) -> subprocess.CompletedProcess:
    """A Python process that knows no other Hub than this one."""
    env = hub.env(home) | dict(env)
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def publish_dfew(hub, folder: Path, *arguments, **options) -> subprocess.CompletedProcess:
    """To lab/dfew, from the folder DFEW in a folder."""
    command = ("-m", "training.data.publish", "dfew", folder / "DFEW", "--repo", "lab/dfew", *FEW, *arguments)
    return run(hub, folder / "home", *command, **options)


def write_folder(*arguments) -> str:
    """`--output` in this process; returns the card."""
    few = FEW if "--options" not in arguments else ()
    publish.main([*map(str, arguments), "--repo", "lab/set", *few])
    return (Path(arguments[arguments.index("--output") + 1]) / "README.md").read_text(encoding="utf-8")


def refusal(capsys, *arguments) -> str:
    """What a call that must fail says; the usage line before it left out."""
    with pytest.raises(SystemExit):
        publish.main([*map(str, arguments)])
    return capsys.readouterr().err.partition("error: ")[2]


def make(name: str, folder: Path) -> Path:
    """A data set as its authors give it."""
    if name == "dfew":
        return trees.make_dfew(folder, folds=(1, 2))
    if name == "mafw":
        trees.make_mafw(folder, kind="compound")
    return getattr(trees, f"make_{name}")(folder)


def unpacked(files: dict[str, bytes]) -> bytes:
    """All that is in the files of a repository, tables and their metadata as text."""
    parts = [name.encode() + b"\n" + data for name, data in files.items()]
    for name, data in files.items():
        if name.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            parts += [str(table.to_pylist()).encode(), str(pq.read_schema(io.BytesIO(data)).metadata).encode()]
    return b"\n".join(parts)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_nothing_leaked(sent: bytes, folder: Path):
    """Neither the folder, nor another path of this machine, nor a piece of a file in it is in what was sent."""
    media = [path for path in folder.rglob("*") if path.suffix in (".jpg", ".mp4")]
    assert media and not any(path.read_bytes()[-32:] in sent for path in media)
    for secret in (str(folder), folder.name, str(Path.home()), ".jpg", "She smiles", "她笑了"):
        assert secret.encode() not in sent


@pytest.mark.parametrize(
    "name, extra", [("dfew", set()), ("ferv39k", {"scene"}), ("mafw", {"labels"}), ("afew", set())]
)
def test_no_media_and_no_path_of_a_licensed_set_is_written(name, extra, tmp_path):
    make(name, tmp_path / "secret" / name)
    card = write_folder(name, tmp_path / "secret" / name, "--output", tmp_path / "out")
    files = files_in(tmp_path / "out")
    ids = set()
    for file in files:
        if file.endswith(".parquet"):
            table = pq.read_table(tmp_path / "out" / file)
            assert set(table.column_names) == {"clip_id", "label", "fold", "num_frames"} | extra
            ids |= set(table["clip_id"].to_pylist())
            assert not any(str(value).startswith("/") for row in table.to_pylist() for value in row.values())
    assert ids and all(clip_id.encode() in unpacked(files) for clip_id in ids)  # the search finds what is there
    check_nothing_leaked(unpacked(files), tmp_path / "secret")
    assert not re.search(r"(?<![\w:/.)*{])/[\w.]", card)  # no path of any machine


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """DFEW, published with the defaults: the Hub, and the folder in which DFEW lies."""
    folder = tmp_path_factory.mktemp("secret")
    make("dfew", folder / "DFEW")
    with RecordingHub() as hub:
        done = publish_dfew(hub, folder)
        assert done.returncode == 0, done.stderr
        assert re.search(r"published http.*lab/dfew \(private\): fold1, fold2 \(annotations only\)", done.stdout)
        yield hub, folder


def test_no_media_and_no_path_of_a_licensed_set_is_sent(published):
    hub, folder = published
    requests = [f"{url}\n".encode() + body for url, body in hub.received]
    history = hub.find("dataset", "lab/dfew").commit_at("main").history
    texts = [f"{commit.title}\n{commit.message}\n".encode() for commit in history]
    sent = b"\n".join([*requests, *texts, unpacked(hub.files("lab/dfew", "dataset"))])
    assert b"Publish fold1, fold2 (annotations only)" in sent
    check_nothing_leaked(sent, folder)


def test_the_folds_load_from_the_hub(published, tmp_path):
    hub, _ = published
    code = """
import json, datasets
whole = {fold: datasets.load_dataset("lab/dfew", fold) for fold in datasets.get_dataset_config_names("lab/dfew")}
streamed = datasets.load_dataset("lab/dfew", "fold1", split="test", streaming=True)
assert datasets.load_dataset("lab/dfew", split="test").to_list() == whole["fold1"]["test"].to_list()
assert list(streamed) == whole["fold1"]["test"].to_list()
assert streamed.features == whole["fold1"]["test"].features
names = streamed.features["label"].names
rows = {fold: {name: rows.to_list() for name, rows in splits.items()} for fold, splits in whole.items()}
print(json.dumps([names, rows]))
"""
    done = run(hub, tmp_path, "-I", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names, folds = json.loads(done.stdout.splitlines()[-1])
    assert names == list(trees.EMOTIONS) and list(folds) == ["fold1", "fold2"]
    for fold, splits in folds.items():
        for split, rows in splits.items():
            clips = trees.DFEW_CLIPS[split if fold == "fold1" else {"train": "test", "test": "train"}[split]]
            common = {"fold": int(fold[-1]), "num_frames": trees.NUM_FRAMES}
            assert rows == [{"clip_id": n.zfill(5), "label": names.index(label), **common} for n, label in clips]


def test_the_card_finds_the_videos_again(published, tmp_path):
    hub, folder = published
    card = hub.files("lab/dfew", "dataset")["README.md"].decode()
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    code += "\nfrom pathlib import Path"
    code += "\nassert len(clips) == 4"
    code += "\nassert all(Path(c['frames'], '1.jpg').is_file() and c['clip_id'] in c['frames'] for c in clips)"
    done = run(hub, tmp_path, "-c", code, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_a_licensed_set_is_private_and_not_pushed_to_an_open_repository(published):
    hub, folder = published
    assert hub.visibilities() == ["private"]
    before = hub.files("lab/dfew", "dataset")
    again = publish_dfew(hub, folder)  # LocalHub has no private repositories: it says that this one is open
    assert again.returncode == 2 and "lab/dfew exists and is public" in again.stderr
    assert hub.files("lab/dfew", "dataset") == before


def test_the_card_counts_the_rows(tmp_path):
    make("dfew", tmp_path / "DFEW")
    card = write_folder("dfew", tmp_path / "DFEW", "--output", tmp_path / "out")
    table = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in card.splitlines() if line[:2] == "| "]
    head = table.index(["", "label", "fold1 train", "fold1 test", "fold2 train", "fold2 test"])
    train, test = (Counter(label for _, label in trees.DFEW_CLIPS[split]) for split in ("train", "test"))
    for number, label in enumerate(trees.EMOTIONS):
        counts = [train[label], test[label], test[label], train[label]]
        assert table[head + 1 + number] == [str(number), label, *map(str, counts)]
    assert table[head + 8] == ["", "all", "4", "3", "3", "4"]
    assert table[head + 9] == ["", "all, by the authors", "9,356", "2,341", "9,356", "2,341"]
    assert "**Not complete**" in card and "no part may be passed on" in card and "ACM Multimedia 2020" in card
    data = DatasetCard(card).data
    assert (data.license, data.license_link) == ("other", "https://dfew-dataset.github.io")
    assert [info["config_name"] for info in data.dataset_info] == ["fold1", "fold2"]
    assert "None" not in card and "{{" not in card
    rows = datasets.load_dataset(str(tmp_path / "out"), "fold2", split="test")
    assert rows.features["label"].names == list(trees.EMOTIONS) and set(rows["fold"]) == {2}


def test_captions_leave_on_request_only(tmp_path):
    make("mafw", tmp_path / "MAFW")
    card = write_folder("mafw", tmp_path / "MAFW", "--output", tmp_path / "without")
    assert "captions of MAFW are left out" in card
    # fold1 is also called single_fold1, and one name is enough.
    assert {path.name for path in (tmp_path / "without").iterdir()} == {"README.md", "fold1", "compound_fold1"}
    card = write_folder("mafw", tmp_path / "MAFW", "--output", tmp_path / "with", "--with-captions")
    assert "captions most of all" in card and "`caption_zh`" in card
    row = datasets.load_dataset(str(tmp_path / "with"), "compound_fold1", split="test")[0]
    assert (row["caption"], row["caption_zh"]) == ("She opens her mouth", "她张开嘴")


def own_folder(root: Path, write_clip, names=("smile", "frown")) -> Path:
    lines = [f"train/{name}.mp4,{name},a {name},0.5" for name in names]
    trees.write_text(root / "metadata.csv", ["file_name,label,caption,tension", *lines])
    (root / "train").mkdir()
    for name in names:
        write_clip(root / f"train/{name}.mp4", num_frames=3 + len(name))
    return root


def test_own_videos_are_published_if_the_owner_says_so(tmp_path, write_clip):
    folder = own_folder(tmp_path / "mine", write_clip)
    clips = [path.read_bytes() for path in sorted(folder.rglob("*.mp4"))]
    card = write_folder("own", folder, "--output", tmp_path / "without")
    sent = unpacked(files_in(tmp_path / "without"))
    assert b"a smile" in sent and not any(clip[-32:] in sent for clip in clips)
    assert str(tmp_path).encode() not in sent
    assert "All rights are reserved" in card and "annotations" in card

    card = write_folder("own", folder, "--output", tmp_path / "with", "--with-videos", "--license", "cc-by-4.0")
    assert str(tmp_path).encode() not in unpacked(files_in(tmp_path / "with"))
    assert DatasetCard(card).data.license == "cc-by-4.0" and "annotations" not in card.lower()
    rows = datasets.load_dataset(str(tmp_path / "with"), split="train")
    assert list(datasets.load_dataset(str(tmp_path / "with"), split="train", streaming=True)) == list(rows)
    assert sorted(row["video"]["path"] for row in rows) == ["frown.mp4", "smile.mp4"]
    assert sorted(row["video"]["bytes"] for row in rows) == sorted(clips)
    assert rows["caption"] == ["a smile", "a frown"] and rows["tension"] == [0.5, 0.5]


def test_a_changed_video_is_published_as_it_is_now(tmp_path, write_clip):
    folder = own_folder(tmp_path / "mine", write_clip, names=["smile"])
    write_folder("own", folder, "--output", tmp_path / "first", "--with-videos")
    write_clip(folder / "train/smile.mp4", num_frames=20)
    write_folder("own", folder, "--output", tmp_path / "second", "--with-videos")
    row = datasets.load_dataset(str(tmp_path / "second"), split="train")[0]
    assert row["video"]["bytes"] == (folder / "train/smile.mp4").read_bytes()


def test_many_videos_are_several_files(tmp_path, write_clip, monkeypatch):
    folder = own_folder(tmp_path / "mine", write_clip, names=["smile", "frown", "grin"])
    monkeypatch.setattr(publish, "BYTES_PER_FILE", 3000)
    write_folder("own", folder, "--output", tmp_path / "out", "--with-videos")
    assert len(list((tmp_path / "out/default").iterdir())) > 1
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert [row["video"]["path"] for row in rows] == ["smile.mp4", "frown.mp4", "grin.mp4"]


def test_rendered_faces_are_published_whole(tmp_path):
    card = write_folder("synthetic_faces", "--output", tmp_path / "out", "--options", SMALL)
    assert str(tmp_path).encode() not in unpacked(files_in(tmp_path / "out"))
    splits = datasets.load_dataset(str(tmp_path / "out"), "clips")
    sizes = {"train": 3, "validation": 2, "test": 11, "test_imbalanced": 10, "order_pairs": 2}
    assert {name: len(rows) for name, rows in splits.items()} == sizes
    for row in splits["order_pairs"]:
        frames, _ = read_video(row["video"], lambda metadata: [0, 1])
        assert frames.shape == (2, 128, 128, 3) and "/" not in row["video"]["path"]
    still = datasets.load_dataset(str(tmp_path / "out"), "stills", split="train")[0]
    assert still["image"].size == (64, 64) and still["caption"]
    assert DatasetCard(card).data.license == "apache-2.0" and "With the videos" not in card


def test_a_failed_upload_leaves_no_half_and_the_next_replaces_all(tmp_path):
    make("dfew", tmp_path / "DFEW")
    with RecordingHub() as hub:
        for method, path, status in (("PUT", "/lfs/", 403), ("POST", "/commit/", 500)):
            hub.fail(method, path, status)
            done = publish_dfew(hub, tmp_path, "--public")
            error = next(line for line in done.stderr.splitlines() if "error: " in line)
            assert done.returncode == 2 and "Traceback" not in done.stderr
            assert "no part of it is published" in error and str(status) in error
            assert list(hub.files("lab/dfew", "dataset")) == [".gitattributes"]
        assert "lab/dfew: fold1, fold2" in publish_dfew(hub, tmp_path, "--public").stdout
        assert len(hub.find("dataset", "lab/dfew").commit_at("main").history) == 2  # one came with the repository
        assert publish_dfew(hub, tmp_path, "--public", "--config", "fold2").returncode == 0
        folders = {name.split("/")[0] for name in hub.files("lab/dfew", "dataset")}
        assert folders == {".gitattributes", "README.md", "fold2"}
        assert set(hub.visibilities()) == {"public"}


@pytest.mark.parametrize("token, message", [("", "no token found"), ("hf_wrong", "Invalid user token")])
def test_without_a_token_nothing_is_begun(token, message, tmp_path):
    make("dfew", tmp_path / "DFEW")
    with RecordingHub() as hub:
        done = publish_dfew(hub, tmp_path, env={"HF_TOKEN": token})
        assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
        assert not hub.repos and not (tmp_path / "home/datasets").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["dfew", "DFEW", "--with-videos"], "must not be passed on"),
        (["dfew", "DFEW", "--with-captions"], "dfew has no captions"),
        (["dfew", "DFEW", "--license", "mit"], "for its authors to choose"),
        (["dfew", "DFEW", "--config", "fold1", "fold3"], "no list of the train clips of fold3"),
        (["dfew", "DFEW", "--config", "fold9"], "'fold9' not found"),
        (["dfew", "nothing"], "is not a folder"),
        (["dfew"], "pass data_dir"),
        (["dfew", "DFEW", "--repo", "dfew"], "must be ORG/NAME"),
        (["dfew", "DFEW", "--output", "DFEW"], "DFEW exists"),
        (["dfew", "DFEW", "--options", "{}"], "fold1 has other numbers of clips"),
        (["dfew", "DFEW", "--options", "[1]"], "must be like"),
        (["dfew", "DFEW", "--options", "{a: {"], "expected the node content"),
        (["synthetic_faces", "DFEW"], "has no data_dir"),
    ],
)
def test_refusals(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("dfew", tmp_path / "DFEW")
    few = FEW if arguments[0] == "dfew" else ()
    error = refusal(capsys, *arguments[:1], "--repo", "lab/dfew", "--output", "out", *few, *arguments[1:])
    assert message in error
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("publish.unfinished.*"))


def test_own_metadata_with_paths_of_the_machine_are_refused(capsys, tmp_path, write_clip):
    (tmp_path / "mine").mkdir()
    clip = write_clip(tmp_path / "mine" / "smile.mp4")
    for row in (f"{clip},a smile", f"smile.mp4,copied from {tmp_path / 'mine'}"):
        trees.write_text(tmp_path / "mine/metadata.csv", ["file_name,caption", row])
        error = refusal(capsys, "own", tmp_path / "mine", "--repo", "me/mine", "--output", tmp_path / "out")
        assert "is a path of this machine" in error and not (tmp_path / "out").exists()


def test_folders_of_frames_stay(capsys, tmp_path):
    trees.make_own(tmp_path / "mine", [{"file_name": "smile", "label": "smile"}])
    arguments = ("own", tmp_path / "mine", "--output", tmp_path / "out")
    assert "folders of images" in refusal(capsys, *arguments, "--repo", "me/mine", "--with-videos")
    write_folder(*arguments)
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert rows.column_names == ["label", "clip_id", "fold", "num_frames"]

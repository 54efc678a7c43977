# SPDX-License-Identifier: Apache-2.0
"""One's own clips: what the table may say, and what is said of a table that is wrong."""

import json
import pickle
from pathlib import Path

import data_set_trees as trees
import datasets
import pytest

from modeling_emoclip.video_reading import read_video
from training.data.own_videos import OwnVideos

ROWS = [
    {"file_name": "train/smile.mp4", "label": "joy", "caption": 'he smiles, "slowly"', "tension": 0.25, "group": "a"},
    {
        "file_name": "train/my frown.mp4",
        "label": "anger",
        "caption": "ein Stirnrunzeln, böse",
        "tension": -1,
        "group": "b",
    },
    {"file_name": "test/grin.mp4", "label": "joy", "caption": "a grin", "tension": 1.5e1, "group": "c"},
]


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def build(tmp_path):
    """`build(folder, ...)`: the splits, in a cache that every build of a test shares."""

    def run(data_dir, num_proc=None, **options):
        builder = OwnVideos(data_dir=str(data_dir), cache_dir=str(tmp_path / "cache"), **options)
        builder.download_and_prepare(num_proc=num_proc)
        return builder.as_dataset()

    return run


@pytest.fixture(scope="session")
def clip(write_clip, tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 4, 32, 32)


def write_table(root: Path, text: str, name: str = "metadata.csv", encoding: str = "utf-8") -> Path:
    """A table as somebody typed it, and clips a, b and c as folders of frames."""
    for clip_name in "abc":
        trees.write_frames(root / clip_name)
    (root / name).write_bytes(text.encode(encoding))
    return root


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_csv_and_jsonl(build, tmp_path, clip, name):
    rows = build(trees.make_own(tmp_path / "my clips", ROWS, clip, name))
    train = rows["train"]
    assert set(rows) == {"train", "test"}
    assert train.features["label"].names == ["anger", "joy"]
    assert [train.features["label"].int2str(row) for row in train["label"]] == ["joy", "anger"]
    assert train["caption"] == ['he smiles, "slowly"', "ein Stirnrunzeln, böse"]
    assert train["group"] == ["a", "b"] and train["clip_id"] == ["train/smile", "train/my frown"]
    assert list(train["tension"]) == [0.25, -1] and list(rows["test"]["tension"]) == [15]
    frames, _ = read_video(train[1]["video"], lambda metadata: range(metadata.total_num_frames))
    assert len(frames) == 4


def test_folders_of_frames(build, tmp_path):
    rows = build(write_table(tmp_path, "file_name,label\na,joy\nb,joy\n./c,fear\n"))
    assert rows["train"]["clip_id"] == ["a", "b", "c"] and rows["train"]["num_frames"] == [3, 3, 3]
    assert len(read_video(rows["train"][0]["frames"], lambda metadata: [0, 2])[0]) == 2


def test_captions_only(build, tmp_path):
    train = build(write_table(tmp_path, "file_name,caption\na,a smile\nb,\n"))["train"]
    assert train["caption"] == ["a smile", ""]
    assert set(train.column_names) == {"frames", "caption", "clip_id", "fold", "num_frames"}


def test_targets_only(build, tmp_path):
    train = build(write_table(tmp_path, "file_name,tension,note,age\na,1,calm,30\nb,-2.5e-1,,41\n"))["train"]
    assert train["tension"] == [1, -0.25] and train["age"] == [30, 41]
    assert set(train.column_names) == {"frames", "tension", "age", "clip_id", "fold", "num_frames"}


def test_numbers_as_labels_groups_and_ids_are_no_targets(build, tmp_path):
    table = "file_name,label,group,clip_id,fold,num_frames,video\na,0,7,1,3,5,9\nb,1,7,2,3,5,9\n"
    train = build(write_table(tmp_path, table))["train"]
    assert (
        train.features["label"].names == ["0", "1"] and train["group"] == ["7", "7"] and train["clip_id"] == ["1", "2"]
    )
    assert train["num_frames"] == [3, 3]  # counted
    assert set(train.column_names) == {"frames", "label", "group", "clip_id", "fold", "num_frames"}


def test_the_order_of_labels(build, tmp_path):
    root = write_table(tmp_path, "file_name,label\na,joy\nb,fear\n")
    assert build(root)["train"]["label"] == [1, 0]
    chosen = build(root, labels=["joy", "anger", "fear"])["train"]
    assert chosen["label"] == [0, 2] and chosen.features["label"].names == ["joy", "anger", "fear"]
    with pytest.raises(ValueError, match=r"metadata.csv, line 3: label 'fear' is not among labels=\['joy'\]"):
        build(root, labels=["joy"])


@pytest.mark.parametrize(
    "table, splits",
    [
        ("file_name,split\na,train\nb,val\nc,Test\n", {"train": ["a"], "validation": ["b"], "test": ["c"]}),
        ("file_name,split\na,\nb,validation\nc,\n", {"train": ["a", "c"], "validation": ["b"]}),
        ("file_name\na\nb\n", {"train": ["a", "b"]}),
    ],
)
def test_splits_by_column(build, tmp_path, table, splits):
    assert {split: list(rows["clip_id"]) for split, rows in build(write_table(tmp_path, table)).items()} == splits


def test_splits_by_folder(build, tmp_path):
    names = ["train/a", "Val/b", "test/x/c", "other/d"]
    rows = build(trees.make_own(tmp_path / "one", [{"file_name": name} for name in names]))
    assert {split: list(part["clip_id"]) for split, part in rows.items()} == {
        "train": ["train/a", "other/d"],
        "validation": ["Val/b"],
        "test": ["test/x/c"],
    }
    for split in ("train", "val", "test"):
        trees.make_own(tmp_path / "many", [{"file_name": "a"}], name=f"{split}/metadata.csv")
    rows = build(tmp_path / "many")
    # Each table has an "a", and these are three clips.
    assert {split: list(part["clip_id"]) for split, part in rows.items()} == {
        "train": ["train/a"],
        "validation": ["val/a"],
        "test": ["test/a"],
    }


@pytest.mark.parametrize(
    "text, encoding",
    [
        ("file_name,label\r\na,joy\r\n\r\nb,fear\r\n", "utf-8-sig"),
        ('"file_name","label"\n"a","joy"\n"b","fear"', "utf-8"),
        (" file_name , label \na, joy\nb,fear ,\n".replace(" ,\n", "\n"), "gbk"),
        ("file_name,label\n.\\a,joy\nx\\..\\b,fear\n", "utf-8"),
    ],
)
def test_tables_from_many_programs(build, tmp_path, text, encoding):
    rows = build(write_table(tmp_path, text, encoding=encoding))["train"]
    assert rows["clip_id"] == ["a", "b"] and rows["label"] == [1, 0]


def test_the_unicode_text_of_excel(build, tmp_path):
    rows = build(write_table(tmp_path, "file_name\tlabel\r\na\tse\u00f1ora\r\nb\t\u5979, 1\r\n", encoding="utf-16"))
    assert rows["train"].features["label"].names == ["señora", "她, 1"]


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_link_to_a_clip_is_that_clip(build, tmp_path, clip, link):
    root = trees.make_own(tmp_path / "mine", [{"file_name": "train/a.mp4"}, {"file_name": "test/b.mp4"}], clip)
    (root / "test/b.mp4").unlink()
    link(root / "test/b.mp4", root / "train/a.mp4")
    with pytest.raises(ValueError, match=r"line 3: file '.*test/b.mp4' is in .*, line 2 already, which is train"):
        build(root)


def test_one_clip_may_have_two_captions_and_a_group_many_clips(build, tmp_path):
    table = (
        "file_name,clip_id,caption,group,split\na,1,a smile,ann,train\na,2,bared teeth,ann,train\nb,3,,,test\nc,4,,,\n"
    )
    assert build(write_table(tmp_path, table))["train"]["caption"] == ["a smile", "bared teeth", ""]


def test_a_shared_group_is_told_once(build, tmp_path):
    clips = "".join(f"{name},{split},ann\n" for name, split in (("a", "train"), ("b", "test"), ("c", "test")))
    with pytest.raises(ValueError, match="1 in all"):
        build(write_table(tmp_path, "file_name,split,group\n" + clips))


def test_leftovers_do_not_matter(build, tmp_path):
    root = write_table(tmp_path / "mine", "file_name\na\n", name="metadata.CSV")
    for name in ("._metadata.csv", ".DS_Store", "metadata.txt", "a/._1.jpg", "a/Thumbs.db"):
        (root / name).write_bytes(b"\x00\x05\xff")
    assert build(root)["train"]["num_frames"] == [3]


BROKEN = {
    "no file_name": ("name,label\na,joy\n", r"metadata.csv, line 2: no file_name; the columns are name, label"),
    "empty file_name": ("file_name,label\na,joy\n,joy\n", r"metadata.csv, line 3: no file_name"),
    "missing clip": ("file_name\na\nz.mp4\n", r"metadata.csv, line 3: there is no .*z.mp4"),
    "missing label": (
        "file_name,label\na,joy\nb,\n",
        r"metadata.csv, line 3: there is no label, but other clips have one",
    ),
    "unknown split": (
        "file_name,split\na,dev\n",
        r"metadata.csv, line 2: split is 'dev', but must be one of train, val",
    ),
    "no number": ("file_name,t\na,1\n\nb,high\n", r"metadata.csv, line 4: t is 'high', but a number in .*, line 2"),
    "empty number": (
        "file_name,t\na,\nb,1\n",
        r"metadata.csv, line 2: t is '', but a number in .*metadata.csv, line 3",
    ),
    "not finite": ("file_name,t\na,1\nb,nan\n", r"metadata.csv, line 3: t is 'nan'"),
    "listed twice": ("file_name\na\nb\n./a\n", r"metadata.csv, line 4: clip 'a' is in .*metadata.csv, line 2 already"),
    "comma in a caption": ("file_name,caption\na,x,y\n", r"metadata.csv, line 2: more values than columns: \['y'\]"),
    "open quote": ('file_name,caption\na,"x\nb,y\n', r"metadata.csv, line 2: unexpected end of data"),
    "wrong encoding": ("file_name,caption\na,\udce9 x\n", r"metadata.csv, line 2: the bytes .* are not UTF-8"),
    "file and folder": ("file_name\na\nx.mp4\n", r"metadata.csv, line 3: .*x.mp4 is a file, but folders are expected"),
    "Spanish from Excel": (
        "file_name,label\na,se\udcf1ora\n",
        r"metadata.csv, line 2: the bytes b'.xf1' are not UTF-8",
    ),
    "group of two splits": (
        "file_name,split,group\na,train,ann\nb,test,ben\nc,test,ann\n",
        r"metadata.csv, line 4: group 'ann' is in .*metadata.csv, line 2 already, which is train; .* tested on test",
    ),
    "clip of two splits": (
        "file_name,split\na,train\nb,val\n./a,test\n",
        r"metadata.csv, line 4: clip 'a' is in .*metadata.csv, line 2 already, which is train; .* tested on test",
    ),
    "clip of two splits, with two names": (
        "file_name,split,clip_id\na,train,1\nb,train,2\nx/../b,test,3\n",
        r"metadata.csv, line 4: file '.*/b' is in .*metadata.csv, line 3 already, which is train",
    ),
    "no image": ("file_name\na\nempty\n", r"metadata.csv, line 3: .*empty holds no image"),
    "no rows": ("file_name,label\n", r"OwnVideos in .* has no clips of train$"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_named_and_nothing_is_kept(build, tmp_path, name):
    text, match = BROKEN[name]
    root = write_table(tmp_path / "mine", "")
    (root / "metadata.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    (root / "x.mp4").write_bytes(b"not empty")
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match=match):
        build(root)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize(
    "line, match",
    [
        ("{file_name: a}", r"metadata.jsonl, line 3 is not JSON: Expecting property name"),
        ('["a"]', r"""metadata.jsonl, line 3 is not a JSON object but '\["a"\]'"""),
        ('{"file_name": null}', r"metadata.jsonl, line 3: no file_name"),
    ],
)
def test_broken_jsonl(build, tmp_path, line, match):
    lines = [json.dumps({"file_name": "a"}), "", line]
    with pytest.raises(ValueError, match=match):
        build(write_table(tmp_path, "\n".join(lines), name="metadata.jsonl"))


def test_without_a_folder_or_a_table(build, tmp_path):
    builder = OwnVideos(cache_dir=str(tmp_path / "cache"))
    assert set(builder.info.features) == {"video", "clip_id", "fold", "num_frames"}
    with pytest.raises(
        FileNotFoundError, match=r"OwnVideos needs data_dir=FOLDER, with a metadata.csv or metadata.jsonl"
    ):
        builder.download_and_prepare()
    with pytest.raises(FileNotFoundError, match=r"data_dir .*nowhere is not a folder"):
        build(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no metadata.csv or metadata.jsonl in .*, nor in a folder of it"):
        build(tmp_path)


def test_skipping_clips(build, tmp_path):
    root = write_table(tmp_path / "mine", "file_name,split,label\na,,joy\nz,,joy\nb,test,joy\n")
    with pytest.raises(ValueError, match=r"line 3: there is no .*/z"):
        build(root)
    assert build(root, on_error="skip")["train"]["clip_id"] == ["a"]
    trees.write_frames(root / "z")
    assert build(root, on_error="skip")["train"]["clip_id"] == ["a", "z"]
    (root / "b").rename(root / "moved")
    with pytest.raises(ValueError, match="has no clips of test, 1 in all"):
        build(root, on_error="skip")
    (root / "moved").rename(root / "b")
    write_table(root, "file_name,split,label\na,,\nz,,joy\nb,test,joy\n")
    with pytest.raises(ValueError, match="there is no label"):  # the table must be right in any case
        build(root, on_error="skip")


def test_a_changed_table_gives_new_rows(build, tmp_path):
    root = write_table(tmp_path / "mine", "file_name,label\na,joy\n")
    assert build(root)["train"].features["label"].names == ["joy"]
    write_table(root, "file_name,label\na,fear\nb,joy\n")
    rows = build(root)["train"]
    assert rows.features["label"].names == ["fear", "joy"] and rows["label"] == [0, 1]


def test_streaming_two_processes_and_pickle(build, tmp_path, clip):
    root = trees.make_own(tmp_path / "mine", ROWS, clip)
    rows = {split: list(part) for split, part in build(root).items()}
    builder = OwnVideos(data_dir=str(root), cache_dir=str(tmp_path / "other"))
    assert {split: list(builder.as_streaming_dataset(split)) for split in rows} == rows
    builder.download_and_prepare(num_proc=2)
    assert {split: list(part) for split, part in builder.as_dataset().items()} == rows
    assert pickle.loads(pickle.dumps(OwnVideos)) is OwnVideos
    assert pickle.loads(pickle.dumps(builder)).read_clips() == builder.read_clips()


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "{parent}/secret"])
def test_a_table_does_not_reach_out_of_its_folder(build, tmp_path, name):
    root = write_table(tmp_path / "set", f"file_name,label\na,joy\n{name.format(parent=tmp_path)},anger\n")
    trees.write_frames(tmp_path / "secret")
    with pytest.raises(ValueError, match=rf"metadata\.csv, line 3: .* leads to {tmp_path}/secret, outside {root}/"):
        build(root)
    assert len(build(root, allow_outside=True)["train"]) == 2
    assert len(build(root, on_error="skip")["train"]) == 1

# SPDX-License-Identifier: Apache-2.0
"""The builders of licensed data sets on fabricated folders: every layout that occurs, and everything that breaks."""

import logging
import pickle
from pathlib import Path

import data_set_trees as trees
import datasets
import numpy as np
import pytest

from modeling_emoclip import video_reading
from training.data import clip_lists, ferv39k, mafw
from training.data.afew import AFEW
from training.data.dfew import DFEW
from training.data.ferv39k import FERV39k
from training.data.listed_clips import TOGETHER
from training.data.mafw import MAFW

ALL = {"afew": (AFEW, "default"), "dfew": (DFEW, "fold1"), "ferv39k": (FERV39k, "all"), "mafw": (MAFW, "fold1")}
DFEW_TRAIN = "EmoLabel_DataSplit/train(single-labeled)/set_1.csv"
DFEW_ROWS = {split: [(n.zfill(5), label) for n, label in clips] for split, clips in trees.DFEW_CLIPS.items()}
MAFW_ROWS = {split: [(n, label) for n, label, *_ in clips] for split, clips in trees.MAFW_CLIPS.items()}


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def build(tmp_path):
    """`build(DFEW, folder, "fold1", ...)`: the splits, in a cache that every build of a test shares.

    The trees hold a few clips, so the numbers of the real sets are not asked for unless a test does.
    """

    def run(builder_class, data_dir, config_name=None, num_proc=None, verify=False, **options):
        cache = str(tmp_path / "cache")
        builder = builder_class(
            config_name=config_name, data_dir=str(data_dir), cache_dir=cache, verify=verify, **options
        )
        builder.download_and_prepare(num_proc=num_proc)
        return builder.as_dataset()

    return run


@pytest.fixture(scope="session")
def clip(write_clip, tmp_path_factory):
    """A video of 4 frames, as mp4 or avi."""
    folder = tmp_path_factory.mktemp("clip")
    return {suffix: write_clip(folder / f"clip.{suffix}", 4, 32, 32) for suffix in ("mp4", "avi")}


def named(rows):
    """Split -> (clip, class) of every row."""
    return {
        split: list(zip(part["clip_id"], map(part.features["label"].int2str, part["label"]), strict=True))
        for split, part in rows.items()
    }


def read_means(source):
    """Mean brightness of every frame."""
    frames, _ = video_reading.read_video(source, lambda metadata: range(metadata.total_num_frames))
    return frames.mean(axis=(1, 2, 3))


def replace(path: Path, old: str, new: str):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def make(name, root):
    return getattr(trees, f"make_{name}")(root)


# What the sets are.


def test_official_numbers_agree():
    assert sum(sizes["test"] for sizes in DFEW.SIZES.values()) == sum(DFEW.SIZES["fold1"].values()) == 11697
    assert sum(FERV39k.SIZES["all"].values()) == 38935
    assert sum(MAFW.SIZES[f"fold{fold}"]["test"] for fold in range(1, 6)) == sum(MAFW.SIZES["fold3"].values()) == 9172
    for builder_class, _ in ALL.values():
        for config, splits in builder_class.CLASS_COUNTS.items():
            for split, counts in splits.items():
                sizes = builder_class.SIZES[config]
                if set(counts) == set(builder_class.LABELS):  # of MAFW's compounds, one number is known
                    assert sum(counts.values()) == sizes.get(split, sizes["train"] + sizes["test"])
    assert sum(MAFW.SIZES["compound_fold1"][split] for split in MAFW.SPLITS) == MAFW.SIZES["compound_fold5"][TOGETHER]
    assert MAFW.SIZES["compound_fold5"][TOGETHER] == 8996
    assert len(set(mafw.EMOTIONS + mafw.COMPOUNDS)) == 43
    assert set(mafw.DFER_CLIP_ORDER) == set(mafw.EMOTIONS)
    assert len(set(ferv39k.SCENES)) == 22


def test_frames_are_counted_as_they_are_read():
    assert set(clip_lists.IMAGE_SUFFIXES) == set(video_reading.IMAGE_SUFFIXES)


# Layouts.


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"encoding": "utf-8-sig", "newline": "\r\n"},
        {"encoding": "gbk", "newline": "\r"},
        {"media": "Clip/clip_224x224_16f"},
        {"media": "clip/CLIP_224x224"},
        {"lists": "common"},
        {"lists": "common", "newline": "\r\n"},
        {"media": "clip_224x224"},
    ],
    ids=str,
)
def test_dfew_with_face_folders(build, tmp_path, layout):
    rows = build(DFEW, trees.make_dfew(tmp_path / "DFEW", **layout), "fold1")
    assert named(rows) == DFEW_ROWS
    assert set(rows["train"].column_names) == {"frames", "label", "clip_id", "fold", "num_frames"}
    assert set(rows["train"]["fold"]) == {1} and set(rows["train"]["num_frames"]) == {trees.NUM_FRAMES}
    assert all(Path(row["frames"]).name == row["clip_id"] for row in rows["test"])
    assert len(read_means(rows["test"][0]["frames"])) == trees.NUM_FRAMES


@pytest.mark.parametrize("media", ["Clip/clip_224x224_avi", "Clip/original"])
@pytest.mark.parametrize("kind, suffix", [("avi", ".avi"), ("mp4", ".MP4")])
def test_dfew_with_video_files(build, tmp_path, clip, media, kind, suffix):
    rows = build(DFEW, trees.make_dfew(tmp_path, media=media, clip=clip[kind], suffix=suffix), "fold1")
    assert named(rows) == DFEW_ROWS
    assert rows["train"].features["video"] == datasets.Video(decode=False)
    for row in rows["test"]:
        assert row["video"]["path"].endswith(suffix) and row["num_frames"] is None
        assert len(read_means(row["video"])) == 4


def test_frames_are_read_in_the_order_of_their_numbers(build, tmp_path):
    root = trees.make_dfew(tmp_path)
    trees.write_frames(root / "Clip/clip_224x224/00001", 12)
    row = build(DFEW, root, "fold1")["train"][0]
    assert row["num_frames"] == 12
    np.testing.assert_allclose(read_means(row["frames"]), 10 * np.arange(1, 13), atol=2)


def test_each_fold_has_its_lists(build, tmp_path):
    for lists in ("official", "common"):
        root = trees.make_dfew(tmp_path / lists, lists, folds=(1, 2))
        second = build(DFEW, root, "fold2")
        assert named(second)["train"] == DFEW_ROWS["test"] and set(second["train"]["fold"]) == {2}
        assert named(build(DFEW, root, "fold1")) == DFEW_ROWS


def test_a_number_of_frames_is_not_taken_for_a_fold(build, tmp_path):
    root = trees.make_dfew(tmp_path, "common")
    for split in ("train", "test"):
        path = root / f"annotation/DFEW_set_1_{split}.txt"
        path.rename(root / f"annotation/dataset_16frames_set_2_{split}.txt")
    assert named(build(DFEW, root, "fold2")) == DFEW_ROWS
    with pytest.raises(FileNotFoundError, match=r"no list of the train clips of fold1 found below .*set_1\.csv"):
        build(DFEW, root, "fold1")


@pytest.mark.parametrize("lists", ["official", "common"])
def test_ferv39k(build, tmp_path, lists):
    rows = build(FERV39k, trees.make_ferv39k(tmp_path, lists))
    assert named(rows) == trees.FERV39K_CLIPS
    assert rows["train"]["scene"] == ["Action", "Action", "War"]
    assert rows["train"][0]["frames"] != rows["train"][1]["frames"]  # both are called 0010


def test_ferv39k_as_videos(build, tmp_path, clip):
    rows = build(FERV39k, trees.make_ferv39k(tmp_path, media="1_ClipsOriginal", clip=clip["mp4"]), media="videos")
    assert named(rows) == trees.FERV39K_CLIPS
    assert len(read_means(rows["test"][0]["video"])) == 4


def test_ferv39k_scenes(build, tmp_path):
    root = trees.make_ferv39k(tmp_path)
    rows = build(FERV39k, root, scenes=["Action"])
    assert named(rows) == {
        split: clips[:2] if split == "train" else clips[:1] for split, clips in trees.FERV39K_CLIPS.items()
    }
    with pytest.raises(ValueError, match="has no clips of test"):
        build(FERV39k, root, scenes=["War"])
    with pytest.raises(ValueError, match=r"scenes has \['Kitchen'\]; allowed: Action"):
        build(FERV39k, root, scenes=["Kitchen"])


def test_ferv39k_names_labels_that_contradict_the_folder(build, tmp_path):
    root = trees.make_ferv39k(tmp_path, "common")
    order = ["Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"]
    ours = list(map(clip_lists.our_spelling, order))
    for split, clips in trees.FERV39K_CLIPS.items():
        trees.write_text(root / f"{split}.txt", trees.common_lines(clips, ours, "x"))
    match = r"train.txt, line 1: label '3' means anger, but the clip lies in the folder of happiness.*label_order"
    with pytest.raises(ValueError, match=match):
        build(FERV39k, root)
    assert named(build(FERV39k, root, label_order=order)) == trees.FERV39K_CLIPS


@pytest.mark.parametrize("lists", ["Train & Test Set", "Train_Test_Set", "train_test_set_new", "."])
@pytest.mark.parametrize("captions", ["with_caption", "with_caption_new", "no_caption_new"])
def test_mafw(build, tmp_path, lists, captions):
    rows = build(MAFW, trees.make_mafw(tmp_path / "MAFW", lists=lists, captions=captions), "fold1")
    assert named(rows) == MAFW_ROWS
    features = rows["train"].features
    assert [features["labels"].feature.int2str(row) for row in rows["train"]["labels"]] == [
        [label] for _, label in MAFW_ROWS["train"]
    ]
    expected = [clip[2:] if captions.startswith("with") else ("", "") for clip in trees.MAFW_CLIPS["train"]]
    assert list(zip(rows["train"]["caption_zh"], rows["train"]["caption"], strict=True)) == expected


def test_mafw_as_videos_in_utf_8(build, tmp_path, clip):
    root = trees.make_mafw(tmp_path, media="data/clips", clip=clip["mp4"], encoding="utf-8", newline="\n")
    rows = build(MAFW, root, "single_fold1")
    assert named(rows) == MAFW_ROWS
    assert rows["train"]["caption_zh"][1] == "她笑了"


def test_mafw_compounds(build, tmp_path):
    rows = build(MAFW, trees.make_mafw(tmp_path, kind="compound"), "compound_fold1")
    assert len(rows["train"].features["label"].names) == 43
    assert named(rows)["train"] == [("00001", "anger"), ("00004", "disgust_helplessness_disappointment")]
    names = rows["train"].features["labels"].feature.int2str
    assert names(rows["train"]["labels"][1]) == ["disgust", "helplessness", "disappointment"]
    assert names(rows["test"]["labels"][0]) == ["surprise", "anxiety"]


def test_mafw_prefers_the_new_lists(build, tmp_path):
    root = trees.make_mafw(tmp_path)
    old = root / "Train & Test Set/single/with_caption"
    trees.make_mafw(root, captions="with_caption_new")
    trees.make_mafw(root, captions="no_caption")
    trees.write_text(old / "set_1/train.txt", ["00001.mp4\tfear\t\t"])
    assert named(build(MAFW, root, "fold1")) == MAFW_ROWS


def test_mafw_numbers_need_an_order(build, tmp_path):
    root = trees.make_mafw(tmp_path, lists="common", order=mafw.DFER_CLIP_ORDER)
    with pytest.raises(ValueError, match=r"MAFW_set_1_train.txt, line 1: the label is the number 3.*pass label_order"):
        build(MAFW, root, "fold1")
    order = list(mafw.DFER_CLIP_ORDER)
    assert named(build(MAFW, root, "fold1", label_order=order)) == MAFW_ROWS
    with pytest.raises(ValueError, match=r"label_order has \['joy'\]; allowed: anger"):
        build(MAFW, root, "fold1", label_order=["joy"])
    with pytest.raises(ValueError, match="label_order names a class twice"):
        build(MAFW, root, "fold1", label_order=["fear", "fearful"])


@pytest.mark.parametrize(
    "folders", [("train", "validation"), ("Train_AFEW", "Val_AFEW"), ("AFEW_Face/Train", "AFEW_Face/Val")]
)
@pytest.mark.parametrize("names", [trees.ADJECTIVES, AFEW.LABELS, [name.upper() for name in AFEW.LABELS]])
def test_afew(build, tmp_path, folders, names):
    rows = build(AFEW, trees.make_afew(tmp_path, folders, names))
    for split, folder in zip(("train", "validation"), folders, strict=True):
        labels = [label for _, label in named(rows)[split]]
        assert sorted(labels) == sorted(AFEW.LABELS)
        assert all(f"{folder}/" in row["frames"] for row in rows[split])
        word = rows[split][0]["frames"].split("/")[-2]
        assert clip_lists.our_spelling(word) == labels[0]


def test_afew_copies(build, tmp_path, clip):
    root = trees.make_afew(tmp_path, ("Train_AFEW", "Val_AFEW"), clip=clip["avi"])
    assert set(build(AFEW, root)["train"].column_names) == {"video", "label", "clip_id", "fold", "num_frames"}
    trees.make_afew(root, ("Train_AFEW", "no_split"))  # frames beside the videos, but of one split only
    assert "video" in build(AFEW, root)["train"].column_names
    trees.make_afew(root, ("AFEW_Face/Train_AFEW", "AFEW_Face/Val_AFEW"))
    faces, videos = build(AFEW, root), build(AFEW, root, media="videos")
    assert "frames" in faces["train"].column_names and "video" in videos["train"].column_names
    assert len(faces["train"]) == len(videos["train"]) == len(videos["validation"]) == 7
    assert len(read_means(videos["validation"][0]["video"])) == 4


def test_afew_with_two_folders_of_an_emotion(build, tmp_path):
    root = trees.make_afew(trees.make_afew(tmp_path), names=("happiness",))
    labels = [label for _, label in named(build(AFEW, root))["train"]]
    assert len(labels) == 8 and labels.count("happiness") == 2


def test_afew_without_a_folder_for_every_emotion(build, tmp_path):
    trees.make_afew(tmp_path)
    (tmp_path / "train/Surprise").rename(tmp_path / "train/Suprise")
    with pytest.raises(FileNotFoundError, match=r"train has no folder for surprise; it has Angry.*Suprise"):
        build(AFEW, tmp_path)
    (tmp_path / "validation").rename(tmp_path / "Test")
    with pytest.raises(FileNotFoundError, match="no clips of both train and validation found"):
        build(AFEW, tmp_path)


# Whatever else lies around.


@pytest.mark.parametrize("name", ALL)
def test_leftovers_nesting_links_and_blanks_do_not_matter(build, tmp_path, monkeypatch, name):
    builder_class, config = ALL[name]
    plain = named(build(builder_class, make(name, tmp_path / name), config))
    root = make(name, tmp_path / "my data" / "copy [2]" / "set")
    for folder in [path for path in root.rglob("*") if path.is_dir()] + [root]:
        for leftover in (
            ".DS_Store",
            "Thumbs.db",
            "._00001",
            "._1.jpg",
            "._train.txt",
            "._set_1_train.txt",
            "._a.avi",
        ):
            (folder / leftover).write_bytes(b"\x00\x05\x16\x07")
        (folder / "__MACOSX/._0001").mkdir(parents=True)
    assert named(build(builder_class, root, config)) == plain
    assert named(build(builder_class, f"{root.parent}/", config)) == plain
    monkeypatch.setenv("HOME", str(root.parent))
    assert named(build(builder_class, "~/set", config)) == plain
    assert named(build(builder_class, root.parents[1], config)) == plain
    (tmp_path / "link").mkdir()
    for path in root.iterdir():
        (tmp_path / "link" / path.name).symlink_to(path)
    assert named(build(builder_class, tmp_path / "link", config, allow_outside=True)) == plain
    monkeypatch.chdir(root.parent)
    rows = build(builder_class, "set/", config)
    assert named(rows) == plain and Path(rows["train"][0]["frames"]).is_absolute()


@pytest.mark.parametrize("what", ["clip", "image"])
def test_links_that_lead_out_of_the_folder_must_be_allowed(build, tmp_path, what):
    root = trees.make_dfew(tmp_path / "set", "common")
    moved = next(path for path in sorted(root.rglob("*.jpg")))
    moved = moved.parent if what == "clip" else moved
    place = tmp_path / "elsewhere" / moved.name
    place.parent.mkdir()
    moved.rename(place)
    moved.symlink_to(place)
    with pytest.raises(ValueError, match=rf"line \d+: {moved if what == 'clip' else moved.parent} leads to {place}"):
        build(DFEW, root, "fold1")
    assert named(build(DFEW, root, "fold1", allow_outside=True)) == DFEW_ROWS


def test_hidden_lists_do_not_matter(build, tmp_path):
    root = trees.make_dfew(tmp_path, "common")
    for split in ("train", "test"):
        (root / f"annotation/._DFEW_set_1_{split}.txt").write_bytes(b"\x00\x05\x16\x07")
    assert named(build(DFEW, root, "fold1")) == DFEW_ROWS


def test_a_folder_in_a_folder_of_the_same_name(build, tmp_path):
    root = trees.make_dfew(tmp_path, media="Clip/clip_224x224/clip_224x224")
    assert named(build(DFEW, root, "fold1")) == DFEW_ROWS
    root = trees.make_ferv39k(tmp_path / "FERV39k", media="2_ClipsforFaceCrop/2_ClipsforFaceCrop")
    assert named(build(FERV39k, root)) == trees.FERV39K_CLIPS


def test_crops_come_before_whole_videos(build, tmp_path, clip):
    root = trees.make_dfew(trees.make_dfew(tmp_path), media="Clip/original", clip=clip["mp4"])
    assert "frames" in build(DFEW, root, "fold1")["train"].column_names
    assert "frames" in build(DFEW, root, "fold1", media="faces")["train"].column_names
    assert "video" in build(DFEW, root, "fold1", media="videos")["train"].column_names


def test_a_folder_of_frames_comes_before_a_video_of_its_name(build, tmp_path, clip):
    root = trees.make_dfew(trees.make_dfew(tmp_path), clip=clip["avi"])
    rows = build(DFEW, root, "fold1")
    assert named(rows) == DFEW_ROWS and Path(rows["train"][0]["frames"]).is_dir()


@pytest.mark.parametrize(
    "text",
    [
        "video_name,label\n\n1,1\n\n  2,7  \n \t \n10,3\n10023,4\n\n",
        '"video_name","label"\n"1","1"\n"a, b/2","7"\n"10","3"\n"10023","4"',
        "1,1\n2,7\n10,3\n10023,4\n",
        "\n\nvideo_name, Label\n1, 1\n2, 7\n10, 3\n10023, 4\n",
        "1,Happy\n2,FEAR\n10,neutral\n10023,Angry\n",
        "00001.mp4\thappiness\n00002.mp4\tfear\n00010.mp4\tneutral\n10023.mp4\tanger",
        "path frames label\n1 3 0\n2 3 6\nmy clips/10 3 2\n10023/ 3 3\n",
        "path,frames,label\n1,3,0\n2,3,6\n10,3,2\n10023,3,3\n",
        "C:\\Users\\me\\DFEW\\00001 3 0\nD:/x/00002.AVI 3 6\n/a,b/10 3 2\n10023\t3\t3",
    ],
)
def test_lists_in_many_hands(build, tmp_path, text):
    root = trees.make_dfew(tmp_path)
    (root / DFEW_TRAIN).write_text(text)
    assert named(build(DFEW, root, "fold1")) == DFEW_ROWS


def test_dots_in_names_are_no_suffixes(build, tmp_path):
    root = trees.make_ferv39k(tmp_path)
    for name in ("0010.1", "0010.2"):
        trees.write_frames(root / "2_ClipsforFaceCrop/War/Fear" / name)
    replace(
        root / "4_setups/All_scenes/train_All.csv", "War/Fear/0001 Fear", "War/Fear/0010.1 Fear\nWar/Fear/0010.2 Fear"
    )
    assert [name for name, _ in named(build(FERV39k, root))["train"][2:]] == ["War/Fear/0010.1", "War/Fear/0010.2"]


# What breaks.


def break_list(old, new):
    return lambda root: replace(root / DFEW_TRAIN, old, new)


def empty_clip(root):
    for path in (root / "Clip/clip_224x224/00002").iterdir():
        path.unlink()


def write_frame_count(root):
    replace(root / DFEW_TRAIN, "2,7", "2,5,6")


BROKEN = {
    "unknown label": (
        break_list("2,7", "2,bored"),
        r"set_1.csv, line 3: label 'bored' is unknown; allowed: happiness",
    ),
    "label too high": (break_list("2,7", "2,8"), r"set_1.csv, line 3: label 8 is out of range; allowed: 1 to 7"),
    "label too low": (break_list("2,7", "2,0"), r"set_1.csv, line 3: label 0 is out of range; allowed: 1 to 7"),
    "negative label": (break_list("2,7", "2,-1"), r"line 3: label -1 is out of range"),
    "label of a common list": (break_list("2,7", "2 3 7"), r"line 3: label 7 is out of range; allowed: 0 to 6"),
    "no label": (break_list("2,7", "2"), r"set_1.csv, line 3: '2' is neither `path label` nor `path frames label`"),
    "empty label": (break_list("2,7", "2,"), r"set_1.csv, line 3: label '' is unknown"),
    "missing clip": (break_list("2,7", "99,7"), r"set_1.csv, line 3: there is no '00099' in .*/clip_224x224"),
    "clip listed twice": (
        break_list("2,7", "10,7"),
        r"set_1.csv, line 4: clip '00010' is in .*set_1.csv, line 3 already",
    ),
    "count off": (write_frame_count, r"set_1.csv, line 3: 5 frames, but .*/00002 holds 3"),
    "negative count": (break_list("2,7", "2,-5,6"), r"line 3: the number of frames is '-5'"),
    "clip of two splits": (
        break_list("2,7", "3,7"),
        r"test.single-labeled./set_1.csv, line 2: clip '00003' is in .*/train.*, line 3 already, which is train",
    ),
    "empty clip": (empty_clip, r"set_1.csv, line 3: .*/00002 holds no image"),
    "wrong encoding": (
        lambda root: (root / DFEW_TRAIN).write_bytes(b"video_name,label\n1,1\ncaf\xe9 ,2\n"),
        r"set_1.csv, line 3: the bytes b'\\xe9.*' are not UTF-8 text; save the file as UTF-8",
    ),
    "UTF-16 without its mark": (
        lambda root: (root / DFEW_TRAIN).write_bytes("1,1\n".encode("utf-16-le")),
        r"set_1.csv, line 1: the bytes b'\\x00' are not UTF-8",
    ),
    "empty list": (lambda root: (root / DFEW_TRAIN).write_text("video_name,label\n"), "has no clips of train$"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_set_is_named_and_nothing_is_kept(build, tmp_path, name, streaming):
    root = trees.make_dfew(tmp_path / "DFEW")
    breaks, match = BROKEN[name]
    breaks(root)
    with pytest.raises(ValueError, match=match):
        if streaming:
            DFEW(config_name="fold1", data_dir=str(root), cache_dir=str(tmp_path), verify=False).as_streaming_dataset(
                "train"
            )
        else:
            build(DFEW, root, "fold1")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


MISSING = {
    "lists": (
        "EmoLabel_DataSplit",
        "DFEW: no list of the train clips of fold1 found below .*; looked for EmoLabel_Data",
    ),
    "a list": ("EmoLabel_DataSplit/test(single-labeled)", "DFEW: no list of the test clips of fold1 found below"),
    "clips": ("Clip", "DFEW: no folder with clips found below .*; looked for Clip/clip_224x224, .*, original"),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_named(build, tmp_path, name):
    root = trees.make_dfew(tmp_path / "DFEW")
    path, match = MISSING[name]
    (root / path).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=match):
        build(DFEW, root, "fold1")
    with pytest.raises(FileNotFoundError, match="no list of the train clips of fold2"):
        build(DFEW, trees.make_dfew(tmp_path / "other"), "fold2")


def test_two_lists_that_say_different_things(build, tmp_path):
    root = trees.make_dfew(tmp_path, "common")
    path = root / "annotation/DFEW_set_1_train.txt"
    copy = path.rename(path.with_name("DFEW_set_1_train_a.txt"))
    copy.with_name("DFEW_set_1_train_b.txt").write_bytes(copy.read_bytes())
    assert named(build(DFEW, root, "fold1")) == DFEW_ROWS
    replace(copy, "00001 3 0", "00001 3 1")
    with pytest.raises(ValueError, match=r"which lists the train clips. Keep one of .*train_a.txt, .*train_b.txt"):
        build(DFEW, root, "fold1")


def test_all_problems_are_counted_and_ten_shown(build, tmp_path):
    root = trees.make_dfew(tmp_path)
    (root / DFEW_TRAIN).write_text("".join(f"{number},9\n" for number in range(1, 14)))
    with pytest.raises(ValueError, match="13 in all") as error:
        build(DFEW, root, "fold1")
    assert str(error.value).count("out of range") == 10 and str(error.value).endswith("... and 3 more")


@pytest.mark.parametrize("name", ALL)
def test_without_a_folder(tmp_path, name):
    builder_class, config = ALL[name]
    builder = builder_class(config_name=config, cache_dir=str(tmp_path))
    assert builder.info.features["label"].names == list(builder_class.LABELS)
    assert {"video", "label", "clip_id", "fold", "num_frames"} <= set(builder.info.features)
    match = (
        "is given by its authors to those who sign their agreement .https.*data_dir=FOLDER. SyntheticFaces needs no"
    )
    with pytest.raises(FileNotFoundError, match=match):
        builder.download_and_prepare()
    builder = builder_class(config_name=config, data_dir=str(tmp_path / "nowhere"), cache_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"data_dir .*nowhere is not a folder"):
        builder.download_and_prepare()


@pytest.mark.parametrize(
    "config, options, match",
    [
        ("fold1", {"on_error": "ignore"}, "on_error is 'ignore', but must be one of .'raise', 'skip'."),
        ("fold1", {"media": "audio"}, "media is 'audio', but must be one of"),
        ("fold1", {"label_order": ["joy"]}, r"label_order has \['joy'\]; allowed: happiness, sadness"),
        ("fold1", {"fold": 2}, "choose the fold by config_name, one of fold1, fold2"),
        (None, {}, "choose the fold by config_name, one of fold1, fold2"),
        ("fold6", {}, r"BuilderConfig 'fold6' not found. Available: \['fold1'"),
    ],
)
def test_wrong_settings(tmp_path, config, options, match):
    with pytest.raises(ValueError, match=match):
        DFEW(config_name=config, data_dir=str(tmp_path), cache_dir=str(tmp_path), **options)
    with pytest.raises(ValueError, match="choose the fold by config_name"):
        MAFW(config_name="fold1", kind="compound", cache_dir=str(tmp_path))


# Clips of no use are left out only if that is asked for; the lists must be right in any case.


def test_skipping_clips(build, tmp_path, caplog):
    root = trees.make_dfew(tmp_path / "DFEW")
    empty_clip(root)
    replace(root / DFEW_TRAIN, "10023,4", "99,4")
    with caplog.at_level(logging.WARNING):
        datasets.logging.enable_propagation()
        rows = build(DFEW, root, "fold1", on_error="skip")
        datasets.logging.disable_propagation()
    assert named(rows) == {"train": [DFEW_ROWS["train"][0], DFEW_ROWS["train"][2]], "test": DFEW_ROWS["test"]}
    assert "2 in all" in caplog.text and "00002 holds no image" in caplog.text and "there is no '00099'" in caplog.text
    with pytest.raises(ValueError, match="2 in all"):
        build(DFEW, root, "fold1")
    trees.write_frames(root / "Clip/clip_224x224/00002")
    assert len(build(DFEW, root, "fold1", on_error="skip")["train"]) == 3
    replace(root / DFEW_TRAIN, "1,1", "1,8")
    with pytest.raises(ValueError, match="label 8 is out of range"):
        build(DFEW, root, "fold1", on_error="skip")


def test_skipping_every_clip_is_an_error(build, tmp_path):
    root = trees.make_dfew(tmp_path)
    (root / DFEW_TRAIN).write_text("98,1\n99,1\n")
    with pytest.raises(ValueError, match=r"has no clips of train, 2 in all:\n.*there is no '00098'"):
        build(DFEW, root, "fold1", on_error="skip")


def test_an_empty_video_and_a_broken_link(build, tmp_path, clip):
    root = trees.make_dfew(tmp_path, media="Clip/original", clip=clip["mp4"])
    (root / "Clip/original/1.mp4").write_bytes(b"")
    (root / "Clip/original/2.mp4").unlink()
    (root / "Clip/original/2.mp4").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"1.mp4 is empty\n.*there is no .*2.mp4"):
        build(DFEW, root, "fold1")
    assert len(build(DFEW, root, "fold1", on_error="skip")["train"]) == 2


# The cache of `datasets`.


def test_changed_lists_and_clips_give_new_rows(build, tmp_path):
    root = trees.make_dfew(tmp_path / "DFEW")
    assert build(DFEW, root, "fold1")["train"].num_rows == 4
    replace(root / DFEW_TRAIN, "2,7", "2,6")
    assert named(build(DFEW, root, "fold1"))["train"][1] == ("00002", "disgust")
    replace(root / DFEW_TRAIN, "2,6", "99,6")
    for _ in range(2):
        with pytest.raises(ValueError, match="there is no '00099'"):
            build(DFEW, root, "fold1")
    trees.write_frames(root / "Clip/clip_224x224/00099")
    assert named(build(DFEW, root, "fold1"))["train"][1] == ("00099", "disgust")
    (root / "Clip/clip_224x224").rename(root / "Clip/original")
    assert "/original/" in build(DFEW, root, "fold1")["train"][0]["frames"]


def test_a_clip_deep_in_the_tree_is_noticed(build, tmp_path):
    root = trees.make_ferv39k(tmp_path / "FERV39k")
    moved = (root / "2_ClipsforFaceCrop/War/Fear/0001").rename(tmp_path / "0001")
    assert build(FERV39k, root, on_error="skip")["train"].num_rows == 2
    moved.rename(root / "2_ClipsforFaceCrop/War/Fear/0001")
    assert build(FERV39k, root, on_error="skip")["train"].num_rows == 3


def test_an_unchanged_set_is_built_once(tmp_path):
    root = trees.make_dfew(tmp_path / "DFEW")
    options = {"config_name": "fold1", "cache_dir": str(tmp_path / "cache"), "verify": False}
    builder = DFEW(data_dir=str(root), **options)
    builder.download_and_prepare()
    assert DFEW(data_dir=f"{root}/", **options).cache_dir == builder.cache_dir
    builder = DFEW(data_dir=str(root), **options)
    builder.read_clips = None  # would be called by a build
    builder.download_and_prepare()
    assert named(builder.as_dataset()) == DFEW_ROWS


def test_settings_do_not_share_a_cache(tmp_path):
    root = trees.make_dfew(tmp_path)
    different = [{}, {"media": "faces"}, {"on_error": "skip"}, {"label_order": list(trees.EMOTIONS)}]
    different += [{"label_order": list(reversed(trees.EMOTIONS))}]
    options = {"config_name": "fold1", "data_dir": str(root), "cache_dir": str(tmp_path / "cache")}
    assert len({DFEW(**options, **chosen).cache_dir for chosen in different}) == len(different)


# Other ways to build.


@pytest.mark.parametrize("name", ALL)
def test_streaming_and_two_processes_give_the_same_rows(build, tmp_path, name):
    builder_class, config = ALL[name]
    root = make(name, tmp_path / name)
    rows = build(builder_class, root, config)
    options = {"config_name": config, "data_dir": str(root), "verify": False}
    builder = builder_class(cache_dir=str(tmp_path / "streams"), **options)
    for split, part in rows.items():
        assert list(builder.as_streaming_dataset(split)) == list(part)
    builder.download_and_prepare(num_proc=2)
    assert {split: list(part) for split, part in builder.as_dataset().items()} == {s: list(rows[s]) for s in rows}


@pytest.mark.parametrize("name", ALL)
def test_builders_pickle(tmp_path, name):
    builder_class, config = ALL[name]
    assert pickle.loads(pickle.dumps(builder_class)) is builder_class
    options = {"config_name": config, "cache_dir": str(tmp_path / "cache"), "verify": False}
    builder = builder_class(data_dir=str(make(name, tmp_path)), **options)
    assert pickle.loads(pickle.dumps(builder)).read_clips() == builder.read_clips()

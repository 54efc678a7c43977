# SPDX-License-Identifier: Apache-2.0
"""Lists as long as the real ones: complete sets are built, others refused, and MAFW keeps its neutral clips."""

import logging
from itertools import chain, repeat

import data_set_trees as trees
import datasets
import pytest

from training.data.dfew import DFEW
from training.data.ferv39k import FERV39k
from training.data.mafw import COMPOUNDS, EMOTIONS, MAFW, SINGLE_COUNTS


def builder_of(builder_class, config, root, cache, **options):
    return builder_class(config_name=config, data_dir=str(root), cache_dir=str(cache), **options)


def labels_of(counts: dict[str, int]) -> list[str]:
    """Each label as often as it is counted."""
    return list(chain.from_iterable(repeat(label, number) for label, number in counts.items()))


def count(clips) -> dict[str, int]:
    return {split: len(rows) for split, rows in clips.items()}


# MAFW: one list is complete, the other has captions.


def mafw_line(number: int, label: str, caption: bool) -> str:
    return f"{number:05d}.mp4\t{label}" + (f"\t中文{number}\tcaption {number}" if caption else "")


@pytest.fixture(scope="module")
def mafw(tmp_path_factory):
    """9,172 clips and their lists of fold 1, single and compound; the clips are files of one byte."""
    root = tmp_path_factory.mktemp("MAFW")
    others = [EMOTIONS[0], *COMPOUNDS]
    compound = ["neutral"] * 1138 + [others[number % 33] for number in range(8996 - 1138)]
    for kind, labels, test_size in (("single", labels_of(SINGLE_COUNTS), 1839), ("compound", compound, 1818)):
        clips = list(enumerate(labels, start=1))
        clips = [clip for start in range(7) for clip in clips[start::7]]  # every class in both splits
        for split, rows in (("test", clips[:test_size]), ("train", clips[test_size:])):
            for captions in ("with_caption", "no_caption"):
                with_caption = captions == "with_caption"
                lines = [mafw_line(*row, with_caption) for row in rows if not with_caption or row[1] != "neutral"]
                path = root / f"Train & Test Set/{kind}/{captions}/set_1/{split}.txt"
                trees.write_text(path, lines, "gbk", "\r\n")
    (root / "data/clips").mkdir(parents=True)
    for number in range(1, 9173):
        (root / f"data/clips/{number:05d}.mp4").write_bytes(b"x")
    return root


@pytest.mark.parametrize(
    "config, expected", [("fold1", {"train": 7333, "test": 1839}), ("compound_fold1", {"train": 7178, "test": 1818})]
)
def test_mafw_is_built_with_its_neutral_clips(mafw, tmp_path, config, expected):
    clips = builder_of(MAFW, config, mafw, tmp_path).read_clips()
    assert count(clips) == expected
    captions = [(clip.label, clip.clip_id, clip.columns["caption"]) for rows in clips.values() for clip in rows]
    assert sum(label == "neutral" for label, *_ in captions) == 1138
    assert all(caption == ("" if label == "neutral" else f"caption {int(name)}") for label, name, caption in captions)


def test_mafw_without_its_complete_lists_is_refused(mafw, tmp_path):
    """A copy with the lists of captions only."""
    root = tmp_path / "MAFW"
    (root / "Train_Test_Set/single").mkdir(parents=True)
    (root / "Train_Test_Set/single/with_caption").symlink_to(mafw / "Train & Test Set/single/with_caption")
    (root / "data").symlink_to(mafw / "data")
    with pytest.raises(ValueError, match="fold1 has other numbers of clips") as error:
        builder_of(MAFW, "fold1", root, tmp_path, allow_outside=True).read_clips()
    message = str(error.value)
    assert "clips, official 7,333\ntest, all: " in message
    assert "all splits together, neutral: 0 clips, official 1,138" in message and "no_caption" in message
    assert "data.options.verify=false" in message and "verify=False" in message
    clips = builder_of(MAFW, "fold1", root, tmp_path, allow_outside=True, verify=False).read_clips()
    assert sum(count(clips).values()) == 8034


def make_both_lists(root, lists="Train_Test_Set", suffix="_new"):
    """The small tree with both lists, of which that with captions lacks a clip."""
    trees.make_mafw(root, lists=lists, captions=f"no_caption{suffix}")
    trees.make_mafw(root, lists=lists, captions=f"with_caption{suffix}")
    captions = root / lists / f"single/with_caption{suffix}/set_1/train.txt"
    lines = captions.read_text(encoding="gbk").splitlines()
    trees.write_text(captions, lines[1:], "gbk")
    return captions


@pytest.mark.parametrize("lists", ["Train & Test Set", "Train_Test_Set", "Train_Test_Set_new", "."])
@pytest.mark.parametrize("suffix", ["", "_new"])
def test_captions_are_joined_by_clip_id(tmp_path, lists, suffix):
    make_both_lists(tmp_path / "MAFW", lists, suffix)
    clips = builder_of(MAFW, "fold1", tmp_path / "MAFW", tmp_path, verify=False).read_clips()["train"]
    assert [(clip.clip_id, clip.columns["caption"], clip.columns["caption_zh"]) for clip in clips] == [
        ("00001", "", ""),
        ("00002", "She smiles", "她笑了"),
        ("00010", "One lip corner is raised", "嘴角上扬"),
    ]


@pytest.mark.parametrize(
    "line, message",
    [
        ("00002.mp4\tfear\t\tx", r"train.txt, line 3: '00002' is fear, but happiness in .*no_caption_new/.*, line 2"),
        ("99999.mp4\tfear\t\tx", r"train.txt, line 3: the complete list of the train clips has no '99999'"),
        ("00003.mp4\tdisappointment\t\tx", r"train.txt, line 3: the complete list of the train clips has no '00003'"),
        ("00002.mp4\tfaer\t\tx", r"train.txt, line 3: label 'faer' is unknown"),
        (
            "00010.mp4\tcontempt\t\tx\n00010.mp4\tcontempt\t\ty",
            r"train.txt, line 4: clip '00010.mp4' is in .*, line 3 al",
        ),
    ],
)
def test_captions_that_contradict_the_complete_list_are_an_error(tmp_path, line, message):
    captions = make_both_lists(tmp_path / "MAFW")
    lines = captions.read_text(encoding="gbk").splitlines()
    lines = [one for one in lines if one[:5] != line[:5]]
    lines.insert(2 - (len(lines) < 2), line)
    while len(lines) < 3:
        lines.insert(0, "")
    trees.write_text(captions, lines, "gbk")
    with pytest.raises(ValueError, match=message):
        builder_of(MAFW, "fold1", tmp_path / "MAFW", tmp_path, verify=False).read_clips()


def test_changed_captions_give_new_rows(tmp_path):
    captions = make_both_lists(tmp_path / "MAFW")
    before = builder_of(MAFW, "fold1", tmp_path / "MAFW", tmp_path, verify=False)
    trees.write_text(captions, ["00002.mp4\thappiness\t\tShe laughs"], "gbk")
    after = builder_of(MAFW, "fold1", tmp_path / "MAFW", tmp_path, verify=False)
    assert before.cache_dir != after.cache_dir


# The other sets. Their clips are not there: those that are skipped are listed, and count.


def write_dfew_lists(root, fold=1, train=None, test=None):
    official = DFEW.SIZES[f"fold{fold}"]
    test_labels = labels_of(DFEW.CLASS_COUNTS["fold1"]["test"])[: official["test"]] if test is None else test
    train_labels = ["fear"] * official["train"] if train is None else train
    start = 1
    for split, labels in (("train", train_labels), ("test", test_labels)):
        lines = [f"{number},{label}" for number, label in enumerate(labels, start=start)]
        trees.write_text(root / f"EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv", lines)
        trees.write_frames(root / f"Clip/clip_224x224/{start:05d}")
        start += len(labels)
    return root


@pytest.mark.parametrize("fold", range(1, 6))
def test_dfew(tmp_path, fold):
    write_dfew_lists(tmp_path, fold)
    assert count(builder_of(DFEW, f"fold{fold}", tmp_path, tmp_path, on_error="skip").read_clips()) == {
        "train": 1,
        "test": 1,
    }
    write_dfew_lists(tmp_path, fold, train=["fear"] * (DFEW.SIZES[f"fold{fold}"]["train"] - 1))
    with pytest.raises(ValueError, match=r"cannot be built: fold\d has other numbers of clips") as error:
        builder_of(DFEW, f"fold{fold}", tmp_path, tmp_path, on_error="skip").read_clips()
    assert f"train, all: {9355 + max(0, fold - 2) + (fold == 5) * 2:,} clips, official" in str(error.value)


def test_the_numbers_of_the_classes_count(tmp_path):
    labels = labels_of(DFEW.CLASS_COUNTS["fold1"]["test"])
    write_dfew_lists(tmp_path, test=[labels[0], *labels[:-1]])  # the last was of another class
    with pytest.raises(
        ValueError, match=r"test, happiness: 490 clips, official 489\ntest, fear: 180 clips, official 181"
    ):
        builder_of(DFEW, "fold1", tmp_path, tmp_path, on_error="skip").read_clips()


def test_skipped_clips_are_told(tmp_path, caplog):
    write_dfew_lists(tmp_path)
    with caplog.at_level(logging.WARNING):
        datasets.logging.enable_propagation()
        builder_of(DFEW, "fold1", tmp_path, tmp_path, on_error="skip").read_clips()
        datasets.logging.disable_propagation()
    assert "clips left out, 11695 in all" in caplog.text


def test_ferv39k(tmp_path):
    for split, size in FERV39k.SIZES["all"].items():
        counts = FERV39k.CLASS_COUNTS["all"].get(split, {"happiness": size})
        folders = {label: folder for label, folder in zip(FERV39k.LABELS, trees.ADJECTIVES, strict=True)}
        start = 0 if split == "test" else 10_000
        lines = [f"Action/{folders[label]}/{n} {label}" for n, label in enumerate(labels_of(counts), start=start)]
        trees.write_text(tmp_path / f"4_setups/All_scenes/{split}_All.csv", lines)
        trees.write_frames(tmp_path / "2_ClipsforFaceCrop" / lines[0].split()[0])
    assert count(builder_of(FERV39k, "all", tmp_path, tmp_path, on_error="skip").read_clips()) == {
        "train": 1,
        "test": 1,
    }
    trees.write_text(tmp_path / "4_setups/All_scenes/train_All.csv", lines[:1])  # the test list's, so in both
    with pytest.raises(ValueError, match="which is train; a model that is tested on test must not have seen it"):
        builder_of(FERV39k, "all", tmp_path, tmp_path, on_error="skip").read_clips()


def test_some_scenes_have_no_official_number(tmp_path):
    root = trees.make_ferv39k(tmp_path / "FERV39k")
    with pytest.raises(ValueError, match=r"train, all: 3 clips, official 31,088\ntest, all: 2 clips, official 7,847"):
        builder_of(FERV39k, "all", root, tmp_path).read_clips()
    clips = builder_of(FERV39k, "all", root, tmp_path, scenes=["Action"]).read_clips()
    assert count(clips) == {"train": 2, "test": 1}


def test_nothing_is_kept_and_streaming_is_no_way_round(tmp_path):
    root = trees.make_dfew(tmp_path / "DFEW")
    builder = builder_of(DFEW, "fold1", root, tmp_path / "cache")
    for build in (builder.download_and_prepare, lambda: builder.as_streaming_dataset("train")):
        with pytest.raises(ValueError, match="train, all: 4 clips, official 9,356"):
            build()
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    with pytest.raises(ValueError, match="verify is 'no', but must be one of"):
        builder_of(DFEW, "fold1", root, tmp_path, verify="no")

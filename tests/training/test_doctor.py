# SPDX-License-Identifier: Apache-2.0
"""The doctor on trees that are whole, and on trees that are broken in one way each."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.clip_check import ClipFacts, Failure, describe_frames, run_all
from training.data.dfew import DFEW
from training.data.doctor import KINDS, examine, main, render

NUM_CLIPS = 14
ORDER = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]


def write_frames(folder: Path, seed: int):
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (3, 24, 24, 3), dtype=np.uint8)
    for number, frame in enumerate(pixels, start=1):
        Image.fromarray(frame).save(folder / f"{number:03d}.jpg", quality=95)


def list_path(root: Path, split: str, fold: int = 1) -> Path:
    return root / f"EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv"


def write_list(path: Path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def clip_path(root: Path, number: int) -> Path:
    return root / f"Clip/clip_224x224/{number:05d}"


@pytest.fixture
def dfew(tmp_path) -> Path:
    """14 clips of 3 images in 5 folds; each class twice; clips 5 and 10 are the test of fold 1."""
    root = tmp_path / "DFEW"
    for clip in range(1, NUM_CLIPS + 1):
        write_frames(clip_path(root, clip), seed=clip)
    for fold in range(1, 6):
        for split in ("train", "test"):
            clips = [clip for clip in range(1, NUM_CLIPS + 1) if (clip % 5 == fold - 1) == (split == "test")]
            write_list(list_path(root, split, fold), [f"{clip},{clip % 7 + 1}" for clip in clips])
    return root


def examine_fold1(root: Path, **options) -> dict:
    return examine("dfew", str(root), ["fold1"], **{"verify": False} | options)


def by_kind(report: dict) -> dict[str, dict]:
    return {finding["kind"]: finding for finding in report["findings"]}


def test_a_whole_tree(dfew, tmp_path, capsys):
    arguments = ["dfew", str(dfew), "--no-verify", "--workers", "2"]
    assert main([*arguments, "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["ok"] and set(by_kind(report)) == {"counts"}  # DFEW is larger
    assert report["labels"]["fold3"][:2] == ["1 happiness", "2 sadness"]
    assert list(report["counts"]) == ["fold1", "fold2", "fold3", "fold4", "fold5"]
    test = report["counts"]["fold1"]["test"]
    assert (test["clips"], test["official"]) == (2, 2341)
    assert {label: row["clips"] for label, row in test["classes"].items() if row["clips"]} == {
        "anger": 1,
        "disgust": 1,
    }
    assert test["classes"]["happiness"]["official"] == 489
    clips = report["clips"]
    assert (clips["listed"], clips["there"], clips["opened"], clips["look"]) == (14, 14, 14, "face crops")
    assert clips["sizes"] == {"24x24": 14} and clips["num_frames"] == {"min": 3, "median": 3, "max": 3}
    printed = capsys.readouterr().out
    assert printed == render(report) + "\n"
    assert "WARNING" in printed and "ERROR" not in printed and "1=happiness" in printed
    assert "all 12/9,356 11/9,356 11/9,357 11/9,358 11/9,361" in " ".join(printed.split())


def empty_the_folder(root):
    for image in clip_path(root, 3).iterdir():
        image.unlink()


def empty_an_image(root):
    (clip_path(root, 3) / "002.jpg").write_bytes(b"")


def cut_off_an_image(root):
    image = clip_path(root, 3) / "003.jpg"
    image.write_bytes(image.read_bytes()[:500])


def hang(root):
    (clip_path(root, 3) / "001.jpg").unlink()
    os.mkfifo(clip_path(root, 3) / "001.jpg")  # opening it waits until somebody writes


def copy_a_test_clip(root):
    shutil.rmtree(clip_path(root, 3))
    shutil.copytree(clip_path(root, 5), clip_path(root, 3))
    (clip_path(root, 3) / "001.jpg").rename(clip_path(root, 3) / "1.jpg")


def make_it_a_file(root):
    shutil.rmtree(clip_path(root, 3))
    clip_path(root, 3).with_suffix(".mp4").write_bytes(b"video")


def list_in_the_common_form(root):
    for split in ("train", "test"):
        lines = list_path(root, split).read_text().split()
        rows = [line.split(",") for line in lines]
        write_list(root / f"set_1_{split}.txt", [f"Clip/{clip} 3 {int(label) - 1}" for clip, label in rows])
    shutil.rmtree(root / "EmoLabel_DataSplit")
    train = root / "set_1_train.txt"
    train.write_text(train.read_text().replace("Clip/3 3 ", "Clip/3 30 "))


def append(split: str, line: bytes):
    return lambda root: list_path(root, split).write_bytes(list_path(root, split).read_bytes() + line)


BROKEN = {
    "missing": (lambda root: shutil.rmtree(clip_path(root, 3)), "train(single-labeled)/set_1.csv, line 3", "'00003'"),
    "empty folder": (empty_the_folder, "line 3", "00003 holds no image"),
    "empty image": (empty_an_image, "line 3", "002.jpg has 0 bytes"),
    "unreadable": (cut_off_an_image, "line 3", "003.jpg cannot be read"),
    "hanging": (hang, "line 3", "00003 was not read within 2 s"),
    "twins_across": (copy_a_test_clip, "", "00003 (train) and"),
    "frame_count": (list_in_the_common_form, "set_1_train.txt, line 3", "30 frames"),
    "no_clips": (lambda root: shutil.rmtree(root / "Clip"), "", "no folder with clips found"),
    "no_list": (lambda root: list_path(root, "test").unlink(), "", "no list of the test clips of fold1"),
    "bad_list": (append("train", b"\xff\xff,1\n"), "set_1.csv, line 13", "are not UTF-8"),
    "bad_line label": (append("train", b"5,8\n"), "set_1.csv, line 13", "label 8 is out of range"),
    "bad_line name": (append("train", b"5,hapy\n"), "set_1.csv, line 13", "'hapy' is unknown"),
    "no_split": (lambda root: write_list(list_path(root, "test"), ["video_name,label"]), "", "fold1, test"),
    "listed_twice": (append("train", b"3,4\n"), "set_1.csv, line 13", "'00003' of train is in train already"),
    "overlap": (append("train", b"5,6\n"), "", "'00005'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_found(dfew, case, capsys):
    break_it, where, what = BROKEN[case]
    break_it(dfew)
    arguments = ["dfew", str(dfew), "--config", "fold1", "--no-verify", "--workers", "2", "--time-limit", "2"]
    assert main([*arguments, "--json", str(dfew / "report.json")]) == 1
    report = json.loads((dfew / "report.json").read_text(encoding="utf-8"))
    kind = case.split()[0]
    errors = [finding for finding in report["findings"] if finding["severity"] == "error"]
    assert [finding["kind"] for finding in errors] == [kind] and errors[0]["number"] == 1
    (item,) = errors[0]["items"]
    assert where in item["where"] and what in item["what"]
    printed = capsys.readouterr().out
    assert f"ERROR  {KINDS[kind].what}: 1\n" in printed and f"    -> {KINDS[kind].advice}\n" in printed
    if kind == "hanging":
        assert report["clips"]["opened"] == NUM_CLIPS - 1


def test_no_folder_and_wrong_settings(dfew, tmp_path, capsys):
    assert main(["dfew", str(tmp_path / "none")]) == 1
    assert "ERROR  no such folder: 1" in capsys.readouterr().out
    for settings in (["--config", "fold6"], ["--label-order", "joy"], ["--json", "none/report.json"]):
        with pytest.raises(SystemExit, match="2"):
            main(["dfew", str(dfew), *settings])
        assert "Traceback" not in capsys.readouterr().err


def test_numbers_are_those_of_the_file_that_names_them(dfew):
    write_list(
        list_path(dfew, "train").with_name("label_index.txt"), [f"{n} {name}" for n, name in enumerate(ORDER, 1)]
    )
    assert examine_fold1(dfew, decode=False)["labels"]["fold1"][:2] == ["1 anger", "2 disgust"]


def test_files_among_folders(dfew):
    make_it_a_file(dfew)
    assert by_kind(examine_fold1(dfew, decode=False))["mixed"]["number"] == 1


def test_a_clip_tested_in_two_folds(dfew):
    shutil.copy(list_path(dfew, "test", 1), list_path(dfew, "test", 2))
    report = examine("dfew", str(dfew), ["fold1", "fold2"], decode=False)
    finding = by_kind(report)["fold_overlap"]
    assert finding["number"] == 2 and "'00005' is tested in fold1 already" in finding["items"][0]["what"]
    refused = by_kind(report)["refused_counts"]  # such a small set cannot be built
    assert refused["severity"] == "error" and "verify=False" in refused["advice"]
    assert refused["items"][0]["what"] == "fold1, train, all: 12 clips, official 9,356"


def test_twins_in_one_split_and_unlisted_clips_are_no_errors(dfew):
    shutil.rmtree(clip_path(dfew, 3))
    shutil.copytree(clip_path(dfew, 4), clip_path(dfew, 3))
    write_frames(clip_path(dfew, 99), seed=99)
    report = examine_fold1(dfew)
    assert report["ok"] and set(by_kind(report)) == {"twins", "unlisted", "counts"}
    assert by_kind(report)["unlisted"]["items"][0]["what"] == str(clip_path(dfew, 99))


def test_what_is_broken_in_all_folds_is_told_once(dfew):
    shutil.rmtree(clip_path(dfew, 3))
    (clip_path(dfew, 4) / "001.jpg").write_bytes(b"")
    report = examine("dfew", str(dfew), [f"fold{fold}" for fold in range(1, 6)], verify=False)
    assert by_kind(report)["missing"]["number"] == by_kind(report)["empty"]["number"] == 1


def test_official_numbers_and_the_order_of_labels(dfew):
    """Lists as long as the real ones; their clips are not there."""
    counts = DFEW.CLASS_COUNTS["fold1"]["test"]
    labels = [number for number, label in enumerate(DFEW.LABELS, start=1) for _ in range(counts[label])]
    write_list(list_path(dfew, "train"), [f"{clip},1" for clip in range(3001, 3001 + 9356)])
    write_list(list_path(dfew, "test"), [f"{clip},{label}" for clip, label in enumerate(labels, start=1)])
    report = examine_fold1(dfew, decode=False, verify=True)
    assert not {"counts", "refused_counts", "label_order"} & set(by_kind(report))
    missing = by_kind(report)["missing"]
    assert missing["number"] == len(missing["items"]) == 9356 + 2341 - NUM_CLIPS
    assert "... and 11,673 more" in render(report)

    numbers = {DFEW.LABELS.index(name) + 1: ORDER.index(name) + 1 for name in DFEW.LABELS}
    write_list(list_path(dfew, "test"), [f"{clip},{numbers[label]}" for clip, label in enumerate(labels, start=1)])
    finding = by_kind(examine_fold1(dfew, decode=False))["label_order"]
    assert finding["items"][0]["what"].endswith("try " + " ".join(ORDER))
    report = examine_fold1(dfew, decode=False, label_order=ORDER)
    assert "label_order" not in by_kind(report) and report["labels"]["fold1"][0] == "1 anger"


def test_own_videos(tmp_path, write_clip, capsys):
    """Of a video that is cut off, of an empty one and of one that is none, each is named; wide frames are noticed."""
    for number in range(1, 8):
        write_clip(tmp_path / f"{number}.mp4", num_frames=4 + number)
    write_list(tmp_path / "metadata.csv", ["file_name,label", *(f"{number}.mp4,calm" for number in range(1, 7))])
    content = (tmp_path / "2.mp4").read_bytes()
    (tmp_path / "2.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "3.mp4").write_bytes(b"")
    (tmp_path / "4.mp4").write_bytes(b"no video" * 100)
    assert main(["own", str(tmp_path), "--json", str(tmp_path / "report.json"), "--workers", "2"]) == 1
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    findings = by_kind(report)
    assert set(findings) == {"unreadable", "empty", "whole_frames", "unlisted"}
    assert [item["where"].split(", ")[-1] for item in findings["unreadable"]["items"]] == ["line 3", "line 5"]
    assert "3.mp4" in findings["empty"]["items"][0]["what"] and "7.mp4" in findings["unlisted"]["items"][0]["what"]
    assert report["clips"]["opened"] == 3 and report["clips"]["sizes"] == {"96x64": 3}
    assert list(report["counts"]["default"]) == ["train"]
    capsys.readouterr()
    (tmp_path / "metadata.csv").write_text("label\ncalm\n", encoding="utf-8")
    assert main(["own", str(tmp_path)]) == 1
    assert "no file_name" in capsys.readouterr().out


def test_a_group_of_two_splits(tmp_path):
    lines = [f"{split}/{name},{name}" for name, split in (("ann", "train"), ("ben", "test"), ("ann", "test"))]
    write_list(tmp_path / "metadata.csv", ["file_name,group", *lines])
    for seed, place in enumerate(("train/ann", "test/ben", "test/ann")):
        write_frames(tmp_path / place, seed)
    (found,) = by_kind(examine("own", str(tmp_path), ["default"], decode=False))["overlap"]["items"]
    assert found["where"].endswith("line 4") and "group 'ann' of test is in train already" in found["what"]


def test_afew(tmp_path):
    labels = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
    for seed, place in enumerate(f"{split}/{label}/1" for split in ("train", "validation") for label in labels):
        write_frames(tmp_path / place, seed)
    report = examine("afew", str(tmp_path), ["default"])
    assert report["ok"] and not report["findings"]
    assert report["counts"]["default"]["validation"]["clips"] == 7


def test_a_process_that_hangs_or_crashes_is_replaced():
    started = time.monotonic()
    hanging = run_all(time.sleep, [60, 0.01, 0.02, 0.03], 1, 1.0, "sleeping")
    assert isinstance(hanging[60], Failure) and hanging[60].kind == "hanging"
    assert hanging[0.01] is hanging[0.02] is hanging[0.03] is None
    assert time.monotonic() - started < 30
    crashing = run_all(signal.raise_signal, [signal.SIGSEGV, signal.SIGCHLD], 1, 5.0, "x")
    assert crashing[signal.SIGSEGV].kind == "crashing" and "-11" in crashing[signal.SIGSEGV].reason
    assert crashing[signal.SIGCHLD] is None


@pytest.mark.parametrize(
    ("sizes", "look"),
    [
        ([(224, 224)] * 9 + [(112, 112)], "face crops"),
        ([(256, 224)] * 3, "face crops"),
        ([(1024, 1024)] * 3, "whole frames"),
        ([(640, 480)] * 3, "whole frames"),
        ([(200, 200), (180, 180), (224, 224)], "whole frames"),
    ],
)
def test_face_crops_have_one_size_small_and_squarish(sizes, look):
    assert describe_frames(ClipFacts((1,), 16, *size) for size in sizes)["look"] == look


@pytest.mark.slow
def test_ctrl_c_leaves_no_process(dfew):
    hang(dfew)
    command = [sys.executable, "-m", "training.data.doctor", "dfew", str(dfew), "--time-limit", "600"]
    root = Path(__file__).parents[2]
    doctor = subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    progress = ""
    while not re.search(rf"[1-9]\d*/{NUM_CLIPS} ", progress):
        progress += doctor.stderr.read(1)
    time.sleep(1)  # now it waits for the clip that hangs
    os.killpg(doctor.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, errors = doctor.communicate(timeout=30)
    assert doctor.returncode == 130 and not out
    assert "stopped" in errors and "Traceback" not in progress + errors

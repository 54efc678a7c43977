# SPDX-License-Identifier: Apache-2.0
"""Small folders in every layout in which the licensed data sets circulate, with real images and clips."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

NUM_FRAMES = 3
SOMEBODY = "/home/somebody/data sets/"  # the beginning of paths in lists that were written on another machine

EMOTIONS = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
ADJECTIVES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")  # FERV39k's and AFEW's words for them
# What the trees say: split -> clips, with their class as we spell it.
DFEW_CLIPS = {
    "train": [("1", "happiness"), ("2", "fear"), ("10", "neutral"), ("10023", "anger")],
    "test": [("3", "sadness"), ("11", "surprise"), ("12345", "disgust")],
}
FERV39K_CLIPS = {
    "train": [("Action/Happy/0010", "happiness"), ("Action/Sad/0010", "sadness"), ("War/Fear/0001", "fear")],
    "test": [("Action/Angry/0002", "anger"), ("DailyLife/Neutral/0003", "neutral")],
}
MAFW_CLIPS = {
    "train": [
        ("00001", "anger", "男人在大喊", "A man shouts, loudly."),
        ("00002", "happiness", "她笑了", "She smiles"),
        ("00010", "contempt", "嘴角上扬", "One lip corner is raised"),
    ],
    "test": [("00003", "disappointment", "他低下头", "He lowers his head"), ("10045", "fear", "", "")],
}
MAFW_COMPOUND_CLIPS = {
    "train": [
        ("00001", "anger", "男人在大喊", "A man shouts, loudly."),
        ("00004", "disgust_helplessness_disappointment", "", ""),
    ],
    "test": [("00005", "surprise_anxiety", "她张开嘴", "She opens her mouth"), ("00003", "disappointment", "", "")],
}
AFEW_CLIPS = {"train": "0001", "validation": "0002"}  # a clip of this name in the folder of every emotion


def write_frames(folder: Path, num_frames: int = NUM_FRAMES, name: str = "{}.jpg") -> Path:
    """A clip as a folder of images 1.jpg, 2.jpg, ..., each 10 grey levels brighter than the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, num_frames + 1):
        Image.fromarray(np.full((16, 16, 3), 10 * number, np.uint8)).save(folder / name.format(number))
    return folder


def write_media(path: Path, clip: Path | None = None, suffix: str | None = None, num_frames: int = NUM_FRAMES) -> Path:
    """A folder of frames, or beside its name the copy of a video file, with the suffix given or its own."""
    if clip is None:
        return write_frames(path, num_frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(clip, f"{path}{suffix or clip.suffix}"))


def write_text(path: Path, lines: list[str], encoding: str = "utf-8", newline: str = "\n") -> Path:
    """A list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}{newline}" for line in lines).encode(encoding))
    return path


def common_lines(clips: list[tuple], order: tuple[str, ...], below: str, num_frames: int = NUM_FRAMES) -> list[str]:
    """`path frames label`, with the paths of another machine."""
    return [f"{SOMEBODY}{below}/{name} {num_frames} {order.index(label)}" for name, label, *_ in clips]


def make_dfew(
    root: Path,
    lists: str = "official",
    media: str = "Clip/clip_224x224",
    clip: Path | None = None,
    folds: tuple[int, ...] = (1,),
    encoding: str = "utf-8",
    newline: str = "\n",
    suffix: str | None = None,
) -> Path:
    """`lists` is "official" (csv) or "common". Fold 2 and those after it have train and test exchanged."""
    for fold in folds:
        for split in ("train", "test"):
            clips = DFEW_CLIPS[split if fold == 1 else {"train": "test", "test": "train"}[split]]
            if lists == "official":
                lines = [f"{name},{EMOTIONS.index(label) + 1}" for name, label in clips]
                path = root / f"EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv"
                write_text(path, ["video_name,label", *lines], encoding, newline)
            else:
                padded = [(name.zfill(5), label) for name, label in clips]
                lines = common_lines(padded, EMOTIONS, "DFEW/Clip/clip_224x224")
                write_text(root / f"annotation/DFEW_set_{fold}_{split}.txt", lines, encoding, newline)
    for name, _ in DFEW_CLIPS["train"] + DFEW_CLIPS["test"]:
        name = name if media.endswith("original") else name.zfill(5)
        write_media(root / media / name, clip, suffix)
    return root


def make_ferv39k(root: Path, lists: str = "official", media: str = "2_ClipsforFaceCrop", clip: Path | None = None):
    """`lists` is "official" (csv with names) or "common"."""
    for split, clips in FERV39K_CLIPS.items():
        if lists == "official":
            lines = [f"{name} {name.split('/')[1]}" for name, _ in clips]
            write_text(root / f"4_setups/All_scenes/{split}_All.csv", lines)
        else:
            write_text(root / f"{split}.txt", common_lines(clips, EMOTIONS, "FERV39k/2_ClipsforFaceCrop"))
        for name, _ in clips:
            write_media(root / media / name, clip)
    return root


def make_mafw(
    root: Path,
    kind: str = "single",
    lists: str = "Train & Test Set",
    captions: str = "with_caption",
    media: str = "data/faces",
    clip: Path | None = None,
    encoding: str = "gbk",
    newline: str = "\r\n",
    order: tuple[str, ...] = (),
) -> Path:
    """`lists` is the name of the folder with lists, or "common", whose numbers mean `order`."""
    for split, clips in (MAFW_CLIPS if kind == "single" else MAFW_COMPOUND_CLIPS).items():
        if lists == "common":
            write_text(root / f"MAFW_set_1_{split}.txt", common_lines(clips, order, "MAFW/data/faces"))
        else:
            columns = [
                (f"{name}.mp4", *rest) if "with" in captions else (f"{name}.mp4", rest[0]) for name, *rest in clips
            ]
            path = root / lists / kind / captions / "set_1" / f"{split}.txt"
            write_text(path, ["\t".join(line) for line in columns], encoding, newline)
        for name, *_ in clips:
            write_media(root / media / name, clip)
    return root


def make_afew(
    root: Path,
    folders: tuple[str, str] = ("train", "validation"),
    names: tuple[str, ...] = ADJECTIVES,
    clip: Path | None = None,
) -> Path:
    """`folders` of the splits; a clip of every emotion in both."""
    for folder, clip_name in zip(folders, AFEW_CLIPS.values(), strict=True):
        for name in names:
            write_media(root / folder / name / clip_name, clip)
    return root


def make_own(root: Path, rows: list[dict], clip: Path | None = None, name: str = "metadata.csv") -> Path:
    """The table, and the clips that it names: copies of `clip`, or folders of frames."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    with open(root / name, "w", encoding="utf-8", newline="") as file:
        if name.endswith(".jsonl"):
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    for row in rows:
        path = (root / name).parent / row["file_name"]
        write_media(path.with_suffix("") if clip else path, clip, path.suffix)
    return root

# SPDX-License-Identifier: Apache-2.0
"""Lists that other repositories made: columns and classes by their names, encodings that are not guessed."""

import data_set_trees as trees
import pytest

from training.data import clip_lists
from training.data.dfew import DFEW
from training.data.ferv39k import FERV39k
from training.data.mafw import MAFW

ALPHABETICAL = sorted(trees.EMOTIONS)
DFEW_NAMED = {split: [(name.zfill(5), label) for name, label in clips] for split, clips in trees.DFEW_CLIPS.items()}


def build(builder_class, config, root, **options):
    """Split -> (clip, label) of every clip."""
    options = {
        "config_name": config,
        "data_dir": str(root),
        "cache_dir": str(root / "cache"),
        "verify": False,
    } | options
    return {
        split: [(clip.clip_id, clip.label) for clip in clips]
        for split, clips in builder_class(**options).read_clips().items()
    }


@pytest.fixture
def dfew(tmp_path):
    """The clips of DFEW, and no list."""
    root = trees.make_dfew(tmp_path / "DFEW")
    for path in root.rglob("*.csv"):
        path.unlink()
    return root


def write_lists(root, pattern, header, line, clips=trees.DFEW_CLIPS):
    """`line(name, label)` for each clip, below a header."""
    for split, rows in clips.items():
        trees.write_text(root / pattern.format(split), [header, *(line(*row) for row in rows)])


@pytest.mark.parametrize("pattern", ["{}_set_1.csv", "EmoLabel_DataSplit/{}_set_1.csv", "label/single_{}set_1.csv"])
@pytest.mark.parametrize("header", ["video_name,label", "video_name,labels", "path,id"])
def test_lists_of_a_fold_with_the_authors_numbers(dfew, pattern, header):
    write_lists(dfew, pattern, header, lambda name, label: f"{name},{trees.EMOTIONS.index(label) + 1}")
    assert build(DFEW, "fold1", dfew) == DFEW_NAMED
    with pytest.raises(FileNotFoundError, match="fold2"):
        build(DFEW, "fold2", dfew)


@pytest.mark.parametrize("name", ["label_index.txt", "id_to_calss.txt", "id_to_class.txt"])
@pytest.mark.parametrize(
    "form", ["{name} {number}", "{number} {name}", "{name}: {number}", "{number},{name}", "{number}\t{name}"]
)
def test_numbers_are_named_by_the_file_beside(dfew, name, form):
    write_lists(dfew, "{}_set_1.csv", "path,id", lambda path, label: f"x/{path},{ALPHABETICAL.index(label)}")
    words = [trees.ADJECTIVES[trees.EMOTIONS.index(label)] for label in ALPHABETICAL]
    trees.write_text(dfew / name, [form.format(name=word, number=number) for number, word in enumerate(words)])
    assert build(DFEW, "fold1", dfew) == DFEW_NAMED
    with pytest.raises(ValueError, match="label 0 is out of range"):  # an order that is given comes first
        build(DFEW, "fold1", dfew, label_order=list(trees.EMOTIONS))


def test_annotation_folder_in_alphabetical_order(tmp_path):
    root = trees.make_ferv39k(tmp_path / "FERV39k")
    for path in root.rglob("*.csv"):
        path.unlink()
    write_lists(
        root,
        "Annotation/{}.csv",
        "path,id",
        lambda path, label: f"{trees.SOMEBODY}FERV39k/{path},{ALPHABETICAL.index(label)}",
        trees.FERV39K_CLIPS,
    )
    with pytest.raises(ValueError, match="but the clip lies in the folder of"):
        build(FERV39k, "all", root)
    trees.write_text(root / "Annotation/label_index.txt", [f"{n} {name}" for n, name in enumerate(ALPHABETICAL)])
    assert build(FERV39k, "all", root) == trees.FERV39K_CLIPS


def test_mafw_needs_no_order_where_a_file_names_the_numbers(tmp_path):
    order = sorted(MAFW.LABELS)
    root = trees.make_mafw(tmp_path / "MAFW", lists="common", order=tuple(order))
    with pytest.raises(ValueError, match="pass label_order"):
        build(MAFW, "fold1", root)
    trees.write_text(root / "label_index.txt", [f"{name} {number}" for number, name in enumerate(order)])
    expected = {split: [(name, label) for name, label, *_ in clips] for split, clips in trees.MAFW_CLIPS.items()}
    assert build(MAFW, "fold1", root) == expected


@pytest.mark.parametrize(
    "header, line",
    [
        ("label,path", "{label},{path}"),
        ("index,path,frames,label", "7,{path},3,{zero}"),
        ("id,label", "{path},{label}"),
        ("Label\tVideo_Name", "{label}\t{path}"),
        ("label file", "{label} {path}"),
        ("subject,class,video", 'somebody,{word},"a, b/{path}"'),
    ],
)
def test_columns_are_found_by_their_names(dfew, header, line):
    def row(path, label):
        number = trees.EMOTIONS.index(label)
        return line.format(path=path, label=number + 1, zero=number, word=trees.ADJECTIVES[number])

    write_lists(dfew, "{}_set_1.csv", header, row)
    assert build(DFEW, "fold1", dfew) == DFEW_NAMED


@pytest.mark.parametrize(
    "lines, message",
    [
        (["anger 0", "0 fear"], r"label_index.txt, line 2: '0 fear' contradicts another line"),
        (["anger 0", "Angry 1"], r"label_index.txt, line 2: 'Angry 1' contradicts another line"),
        (["1 2"], r"label_index.txt, line 1: '1 2' is not the name of a class and its number"),
        (["anger"], r"label_index.txt, line 1: 'anger' is not the name of a class and its number"),
        (["anger fear 0"], r"line 1: 'anger fear 0' is not the name of a class"),
        (["anger 0", "fear 1"], r"train_set_1.csv, line 2: label 3 is not in .*label_index.txt; it has \[0, 1\]"),
        (["joy 3", "fear 1"], r"train_set_1.csv, line 2: label 'joy' is unknown; allowed: happiness"),
    ],
)
def test_what_is_wrong_with_a_file_of_names_is_named(dfew, lines, message):
    write_lists(dfew, "{}_set_1.csv", "path,id", lambda path, label: f"{path},{ALPHABETICAL.index(label)}")
    trees.write_text(dfew / "label_index.txt", lines)
    with pytest.raises(ValueError, match=message):
        build(DFEW, "fold1", dfew)


def test_two_files_of_names_must_agree(dfew):
    write_lists(dfew, "{}_set_1.csv", "path,id", lambda path, label: f"{path},{ALPHABETICAL.index(label)}")
    trees.write_text(dfew / "label_index.txt", [f"{name} {number}" for number, name in enumerate(ALPHABETICAL)])
    trees.write_text(dfew / "id_to_class.txt", ["0 fear"])
    with pytest.raises(ValueError, match=r"id_to_class.txt, line 1: '0 fear' contradicts another line"):
        build(DFEW, "fold1", dfew)


def test_changed_names_give_new_rows(dfew):
    write_lists(dfew, "{}_set_1.csv", "path,id", lambda path, label: f"{path},{ALPHABETICAL.index(label) + 1}")
    options = {"config_name": "fold1", "data_dir": str(dfew), "cache_dir": str(dfew / "cache")}
    before = DFEW(**options).cache_dir
    trees.write_text(dfew / "label_index.txt", ["anger 1"])
    assert DFEW(**options).cache_dir != before


def test_a_line_with_other_columns_than_the_header_is_named(dfew):
    write_lists(dfew, "{}_set_1.csv", "label,path", lambda path, label: f"1,a,{path}")
    with pytest.raises(ValueError, match=r"train_set_1.csv, line 2: 3 columns, but the header names label, path"):
        build(DFEW, "fold1", dfew)


@pytest.mark.parametrize(
    "content, expected",
    [
        ("label\nseñora\n".encode("utf-8-sig"), "label\nseñora\n"),
        ("label\nseñora\n".encode("utf-16"), "label\nseñora\n"),
        (b"\xfe\xff" + "label\nseñora\n".encode("utf-16-be"), "label\nseñora\n"),
        ("label\nseñora\n".encode("cp1252"), r"line 2: the bytes b'\xf1' are not UTF-8 text; save the file as UTF-8"),
        ("label\na\n".encode("utf-16-le"), r"line 1: the bytes b'\x00' are not UTF-8 text"),
        (b"\xff\xfea", "line 1: the bytes b'a' are not UTF-16 text"),
    ],
    ids=["UTF-8 with mark", "UTF-16", "UTF-16 big", "cp1252", "UTF-16 without mark", "half UTF-16"],
)
def test_no_encoding_is_guessed(tmp_path, content, expected):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    if expected.startswith("label"):
        assert clip_lists.read_text(path, ("utf-8",)) == expected
    else:
        with pytest.raises(ValueError) as error:
            clip_lists.read_text(path, ("utf-8",))
        assert f"{path}, {expected}" in str(error.value)


def test_only_the_lists_of_mafw_may_be_gbk(tmp_path):
    assert MAFW.ENCODINGS == ("utf-8", "gb18030") and DFEW.ENCODINGS == FERV39k.ENCODINGS == ("utf-8",)
    (tmp_path / "list.txt").write_bytes("她笑了".encode("gbk"))
    assert clip_lists.read_text(tmp_path / "list.txt", MAFW.ENCODINGS) == "她笑了"
    (tmp_path / "list.txt").write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match=r"are neither UTF-8 nor GBK text"):
        clip_lists.read_text(tmp_path / "list.txt", MAFW.ENCODINGS)

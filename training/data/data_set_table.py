# SPDX-License-Identifier: Apache-2.0
"""Generates the data set page from the builders: classes, folds, numbers of clips, and file patterns searched for.

python -m training.data.data_set_table > docs/data_sets.md
"""

import inspect
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import asdict

import datasets

from training.data.afew import AFEW
from training.data.clip_lists import IMAGE_SUFFIXES, LABEL_FILES, VIDEO_SUFFIXES
from training.data.dfew import DFEW
from training.data.expression_videos import ExpressionVideos
from training.data.face_vocabulary import EMOTION_NAMES
from training.data.ferv39k import FERV39k
from training.data.listed_clips import TOGETHER, Clip, ExpressionVideosConfig, count_clips
from training.data.mafw import MAFW
from training.data.own_videos import OwnVideos
from training.data.synthetic_faces import SyntheticFaces

# Keys: names on the doctor's command line.
BUILDERS = {"dfew": DFEW, "ferv39k": FERV39k, "mafw": MAFW, "afew": AFEW, "own": OwnVideos}
ALL = (*BUILDERS.values(), SyntheticFaces)
WIDTH = 100  # terminal columns
SPLITS = ("train", "validation", "test")

HEAD = f"""\
# Data sets

This page is made from the code, by `python -m training.data.data_set_table > docs/data_sets.md`; change it there.

Nothing is downloaded here. DFEW, FERV39k, MAFW and AFEW are given by their authors to those who sign an agreement: see
the homepages below; then say in which folder you unpacked them. `OwnVideos` takes clips of your own, `SyntheticFaces`
is drawn and needs nobody's leave. In all of them one expression has one name (`happiness`, not `Happy`), so that a
model trained on one set is asked the same texts on another. Label **names** travel with a checkpoint, never numbers,
which differ between the sets and between the copies of one set.

## Use

Is the folder whole? The doctor counts clips and classes, opens every clip, looks for missing ones, duplicates and
overlaps, and says what to do:

```
python -m training.data.doctor dfew /data/DFEW                # all folds
python -m training.data.doctor mafw /data/MAFW --config fold1 --json report.json
```

A builder makes a `datasets.Dataset` of it; nothing is copied, its rows name the files:

```python
from training.data.dfew import DFEW

builder = DFEW(config_name="fold1", data_dir="/data/DFEW", cache_dir="data")
builder.download_and_prepare()
train, test = builder.as_dataset("train"), builder.as_dataset("test")
```

A clip is a folder with one image for each frame ({", ".join(IMAGE_SUFFIXES)}), or a video file
({", ".join(VIDEO_SUFFIXES)}).
Lists have tabs, commas or blanks between columns; the field's common form, `path frames label` with labels from 0, is
read for every set. If the first line names the columns, as `path,id` or `video_name,labels`, they are found by their
names. A file beside a list, with a name and a number on each line, says what its numbers mean: it is called
{", ".join(f"`{name}`" for name in LABEL_FILES[:-1])} or `{LABEL_FILES[-1]}`.
Lists must be UTF-8, or UTF-16 with a byte order mark; MAFW's may be GBK.

A set whose official numbers are known (see the tables below) is built only if its lists have these numbers of clips;
`verify=False` (in a recipe `data.options.verify=false`) builds what is listed. A clip that is in two splits is an
error in any case, and so is a group of your own clips.

Settings of those builders, besides `config_name` and `data_dir`:

```
{textwrap.dedent(ExpressionVideosConfig.__doc__.split("Args:")[1]).strip()}
```

## At a glance
"""


def page() -> str:
    """Renders the content of docs/data_sets.md."""
    with tempfile.TemporaryDirectory() as cache:  # `datasets` creates a lock file for every builder
        builders = [builder(cache_dir=cache, config_name=names_of(builder)[0][0]) for builder in ALL]
    parts = [HEAD, classes_table(builders), "", sizes_table(builders), "", *(section(builder) for builder in builders)]
    return "\n".join(parts).rstrip() + "\n"


def names_of(builder_class: type[datasets.DatasetBuilder]) -> list[list[str]]:
    """Lists the configuration names, grouping aliases such as MAFW's `fold1` and `single_fold1`."""
    names: dict[str, list[str]] = {}
    for config in builder_class.BUILDER_CONFIGS:
        names.setdefault(str(asdict(config) | {"name": ""}), []).append(config.name)
    return list(names.values())


def numbered_labels(builder: datasets.DatasetBuilder) -> list[str]:
    """Lists the classes with their numbers in the authors' own lists, as `1 happiness`."""
    label = builder.info.features.get("label")
    names = getattr(builder.config, "label_order", None) or (label.names if label else [])
    return [f"{number} {name}" for number, name in enumerate(names, start=getattr(builder, "FIRST_LABEL", 0))]


def classes_table(builders) -> str:
    """Renders the table of classes, licences and homepages, one row for each data set."""
    rows = []
    for builder in builders:
        name = type(builder).__name__
        labels = ", ".join(numbered_labels(builder)) or "those of your table, in alphabetical order"
        source = f"<{builder.HOMEPAGE}>" if getattr(builder, "HOMEPAGE", "") else "-"
        rows.append([f"[{name}](#{name.lower()})", labels, builder.info.license or "yours", source])
    return table(["set", "classes, with the numbers of its own lists", "licence", "homepage, for the agreement"], rows)


def sizes_table(builders) -> str:
    """Renders the table of official numbers of clips; `-` where the number is unknown."""
    rows = []
    for builder in builders:
        for names in names_of(type(builder)):
            sizes = official_sizes(builder, names[0])
            cells = [f"{sizes[split]:,}" if split in sizes else "-" for split in (*SPLITS, TOGETHER)]
            rows.append([type(builder).__name__, ", ".join(f"`{name}`" for name in names), *cells])
    return table(["set", "configuration", *SPLITS, TOGETHER], rows)


def official_sizes(builder, config_name: str) -> dict[str, int]:
    """Returns split or TOGETHER -> official number of clips."""
    if isinstance(builder, ExpressionVideos):
        sizes = builder.SIZES.get(config_name, {})
        return {TOGETHER: sum(sizes.values())} | sizes if sizes else {}
    config = next(config for config in builder.BUILDER_CONFIGS if config.name == config_name)
    sizes = {"train": config.num_train, "validation": config.num_validation}
    return sizes | {"test": config.num_test_per_class * len(EMOTION_NAMES)} if config_name == "clips" else sizes


def section(builder) -> str:
    """Renders the section of one data set: builder documentation, file patterns, columns and class counts."""
    parts = [f"## {type(builder).__name__}\n", inspect.getdoc(inspect.getmodule(type(builder))), ""]
    columns = ", ".join(f"`{name}` ({column_kind(feature)})" for name, feature in builder.info.features.items())
    if isinstance(builder, ExpressionVideos):
        parts += list(looked_for(builder))
        columns += "; `frames` instead of `video` where clips are folders of images"
    if isinstance(builder, OwnVideos):
        columns += "; and those of your table"
    parts += [f"Columns: {columns}.", ""]
    of_configs: dict[str, list[str]] = {}
    for config_name, splits in getattr(builder, "CLASS_COUNTS", {}).items():
        for split, counts in splits.items():
            each = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            of_configs.setdefault(f"{split}: {each}.", []).append(f"`{config_name}`")
    for numbers, names in of_configs.items():
        parts += [f"Official numbers of {', '.join(names)}, {numbers}", ""]
    if isinstance(builder, SyntheticFaces):
        parts += ["Sizes and other settings:\n", f"```\n{inspect.getdoc(builder.BUILDER_CONFIG_CLASS)}\n```", ""]
    if getattr(builder, "CITATION", ""):
        parts += [builder.CITATION + ".", ""]
    return "\n".join(parts)


def looked_for(builder: ExpressionVideos):
    """Yields the Markdown lines with the patterns of lists and folders, best first."""
    if type(builder).list_patterns is not ExpressionVideos.list_patterns:
        yield f"Lists of `{builder.config.name}`, up to two folders deep, in any case; the first found counts:\n"
        yield from (f"- `{pattern}`" for pattern in builder.list_patterns("{train,test}"))
        yield ""
    if builder.FACE_FOLDERS or builder.VIDEO_FOLDERS:
        yield "Folders with clips, up to two folders deep, in any case; face crops come before whole videos:\n"
        yield from (f"- `{pattern}`" for pattern in (*builder.FACE_FOLDERS, *builder.VIDEO_FOLDERS))
        yield ""


def column_kind(feature) -> str:
    """Returns a short name for the type of a column."""
    if isinstance(feature, datasets.Video):
        return "path of a file"
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    if isinstance(feature, datasets.Value):
        return "text" if feature.dtype == "string" else feature.dtype
    return f"list of {column_kind(feature.feature)}"


def official_table(builder: ExpressionVideos, clips: dict[str, list[Clip]]) -> dict:
    """Returns split -> number of clips in all and in each class, with the official number if known."""
    numbers = {}
    for split, rows in clips.items():
        if not rows and split not in builder.required_splits():
            continue
        counts, official = count_clips(clips, split), builder.official_counts(split)
        numbers[split] = {
            "clips": len(rows),
            "official": official.get("all"),
            "classes": {
                label: {"clips": counts[label], "official": official.get(label)} for label in builder.label_names()
            },
        }
    return numbers


def counts_table(counts: dict[str, dict]) -> Iterator[str]:
    """Formats configuration -> `official_table` for a terminal, one table for each split and set of classes."""
    tables: dict[tuple, dict[str, list[str]]] = {}
    for config, splits in counts.items():
        for split, numbers in splits.items():
            rows = [*numbers["classes"].values(), numbers]
            cells = [
                f"{row['clips']:,}/{'-' if row['official'] is None else format(row['official'], ',')}" for row in rows
            ]
            tables.setdefault((f"{split}, clips/official", *numbers["classes"], "all"), {})[config] = [config, *cells]
    for head, columns in tables.items():
        first = max(map(len, head))
        wide = max(len(cell) for column in columns.values() for cell in column) + 2
        at_once = max(1, (WIDTH - first) // wide)
        names = list(columns)
        for start in range(0, len(names), at_once):
            chosen = [columns[name] for name in names[start : start + at_once]]
            yield from (
                f"{label:<{first}}" + "".join(f"{column[number]:>{wide}}" for column in chosen)
                for number, label in enumerate(head)
            )
            yield ""


def table(head: list[str], rows: list[list[str]]) -> str:
    """Renders a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    print(page(), end="")

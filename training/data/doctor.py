# SPDX-License-Identifier: Apache-2.0
"""Checks whether the data set in a folder is complete, and gives advice on every problem found.

    python -m training.data.doctor dfew /data/DFEW
    python -m training.data.doctor mafw /data/MAFW --config fold1 compound_fold1 --json report.json

Prints the numbers of listed clips next to the official ones, the label order, the frame sizes, and the findings. The
exit code is 1 if any finding is an error: the data set cannot be built, or scores on it would be wrong. Clips count as
face crops if most have one size, nearly square and at most 512 pixels: a rule of thumb based on DFEW's 224 x 224.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

from training.data import clip_check
from training.data.clip_lists import VIDEO_SUFFIXES, our_spelling, read_label_files
from training.data.data_set_table import BUILDERS, WIDTH, counts_table, names_of, numbered_labels, official_table
from training.data.expression_videos import ExpressionVideos
from training.data.listed_clips import MAX_PROBLEMS_SHOWN, TOGETHER, Clip, count_clips, repeated
from training.data.own_videos import OwnVideos


class Kind(NamedTuple):
    """A kind of finding."""

    severity: str  # an "error" makes the exit code 1
    what: str
    advice: str


UNPACK = "unpack them again; to go on without them, build with on_error='skip'"
DELETE = UNPACK.replace(", build", ", delete them and build")  # building opens no clip, so it cannot skip these
REFUSED = "copy the authors' lists again; to build what they list all the same: --no-verify here, there verify=False"
KINDS = {
    "no_folder": Kind("error", "no such folder", "give the folder that you unpacked the archives into"),
    "no_clips": Kind("error", "no clips found", "unpack the clips there; docs/data_sets.md has the names"),
    "no_list": Kind("error", "missing lists", "copy them there (names: docs/data_sets.md), or choose a --config"),
    "bad_list": Kind("error", "unreadable lists", "correct the line, or copy the authors' list again"),
    "bad_line": Kind("error", "unusable lines", "correct them; if the labels of all are wrong, try --label-order"),
    "no_split": Kind("error", "splits without clips", "copy the authors' lists again"),
    "label_order": Kind("error", "labels in another order", "pass that order: --label-order, label_order=[...]"),
    "listed_twice": Kind("error", "clips twice in one list", "delete one of the lines"),
    "overlap": Kind("error", "clips or groups in two splits", "delete lines: who trains on a clip cannot test on it"),
    "fold_overlap": Kind("error", "clips tested in two folds", "copy the lists again: each clip is tested once"),
    "missing": Kind("error", "missing clips", UNPACK),
    "mixed": Kind("error", "files among folders of frames, or the reverse", "make all clips alike, or try --media"),
    "frame_count": Kind("error", "other numbers of frames than listed", UNPACK),
    "empty": Kind("error", "empty clips or images", DELETE),
    "unreadable": Kind("error", "clips that cannot be decoded", DELETE),
    "hanging": Kind("error", "clips that hang the decoder", f"slow disk? try a higher --time-limit; else {DELETE}"),
    "crashing": Kind("error", "clips that crash the decoder", DELETE),
    "twins_across": Kind("error", "clips of two splits with the same content", "delete all but one from the lists"),
    "twins": Kind("warning", "clips of one split with the same content", "delete all but one, unless it is meant so"),
    "refused_counts": Kind("error", "numbers that are not the official ones", REFUSED),
    "counts": Kind("warning", "numbers that are not the official ones", "use the full lists to compare with papers"),
    "whole_frames": Kind("warning", "clips that look like whole frames", "crop the faces: both papers work on crops"),
    "unlisted": Kind("note", "clips in no list", "nothing, if the lists leave clips out, as DFEW's and MAFW's do"),
}


class Findings:
    """The findings, without repetitions from the lists of several folds."""

    def __init__(self):
        self.items: dict[str, dict[str, dict]] = {kind: {} for kind in KINDS}

    def add(self, kind: str, what: str, where: str = "", key: str | None = None):
        if not where and (located := re.fullmatch(r"(.+?, line \d+):? (.*)", what, re.DOTALL)):
            where, what = located.groups()
        self.items[kind].setdefault(key or f"{where}: {what}", {"where": where, "what": what})

    def as_list(self) -> list[dict]:
        return [
            {"kind": kind, **KINDS[kind]._asdict(), "number": len(items), "items": list(items.values())}
            for kind, items in self.items.items()
            if items
        ]


@dataclass
class Listed:
    """The clips in the lists of one configuration."""

    name: str
    builder: ExpressionVideos
    clips: dict[str, list[Clip]]
    is_complete: bool = True

    def all_clips(self) -> list[tuple[str, Clip]]:
        return [(split, clip) for split, clips in self.clips.items() for clip in clips]


def examine(data_set: str, data_dir: str, configs: list[str], decode=True, num_workers=2, time_limit=20.0, **options):
    """Checks a data set and returns the report for `--json`. `options` go to the builder, e.g. `label_order`."""
    findings, listed = Findings(), []
    root = Path(data_dir).expanduser().absolute()
    if not root.is_dir():
        findings.add("no_folder", f"{root} is not a folder")
    with tempfile.TemporaryDirectory() as cache:  # `datasets` writes there when a builder is created
        options |= {"data_dir": str(root), "cache_dir": cache}
        for name in configs if root.is_dir() else ():
            listed += read_lists(BUILDERS[data_set], name, findings, options)
    clips = {(clip.clip_id, clip.media) for one in listed for _, clip in one.all_clips()}
    paths = sorted({path for _, path in clips if os.path.exists(path)})
    look = clip_check.open_clip if decode else clip_check.measure_clip
    facts = clip_check.run_all(look, paths, num_workers, time_limit, "opening clips")
    good = {path: fact for path, fact in facts.items() if isinstance(fact, clip_check.ClipFacts)}
    for one in listed:
        check_repeated(one, findings)
        check_counts(one, findings)
        check_clips(one, facts, findings)
    check_folds(listed, findings)
    check_twins(listed, clip_check.find_duplicates(good, num_workers, time_limit), findings)
    check_unlisted(listed, findings)
    frames = clip_check.describe_frames(good.values())
    if frames.get("look") == "whole frames":
        findings.add("whole_frames", frames["summary"])
    return {
        "data_set": BUILDERS[data_set].TITLE,
        "data_dir": str(root),
        "ok": not any(found["severity"] == "error" for found in findings.as_list()),
        "labels": {one.name: labels_of_lists(one.builder) for one in listed},
        "counts": {one.name: official_table(one.builder, one.clips) for one in listed},
        "clips": {"listed": len(clips), "there": len(paths), **frames},
        "findings": findings.as_list(),
    }


def read_lists(builder_class, name: str, findings: Findings, options: dict) -> list[Listed]:
    """Reads the lists of a configuration as far as possible; returns an empty list if nothing can be read."""
    problems: list[str] = []
    try:
        builder = builder_class(config_name=name, **options)
        next(builder.media_paths(), None)  # raises if there is no folder with clips
    except (OSError, ValueError) as error:  # OwnVideos reads its table already here, for the columns
        findings.add("no_clips" if isinstance(error, FileNotFoundError) else "bad_list", str(error))
        return []
    listed = Listed(name, builder, {split: [] for split in builder.SPLITS})
    try:
        for split, clip in builder.unchecked_clips(problems):
            listed.clips[split].append(clip)
    except (OSError, ValueError) as error:
        findings.add("no_list" if isinstance(error, FileNotFoundError) else "bad_list", str(error))
        listed.is_complete = False
    for problem in problems:
        findings.add("bad_line", problem)
    listed.is_complete &= not problems
    return [listed] if listed.is_complete or listed.all_clips() else []


def labels_of_lists(builder: ExpressionVideos) -> list[str]:
    """Lists the labels as `1 happiness`, numbered by the label file next to the lists if there is one."""
    with contextlib.suppress(OSError, ValueError):  # problems of the lists are reported elsewhere
        for path in builder.annotation_files() if builder.config.label_order is None else ():
            if label_file := read_label_files(path.parent, builder.ENCODINGS):
                return [f"{number} {name}" for number, name in sorted(label_file.names.items())]
    return numbered_labels(builder)


def check_repeated(listed: Listed, findings: Findings):
    """Finds clips that are listed twice, by name or by file, and groups that are in two splits."""
    for one in repeated(listed.clips):
        kind = "listed_twice" if one.split == one.first_split else "overlap"
        what = f"{one.what} {one.name!r} of {one.split} is in {one.first_split} already: {one.first_source}"
        findings.add(kind, what, one.source, key=f"{one.source} {one.what == 'group'}")


def check_folds(listed: list[Listed], findings: Findings):
    """Finds clips that are tested in two folds; cross-validation tests each clip once."""
    seen: dict[tuple, tuple[str, str]] = {}
    for one in listed:
        for clip in one.clips["test"] if one.builder.config.fold else []:
            kind = one.name.rstrip("0123456789")  # in MAFW, "fold1" and "compound_fold3" may test the same clip
            first_name, source = seen.setdefault((kind, clip.clip_id), (one.name, clip.source))
            if first_name != one.name:
                what = f"{clip.clip_id!r} is tested in {first_name} already: {source}"
                findings.add("fold_overlap", what, clip.source)


def check_counts(listed: Listed, findings: Findings):
    """Compares class counts with the official ones; permuted counts reveal that the labels are in another order."""
    if not listed.is_complete:
        return
    builder, explained = listed.builder, []
    for split in (*listed.clips, TOGETHER):
        if split in builder.required_splits() and not listed.clips[split]:
            findings.add("no_split", f"{listed.name}, {split}")
        counts, official = count_clips(listed.clips, split), builder.official_counts(split)
        label_of = {number: label for label, number in official.items() if label != "all"}
        order = [our_spelling(label) for label in builder.config.label_order or builder.label_names()]
        meant = [label_of.get(counts[label]) for label in order]
        if set(meant) == set(order) and meant != order:
            what = f"{listed.name}, {split}: the classes have each other's numbers; try {' '.join(meant)}"
            findings.add("label_order", what)
            explained.append(split)
    kind = "refused_counts" if builder.config.verify else "counts"
    for split, what in builder.wrong_counts(listed.clips):
        if split not in explained:
            findings.add(kind, f"{listed.name}, {what}")


def check_clips(listed: Listed, facts: dict[str, clip_check.ClipFacts | clip_check.Failure], findings: Findings):
    """Finds problems of individual clips."""
    for _, clip in listed.all_clips():
        fact, is_folder = facts.get(clip.media), os.path.isdir(clip.media)
        if fact is None:
            findings.add("missing", f"{clip.clip_id!r} is not there", clip.source, key=clip.clip_id)
        elif isinstance(fact, clip_check.Failure):
            findings.add(fact.kind, fact.reason, clip.source, key=clip.media)
        elif is_folder != (listed.builder.media_column == "frames"):
            findings.add("mixed", clip.media, clip.source, key=clip.media)
        elif is_folder and clip.num_frames not in (None, fact.num_frames):
            what = f"{clip.num_frames} frames, but {clip.media} holds {fact.num_frames}"
            findings.add("frame_count", what, clip.source, key=clip.media)


def check_twins(listed: list[Listed], twins: list[list[str]], findings: Findings):
    """Finds clips with the same content; across splits, this means testing on training data."""
    places = [{clip.media: (split, clip) for split, clip in one.all_clips()} for one in listed]
    for group in twins:
        by_config = [[place[path] for path in group if path in place] for place in places]
        rows = max(by_config, key=lambda rows: (len(dict(rows)), len(rows)))  # a dict keeps one clip per split
        what = " and ".join(f"{clip.media} ({split})" for split, clip in rows)
        if len(rows) > 1:
            findings.add("twins_across" if len(dict(rows)) > 1 else "twins", what, rows[0][1].source)


def check_unlisted(listed: list[Listed], findings: Findings):
    """Finds clips that are in no list, provided that all lists could be read."""
    if not listed or not all(one.is_complete for one in listed):
        return
    there = {path for one in listed for path in one.builder.media_paths()}
    if isinstance(listed[0].builder, OwnVideos):  # its media_paths() come from the table
        there = {str(path) for path in listed[0].builder.root().rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES}
    for path in sorted(there - {clip.media for one in listed for _, clip in one.all_clips()}):
        findings.add("unlisted", path)


def render(report: dict) -> str:
    """Formats a report for the terminal."""
    lines = [f"{report['data_set']} in {report['data_dir']}", ""]
    configs = {tuple(labels): config for config, labels in reversed(report["labels"].items())}
    for labels, config in reversed(configs.items()):
        numbered = ", ".join(label.replace(" ", "=") for label in labels) or "none"
        lines += [fill(f"Labels of {config}, as its own lists number them: {numbered}", WIDTH), ""]
    lines += counts_table(report["counts"])
    clips = report["clips"]
    lines += [f"Clips listed: {clips['listed']:,}, there: {clips['there']:,}, opened: {clips['opened']:,}"]
    lines += [f"They look like {clips['look']}: {clips['summary']}"] if clips["opened"] else []
    for found in report["findings"]:
        lines += ["", f"{found['severity'].upper()}  {found['what']}: {found['number']:,}"]
        for item in found["items"][:MAX_PROBLEMS_SHOWN]:
            what = item["what"].split("; looked for")[0]  # the long list of patterns is in the JSON only
            lines.append(f"    {item['where']}{': ' if item['where'] else ''}{what}")
        if found["number"] > MAX_PROBLEMS_SHOWN:
            lines.append(f"    ... and {found['number'] - MAX_PROBLEMS_SHOWN:,} more; --json FILE writes all")
        lines.append(f"    -> {found['advice']}")
    numbers = Counter(found["severity"] for found in report["findings"])
    lines += ["", f"errors: {numbers['error']}, warnings: {numbers['warning']}, notes: {numbers['note']}"]
    return "\n".join(lines).replace(f"{report['data_dir']}/", "")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", choices=BUILDERS)
    parser.add_argument("data_dir", help="the folder that you unpacked it into")
    parser.add_argument("--config", nargs="+", default=["all"], metavar="NAME", help="such as fold1; default: all")
    parser.add_argument("--label-order", nargs="+", metavar="LABEL", help="what the numbers 0, 1, ... in lists mean")
    parser.add_argument("--media", choices=["faces", "videos"], help="which clips, where the folder holds both")
    parser.add_argument(
        "--no-verify", action="store_true", help="other numbers of clips than the official are no error"
    )
    parser.add_argument("--no-decode", action="store_true", help="look at lists, names and sizes only; open no clip")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that open clips; default: all CPUs"
    )
    parser.add_argument("--time-limit", type=float, default=20.0, metavar="SECONDS", help="for a clip; default: 20")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    args = parser.parse_args(arguments)
    configs = [names[0] for names in names_of(BUILDERS[args.data_set])] if "all" in args.config else args.config
    options = {name: value for name in ("label_order", "media") if (value := getattr(args, name))}
    options["verify"] = not args.no_verify
    try:
        with tempfile.TemporaryDirectory() as cache:
            for name in configs:
                BUILDERS[args.data_set](config_name=name, cache_dir=cache, **options)
    except ValueError as error:
        parser.error(str(error))
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json: {args.json.parent} is not a folder")
    settings = {"decode": not args.no_decode, "num_workers": args.workers, "time_limit": args.time_limit}
    try:
        report = examine(args.data_set, args.data_dir, configs, **settings, **options)
    except KeyboardInterrupt:
        print("stopped; nothing is written", file=sys.stderr)
        return 130
    print(render(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""A part of what fuzz_video.py and hostile_files.py do at length."""

from pathlib import Path

import pytest

from tools.reliability import hostile_files
from tools.reliability.fuzz_video import make_reader, read_all, summary
from tools.reliability.video_mutations import CODECS, KINDS, make_videos, mutations

NUMBER = len(CODECS) * len(KINDS)  # every kind of damage to each container


@pytest.mark.parametrize("time_lines", [False, True], ids=["three frames", "time lines"])
def test_damaged_files_are_decoded_or_one_error_that_names_them(time_lines, tmp_path):
    read, damaged = make_reader(time_lines, guarded=True), mutations(make_videos(tmp_path), NUMBER, seed=7)
    records = list(read_all(damaged, tmp_path, read))
    assert len(records) == NUMBER
    bad = [(record["name"], record["outcome"]) for record in records if record["outcome"].startswith("wrong")]
    assert not bad
    outcomes = summary(records)["outcomes"]
    assert outcomes["decoded"] > NUMBER / 4 and outcomes["refused"] > NUMBER / 20  # the damage is some, and not all
    assert not time_lines or outcomes["decoded in part"] > NUMBER / 20


def test_the_same_seed_makes_the_same_files(tmp_path):
    videos = make_videos(tmp_path)
    first, second = (list(mutations(videos, 45, seed=3)) for _ in range(2))
    assert first == second
    assert [mutation.data for mutation in first] != [mutation.data for mutation in mutations(videos, 45, seed=4)]


@pytest.mark.parametrize("what", hostile_files.FILES)
def test_what_is_made_to_cost_much_or_to_reach_for_others(what, tmp_path):
    path: Path = hostile_files.FILES[what](tmp_path)
    outcome, _ = hostile_files.attempt(str(path))
    if "tables" in what:  # FFmpeg reads the frames that there are
        assert outcome.startswith("decoded: 25 frames")
    else:
        assert outcome.startswith(f"refused: {path.name}")

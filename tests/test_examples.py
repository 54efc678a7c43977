# SPDX-License-Identifier: Apache-2.0
"""Examples that no other test runs."""

import runpy
from pathlib import Path

import pytest

from emoclip import EmoCLIPModel, EmoCLIPProcessor

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_linear_probes_of_ones_own_clips(clip_dir, write_clip, tmp_path, capsys):
    model_dir, table = tmp_path / "model", tmp_path / "clips.csv"
    EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=0).save_pretrained(model_dir)
    EmoCLIPProcessor.from_clip(clip_dir, num_frames=2).save_pretrained(model_dir)
    rows = ["file_name,split,mood,length"]
    for number in range(24):
        length = 2 + number % 12  # later frames are brighter, so that a clip's length shows in its frames
        write_clip(tmp_path / f"{number}.mp4", num_frames=length)
        rows.append(f"{number}.mp4,{'test' if number >= 16 else 'train'},{'long' if length > 7 else 'short'},{length}")
    table.write_text("\n".join(rows))
    main = runpy.run_path(str(EXAMPLES / "embeddings_linear_probe.py"))["main"]
    main([str(model_dir), str(table)])
    printed = capsys.readouterr().out
    assert "16 clips to learn from, 8 to test, 0 could not be read" in printed
    mood, length = (line.split() for line in printed.splitlines()[-2:])
    assert mood[:2] == ["mood", "UAR"] and float(mood[2]) > 80 and length[0] == "length" and float(length[2]) > 0.8
    table.write_text(table.read_text().replace("split", "part", 1))
    with pytest.raises(SystemExit, match="no column split"):
        main([str(model_dir), str(table)])

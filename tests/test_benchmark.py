# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs, and says something in each of its lines; what it measures of a tiny model means nothing."""

import importlib
import json

import pytest


@pytest.fixture
def benchmark():
    return importlib.import_module("tools.benchmark.__main__")


def test_lines_are_measured_judged_and_put_into_the_page(benchmark, tmp_path, capsys):
    page, path = tmp_path / "performance.md", tmp_path / "measured.json"
    report = importlib.import_module("tools.benchmark.report")
    page.write_text(f"by hand\n{report.START}\nold\n{report.END}\nalso by hand\n")
    parts = ["encoding", "calls", "gpu", "growth"]
    benchmark.main(["--smoke", "--json", str(path), "--page", str(page), "--parts", *parts])
    measured, text = json.loads(path.read_text()), page.read_text()
    assert {line["part"] for line in measured["lines"]} == {"1 encoding", "2 mp4 to scores", "7 GPU"}
    printed = capsys.readouterr().out
    for line in measured["lines"]:
        assert line["what"] in text and line["what"] in printed
        assert line["value"] is not None or (line["note"] and line["holds"] is None)  # a gap is explained
    shares = [line["value"] for line in measured["lines"] if line["what"].startswith("share of ")]
    assert len(shares) == 4 and sum(shares) == pytest.approx(100)
    assert text.startswith("by hand\n") and text.endswith("\nalso by hand\n") and "\nold\n" not in text
    assert (tmp_path / "performance_growth.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_other_parts_measure_too(benchmark):
    lines = benchmark.main(["--smoke", "--parts", "again", "timeline", "live", "training", "memory"])["lines"]
    assert {line["part"][0] for line in lines} == set("3456")
    assert all(line["value"] > 0 for line in lines if line["unit"] != "times")  # texts in a second call: none


def test_a_goal_that_is_missed_is_called_missed(benchmark):
    measuring = importlib.import_module("tools.benchmark.measuring")
    assert measuring.Line("1", "speed", 5.9, least=6).holds is False
    assert measuring.Line("1", "speed", 6.0, least=6).holds is True
    assert measuring.Line("1", "cost", 1.3, most=1.25).holds is False
    assert measuring.Line("1", "cost", None, most=1.25).holds is None


def test_the_code_for_a_gpu_runs(benchmark, tmp_path):
    devices = importlib.import_module("tools.benchmark.devices")
    sizes = importlib.import_module("tools.benchmark.measuring").SMOKE
    lines = devices.encoding_on(sizes, "cpu", "tiny") + devices.calls_on(sizes, "cpu", tmp_path)
    assert len(lines) == 5 and all(line.value > 0 for line in lines)

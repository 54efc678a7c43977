# SPDX-License-Identifier: Apache-2.0
"""The command `emoclip`: what it prints is what the pipeline says."""

import json
import os
import signal
import subprocess
import sys
import time
import types

import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors.numpy import load_file

from emoclip import EmoCLIPForPromptClassification, EmotionTimeline
from emoclip.cli import main
from emoclip.loading import load_pipeline

LABELS = ["a smile", "lowered eyebrows"]


def labelled(labels):
    return [part for label in labels for part in ("--label", label)]


@pytest.fixture(scope="module")
def model_dir(emoclip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in emoclip:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(write_clip, tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", num_frames=40)


@pytest.fixture
def run(model_dir, capsys):
    def run(command, *arguments, status=0):
        assert main([command, *map(str, arguments), "--model", str(model_dir)]) == status
        return capsys.readouterr()

    return run


def test_classify_in_a_process_of_its_own(model_dir, clip, tmp_path):
    command = [sys.executable, "-m", "emoclip.cli", "classify", clip, tmp_path / "no.mp4", "--json"]
    done = subprocess.run(
        [*command, *labelled(LABELS), "--model", model_dir], capture_output=True, text=True, check=False
    )
    first, second = map(json.loads, done.stdout.splitlines())
    expected = load_pipeline(str(model_dir))(clip, candidate_labels=LABELS)
    assert first["video"] == str(clip) and [e["label"] for e in first["scores"]] == [e["label"] for e in expected]
    assert [e["score"] for e in first["scores"]] == pytest.approx([e["score"] for e in expected], abs=1e-5)
    assert "no.mp4 does not exist" in second["error"] and done.returncode == 1 and done.stderr == ""


CLASSIFY_MANY = """
import sys
from emoclip.cli import main
from emoclip.loading import load_pipeline
folder, clip, num_workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
if num_workers:
    load_pipeline(folder)(1000 * [clip], candidate_labels=["a", "b"], num_workers=num_workers)
sys.exit(main(["classify", *1000 * [clip], "--model", folder, "--label", "a", "--label", "b", "--json"]))
"""


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_ends_it_with_all_that_it_started(model_dir, clip, num_workers):
    command = [sys.executable, "-c", CLASSIFY_MANY, str(model_dir), str(clip), str(num_workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    if num_workers == 0:
        assert process.stdout.readline()  # the first answer
    while len(children := psutil.Process(process.pid).children(recursive=True)) < 1 + num_workers:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=20)  # docs/reliability.md has how long it takes
    _, alive = psutil.wait_procs(children, timeout=2)
    assert not alive
    assert process.returncode == -signal.SIGINT
    assert num_workers or not errors


def test_classify_prints_a_line_for_each_label(run, clip, model_dir):
    printed = run("classify", clip)
    assert printed.err == "" and sorted(line.split()[-1] for line in printed.out.splitlines()[1:]) == [
        "anger",
        "happiness",
    ]
    own = run("classify", clip, "-l", "smile: a smile; wide open eyes", "-l", "anger", "--abstain-below", "0.999").out
    assert own.splitlines()[1].split()[-1] == "uncertain"
    none = run("classify", clip, "--faces", "largest", "--detector", "haar").out
    assert none.splitlines()[0].endswith("(no face found)")


def test_timeline_writes_what_is_asked_for_and_search_reads_it(run, clip, tmp_path):
    paths = {name: tmp_path / f"made.{name}" for name in ("csv", "srt", "vtt")} | {
        "plot": tmp_path / "made.png", "annotate": tmp_path / "made.mp4", "save": tmp_path / "saved"}  # fmt: skip
    files = [part for name, path in paths.items() for part in (f"--{name}", path)]
    printed = run("timeline", clip, *labelled(LABELS), "--faces", "none", *files)
    assert printed.err == "" and any(label in printed.out for label in LABELS)
    assert all(path.exists() for path in paths.values())
    loaded = EmotionTimeline.load(tmp_path / "saved")
    assert loaded.to_csv() == paths["csv"].read_text(encoding="utf-8")
    as_json = json.loads(run("timeline", clip, *labelled(LABELS), "--faces", "none", "--json").out)
    assert len(as_json["windows"]) == len(loaded) == 4
    of_saved = run("search", tmp_path / "saved", "a smile", "--json").out
    of_video = run("search", clip, "a smile", "--faces", "none", "--json").out
    assert json.loads(of_saved)[0] == pytest.approx(json.loads(of_video)[0], abs=1e-5)
    assert "whole frame" in run("search", tmp_path / "saved", "a smile", "--top", 1).out


def test_embed(run, clip, tmp_path):
    out = tmp_path / "made" / "embeddings.safetensors"
    run("embed", clip, clip, "--out", out)
    about = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    embeds = load_file(out)["embeds"]
    assert embeds.shape == (2, 24) and [row["video"] for row in about["rows"]] == [str(clip)] * 2
    printed = run("embed", tmp_path / "no.mp4", clip, "--out", out, "--skip", "--json", status=1)
    assert json.loads(printed.out)["skipped"][0]["index"] == 0 and np.allclose(load_file(out)["embeds"], embeds[:1])


def test_errors_are_one_line(run, clip, tmp_path, monkeypatch, clip_dir, capsys):
    assert "does not exist" in run("timeline", tmp_path / "no.mp4", "--label", "a", status=1).err
    assert "safetensors" in run("embed", clip, "--out", tmp_path / "x.npy", status=1).err
    assert "faces is 'all'" in run("classify", clip, "--faces", "all", status=1).err
    assert "given twice" in run("classify", clip, "--label", "a", "--label", "a", status=1).err
    assert not list(tmp_path.iterdir())
    Image.new("RGB", (40, 40)).save(tmp_path / "1.png")
    assert "give fps" in run("timeline", tmp_path, "--label", "a", status=1).err
    monkeypatch.delenv("EMOCLIP_MODEL", raising=False)
    assert main(["classify", str(clip)]) == 2
    assert "--model" in capsys.readouterr().err


def test_models_it_takes(clip_dir, clip, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EMOCLIP_MODEL", str(clip_dir))
    assert main(["classify", str(clip), *labelled(LABELS)]) == 0
    assert "a smile" in capsys.readouterr().out
    assert main(["classify", str(clip)]) == 1 and "no labels of its own" in capsys.readouterr().err
    texts = {"happiness": "a smile", "anger": "lowered eyebrows"}
    EmoCLIPForPromptClassification.from_clip(clip_dir, class_descriptions=texts).save_pretrained(tmp_path)
    assert main(["classify", str(clip), "--model", str(tmp_path)]) == 1
    assert "has fixed classes" in capsys.readouterr().err


def test_files_whose_names_begin_with_a_dash(run, clip, tmp_path, monkeypatch, capsys):
    (tmp_path / "-clip.mp4").write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert main(["classify", "-clip.mp4", *labelled(LABELS)]) == 2
    assert "write -- before names that begin with -" in capsys.readouterr().err
    assert main(["classify", *labelled(LABELS), "--model", str(clip.parent), "--", "-no.mp4"]) == 1  # no such model


def test_help_shows_long_options_and_defaults(capsys):
    assert main(["timeline", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--window" in printed and "default: 2.0" in printed and "--abstain-below" in printed
    assert main([]) == 2 or "classify" in capsys.readouterr().err


def test_the_app_gets_the_model_and_says_what_it_lacks(model_dir, capsys, monkeypatch):
    opened = []
    fake = types.ModuleType("emoclip.app")
    fake.run = lambda *arguments: opened.append(arguments)
    monkeypatch.setitem(sys.modules, "emoclip.app", fake)
    assert main(["app", "--model", str(model_dir), "--port", "7861"]) == 0
    assert opened == [(str(model_dir), None, 7861)]
    monkeypatch.delitem(sys.modules, "emoclip.app")
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    assert main(["app", "--model", str(model_dir)]) == 1
    error = capsys.readouterr().err
    assert 'pip install "emoclip[app]"' in error and "gradio" in error and error.count("\n") == 1

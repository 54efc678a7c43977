# SPDX-License-Identifier: Apache-2.0
"""The app as a stranger's browser sees it: a Space, started as the Hub does, asked over HTTP and in Chromium.

The first test that needs it starts it, in a process that cannot import this project; the last one ends it.
"""

import http.client
import json
import os
import shutil
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import av
import numpy as np
import pandas
import pytest

from training import export, space
from training.check_space import ask, running
from training.console import load_pipeline
from training.recipe import load_recipe

if find_spec("gradio") is None:
    pytest.skip('the app needs pip install "emoclip[demo]"', allow_module_level=True)

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

RECIPES = Path(__file__).parents[1] / "training" / "recipes"
LABELS = ["a smile", "lowered eyebrows", "wide: wide open eyes; raised eyebrows"]
WHOLE_FRAME = "one face, close up: take the whole picture"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"


@pytest.fixture(scope="module")
def space_dir(emoclip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    export.write_model(folder / "hub", *emoclip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "check_space", lambda folder: 1)  # these tests do so
        space.write_space(folder / "space", load_recipe(RECIPES / "synthetic_emoclip.yaml"), folder / "hub")
    return folder / "space"


@pytest.fixture(scope="module")
def started(space_dir):
    with running(space_dir) as started:
        yield started


@pytest.fixture
def client(started, tmp_path):
    client = Client(started.url, download_files=str(tmp_path), verbose=False, analytics_enabled=False)
    yield client
    client.close()


@pytest.fixture
def clip(write_clip, tmp_path):
    return write_clip(tmp_path / "my clip.mp4", num_frames=40)


def refusal(client, *arguments, api_name="/timeline", **named) -> str:
    with pytest.raises(AppError) as refused:
        client.predict(*arguments, api_name=api_name, **named)
    return str(refused.value)


def upload(url: str, length: int, body: bytes, boundary: bytes = b"x") -> tuple[int, str]:
    """Sends `body`, which may be less than was announced; the status and text of the answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", f"multipart/form-data; boundary={boundary.decode()}")
    connection.putheader("Content-Length", str(length))
    connection.endheaders(body)
    try:
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def part(data: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
    return head + data + b"\r\n--x--\r\n"


def test_a_space_runs_where_this_project_cannot_be_imported(started, space_dir, tmp_path):
    assert ask(started.url, space_dir / "example.mp4", tmp_path) >= 2  # both people of the example


def test_what_is_downloaded_is_what_the_pipeline_says(client, space_dir, clip):
    answer = client.predict(handle_file(clip), "\n".join(LABELS), WHOLE_FRAME, 2, 1, api_name="/timeline")
    table, as_json, srt = (
        next(part for part in answer if str(part).endswith(kind)) for kind in ("csv", "json", "srt")
    )
    pipe = load_pipeline(str(space_dir / "model"))
    expected = pipe.timeline(str(clip), pipe.parse_labels(LABELS), faces="none").to_pandas()
    downloaded = pandas.read_csv(table)
    assert list(downloaded.columns) == list(expected.columns) and len(downloaded) == len(expected) == 4
    numbers = ["start", "end", *expected.columns[-3:]]
    assert np.allclose(downloaded[numbers].astype(float), expected[numbers].astype(float), atol=1e-3)
    assert Path(table).name == "my clip.csv" and len(json.loads(Path(as_json).read_text())["windows"]) == 4
    assert Path(srt).read_text().startswith("1\n00:00:00,000 --> ")
    drawn = client.predict(api_name="/annotate")
    with av.open(drawn["value"] if isinstance(drawn, dict) else drawn) as video:
        assert sum(1 for _ in video.decode(video=0)) == 40
    others = client.predict(handle_file(clip), "fear\ncalm", WHOLE_FRAME, 2, 1, api_name="/timeline")
    assert "calm" in pandas.read_csv(next(part for part in others if str(part).endswith("csv"))).columns[-1]


def test_what_is_refused_is_said_and_names_no_folder(client, clip, write_clip, tmp_path, started):
    file = handle_file(clip)
    assert "at least one word" in refusal(client, file, " \n")
    assert "given twice" in refusal(client, file, "a\na")
    assert "no description" in refusal(client, file, "a:")
    assert "At most 24 lines" in refusal(client, file, "\n".join(map(str, range(25))))
    assert "no video yet" in refusal(client, video=None)
    assert "No face was found" in refusal(client, file, "a\nb")
    assert "First show" in refusal(client, "a smile", api_name="/search")
    (tmp_path / "no.mp4").write_text("no video")
    long = write_clip(tmp_path / "long.mp4", num_frames=602, width=32, height=32, fps=1)
    for path, why in ((tmp_path / "no.mp4", "no.mp4"), (long, "max_seconds is 600.0")):
        error = refusal(client, handle_file(path), "a\nb")
        assert why in error and str(started.temporary) not in error and str(tmp_path) not in error


def test_uploads_are_limited_and_broken_ones_do_not_pile_up(started):
    (visitors,) = (path for path in started.temporary.glob("emoclip-app.*") if any(path.iterdir()))
    assert upload(started.url, 300_000_000, b"")[0] == 413  # before anything is sent
    broken = visitors / "tmpbroken"
    broken.write_bytes(b"half a video")
    os.utime(broken, (time.time() - 7200,) * 2)
    body = part(b"not much")
    status, text = upload(started.url, len(body), body)
    assert status == 200 and not broken.exists()
    (sent,) = json.loads(text)
    assert Path(sent).is_relative_to(visitors)
    for number in range(1000):
        (visitors / f"tmp{number}").touch()
    assert upload(started.url, len(body), body) == (507, "Too many videos are here just now: please come back later.")
    for number in range(1000):
        (visitors / f"tmp{number}").unlink()


@contextmanager
def chromium():
    """A page in a browser that is new, and the hosts that it asks for anything."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        page, hosts = browser.new_page(), set()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        yield page, hosts
        browser.close()


def test_a_visitor_with_a_browser(started, space_dir, tmp_path):
    at = "() => document.querySelector('#player video').currentTime"
    with chromium() as (page, hosts):
        page.goto(started.url)
        page.set_input_files("#player input[type=file]", space_dir / "example.mp4")
        page.wait_for_selector("#player video")
        page.fill("#words textarea", "\n".join(LABELS))
        page.get_by_role("button", name="Show when it happens").click()
        cells = page.locator("#stretches [role=gridcell]:visible")
        cells.first.wait_for()
        assert cells.first.inner_text() == "0:00.0"
        picture = page.locator("#picture img")
        box = picture.bounding_box()
        picture.click(position={"x": 0.75 * box["width"], "y": 0.5 * box["height"]})
        page.wait_for_function(f"({at})() > 6")
        by_picture = page.evaluate(at)
        cells.first.click()
        page.wait_for_function(f"({at})() < 1")
        page.get_by_label("Search for anything").fill("raised eyebrows")
        page.get_by_role("button", name="Search").click()
        found = page.locator("#found [role=gridcell]:visible")
        found.first.wait_for()
        assert found.nth(2).inner_text() in ("person 0", "person 1")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download csv").click()
        download.value.save_as(tmp_path / "table.csv")
    table = pandas.read_csv(tmp_path / "table.csv")
    assert set(table["person"]) == {0, 1} and table["end"].max() == 12 and 6 < by_picture < 10
    assert hosts - {""} == {urlsplit(started.url).netloc}  # no font, script or count from elsewhere


def test_it_stops_when_told_to_and_leaves_nothing(started):
    assert list(started.temporary.glob("emoclip-app.*"))
    started.process.terminate()
    started.process.wait(30)
    assert not list(started.temporary.glob("emoclip-app.*"))
    assert "Traceback" not in (started.temporary / "log.txt").read_text()

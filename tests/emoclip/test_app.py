# SPDX-License-Identifier: Apache-2.0
"""The app as a stranger's browser sees it: a Space, started as the Hub does, asked over HTTP and in Chromium.

The first test that needs it starts it, in a process that cannot import this project; the last one ends it.
"""

import asyncio
import http.client
import http.server
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import av
import numpy as np
import pandas
import pytest

from emoclip import ZeroShotVideoClassificationPipeline
from emoclip.loading import load_pipeline
from emoclip.video.frames import FileFrames
from modeling_emoclip.video_limits import make_limits
from training.publish import check_space, export, space
from training.publish.check_space import ask, running
from training.recipe import load_recipe

if find_spec("gradio") is None:
    pytest.skip('the app needs pip install "emoclip[app]"', allow_module_level=True)

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from emoclip import app
from emoclip.typed_text import parse_labels

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
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


# In place of a public address, which there is none of here: what Gradio may fetch, it may fetch from this machine too.
PUBLIC = "import safehttpx; safehttpx.is_public_ip = lambda ip: True\n"


@pytest.fixture(scope="module")
def started(space_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check_space, "START", PUBLIC + check_space.START)
        with running(space_dir) as started:
            yield started


@pytest.fixture
def other_server():
    """The address of a file on a server, and what was asked for there."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"a file")

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret.mp4", asked
        server.shutdown()


def ask_api(url: str, path: str, question=None, method="POST", headers=()) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    body = None if question is None else json.dumps(question)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **dict(headers)})
        answer = connection.getresponse()
        return answer.status, answer.read(1000).decode(errors="replace")
    finally:
        connection.close()


def question_of(path: str) -> dict:
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    data = [file, "a\nb", WHOLE_FRAME, 2, 1, None]
    return {"data": data, "fn_index": 0, "session_hash": "x", "video": file, "api_name": "/timeline"}


@pytest.mark.parametrize("route", ["queue/join", "call/timeline", "call/v2/timeline", "run/timeline", "api/timeline"])
@pytest.mark.parametrize("form", ["{}", " {}", "HTTP{rest}", "[[{}]]"])
def test_an_address_in_the_place_of_a_video_is_refused_before_it_is_fetched(started, other_server, route, form):
    address, asked = other_server
    question = question_of(form.strip("[]").format(address, rest=address.removeprefix("http")))
    if form.startswith("["):
        question["data"][0] = [[{"video": question["data"][0], "subtitles": None}]]
    status, text = ask_api(started.url, f"/gradio_api/{route}", question)
    assert (status, text) == (403, "Give the video itself: addresses are not fetched here.")
    time.sleep(0.2)
    assert not asked


@pytest.mark.parametrize("route", ["file", "proxy", "/gradio_api/file"])
def test_the_app_is_no_proxy(started, other_server, route):
    address, asked = other_server
    prefix = "" if route.startswith("/") else "/gradio_api/"
    assert ask_api(started.url, f"{prefix}{route}={address}", method="GET")[0] == 403
    assert not asked


def test_questions_are_short(started):
    question = question_of("x") | {"more": "x" * 2_000_000}
    assert ask_api(started.url, "/gradio_api/queue/join", question)[0] == 413


def test_uploads_that_are_under_way_count(tmp_path):
    """A hundred at once, of 200 MB each: there is room for twenty."""
    finished, answers = asyncio.Event(), []

    async def upload_to(scope, receive, send):
        await finished.wait()
        answers.append(200)

    async def send(message):
        if message["type"] == "http.response.start":
            answers.append(message["status"])

    async def all_at_once():
        room = app.RoomForUploads(upload_to, tmp_path)
        scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload"}
        scope["headers"] = [(b"content-length", b"200000000")]
        visitors = [asyncio.create_task(room(scope, None, send)) for _ in range(100)]
        await asyncio.sleep(0.1)
        finished.set()
        await asyncio.gather(*visitors)
        assert room.coming == []
        assert room.refusal(b"200000000") is None, "those that are done make room"
        assert room.refusal(b"abc").status_code == 411

    asyncio.run(all_at_once())
    assert Counter(answers) == {200: 20, 507: 80}


def test_a_model_is_loaded_at_the_commit_that_was_named(tmp_path, monkeypatch):
    asked = []

    def load(model, revision):
        asked.append((model, revision))
        raise OSError("that is enough")

    monkeypatch.setattr(app, "load_pipeline", load)
    for text, model in (("lab/emo abc123\n", None), ("lab/emo\n", None), ("lab/emo abc\n", "lab/other")):
        (tmp_path / "model.txt").write_text(text)
        with pytest.raises(ValueError, match="cannot be loaded"):
            app.run(model, folder=tmp_path)
    with pytest.raises(ValueError, match="cannot be loaded"):
        app.run("lab/other", "def", folder=tmp_path)
    assert asked == [("lab/emo", "abc123"), ("lab/emo", None), ("lab/other", None), ("lab/other", "def")]


def test_visitors_do_not_wait_for_one_whose_video_reads_slowly(emoclip, write_clip, tmp_path, monkeypatch):
    """One visitor's video gives a frame, and then, for a long time, none; a second one gets a result meanwhile."""
    opened = threading.Event()
    timeline_module = sys.modules["emoclip.timeline.timeline"]
    open_frames = timeline_module.open_frames
    pipe = ZeroShotVideoClassificationPipeline(model=emoclip[0].eval(), processor=emoclip[1])
    limits = app.VIDEO_LIMITS | {"whole_time_limit": 1.0}
    pipe.processor.video_processor.video_limits = limits

    class Slow(FileFrames):
        def _timed(self):
            for frame in super()._timed():
                yield frame
                opened.set()
                time.sleep(0.4)  # less than `time_limit`, for each frame

    def open_slowly(video, fps, limits, guarded):
        if "slow" not in str(video):
            return open_frames(video, fps, limits, guarded)
        return Slow(str(video), str(video), make_limits(limits))

    monkeypatch.setattr(timeline_module, "open_frames", open_slowly)
    slow, quick = (str(write_clip(tmp_path / name, num_frames=40)) for name in ("slow.mp4", "quick.mp4"))
    page = app.build(pipe)
    heavy = [one.concurrency_limit for one in page.fns.values() if one.api_name in ("timeline", "annotate")]
    assert heavy == [app.MOST_AT_ONCE] * 2 and app.MOST_AT_ONCE > 1
    assert app.VIDEO_LIMITS["whole_time_limit"] <= 600
    with ThreadPoolExecutor(2) as visitors:
        start = time.monotonic()
        first = visitors.submit(pipe.timeline, slow, ["a", "b"], faces="none", progress=False)
        assert opened.wait(10)
        second = visitors.submit(pipe.timeline, quick, ["a", "b"], faces="none", progress=False)
        assert second.result(20).complete and not first.done()
        timeline = first.result(20)
    assert time.monotonic() - start < 12, "of 16 s that it would take to read"
    assert "1 s were over, the rest is left out" in timeline.error


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
    expected = pipe.timeline(str(clip), parse_labels(LABELS), faces="none").to_pandas()
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


def test_labels_that_look_like_formulas_are_labels(client, clip):
    labels = "$\\badmacro{x}$\ncosts $5\n=1+1: a smile"
    answer = client.predict(handle_file(clip), labels, WHOLE_FRAME, 2, 1, api_name="/timeline")
    downloaded = pandas.read_csv(next(part for part in answer if str(part).endswith("csv")))
    assert list(downloaded.columns[-3:]) == ["score_$\\badmacro{x}$", "score_costs $5", "score_=1+1"]


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

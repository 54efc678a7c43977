# SPDX-License-Identifier: Apache-2.0
"""The app: drop a video, type any words, and see when each of them fits the faces in it.

`emoclip app` opens it. A Space runs it too, with the model beside it: training/publish/space.py writes such a folder.
"""

import html
import json
import logging
import os
import re
import signal
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # must be set before gradio is imported

import gradio as gr
from huggingface_hub import ModelCard
from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from .loading import load_pipeline
from .typed_text import parse_labels

EXPORTED = Path("outputs/synthetic_emoclip/hub")  # by `make demo`
# Limits for untrusted visitors: the processor rejects videos larger than 4K or longer than 10 minutes (at 60 frames
# per second), videos of which nothing can be read for 20 s, and frames that are narrow strips.
VIDEO_LIMITS = {"max_pixels": 4096 * 2304, "max_aspect": 8.0}
VIDEO_LIMITS |= {"max_seconds": 600.0, "max_frames": 36_000, "max_bytes": 2**28, "time_limit": 20.0}
VIDEO_LIMITS |= {"whole_time_limit": 300.0}  # for one visitor's video, in total
MOST_LABELS, LONGEST_TEXT = 24, 200
MOST_MEGABYTES = 200  # per upload
MOST_GIGABYTES, MOST_FILES = 4, 1000  # for all visitors together
MOST_WAITING = 8  # visitors in the queue
MOST_AT_ONCE = 3  # visitors processed in parallel, so that one slow file does not block the others
MOST_QUESTION_BYTES = 10**6  # of a request, excluding uploads
KEPT_MINUTES = 60  # a visitor's files are deleted after that, all files when the app ends

DRAWN_FACES = "This checkpoint has seen drawn faces only."  # in the card of such a checkpoint
PEOPLE, WHOLE_FRAME = "people: find the faces", "one face, close up: take the whole picture"
WORDS = "happiness sadness anger surprise fear disgust neutral".split()

ABOUT = """# Any words for the expression on any face
Drop a video, write what to look for, and see **when** each face shows it.
*An expression is what a face shows, not what a person feels*: do not judge, hire, grade, police or diagnose anybody by
it."""
HOW_TO_WRITE = """A name: `bored`. A description: `a smile slowly appearing`. A mixture: `fear + surprise`.
A name that you describe: `amused: a grin; laughing eyes`."""
KEPT = f"""At most 10 minutes, {MOST_MEGABYTES} MB and 4K. What you send is deleted after {KEPT_MINUTES} minutes, and
nobody else can open it."""
SCORE = """**What a score means:** it compares *your words with each other* and adds up to 1 over them. 0.60 beside
"bored" means that of these words "bored" fits the face best by far; it is not a 60 % chance that somebody is bored."""
CSS = """.gradio-container {max-width: 1240px !important; margin: auto}
#picture img, #stretches [role=gridcell], #found [role=gridcell] {cursor: pointer}
@media (max-width: 700px) {#picture, #stretches, #found {contain: inline-size; overflow-x: auto !important}
 #picture > * {min-width: 860px} #stretches *, #found * {font-size: 12px !important}
 #stretches :is(th, td, [role=gridcell]) > *, #found :is(th, td, [role=gridcell]) > * {padding: 4px !important}}"""

PROGRESS = gr.Progress(track_tqdm=True)  # Gradio injects progress into functions with this default


@dataclass(eq=False)
class Result:
    """The result of one visitor, accessible only from their session. Its folder is deleted with it."""

    video: str
    how: dict[str, Any]
    timeline: Any
    lanes: tuple[float, float]  # start and end of the time axis, as fractions of the plot width
    folder: tempfile.TemporaryDirectory

    def path(self, kind: str, ending: str = "") -> str:
        return str(Path(self.folder.name, f"{Path(self.video).stem}{ending}.{kind}"))


def write_result(video: str, how: dict[str, Any], timeline) -> Result:
    result = Result(video, how, timeline, (0, 1), tempfile.TemporaryDirectory(prefix="result."))
    for kind, write in (("csv", timeline.to_csv), ("json", timeline.to_json), ("srt", timeline.to_srt)):
        write(result.path(kind))
    place = timeline.plot(result.path("png")).axes[0].get_position()
    return replace(result, lanes=(float(place.x0), float(place.x1)))


def refusal(message: str) -> gr.Error:
    """Creates an error dialog that stays until closed. Gradio renders its message as HTML."""
    return gr.Error(html.escape(message), duration=None, title="Not yet", print_exception=False)


@contextmanager
def refusals(video: str):
    """Shows errors of the pipeline to the visitor, without paths of this machine."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise refusal(without_folder(str(error), video)) from None


def without_folder(text: str, path: str) -> str:
    return text.replace(path, Path(path).name)


def clock(seconds: float) -> str:
    minutes, tenths = divmod(round(10 * max(seconds, 0)), 600)
    return f"{minutes}:{tenths / 10:04.1f}"


def seconds_of(text: str) -> float:
    minutes, seconds = text.split(":")
    return 60 * int(minutes) + float(seconds)


class App:
    """The event handlers of the page. It holds the model but no visitor data, which is in each `Result`."""

    def __init__(self, pipe):
        self.pipe = pipe

    def labels(self, text: str) -> dict[str, list[str] | None]:
        lines = [line for line in (text or "").splitlines() if line.strip()]
        if not lines:
            raise refusal("Write at least one word or description to look for, one a line.")
        if len(lines) > MOST_LABELS or max(map(len, lines)) > LONGEST_TEXT:
            raise refusal(f"At most {MOST_LABELS} lines of {LONGEST_TEXT} letters each, please.")
        return parse_labels(lines)

    def analyse(self, video, text, shows, window, stride, result, progress=PROGRESS):
        """Computes the results part of the page. New labels for the same video need no second pass over it."""
        if not video:
            raise refusal("There is no video yet: drop one, record one, or take the example.")
        how = {"faces": "none" if shows == WHOLE_FRAME else "all", "window": window, "stride": min(stride, window)}
        with refusals(video):
            labels = self.labels(text)
            if result and (result.video, result.how) == (video, how):
                timeline = result.timeline.rescore(labels)
            else:
                timeline = replace(self.pipe.timeline(video, labels, **how), video=Path(video).name)
        if timeline.face_found is False:
            raise refusal(f'No face was found. If the video shows one from near, choose "{WHOLE_FRAME}".')
        if timeline.error:
            gr.Warning(html.escape(without_folder(timeline.error, video)), title="Only a part could be read")
        with refusals(video):
            result = write_result(video, how, timeline)
        *files, picture = map(result.path, ("csv", "json", "srt", "png"))
        drawn = gr.DownloadButton(visible=False)  # hides the video annotated with earlier labels
        return [result, gr.Column(visible=True), picture, self.stretches(timeline), None, *files, drawn]

    def stretches(self, timeline) -> list[list]:
        found = [one for person in timeline.people for one in timeline.stretches(person)]
        found.sort(key=lambda one: (one.start, one.person))
        return [row(timeline, one.start, one.end, one.person, one.label, one.score) for one in found]

    def search(self, text, result):
        """Returns table rows of the moments that match a text best."""
        if result is None:
            raise refusal("First show the time line of a video, then search in it.")
        if not (text or "").strip() or len(text) > LONGEST_TEXT:
            raise refusal(f"Write what to search for, in at most {LONGEST_TEXT} letters.")
        found = result.timeline.search(text.strip(), top=8)
        return [row(result.timeline, one.start, one.end, one.person, one.score) for one in found]

    def annotate(self, result, progress=PROGRESS):
        """Annotates the video with boxes and labels and returns its download button."""
        if result is None:
            raise refusal("First show the time line of a video.")
        with refusals(result.video):
            path = result.timeline.annotate(result.path("mp4", "_annotated"), video=result.video)
        return gr.DownloadButton(f"Download {Path(path).name}", value=str(path), visible=True)

    def seek_row(self, event: gr.SelectData):
        """Moves the player to the start of the selected table row."""
        return gr.Video(playback_position=seconds_of(event.row_value[0]))

    def seek_picture(self, result, event: gr.SelectData):
        """Moves the player to the time of the selected point in the plot."""
        if result is None:
            return gr.skip()
        with Image.open(result.path("png")) as picture:
            share = event.index[0] / picture.width
        (left, right), (first, last) = result.lanes, result.timeline.span
        return gr.Video(playback_position=first + min(max((share - left) / (right - left), 0), 1) * (last - first))


def row(timeline, start: float, end: float, person: int, *rest) -> list:
    texts = [f"{one:.2f}" if isinstance(one, float) else one for one in rest]
    return [clock(start), clock(end), timeline.name_of(person), *texts]


def build(pipe, example: Path | None = None) -> gr.Blocks:
    """Builds the page. `example` is a video offered to visitors who have none."""
    app, names = App(pipe), list(pipe.model.config.class_descriptions or WORDS)[:MOST_LABELS]
    heavy = {"concurrency_limit": MOST_AT_ONCE, "concurrency_id": "video"}
    with gr.Blocks(title="EmoCLIP", delete_cache=(60, 60 * KEPT_MINUTES)) as page:
        result = gr.State(time_to_live=60 * KEPT_MINUTES)
        gr.Markdown(f"{ABOUT}\n\n{about_model(pipe.model.name_or_path)}")
        video, *question, show, status = question_part(names, example)
        below, picture, stretches, query, found, downloads, draw, annotated = answer_part()
        answer = [result, below, picture, stretches, found, *downloads, annotated]
        inputs = [video, *question, result]
        show.click(app.analyse, inputs, answer, api_name="timeline", show_progress_on=[status], **heavy)
        query.submit(app.search, [query, result], found, api_name="search")
        draw.click(app.annotate, result, annotated, api_name="annotate", **heavy)
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        picture.select(app.seek_picture, result, video, **quiet)
        for one in (stretches, found):
            one.select(app.seek_row, None, video, **quiet)
    return page.queue(max_size=MOST_WAITING)


def question_part(names: list[str], example: Path | None) -> list:
    """Builds the inputs: the video, the labels and the settings."""
    with gr.Row():
        with gr.Column(scale=3):
            gr.Markdown("### 1 · A video: drop a file, or record one with the webcam")
            video = gr.Video(height=360, show_label=False, elem_id="player")
            if example:
                offer = "No video at hand? Take this one, of two drawn people:"
                gr.Examples([[str(example)]], [video], label=offer)
        with gr.Column(scale=2):
            gr.Markdown(f"### 2 · What to look for, one a line\n{HOW_TO_WRITE}")
            text = gr.Textbox("\n".join(names), lines=11, max_lines=14, show_label=False, elem_id="words")
            show = gr.Button("3 · Show when it happens", variant="primary")
            status = gr.Markdown(KEPT, min_height=70)
            with gr.Accordion("How it looks at the video", open=False):
                shows = gr.Radio([PEOPLE, WHOLE_FRAME], value=PEOPLE, label="The video shows")
                window = gr.Slider(0.5, 10, 2, step=0.5, label="Seconds that are judged together")
                stride = gr.Slider(0.25, 10, 1, step=0.25, label="Seconds from one judgement to the next")
    return [video, text, shows, window, stride, show, status]


def answer_part() -> list:
    """Builds the outputs: the timeline as a plot and a table, the search, and the files."""
    with gr.Column(visible=False) as below:
        gr.Markdown("### When: click on the picture, or on a row below it, and the player goes there")
        picture = gr.Image(show_label=False, elem_id="picture", interactive=False, buttons=["fullscreen"])
        heads = ["from", "to", "who", "what fits best", "score"]
        with gr.Row():
            with gr.Column(scale=3):
                stretches = table(heads, "Stretch by stretch", "stretches")
            with gr.Column(scale=2):
                query = gr.Textbox(label="Search for anything", placeholder="trying not to laugh", submit_btn="Search")
                found = table([*heads[:3], "likeness"], "Best moments first", "found")
        with gr.Row():
            downloads = [gr.DownloadButton(f"Download {kind}") for kind in ("csv", "json", "srt")]
            draw = gr.Button("Draw it into the video")
        annotated = gr.DownloadButton(visible=False, variant="primary")
        gr.Markdown(SCORE)
    return [below, picture, stretches, query, found, downloads, draw, annotated]


def table(headers: list[str], label: str, name: str) -> gr.Dataframe:
    return gr.Dataframe(headers=headers, label=label, elem_id=name, interactive=False, max_height=300, buttons=[])


def about_model(name: str) -> str:
    """Returns a warning about the training data from the model card, or a general one otherwise."""
    with suppress(Exception):  # the Hub client raises a dozen exception classes
        card = ModelCard.load(Path(name, "README.md") if Path(name).is_dir() else name)
        if DRAWN_FACES in card.text:
            return (
                f"⚠️ **{DRAWN_FACES}** On a video of people the app shows how it works; its scores then mean nothing."
            )
    return "The model errs, and more for people who are rare in what it was trained on: look at the video yourself."


class RoomForUploads:
    """Middleware that rejects uploads over the size or space limits; Gradio limits only the size of each file."""

    def __init__(self, app, folder: Path):
        self.app, self.folder, self.coming = app, folder, []  # bytes of the uploads in progress

    async def __call__(self, scope, receive, send):
        if not is_upload(scope):
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length")
        if refused := self.refusal(length):
            return await refused(scope, receive, send)
        self.coming.append(int(length))
        try:
            await self.app(scope, receive, send)
        finally:
            self.coming.remove(int(length))

    def refusal(self, length: bytes | None) -> PlainTextResponse | None:
        sizes, now = [], time.time()
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # deleted in the meantime
                if path.parent == self.folder and path.is_file() and now - path.stat().st_mtime > 60 * KEPT_MINUTES:
                    path.unlink()  # from an aborted upload, which Gradio does not delete
                elif path.is_file():
                    sizes.append(path.stat().st_size)
        if length is None or not length.isdigit():
            return PlainTextResponse("How long is the upload?", 411)
        if int(length) > (MOST_MEGABYTES + 1) * 10**6:  # 1 MB for the multipart overhead
            return PlainTextResponse(f"An upload may have {MOST_MEGABYTES} MB.", 413)
        taken = sum(sizes) + sum(self.coming) + int(length)
        if taken > MOST_GIGABYTES * 10**9 or len(sizes) + len(self.coming) >= MOST_FILES:
            return PlainTextResponse("Too many videos are here just now: please come back later.", 507)
        return None


def is_upload(scope) -> bool:
    return scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload")


class NoAddresses:
    """Middleware that rejects long requests and URLs in place of files, which Gradio would fetch without limits."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or is_upload(scope):
            return await self.app(scope, receive, send)
        if re.search(r"(?:file|proxy)=\s*[a-z][a-z0-9+.-]*:", scope["path"], re.IGNORECASE):
            return await PlainTextResponse("Addresses are not fetched here.", 403)(scope, receive, send)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return await self.app(scope, receive, send)
        body, is_whole = b"", False
        while not is_whole and len(body) <= MOST_QUESTION_BYTES:
            message = await receive()
            if message["type"] != "http.request":  # the visitor has disconnected
                return
            body, is_whole = body + message.get("body", b""), not message.get("more_body", False)
        if len(body) > MOST_QUESTION_BYTES:
            refused = PlainTextResponse(f"A question may have {MOST_QUESTION_BYTES:,} bytes.", 413)
            return await refused(scope, receive, send)
        if names_address(body):
            refused = PlainTextResponse("Give the video itself: addresses are not fetched here.", 403)
            return await refused(scope, receive, send)
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def again():
            return next(parts, None) or await receive()

        await self.app(scope, again, send)


def names_address(body: bytes) -> bool:
    """Returns whether a request has a URL in place of a file path."""
    try:
        parts = [json.loads(body)]
    except (ValueError, RecursionError):
        return False  # Gradio accepts only JSON
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            path = part.get("path")
            if isinstance(path, str) and re.match(r"\s*[a-z][a-z0-9+.-]+:", path, re.IGNORECASE):
                return True  # two letters or more, since C:\\ is a path
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    return False


def default_model(folder: Path | None) -> tuple[str, str | None]:
    """Returns the model of a Space, with its commit if `model.txt` names one; or what `make demo` exported."""
    if folder is None:
        return str(EXPORTED), None
    if (folder / "model").is_dir():
        return str(folder / "model"), None
    model, *revision = (folder / "model.txt").read_text(encoding="utf-8").split()
    return model, revision[0] if revision else None


def example_video(*folders: Path) -> Path | None:
    """Returns the example beside a Space's app, or beside a model that `make demo` exported."""
    return next((path for folder in folders if (path := folder / "example.mp4").is_file()), None)


def run(
    model: str | None = None, revision: str | None = None, port: int | None = None, folder: Path | None = None
) -> None:
    """Serves the page until it is stopped.

    Args:
        model, revision: folder or Hub id, and its commit; by default those of `default_model`.
        port: by default the first free one from 7860.
        folder: folder of a Space, with its model and example.

    Raises:
        OSError, ValueError: the model cannot be loaded.
    """
    if model is None:
        model, commit = default_model(folder)
        revision = revision or commit
    if model == str(EXPORTED) and not EXPORTED.is_dir():
        raise ValueError(f"{EXPORTED} is not there: `make demo` makes it; or give --model")
    try:
        pipe = load_pipeline(model, revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{model} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    pipe.processor.video_processor.video_limits = VIDEO_LIMITS
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder is deleted then too
    with (
        tempfile.TemporaryDirectory(prefix="emoclip-app.", ignore_cleanup_errors=True) as visitors,
        suppress(KeyboardInterrupt),
    ):
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = visitors  # for all that visitors send and get
        serve(build(pipe, example_video(folder or Path(model), Path(model).parent)), port, Path(visitors))


def serve(page: gr.Blocks, port: int | None, visitors: Path):
    """Serves the page and stops without delay; Gradio alone would wait for visitors with an open page."""
    page.launch(
        server_port=port,
        share=False,
        ssr_mode=False,
        run_history=False,  # otherwise browsers store the runs
        footer_links=[],
        max_file_size=f"{MOST_MEGABYTES}mb",
        # System fonts, since Gradio's default fonts are loaded from Google.
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        app_kwargs={"middleware": [Middleware(NoAddresses), Middleware(RoomForUploads, folder=visitors)]},
        prevent_thread_lock=True,
    )
    try:
        threading.Event().wait()
    finally:
        logging.getLogger("uvicorn.error").disabled = True  # it logs the stop as an error
        page.server.force_exit = True
        page.close(verbose=False)


__all__ = ["build", "run"]

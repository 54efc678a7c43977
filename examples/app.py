# SPDX-License-Identifier: Apache-2.0
"""The app: drop a video, type any words, see when each of them fits the faces in it.

python examples/app.py [FOLDER_OR_HUB_ID]

Without a name the model is the folder `model` beside this file, as in a Space, or else what `make demo` has exported.
This file needs gradio and what the model's own code needs, and nothing of this repository: a Space is a copy of it.
"""

import argparse
import html
import os
import signal
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import av
import gradio as gr
from huggingface_hub import ModelCard
from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from transformers import pipeline

EXPORTED = Path("outputs/synthetic_emoclip/hub")  # by `make demo`
# What a stranger may ask for. All of a visitor's files are deleted when they are so old, and when the app ends.
MOST_MEGABYTES, LONGEST_MINUTES, MOST_PIXELS = 200, 10, 4096 * 2304
MOST_LABELS, LONGEST_TEXT = 24, 200
MOST_GIGABYTES = 4  # of all visitors together
MOST_WAITING = 8
KEPT_MINUTES = 60

TEMPLATE = "an expression of {}."  # what the pipeline says of a label given by its name only
DRAWN_FACES = "This checkpoint has seen drawn faces only."  # in the card of such a model
PEOPLE, WHOLE_FRAME = "people: find the faces", "one face, close up: take the whole picture"
WORDS = "happiness sadness anger surprise fear disgust neutral".split()

ABOUT = """# Any words for the expression on any face
Drop a video, write what to look for, and see **when** each face shows it.
*An expression is what a face shows, not what a person feels*: do not judge, hire, grade, police or diagnose anybody by
it."""
HOW_TO_WRITE = """A name: `bored`. A description: `a smile slowly appearing`. A mixture: `fear + surprise`.
A name that you describe: `amused: a grin; laughing eyes`."""
KEPT = f"What you send is deleted after {KEPT_MINUTES} minutes, and nobody else can open it."
SCORE = """**What a score means:** it compares *your words with each other* and adds up to 1 over them. 0.60 beside "bored"
means that of these words "bored" fits the face best by far; it is not a 60 % chance that somebody is bored."""
CSS = """.gradio-container {max-width: 1240px !important; margin: auto}
#picture img, #stretches [role=gridcell], #found [role=gridcell] {cursor: pointer}"""


PROGRESS = gr.Progress(track_tqdm=True)  # Gradio finds it as a default and gives each call its own


@dataclass(eq=False)
class Result:
    """What one visitor has got; nobody else's session can reach it. Its folder goes when it does."""

    video: str
    how: dict[str, Any]
    timeline: Any
    folder: tempfile.TemporaryDirectory
    lanes: tuple[float, float]  # where in the picture's width time begins and ends


def parse_labels(text: str, class_descriptions: Mapping[str, list[str]] | None = None) -> list[str] | dict[str, Any]:
    """One label a line, as the pipeline takes them: a list, or a dict where a line says "label: description; ...".

    Raises:
        gr.Error: no label, one that is repeated, too many or too long; a mixture among labels with descriptions.
    """
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    if not lines:
        raise refusal("Write at least one word or description to look for, one a line.")
    if len(lines) > MOST_LABELS or any(len(line) > LONGEST_TEXT for line in lines):
        raise refusal(f"At most {MOST_LABELS} lines of {LONGEST_TEXT} letters each, please.")
    labels, known = {}, class_descriptions or {}
    for line in lines:
        label, colon, texts = (part.strip() for part in line.partition(":"))
        descriptions = [one.strip() for one in texts.split(";") if one.strip()]
        if not label or (colon and not descriptions):
            raise refusal(f'"{line}" is not whole: write a label, or "label: description; description".')
        if label in labels:
            raise refusal(f'"{label}" is there twice.')
        labels[label] = descriptions
    if not any(labels.values()):
        return list(labels)
    if mixtures := [label for label, texts in labels.items() if "+" in label and not texts]:
        raise refusal(
            f'The mixture "{mixtures[0]}" cannot stand beside labels that you describe: describe it as well.'
        )
    return {label: texts or known.get(label) or [TEMPLATE.format(label)] for label, texts in labels.items()}


def check_video(path: str | None):
    """Raises a gr.Error if it is no video, or one that is too much for a shared machine."""
    if not path:
        raise refusal("There is no video yet: drop one, record one, or take the example.")
    try:
        # The white list keeps a playlist that calls itself a video from fetching other things.
        with av.open(path, options={"protocol_whitelist": "file"}) as container:
            stream = container.streams.video[0]
            if stream.width * stream.height > MOST_PIXELS:
                raise refusal(f"The picture is {stream.width} x {stream.height}; more than 4K is not taken here.")
            # Counted, since headers lie or, as of webcams, say nothing; nothing is decoded.
            ends = [p.pts + (p.duration or 0) for p in container.demux(stream) if p.pts is not None]
            seconds = float((max(ends) - min(ends)) * stream.time_base) if ends else 0
    except (av.error.FFmpegError, IndexError, AttributeError):  # no such file, no video stream, an unknown codec
        raise refusal(f"{Path(path).name} is no video that can be read here, or it is damaged.") from None
    if seconds > 60 * LONGEST_MINUTES:
        raise refusal(f"The video lasts {clock(seconds)}; here it may last {LONGEST_MINUTES} minutes.")


def refusal(message: str) -> gr.Error:
    """Stays until it is closed. Gradio reads it as HTML."""
    return gr.Error(html.escape(message), duration=None, title="Not yet", print_exception=False)


def clock(seconds: float) -> str:
    minutes, tenths = divmod(round(10 * max(seconds, 0)), 600)
    return f"{minutes}:{tenths / 10:04.1f}"


def seconds_of(text: str) -> float:
    minutes, seconds = text.split(":")
    return 60 * int(minutes) + float(seconds)


class App:
    """What the page calls. It holds the model and no visitor's things: those are in their `Result`."""

    def __init__(self, pipe):
        self.pipe = pipe

    def analyse(self, video, text, shows, window, stride, result, progress=PROGRESS):
        """Video and labels -> the page below them. Other labels for the same video need no second pass over it."""
        labels = parse_labels(text, self.pipe.model.config.class_descriptions)
        check_video(video)
        how = {"faces": "none" if shows == WHOLE_FRAME else "all", "window": window, "stride": min(stride, window)}
        name = Path(video).name
        try:
            if result and (result.video, result.how) == (video, how):
                timeline = result.timeline.rescore(labels)
            else:
                timeline = replace(self.pipe.timeline(video, labels, **how), video=name)
        except (ValueError, OSError, ImportError) as error:
            raise refusal(str(error).replace(video, name)) from None
        if timeline.face_found is False:
            raise refusal(
                f'No face was found in {name}. If it shows one from near, choose "{WHOLE_FRAME}" below the words.'
            )
        if timeline.error:
            gr.Warning(html.escape(timeline.error.replace(video, name)), title="Only a part could be read")
        folder = tempfile.TemporaryDirectory(dir=os.environ.get("GRADIO_TEMP_DIR"), prefix="result.")
        files = [Path(folder.name, f"{Path(name).stem}.{kind}") for kind in ("csv", "json", "srt")]
        for path, write in zip(files, (timeline.to_csv, timeline.to_json, timeline.to_srt), strict=True):
            write(path)
        figure = timeline.plot(Path(folder.name, "time_line.png"))
        place = figure.axes[0].get_position()
        result = Result(video, how, timeline, folder, (place.x0, place.x1))
        shown = [gr.Column(visible=True), str(Path(folder.name, "time_line.png")), self.stretches(timeline)]
        return [result, *shown, None, *map(str, files), gr.DownloadButton(visible=False)]

    def stretches(self, timeline) -> list[list]:
        found = [one for person in timeline.people for one in timeline.stretches(person)]
        found.sort(key=lambda one: (one.start, one.person))
        return [row(timeline, one.start, one.end, one.person, one.label, one.score) for one in found]

    def search(self, text, result):
        """Any text -> the moments that are most like it."""
        if result is None:
            raise refusal("First show the time line of a video, then search in it.")
        if not (text or "").strip() or len(text) > LONGEST_TEXT:
            raise refusal(f"Write what to search for, in at most {LONGEST_TEXT} letters.")
        found = result.timeline.search(text.strip(), top=8)
        return [row(result.timeline, one.start, one.end, one.person, one.score) for one in found]

    def annotate(self, result, progress=PROGRESS):
        """The video with boxes and labels in it."""
        if result is None:
            raise refusal("First show the time line of a video.")
        name = f"{Path(result.video).stem}_annotated.mp4"
        try:
            path = result.timeline.annotate(Path(result.folder.name, name), video=result.video)
        except (ValueError, OSError) as error:
            message = str(error).replace(result.video, Path(result.video).name)
            raise refusal(f"{message} (files are kept for {KEPT_MINUTES} minutes)") from None
        return gr.DownloadButton(f"Download {name}", value=str(path), visible=True)

    def seek_row(self, event: gr.SelectData):
        """A row of a table -> the player at its first moment."""
        return gr.Video(playback_position=seconds_of(event.row_value[0]))

    def seek_picture(self, result, event: gr.SelectData):
        print("PIC", event.index, result, flush=True)
        """A place in the picture -> the player at its time."""
        if result is None:
            return gr.skip()
        with Image.open(Path(result.folder.name, "time_line.png")) as picture:
            share = event.index[0] / picture.width
        (left, right), (first, last) = result.lanes, result.timeline.span
        return gr.Video(playback_position=first + min(max((share - left) / (right - left), 0), 1) * (last - first))


def row(timeline, start: float, end: float, person: int, *rest) -> list:
    texts = [f"{one:.2f}" if isinstance(one, float) else one for one in rest]
    return [clock(start), clock(end), timeline.name_of(person), *texts]


def build(pipe, example: Path | None = None) -> gr.Blocks:
    """The page. `example` is a video that a visitor without one can take."""
    app, names = App(pipe), list(pipe.model.config.class_descriptions or WORDS)[:MOST_LABELS]
    with gr.Blocks(title="EmoCLIP", delete_cache=(60, 60 * KEPT_MINUTES)) as page:
        result = gr.State(time_to_live=60 * KEPT_MINUTES)
        gr.Markdown(f"{ABOUT}\n\n{about_model(pipe.model.name_or_path)}")
        with gr.Row():
            with gr.Column(scale=3):
                gr.Markdown("### 1 · A video: drop a file, or record one with the webcam")
                video = gr.Video(height=360, show_label=False, elem_id="player")
                if example:
                    gr.Examples(
                        [[str(example)]], [video], label="No video at hand? Take this one, of two drawn people:"
                    )
            with gr.Column(scale=2):
                gr.Markdown(f"### 2 · What to look for, one a line\n{HOW_TO_WRITE}")
                text = gr.Textbox("\n".join(names), lines=11, max_lines=14, show_label=False, elem_id="words")
                show = gr.Button("3 · Show when it happens", variant="primary")
                status = gr.Markdown(KEPT, min_height=70)
                with gr.Accordion("How it looks at the video", open=False):
                    shows = gr.Radio([PEOPLE, WHOLE_FRAME], value=PEOPLE, label="The video shows")
                    window = gr.Slider(0.5, 10, 2, step=0.5, label="Seconds that are judged together")
                    stride = gr.Slider(0.25, 10, 1, step=0.25, label="Seconds from one judgement to the next")
        with gr.Column(visible=False) as below:
            gr.Markdown("### When: click on the picture, or on a row below it, and the player goes there")
            picture = gr.Image(show_label=False, elem_id="picture", interactive=False, buttons=["fullscreen"])
            with gr.Row():
                with gr.Column(scale=3):
                    heads = ["from", "to", "who", "what fits best", "score"]
                    stretches = table(heads, "Stretch by stretch", "stretches")
                with gr.Column(scale=2):
                    query = gr.Textbox(
                        label="Search for anything", placeholder="trying not to laugh", submit_btn="Search"
                    )
                    found = table([*heads[:3], "likeness"], "Best moments first", "found")
            with gr.Row():
                downloads = [gr.DownloadButton(f"Download {kind}") for kind in ("csv", "json", "srt")]
                draw = gr.Button("Draw it into the video")
            annotated = gr.DownloadButton(visible=False, variant="primary")
            gr.Markdown(SCORE)
        inputs, page_below = [video, text, shows, window, stride, result], [result, below, picture, stretches, found]
        outputs = [*page_below, *downloads, annotated]
        show.click(app.analyse, inputs, outputs, api_name="timeline", show_progress_on=[status])
        query.submit(app.search, [query, result], found, api_name="search")
        draw.click(app.annotate, result, annotated, api_name="annotate")
        picture.select(app.seek_picture, result, video, show_progress="hidden", api_visibility="private")
        for one in (stretches, found):
            one.select(app.seek_row, None, video, show_progress="hidden", api_visibility="private")
    return page.queue(max_size=MOST_WAITING, default_concurrency_limit=1)


def table(headers: list[str], label: str, name: str) -> gr.Dataframe:
    return gr.Dataframe(headers=headers, label=label, elem_id=name, interactive=False, max_height=300, buttons=[])


def about_model(name: str) -> str:
    """What the model's card says of people; a card that cannot be had says nothing."""
    with suppress(Exception):  # a dozen classes of the Hub's client
        card = ModelCard.load(Path(name, "README.md") if Path(name).is_dir() else name)
        if DRAWN_FACES in card.text:
            return (
                f"⚠️ **{DRAWN_FACES}** On a video of people the app shows how it works; its scores then mean nothing."
            )
    return "The model errs, and more for people who are rare in what it was trained on: look at the video yourself."


class RoomForUploads:
    """Refuses uploads while the files of all visitors fill the room there is; Gradio limits each file only."""

    def __init__(self, app, folder: Path):
        self.app, self.folder = app, folder

    async def __call__(self, scope, receive, send):
        answer = self.app
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/upload"):
            sizes = [path.stat().st_size for path in self.folder.rglob("*") if path.is_file()]
            if sum(sizes) > MOST_GIGABYTES * 10**9:
                answer = PlainTextResponse("Too many videos are here just now: please come back later.", 507)
        await answer(scope, receive, send)


def load(model: str):
    """The pipeline of a folder or Hub id. Raises SystemExit with what to do, if it cannot be had."""
    if model == str(EXPORTED) and not EXPORTED.is_dir():
        raise SystemExit(f"{model} is not there: `make demo` makes it; or give an exported folder or a Hub id")
    try:
        pipe = pipeline(model=model, trust_remote_code=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"{model} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    if not hasattr(pipe, "timeline"):
        raise SystemExit(f"{model} has a fixed list of labels; the app needs a model that takes any words")
    return pipe


def example_video(folder: Path) -> Path | None:
    """Beside this file, as in a Space; or drawn now, where the package that draws is installed."""
    beside = Path(__file__).with_name("example.mp4")
    if beside.is_file():
        return beside
    with suppress(ImportError):
        from training.space import draw_example

        return draw_example(folder / "example.mp4")
    return None


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).with_name("model")
    default = str(beside if beside.is_dir() else EXPORTED)
    parser.add_argument("model", nargs="?", default=default, help="exported folder or Hub id; default: %(default)s")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder is deleted then too
    with tempfile.TemporaryDirectory(prefix="emoclip-app.") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of this process alone: all that visitors send and get is in it
        page = build(load(options.model), example_video(Path(folder)))
        page.launch(
            server_port=options.port,
            share=False,
            ssr_mode=False,
            run_history=False,  # else each visitor's browser keeps the runs
            footer_links=[],
            max_file_size=f"{MOST_MEGABYTES}mb",
            # Fonts of the visitor's machine, since Gradio's own come from Google.
            theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            app_kwargs={"middleware": [Middleware(RoomForUploads, folder=Path(folder))]},
        )


if __name__ == "__main__":
    main()

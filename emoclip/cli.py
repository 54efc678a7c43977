# SPDX-License-Identifier: Apache-2.0
"""The command `emoclip`."""

import functools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from safetensors.numpy import save_file
from transformers.utils import logging

from .files import write_text, written
from .loading import load_pipeline
from .timeline.timeline import EmotionTimeline
from .typed_text import parse_labels

ERRORS = (OSError, ValueError, ImportError)  # those that a user can fix; each message says how
HELP = """Score facial expressions in video against any words.

--model is an exported folder, a repository of the Hub, or a CLIP such as openai/clip-vit-base-patch32, which scores
with the mean of its frames. Files whose names begin with - go after --. The exit status is 0; 1 if a video could not
be read; 2 for wrong arguments.
"""
cli = typer.Typer(help=HELP, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Model = Annotated[str, typer.Option("--model", "-m", envvar="EMOCLIP_MODEL", help="Folder or Hub id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Videos = Annotated[list[str], typer.Argument(help="Video files, or folders of frame images.")]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        "-l",
        help='A label, perhaps with descriptions: "calm: a relaxed face; closed lips". One option for each label; '
        "by default those that the model has descriptions for.",
    ),
]
Template = Annotated[str | None, typer.Option(help='Text for labels given by name, such as "a face that looks {}".')]
Temperature = Annotated[float | None, typer.Option(help="By default the one fitted for these labels, or 1.")]
MultiLabel = Annotated[bool, typer.Option("--multi-label", help="Score each label by itself, against a neutral face.")]
AbstainBelow = Annotated[float | None, typer.Option(help='Below this score the answer is "uncertain".')]
ClipFaces = Annotated[str, typer.Option(help="none (the clips are cropped already) or largest.")]
Faces = Annotated[str, typer.Option(help="all, largest or none.")]
Detector = Annotated[str, typer.Option(help="auto, haar, yunet, or an .onnx file of YuNet.")]
NoFace = Annotated[str, typer.Option(help="What replaces a missing face: frame, the whole one, or nothing.")]
Window = Annotated[float, typer.Option(help="Seconds.")]
Stride = Annotated[float, typer.Option(help="Seconds from window to window.")]
Fps = Annotated[float | None, typer.Option(help="Frames per second of a folder of images.")]
Picture = Annotated[Path | None, typer.Option(help="Write a picture with one lane for each person.")]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if files := [one for one in before if one.startswith("-") and os.path.exists(one)]:
        print(f"emoclip: {files[0]} is a file: write -- before names that begin with -", file=sys.stderr)
        return 2
    logging.set_verbosity_error()
    if "--json" in before or not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        cli(arguments, prog_name="emoclip")
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def end_by_ctrl_c() -> NoReturn:
    """Ends the process with SIGINT itself, as a program without a handler for Ctrl-C does.

    This skips Python's shutdown, which takes seconds with torch loaded; workers must already have ended.
    """
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    raise KeyboardInterrupt  # only on systems without this signal


def command(function):
    """Registers a command whose errors are one line, with the exit status 1."""

    @functools.wraps(function)
    def reported(**options):
        try:
            status = function(**options)
        except ERRORS as error:
            print(f"emoclip: {error}", file=sys.stderr)
            status = 1
        except KeyboardInterrupt:
            end_by_ctrl_c()
        raise typer.Exit(status or 0)

    cli.command()(reported)
    return function


def labels_of(typed: list[str] | None, pipe) -> dict[str, list[str] | None]:
    """Returns the labels that were typed, or the model's own.

    Raises:
        ValueError: neither, or a label that is typed wrongly.
    """
    labels = typed or list(pipe.model.config.class_descriptions or ())
    if not labels:
        raise ValueError("this model has no labels of its own: give --label")
    return parse_labels(labels)


@command
def classify(
    videos: Videos,
    model: Model,
    label: Labels = None,
    template: Template = None,
    temperature: Temperature = None,
    multi_label: MultiLabel = False,
    abstain_below: AbstainBelow = None,
    faces: ClipFaces = "none",
    detector: Detector = "auto",
    no_face: NoFace = "frame",
    as_json: AsJson = False,
) -> int:
    """Score labels on each video."""
    pipe = load_pipeline(model)
    labels, status = labels_of(label, pipe), 0
    how = {"hypothesis_template": template, "temperature": temperature, "multi_label": multi_label}
    how |= {"abstain_below": abstain_below, "faces": faces, "detector": detector, "no_face": no_face}
    for video in videos:
        try:
            scores = pipe(video, candidate_labels=labels, **how)
        except ERRORS as error:
            status = 1
            if as_json:
                print(json.dumps({"video": video, "error": str(error)}))
            else:
                print(f"emoclip: {error}", file=sys.stderr)
            continue
        if as_json:
            print(json.dumps({"video": video, "scores": scores}, ensure_ascii=False), flush=True)
            continue
        print(video + ("  (no face found)" if not scores or scores[0].get("face_found") is False else ""))
        for entry in scores:
            print(f"  {entry['score']:6.1%}  {entry['label']}")
    return status


@command
def timeline(
    video: str,
    model: Model,
    label: Labels = None,
    template: Template = None,
    temperature: Temperature = None,
    multi_label: MultiLabel = False,
    abstain_below: AbstainBelow = None,
    window: Window = 2.0,
    stride: Stride = 1.0,
    fps: Fps = None,
    faces: Faces = "all",
    detector: Detector = "auto",
    no_face: NoFace = "frame",
    plot: Picture = None,
    csv: Annotated[Path | None, typer.Option(help="Write a table with one row for each window.")] = None,
    srt: Annotated[Path | None, typer.Option(help="Write subtitles.")] = None,
    vtt: Annotated[Path | None, typer.Option(help="Write subtitles for the web.")] = None,
    annotate: Annotated[Path | None, typer.Option(help="Write the video with boxes and labels, .mp4.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write a folder, for search and other labels.")] = None,
    as_json: AsJson = False,
) -> int:
    """Show who shows what when, in a video of any length."""
    pipe = load_pipeline(model)
    how = {"temperature": temperature, "multi_label": multi_label, "abstain_below": abstain_below}
    how |= {"window": window, "stride": stride, "fps": fps, "faces": faces, "detector": detector, "no_face": no_face}
    made = pipe.timeline(video, labels_of(label, pipe), template, progress=shows_progress(as_json), **how)
    for path, write in (
        (plot, made.plot),
        (csv, made.to_csv),
        (srt, made.to_srt),
        (vtt, made.to_vtt),
        (annotate, made.annotate),
        (save, made.save),
    ):
        if path is not None:
            write(path)
    if made.error:
        print(f"emoclip: {made.error}", file=sys.stderr)
    if as_json:
        print(made.to_json())
        return 0
    print(made)
    for person in made.people:
        for one in made.stretches(person):
            print(f"  {one.start:8.1f} {one.end:8.1f} s  {made.name_of(person):12}  {one.score:.2f}  {one.label}")
    return 0


@command
def search(
    video: Annotated[str, typer.Argument(help="A video, or a folder that `emoclip timeline --save` wrote.")],
    text: Annotated[list[str], typer.Argument(help="Several texts stand for their mean.")],
    model: Model,
    top: Annotated[int, typer.Option(help="Moments to print.")] = 10,
    window: Window = 2.0,
    stride: Stride = 1.0,
    fps: Fps = None,
    faces: Faces = "all",
    detector: Detector = "auto",
    no_face: NoFace = "frame",
    as_json: AsJson = False,
) -> int:
    """Find the moments of a video that are most similar to a text."""
    pipe = load_pipeline(model)
    if (Path(video) / "timeline.json").is_file():
        made = EmotionTimeline.load(video, pipe)
    else:
        how = {"window": window, "stride": stride, "fps": fps, "faces": faces, "detector": detector}
        progress = shows_progress(as_json)
        made = pipe.timeline(video, {"text": text}, no_face=no_face, progress=progress, **how)
    moments = made.search(text, top=top)
    if as_json:
        print(json.dumps([moment._asdict() for moment in moments]))
        return 0
    for one in moments:
        print(f"  {one.start:8.1f} {one.end:8.1f} s  {made.name_of(one.person):12}  cosine {one.score:.3f}")
    return 0


@command
def embed(
    videos: Videos,
    model: Model,
    out: Annotated[Path, typer.Option(help="File to write, .safetensors; a .json beside it describes the rows.")],
    skip: Annotated[bool, typer.Option("--skip", help="Leave out videos that cannot be read.")] = False,
    faces: ClipFaces = "none",
    detector: Detector = "auto",
    no_face: NoFace = "frame",
    as_json: AsJson = False,
) -> int:
    """Embed videos, as one row of numbers each."""
    if out.suffix != ".safetensors":
        raise ValueError(f"--out is {out}, but must end in .safetensors")
    pipe, on_error = load_pipeline(model), "skip" if skip else "raise"
    how: dict[str, Any] = {"faces": faces, "detector": detector, "no_face": no_face}
    embeds, metadata, skipped = pipe.embed(videos, on_error=on_error, progress=shows_progress(as_json), **how)
    with written(out) as unfinished:
        save_file({"embeds": embeds}, unfinished)
    about = {"model": model, "rows": metadata, "skipped": skipped}
    write_text(json.dumps(about, indent=1, ensure_ascii=False), out.with_suffix(".json"))
    short = {"out": str(out), "shape": list(embeds.shape), "skipped": skipped}
    print(json.dumps(short) if as_json else f"{out}: {len(embeds)} rows of {embeds.shape[1]} numbers")
    return 1 if skipped else 0


@command
def app(
    model: Annotated[str | None, typer.Option(envvar="EMOCLIP_MODEL", help="Folder or Hub id.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag of a Hub id.")] = None,
    port: Annotated[int | None, typer.Option(help="By default the first free one from 7860.")] = None,
) -> int:
    """Open the app in the browser, served by this machine."""
    try:
        from .app import run
    except ImportError as error:
        raise ImportError(f'the app needs more packages: pip install "emoclip[app]" ({error})') from None
    run(model, revision, port)
    return 0


def shows_progress(as_json: bool) -> bool:
    """Returns whether to show progress bars: to people, not to programs."""
    return not as_json and sys.stderr.isatty()


if __name__ == "__main__":
    sys.exit(main())

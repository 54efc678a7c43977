# SPDX-License-Identifier: Apache-2.0
"""Any words for the expression on a face in a video.

emoclip classify clip.mp4 --labels "a smile" "a frown" "anger + disgust"
emoclip timeline talk.mp4 --labels amused bored tense --plot talk.png --csv talk.csv --save talk
emoclip search   talk "trying not to laugh"              a saved time line, or a video
emoclip embed    *.mp4 --out embeddings.safetensors      for a probe of your own
emoclip app                                              all of it in the browser

--model is an exported folder, a repository of the Hub, or a CLIP such as openai/clip-vit-base-patch32, which then
scores with the mean of its frames; without it the environment variable EMOCLIP_MODEL. A label may bring its
descriptions: "calm: a relaxed face; closed lips". --json prints for machines. Exit status: 0; 1 if a video could not
be read; 2 for wrong arguments.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from safetensors.numpy import save_file
from transformers import AutoConfig
from transformers.utils import logging

from modeling_emoclip import (
    EmoCLIPConfig,
    EmoCLIPModel,
    EmoCLIPProcessor,
    EmotionTimeline,
    ZeroShotVideoClassificationPipeline,
)
from modeling_emoclip.timeline_files import written
from training.stop_signal import end_by_ctrl_c

ERRORS = (OSError, ValueError, ImportError)  # what a user can mend; each says how


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse_options(arguments)
    logging.set_verbosity_error()
    if options.json or not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        return options.command(options)
    except ERRORS as error:
        print(f"emoclip: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        end_by_ctrl_c()


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; `command` is the function that it asks for."""
    parser = argparse.ArgumentParser(
        prog="emoclip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command, about in (
        (classify, "scores of labels, a line each"),
        (timeline, "who shows what when"),
        (search, "the moments most like a text"),
        (embed, "one row of numbers for each video"),
        (app, "opens the app on this machine"),
    ):
        sub = commands.add_parser(command.__name__, help=about, description=about)
        sub.set_defaults(command=command)
        sub.add_argument("--model", default=os.environ.get("EMOCLIP_MODEL"), help="folder or Hub id")
        sub.add_argument("--json", action="store_true", help="print JSON")
        ARGUMENTS[command.__name__](sub)
    options = parser.parse_args(arguments)
    if options.model is None and options.command is not app:
        parser.error("give --model, or set EMOCLIP_MODEL: an exported folder or a Hub id")
    return options


def _classify_arguments(sub: argparse.ArgumentParser):
    sub.add_argument("videos", nargs="+")
    _label_arguments(sub)
    _face_arguments(sub, "none", "none (the clips are cropped already) or largest; default: none")


def _timeline_arguments(sub: argparse.ArgumentParser):
    sub.add_argument("video")
    _label_arguments(sub)
    _window_arguments(sub)
    for name, about in (
        ("plot", "picture, one lane for each person"),
        ("csv", "table, one row for each window"),
        ("srt", "subtitles"),
        ("vtt", "subtitles for the web"),
        ("annotate", "the video with boxes and labels, .mp4"),
        ("save", "folder, for search and new labels"),
    ):
        sub.add_argument(f"--{name}", type=Path, metavar="PATH", help=about)


def _search_arguments(sub: argparse.ArgumentParser):
    sub.add_argument("video", help="a video, or what `emoclip timeline --save` wrote")
    sub.add_argument("text", nargs="+", help="several stand for their mean")
    sub.add_argument("--top", type=int, default=10, help="default: %(default)s")
    _window_arguments(sub)


def _embed_arguments(sub: argparse.ArgumentParser):
    sub.add_argument("videos", nargs="+")
    sub.add_argument("--out", type=Path, required=True, metavar="PATH", help=".safetensors; a .json beside it")
    sub.add_argument("--skip", action="store_true", help="leave videos out that cannot be read")
    _face_arguments(sub, "none", "none (the clips are cropped already) or largest; default: none")


def _app_arguments(sub: argparse.ArgumentParser):
    sub.add_argument("--port", type=int, help="default: the first free one from 7860")


ARGUMENTS = {
    "classify": _classify_arguments,
    "timeline": _timeline_arguments,
    "search": _search_arguments,
    "embed": _embed_arguments,
    "app": _app_arguments,
}


def _label_arguments(sub: argparse.ArgumentParser):
    sub.add_argument("--labels", nargs="+", help="default: those that the model has descriptions for")
    sub.add_argument("--template", dest="hypothesis_template", help='as "a face that looks {}"')
    sub.add_argument("--temperature", type=float, help="default: what was fitted for these labels")
    sub.add_argument("--multi-label", action="store_true", help="each label by itself, against a neutral face")
    sub.add_argument("--abstain-below", type=float, metavar="SCORE", help='below it the answer is "uncertain"')


def _window_arguments(sub: argparse.ArgumentParser):
    sub.add_argument("--window", type=float, default=2.0, help="seconds; default: %(default)s")
    sub.add_argument("--stride", type=float, default=1.0, help="seconds from window to window; default: %(default)s")
    sub.add_argument("--fps", type=float, help="frames per second of a folder of images")
    _face_arguments(sub, "all", "all, largest or none; default: all")


def _face_arguments(sub: argparse.ArgumentParser, default: str, about: str):
    sub.add_argument("--faces", default=default, help=about)
    sub.add_argument("--detector", default="auto", help="auto, haar, yunet or an .onnx file of YuNet")
    sub.add_argument("--no-face", choices=["frame", "nothing"], default="frame", help="what stands for no face")


def load_pipeline(name: str, revision: str | None = None) -> ZeroShotVideoClassificationPipeline:
    """Of an EmoCLIP checkpoint, with the installed code and not its own; or of any CLIP.

    Args:
        revision: of a Hub id, a commit.

    Raises:
        OSError, ValueError: there is no such checkpoint, or it is of another kind.
    """
    hub = {"revision": revision} if revision else {}
    config = AutoConfig.from_pretrained(name, **hub)
    if config.model_type not in ("clip", EmoCLIPConfig.model_type):
        raise ValueError(f"{name} is of the type {config.model_type}, but must be an EmoCLIP or a CLIP")
    if config.model_type == "clip":
        model = EmoCLIPModel.from_clip(name, temporal_num_layers=0, **hub)
        processor = EmoCLIPProcessor.from_clip(name, **hub)
    elif config.architectures and EmoCLIPModel.__name__ not in config.architectures:
        raise ValueError(f"{name} is an {config.architectures[0]}, which has fixed classes: give an EmoCLIPModel")
    else:  # not `transformers.pipeline`, which would take the code of the folder
        model = EmoCLIPModel.from_pretrained(name, **hub)
        processor = EmoCLIPProcessor.from_pretrained(name, **hub)
    return ZeroShotVideoClassificationPipeline(model=model, processor=processor)


def labels_of(options: argparse.Namespace, pipe) -> dict[str, list[str] | None]:
    """Those that were typed, or that the model has.

    Raises:
        ValueError: neither, or one that is typed wrongly.
    """
    labels = options.labels or list(pipe.model.config.class_descriptions or ())
    if not labels:
        raise ValueError("this model has no labels of its own: give --labels")
    return pipe.parse_labels(labels)


def scoring_of(options: argparse.Namespace) -> dict:
    """What the pipeline takes beside labels."""
    names = ("hypothesis_template", "temperature", "multi_label", "abstain_below")
    return {name: getattr(options, name) for name in names}


def faces_of(options: argparse.Namespace) -> dict:
    """Which faces, and what stands for none."""
    return {name: getattr(options, name) for name in ("faces", "detector", "no_face")}


def windows_of(options: argparse.Namespace) -> dict:
    """Of a time line."""
    chosen = {name: getattr(options, name) for name in ("window", "stride", "fps")}
    return chosen | faces_of(options) | {"progress": not options.json and sys.stderr.isatty()}


def classify(options: argparse.Namespace) -> int:
    """Scores of labels, for each video."""
    pipe = load_pipeline(options.model)
    labels, status = labels_of(options, pipe), 0
    for video in options.videos:
        try:
            scores = pipe(video, candidate_labels=labels, **scoring_of(options), **faces_of(options))
        except ERRORS as error:
            status = 1
            print(
                json.dumps({"video": video, "error": str(error)}) if options.json else f"emoclip: {error}",
                file=sys.stdout if options.json else sys.stderr,
            )
            continue
        if options.json:
            print(json.dumps({"video": video, "scores": scores}, ensure_ascii=False), flush=True)
            continue
        print(video + ("  (no face found)" if not scores or scores[0].get("face_found") is False else ""))
        for entry in scores:
            print(f"  {entry['score']:6.1%}  {entry['label']}")
    return status


def timeline(options: argparse.Namespace) -> int:
    """Who shows what when, in a video of any length; printed, and in the files that are asked for."""
    pipe = load_pipeline(options.model)
    labels = labels_of(options, pipe)
    made = pipe.timeline(options.video, labels, **scoring_of(options), **windows_of(options))
    for name in ("plot", "csv", "srt", "vtt", "annotate", "save"):
        path, write = getattr(options, name), getattr(made, name, None) or getattr(made, f"to_{name}", None)
        if path is not None:
            write(path)
    if made.error:
        print(f"emoclip: {made.error}", file=sys.stderr)
    if options.json:
        print(made.to_json())
        return 0
    print(made)
    for person in made.people:
        for one in made.stretches(person):
            print(f"  {one.start:8.1f} {one.end:8.1f} s  {made.name_of(person):12}  {one.score:.2f}  {one.label}")
    return 0


def search(options: argparse.Namespace) -> int:
    """The moments that are most like a text, the best first."""
    pipe = load_pipeline(options.model)
    if (Path(options.video) / "timeline.json").is_file():
        made = EmotionTimeline.load(options.video, pipe)
    else:
        made = pipe.timeline(options.video, {"text": options.text}, **windows_of(options))
    moments = made.search(options.text, top=options.top)
    if options.json:
        print(json.dumps([moment._asdict() for moment in moments]))
        return 0
    for one in moments:
        print(f"  {one.start:8.1f} {one.end:8.1f} s  {made.name_of(one.person):12}  cosine {one.score:.3f}")
    return 0


def embed(options: argparse.Namespace) -> int:
    """One row of numbers for each video: `embeds` (N, D) in OUT; the .json beside it says which row is what."""
    if options.out.suffix != ".safetensors":
        raise ValueError(f"--out is {options.out}, but must end in .safetensors")
    pipe, on_error = load_pipeline(options.model), "skip" if options.skip else "raise"
    progress = not options.json and sys.stderr.isatty()
    embeds, metadata, skipped = pipe.embed(options.videos, on_error=on_error, progress=progress, **faces_of(options))
    about = {"model": options.model, "rows": metadata, "skipped": skipped}
    with written(options.out) as unfinished:
        save_file({"embeds": embeds}, unfinished)
    with written(options.out.with_suffix(".json")) as unfinished:
        unfinished.write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
    short = {"out": str(options.out), "shape": list(embeds.shape), "skipped": skipped}
    print(json.dumps(short) if options.json else f"{options.out}: {len(embeds)} rows of {embeds.shape[1]} numbers")
    return 1 if skipped else 0


def app(options: argparse.Namespace) -> int:
    """The app of examples/app.py, at an address of this machine, until Ctrl-C."""
    try:
        from examples.app import main as open_app
    except ImportError as error:
        raise ImportError(f'the app needs more packages: pip install "emoclip[demo]" ({error})') from None
    port = [] if options.port is None else ["--port", str(options.port)]
    open_app([*([options.model] if options.model else []), *port], load_pipeline)
    return 0


if __name__ == "__main__":
    sys.exit(main())

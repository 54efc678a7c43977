# SPDX-License-Identifier: Apache-2.0
"""Shows the results of a run on rendered faces: a table, a picture, and the exported model's scores on unseen clips.

python examples/show_run.py outputs/synthetic_emoclip [video.mp4]

The predictions come from a separate process that can access only the exported folder (examples/zero_shot_clip.py).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from modeling_emoclip.video_reading import read_video
from training.build import load_builder
from training.data.face_vocabulary import HELD_OUT_EMOTIONS
from training.publish.space import draw_example
from training.recipe import load_recipe

SETS = {
    "seen": "7 emotions seen in training",
    "held_out": "4 held-out emotions, among themselves",
    "held_out_among_all": "4 held-out emotions, among all 11",
    "all": "all 11 emotions",
    "seen_imbalanced": "7 seen emotions, DFEW's class shares",
    "order_pairs": "order only: appearing or fading",
}
CLIPS_SHOWN = 6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of training, exported")
    parser.add_argument("video", nargs="?", type=Path, help="any video of your own")
    options = parser.parse_args()
    metrics = json.loads((options.run / "metrics.json").read_text(encoding="utf-8"))
    print_table(metrics)

    rows = unseen_clips(options.run)
    paths = [row["video"]["path"] for row in rows]
    names = rows.features["label"].names
    predictions = predict(options.run / "hub", paths)
    print(f"\nA held-out clip, {paths[0]}\n  shown: {rows[0]['caption']} ({names[rows[0]['label']]})")
    print_scores(predictions[0])
    picture = options.run / "predictions.png"
    draw(rows, predictions, metrics, picture)
    print(f"\nPicture: {picture}")
    draw_example(options.run / "example.mp4")  # `emoclip app` offers it
    if options.video:
        print(f"\n{options.video}")
        print_scores(predict(options.run / "hub", [str(options.video.resolve())])[0])
        print("  (this model has seen drawn faces only: on real video the scores show that it runs, nothing more)")


def print_table(metrics: dict):
    """Prints the scores in percent, next to chance and to the same CLIP with mean-pooled frames before training."""
    print(f"\nZero-shot on clips of people never seen, in percent ({metrics['title']}, {metrics['seconds']:.0f} s)\n")
    print(f"{'':42}{'':>7}{'':>8}  {'before: CLIP,':>15}  {'after':>15}")
    print(f"{'':42}{'':>7}{'':>8}  {'mean of frames':>15}  {'training':>15}")
    print(f"{'clips':42}{'number':>7}{'chance':>8}  {'UAR':>7} {'WAR':>7}  {'UAR':>7} {'WAR':>7}")
    for name, title in SETS.items():
        start, final = metrics["start"][name], metrics["final"][name]
        numbers = [100 * value for value in (start["uar"], start["war"], final["uar"], final["war"])]
        print(
            f"{title:42}{final['num_clips']:>7}{100 * final['chance']:>8.1f}"
            f"  {numbers[0]:>7.1f} {numbers[1]:>7.1f}  {numbers[2]:>7.1f} {numbers[3]:>7.1f}"
        )


def print_scores(scores: list[dict]):
    for entry in scores[:5]:
        print(f"  {entry['score']:6.1%}  {entry['label']}")


def unseen_clips(run: Path):
    """Selects the first test clip of each held-out emotion, then of seen ones; independent of their scores."""
    recipe = load_recipe(run / "recipe.yaml")
    builder = load_builder(recipe.data)
    test = builder.as_dataset("test")
    labels = [test.features["label"].int2str(label) for label in test["label"]]
    names = test.features["label"].names
    order = [*HELD_OUT_EMOTIONS, *(name for name in names if name not in HELD_OUT_EMOTIONS)]
    return test.select([labels.index(name) for name in order[:CLIPS_SHOWN]])


def predict(hub_dir: Path, videos: list[str]) -> list[list[dict]]:
    """Runs `zero_shot_clip.py` in a process that cannot import this checkout, and returns its scores."""
    script = Path(__file__).with_name("zero_shot_clip.py").resolve()
    command = [sys.executable, "-I", str(script), str(hub_dir.resolve()), *videos, "--json"]
    with tempfile.TemporaryDirectory() as elsewhere:
        result = subprocess.run(command, cwd=elsewhere, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(result.stderr.strip().splitlines()[-1])
    return [json.loads(line)["scores"] for line in result.stdout.splitlines() if line.startswith("{")]


def draw(rows, predictions: list[list[dict]], metrics: dict, path: Path):
    """Draws a bar chart of the table, and one row per clip with frames, caption and highest scores."""
    figure = plt.figure(figsize=(11, 2.6 + 1.45 * len(rows)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[2.6, 1.45 * len(rows)])
    draw_bars(top.subplots(), metrics)
    bottom.suptitle(
        "Scores of the 11 labels, highest four; green: what the clip shows", fontsize=10, x=0.005, ha="left"
    )
    axes = bottom.subplots(len(rows), 2, width_ratios=[2.2, 1])
    names = rows.features["label"].names
    for (left, right), row, scores in zip(axes, rows, predictions, strict=True):
        frames, _ = read_video(row["video"], lambda metadata: range(metadata.total_num_frames))
        left.imshow(frames.swapaxes(0, 1).reshape(frames.shape[1], -1, 3))
        truth = names[row["label"]]
        kind = "held out" if truth in HELD_OUT_EMOTIONS else "seen in training"
        left.set_title(f"{truth} ({kind})", loc="left", fontsize=9, fontweight="bold")
        left.set_xlabel(row["caption"], fontsize=8, loc="left")
        left.set(xticks=[], yticks=[])
        best = scores[:4][::-1]
        colors = ["tab:green" if entry["label"] == truth else "silver" for entry in best]
        bars = right.barh([entry["label"] for entry in best], [entry["score"] for entry in best], color=colors)
        right.bar_label(bars, fmt="{:.0%}", fontsize=8, padding=2)
        right.set(xlim=(0, 1.12), xticks=[])
        right.tick_params(labelsize=8, length=0)
        right.spines[:].set_visible(False)
    figure.savefig(path, dpi=110)


def draw_bars(axis, metrics: dict):
    heights = {
        "chance": [100 * metrics["final"][name]["chance"] for name in SETS],
        "before training (CLIP, mean of frames)": [100 * metrics["start"][name]["uar"] for name in SETS],
        "after training on captions of clips": [100 * metrics["final"][name]["uar"] for name in SETS],
    }
    for offset, (label, values), color in zip(
        (-0.27, 0, 0.27), heights.items(), ("silver", "tab:blue", "tab:green"), strict=True
    ):
        bars = axis.bar([x + offset for x in range(len(SETS))], values, 0.26, label=label, color=color)
        axis.bar_label(bars, fmt="{:.0f}", fontsize=8)
    axis.set_xticks(
        range(len(SETS)), [title.replace(", ", ",\n").replace(": ", ":\n") for title in SETS.values()], fontsize=7.5
    )
    axis.set_title("Zero-shot on people never seen", loc="left", fontsize=10)
    axis.set_ylabel("UAR, %")
    axis.set_ylim(0, 112)
    axis.legend(fontsize=8, ncols=3, loc="upper center", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()

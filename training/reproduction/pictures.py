# SPDX-License-Identifier: Apache-2.0
"""Pictures of the document: sample clips, gains with their intervals, scores by share of the training clips."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from emoclip.files import written
from training.data.face_grammar import sample_clip, sample_order_pair
from training.data.face_renderer import render_clip
from training.data.face_vocabulary import EMOTION_NAMES, HELD_OUT_EMOTIONS
from training.reproduction.claims import Comparison
from training.reproduction.numbers import FAILS, HOLDS, UNDECIDED, Finding, Results

COLORS = {HOLDS: "tab:green", FAILS: "tab:red", UNDECIDED: "tab:gray"}
ORDER_PAIR = 5  # index of a pair whose movement is easy to see
NUM_PEOPLE, NUM_FRAMES, FACE_SIZE = 8, 8, 96
METHOD_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple")


def draw_contact_sheet(path: Path) -> None:
    """Draws the first, unselected test clips of each emotion at their most expressive frame, and an order pair."""
    figure = Figure(figsize=(10.2, 16.4))
    rows = len(EMOTION_NAMES) + 2
    axes = figure.subplots(rows, NUM_PEOPLE, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    for number, name in enumerate(EMOTION_NAMES):
        for column in range(NUM_PEOPLE):
            spec = sample_clip(0, "test", number + column * len(EMOTION_NAMES))
            axes[number, column].imshow(_strongest_frame(spec))
        label = f"{name}\n(held out)" if name in HELD_OUT_EMOTIONS else name
        axes[number, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=11, labelpad=8)
    for row, spec in enumerate(sample_order_pair(0, ORDER_PAIR, "order_test"), start=len(EMOTION_NAMES)):
        for column, frame in enumerate(render_clip(spec, NUM_FRAMES, FACE_SIZE)):
            axes[row, column].imshow(frame)
        label = ("order:\nappearing", "order:\nfading")[row - len(EMOTION_NAMES)]
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=11, labelpad=8)
    for one in axes.flat:
        one.set(xticks=[], yticks=[])
        one.spines[:].set_visible(False)
    _save(figure, path)


def _strongest_frame(spec) -> np.ndarray:
    times = np.linspace(0, 1, NUM_FRAMES)
    strength = sum((np.abs(action.curve(times)) for action in spec.actions), np.zeros(NUM_FRAMES))
    return render_clip(spec, NUM_FRAMES, FACE_SIZE)[int(strength.argmax())]


def draw_gains(path: Path, judged: dict, name_of: Callable[[Comparison], str], margin: float) -> None:
    """Draws the gain and interval of each comparison, grouped by claim and colored by verdict.

    Args:
        judged: part -> list of (claim, verdict, findings).
        name_of: function that returns the label of a comparison.
        margin: see `Claims`.
    """
    num_lines = sum(1 + sum(1 + len(findings) for *_, findings in some) for some in judged.values())
    figure = Figure(figsize=(13, 0.21 * num_lines))
    axes = figure.add_axes((0.62, 0.0, 0.38, 1.0))
    height = 0
    for part, some in judged.items():
        _write(axes, -1.63, height, part.upper(), fontsize=10, weight="bold")
        for claim, verdict, findings in some:
            height += 1
            axes.axhspan(height - 0.5, height + 0.5, color="whitesmoke")
            color = COLORS.get(verdict, "black")
            _write(axes, -1.63, height, claim.claim, fontsize=9.5, weight="bold", color=color)
            _write(axes, 0.02, height, verdict.upper(), fontsize=8.5, weight="bold", color=color)
            for finding in findings:
                height += 1
                _write(axes, -1.6, height, name_of(finding.comparison), fontsize=9)
                _draw_gain(axes, height, finding)
        height += 1
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvspan(0, 100 * margin, color="gold", alpha=0.25, linewidth=0)
    axes.set_xscale("symlog", linthresh=5, linscale=1.5)
    ticks = [-50, -15, -5, -2, 0, 2, 5, 15, 50]
    axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set(ylim=(height + 0.5, -0.8), yticks=[], xlim=(-75, 75))
    axes.set_xlabel("gain in points (correlations: hundredths), 95 % interval; yellow: too small to speak of")
    axes.tick_params(top=True, labeltop=True)
    axes.spines[["left", "right"]].set_visible(False)
    _save(figure, path)


def _write(axes, x: float, height: int, text: str, **style) -> None:
    axes.text(x, height, text, transform=axes.get_yaxis_transform(), ha="left", va="center", **style)


def _draw_gain(axes, height: int, finding: Finding) -> None:
    if finding.bounds is None:
        _write(axes, 0.5, height, finding.verdict, fontsize=8.5, color="dimgray")
        return
    color = COLORS[finding.verdict]
    axes.plot([100 * bound for bound in finding.bounds], [height, height], color=color, linewidth=2)
    axes.plot(100 * finding.gain, height, "o", color=color, markersize=5)


def draw_curves(path: Path, results: Results) -> None:
    """Draws scores by share of the training clips: a panel per test set, a line with intervals per method."""
    claims = results.claims
    sets = list(dict.fromkeys(clips for curve in claims.curves for clips in curve.clips))
    figure = Figure(figsize=(4.8 * len(sets), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(sets)))
    for axes, clips in zip(panels, sets, strict=True):
        for number, (curve, color) in enumerate(zip(claims.curves, METHOD_COLORS, strict=True)):
            if clips not in curve.clips:
                continue
            points = [(x, score) for x, row in enumerate(curve.rows) if (score := results.score(row, clips))]
            places, scores = [x for x, _ in points], [score for _, score in points]
            values = [100 * score.value for score in scores]
            bounds = np.array([[abs(100 * bound - value) for bound in score.interval]
                               for score, value in zip(scores, values, strict=True)]).reshape(-1, 2)  # fmt: skip
            axes.errorbar(
                np.array(places) + 0.03 * number,
                values,
                bounds.T,
                marker="o",
                markersize=4,
                capsize=3,
                color=color,
                label=curve.title,
            )
        axes.set_xticks(range(len(claims.shares)), claims.shares)
        axes.set(xlabel="share of the training clips", ylabel="UAR, percent", xlim=(-0.25, len(claims.shares) - 0.65))
        axes.set_title(claims.sets.get(clips, clips), loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="lightgrey", linewidth=0.5)
        axes.legend(frameon=False, fontsize=9, loc="best")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    # No matplotlib version in the metadata, so that files are reproducible.
    form = {"format": "png", "metadata": {"Software": None}}
    if path.suffix == ".jpg":  # for rendered faces, whose noise makes PNG files large
        form = {"format": "jpg", "pil_kwargs": {"quality": 85}}
    with written(path) as unfinished:
        figure.savefig(unfinished, dpi=100, bbox_inches="tight", pad_inches=0.15, **form)

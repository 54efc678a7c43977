# SPDX-License-Identifier: Apache-2.0
"""Plots of results, drawn without pyplot's global state, so no display is needed."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emoclip.typed_text import PICTURE_TEXT

LARGE = 15  # with more classes, column names are vertical and cells are smaller


@rc_context(PICTURE_TEXT)
def draw_confusion(path: Path, metrics: dict, title: str = "") -> None:
    """Draws a confusion matrix with true classes as rows and predicted classes as columns. Each cell shows its
    percentage of the row and its number of clips; zeros are left blank, and classes without clips have no row.

    Args:
        path: PNG file to write.
        metrics: dict with `confusion_matrix`, `labels`, `uar` and `war`.
    """
    confusion = np.array(metrics["confusion_matrix"])
    names = metrics["labels"]
    occurring = np.flatnonzero(confusion.sum(axis=1))
    confusion = confusion[occurring]  # (classes with clips, C)
    shares = confusion / confusion.sum(axis=1, keepdims=True)
    is_large = len(names) > LARGE
    cell = 0.42 if is_large else 0.78  # inches
    figure = Figure(figsize=(cell * len(names), cell * len(occurring)))
    axes = figure.add_axes((0, 0, 1, 1))  # cells only; bbox_inches="tight" adds room for the labels
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=shares.max(), aspect="auto")
    for row, column in zip(*np.nonzero(confusion), strict=True):
        share, number = shares[row, column], confusion[row, column]
        text = f"{100 * share:.0f}\n{number}" if is_large else f"{100 * share:.1f}\n({number})"
        color = "white" if share > 0.55 * shares.max() else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7 if is_large else 9.5)
    axes.set_xticks(range(len(names)), names, rotation=90 if is_large else 35, ha="center" if is_large else "right")
    totals = confusion.sum(axis=1)
    axes.set_yticks(range(len(totals)), [f"{names[c]} ({n})" for c, n in zip(occurring, totals, strict=True)])
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)  # lines between the cells
    axes.set_yticks(np.arange(len(occurring) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="lightgrey", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.tick_params(labelsize=10, top=is_large, labeltop=is_large, right=is_large, labelright=is_large)
    axes.set(xlabel="said by the model", ylabel="shown by the clips (their number)")
    scores = f"UAR {100 * metrics['uar']:.1f}, WAR {100 * metrics['war']:.1f}; cells: percent of the row, clips"
    axes.set_title(f"{title}\n{scores}" if title else scores, loc="left", fontsize=11)
    figure.savefig(path, dpi=110, format="png", bbox_inches="tight", pad_inches=0.15)


@rc_context(PICTURE_TEXT)
def draw_history(path: Path, history: list[dict], title: str = "") -> None:
    """Plots the training and validation losses by epoch."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    epochs = [record["epoch"] for record in history]
    for name, label in (("loss", "training"), ("validation_loss", "validation")):
        if name in history[0]:
            axes.plot(epochs, [record[name] for record in history], marker="o", markersize=3, label=label)
    if "validation_loss" in history[0]:
        best = min(history, key=lambda record: record["validation_loss"])
        text = f"lowest, {best['validation_loss']:.3f} after epoch {best['epoch']}"
        place = (best["epoch"], best["validation_loss"])
        axes.plot(*place, marker="o", markersize=10, fillstyle="none", color="black", linestyle="none", label=text)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="lightgrey", linewidth=0.5)
    axes.legend(frameon=False)
    axes.set_title(title, loc="left")
    figure.savefig(path, dpi=110, format="png")

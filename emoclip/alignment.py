# SPDX-License-Identifier: Apache-2.0
"""Video-text alignment scores, e.g. for generated video, takes of a scene, or captioned clips.

Shapes: W windows, N reference texts.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emoclip.files import written
from emoclip.reference_texts import REFERENCE_TEXTS
from emoclip.typed_text import PICTURE_TEXT
from modeling_emoclip.label_scoring import label_texts

_TITLE_WIDTH = 72  # characters


@dataclass(eq=False, repr=False)
class EmotionAlignment:
    """The result of `pipe.alignment`: `cosine` and `percentile` for the whole video, arrays for its windows.

    The cosine is that of the text and a window; for the video it is the mean over all windows. Cosines of different
    texts or models are not comparable, since most of them lie close together. Percentiles are. A percentile is the
    percentage of reference texts that fit the video less well than the text, with ties counted half; 50 means that
    the text fits like any other, or that the model cannot distinguish faces.
    """

    video: str
    text: str | list[str]
    cosine: float | None  # None: the video has no window
    percentile: float | None  # 0 to 100
    span: tuple[float, float]  # first and last second of the video that was read
    person: list[str]  # W names
    start: np.ndarray  # (W,), seconds
    end: np.ndarray  # (W,)
    cosines: np.ndarray  # (W,)
    percentiles: np.ndarray  # (W,)
    num_reference_texts: int
    face_found: bool | None  # None: face detection was off
    error: str | None  # description of a problem with the video, if any

    def __repr__(self) -> str:
        score = "no face" if self.cosine is None else f"cosine {self.cosine:.3f}, percentile {self.percentile:.0f}"
        return f"EmotionAlignment({self.video!r}, {self.text!r}: {score})"

    def to_json(self, path: str | Path | None = None) -> str:
        """Returns all fields as JSON text, and writes it if a path is given."""
        fields = {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in asdict(self).items()}
        text = json.dumps(fields, ensure_ascii=False, indent=1)
        if path is not None:
            with written(path) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
        return text

    def plot(self, path: str | Path | None = None) -> Any:
        """Plots the percentile over time, one line per person, and returns the `matplotlib.figure.Figure`."""
        try:
            import matplotlib
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("plot needs matplotlib: pip install matplotlib") from None
        with matplotlib.rc_context(PICTURE_TEXT):
            figure = Figure(figsize=(9, 3.4), layout="constrained")
            self._draw(figure.subplots())
            if path is not None:
                with written(path) as unfinished:
                    figure.savefig(unfinished, dpi=110)
        return figure

    def _draw(self, axes) -> None:
        axes.axhline(50, color="0.6", lw=1, ls="--")
        people = list(dict.fromkeys(self.person))
        for person in people:
            rows = np.array(self.person) == person
            middle = (self.start[rows] + self.end[rows]) / 2
            axes.plot(middle, self.percentiles[rows], marker="o", ms=4, lw=2)
        ticks = {0: "no text fits less", 50: "like any text", 100: "no text fits better"}
        axes.set_yticks(list(ticks), [f"{name} {value}" for value, name in ticks.items()])
        axes.set(
            ylim=(-4, 104), xlabel="seconds", xlim=(self.start.min(), self.end.max()) if len(self.start) else None
        )
        axes.spines[["top", "right"]].set_visible(False)
        text = self.text if isinstance(self.text, str) else " / ".join(self.text)
        score = "no face found" if self.cosine is None else f"percentile {self.percentile:.0f}"
        # Wrapped by textwrap: matplotlib's own wrapping would interpret a `$` as a formula.
        title = f"“{text}” in {Path(self.video).name}: {score}"
        axes.set_title(textwrap.fill(title, _TITLE_WIDTH), loc="left")
        if len(people) > 1:
            axes.legend(axes.lines[1:], people, frameon=False)


def check_text(name: str, text: str | Sequence[str]) -> None:
    """Raises `ValueError` unless `text` is a non-empty string or a non-empty list of non-empty strings."""
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(one, str) and one.strip() for one in texts):
        raise ValueError(f"{name} is {text!r}, but must be a text or a list of texts, none of them empty")


def embed_texts(pipe, *texts: str | Sequence[str]) -> np.ndarray:
    """Encodes texts, or means of lists of texts, as the pipeline encodes labels: `(len(texts), D)`, unit length."""
    texts_by_label = label_texts({f"text {number}": text for number, text in enumerate(texts)})
    return pipe.class_embeds(texts_by_label).float().cpu().numpy()


def alignment(
    timeline, text: str | Sequence[str], reference_texts: Sequence[str] = REFERENCE_TEXTS, pipe: Any = None
) -> EmotionAlignment:
    """Scores how well the video shows what a text describes, without reading the video again.

    Args:
        text: a description, e.g. "a smile that slowly fades", or several texts, whose mean is used.
        reference_texts: the texts to compare with; by default 121 descriptions of faces.
        pipe: a pipeline with the text encoder that the timeline was made with; required after `load`.

    Raises:
        ValueError: a text is empty, or there are no reference texts.
    """
    if isinstance(reference_texts, str) or not isinstance(reference_texts, Sequence) or not reference_texts:
        raise ValueError(f"reference_texts is {reference_texts!r}, but must be a list of at least one text")
    check_text("text", text)
    for index, reference_text in enumerate(reference_texts):
        check_text(f"reference_texts[{index}]", reference_text)
    embeds = embed_texts(timeline.checked(pipe), text, *reference_texts)  # (1 + N, D)
    cosines = timeline.embeds @ embeds.T  # (W, 1 + N)
    percentiles = _percentiles(cosines)
    whole = cosines.mean(axis=0, keepdims=True) if len(cosines) else None
    return EmotionAlignment(
        video=timeline.video,
        text=text if isinstance(text, str) else list(text),
        cosine=None if whole is None else float(whole[0, 0]),
        percentile=None if whole is None else float(_percentiles(whole)[0]),
        span=timeline.span,
        person=list(map(timeline.name_of, timeline.person.tolist())),
        start=timeline.start,
        end=timeline.end,
        cosines=cosines[:, 0],
        percentiles=percentiles,
        num_reference_texts=len(reference_texts),
        face_found=timeline.face_found,
        error=timeline.error,
    )


def _percentiles(cosines: np.ndarray) -> np.ndarray:
    """Returns the percentile of column 0 among the other columns, per row."""
    of_text, others = cosines[:, :1], cosines[:, 1:]
    return 100 * ((others < of_text).mean(axis=1) + (others == of_text).mean(axis=1) / 2)


__all__ = ["EmotionAlignment", "alignment", "check_text", "embed_texts"]

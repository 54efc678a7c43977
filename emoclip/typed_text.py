# SPDX-License-Identifier: Apache-2.0
"""Text that people type: labels are parsed, and labels, names and titles are escaped for the formats they go into."""

import html
import re
from collections.abc import Sequence

# For `matplotlib.rc_context` around all code that creates text: `$` is then literal and does not start a formula.
PICTURE_TEXT = {"text.parse_math": False, "text.usetex": False}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # characters that start a spreadsheet formula (OWASP, "CSV Injection")
_MARKDOWN = re.compile(r"([\\`*\[\]|$~]|(?<!\w)_|_(?!\w)|^[#>+-]|(?<=^\d)[.)]|(?<=^\d\d)[.)])")
_WORD_JOINER = "\u2060"  # invisible; between `<` and `b` it prevents players from parsing a tag


def parse_labels(lines: Sequence[str]) -> dict[str, list[str] | None]:
    """Parses labels as people type them: `calm`, `anger + disgust`, or `calm: a relaxed face; closed lips`.

    A colon between two digits, as in `12:30`, is part of the label.

    Raises:
        ValueError: a label that stands twice, or a colon with no label before it or no description after it.
    """
    labels: dict[str, list[str] | None] = {}
    for line in filter(str.strip, lines):
        label, *rest = map(str.strip, re.split(r"(?<!\d):|:(?!\d)", line, maxsplit=1))
        colon, texts = bool(rest), [text.strip() for part in rest for text in part.split(";") if text.strip()]
        if not label:
            raise ValueError(f"{line.strip()!r} has no label before the colon")
        if label in labels:
            raise ValueError(f"the label {label!r} is given twice")
        if colon and not texts:
            raise ValueError(f"{line.strip()!r} has no description behind the colon")
        labels[label] = texts or None
    return labels


def one_line(text: str) -> str:
    """Returns `text` with line breaks and runs of whitespace collapsed to single spaces."""
    return " ".join(text.split())


def csv_cell(text: str) -> str:
    """Returns `text` as a CSV cell, prefixed with `'` if spreadsheets would interpret it as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def markdown_text(text: str) -> str:
    """Escapes `text` to one line of Markdown without tags, links, headings, table cells or formulas."""
    return _MARKDOWN.sub(r"\\\1", html.escape(one_line(text), quote=False))


def srt_text(text: str) -> str:
    """Returns `text` as one line of a SubRip cue in which players find no tag `<b>` or command `{\\an8}`.

    SubRip has no escape syntax, so an invisible U+2060 is inserted after each `<` and `{`.
    """
    return re.sub(r"([<{])", rf"\1{_WORD_JOINER}", one_line(text))


def vtt_text(text: str) -> str:
    """Escapes `text` to one line of a WebVTT cue."""
    return html.escape(one_line(text), quote=False)


__all__ = ["PICTURE_TEXT", "csv_cell", "markdown_text", "one_line", "parse_labels", "srt_text", "vtt_text"]

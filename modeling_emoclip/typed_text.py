# SPDX-License-Identifier: Apache-2.0
"""Labels, names and titles that people type, written so that every format shows them as they were typed."""

import html
import re

# For `matplotlib.rc_context`, around all that makes texts: a `$` is a `$` then, and begins no formula.
PICTURE_TEXT = {"text.parse_math": False, "text.usetex": False}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets begin a formula with, by OWASP's "CSV Injection"
_MARKDOWN = re.compile(r"([\\`*\[\]|$~]|(?<!\w)_|_(?!\w)|^[#>+-]|(?<=^\d)[.)]|(?<=^\d\d)[.)])")
_WORD_JOINER = "\u2060"  # seen by nobody; between `<` and `b` it keeps a player from reading a tag


def one_line(text: str) -> str:
    """Returns `text` without line breaks and runs of spaces."""
    return " ".join(text.split())


def csv_cell(text: str) -> str:
    """Returns `text` as a cell that no spreadsheet takes for a formula: one that looks like it begins with `'`."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def markdown_text(text: str) -> str:
    """Returns `text` as one line of Markdown without markup: no tag, link, heading, table cell or formula."""
    return _MARKDOWN.sub(r"\\\1", html.escape(one_line(text), quote=False))


def srt_text(text: str) -> str:
    """Returns `text` as one line of a SubRip cue, in which players find neither a tag `<b>` nor a command `{\\an8}`.

    SubRip has no way to escape them, so an invisible U+2060 stands behind each `<` and `{`.
    """
    return re.sub(r"([<{])", rf"\1{_WORD_JOINER}", one_line(text))


def vtt_text(text: str) -> str:
    """Returns `text` as one line of a WebVTT cue."""
    return html.escape(one_line(text), quote=False)


__all__ = ["PICTURE_TEXT", "csv_cell", "markdown_text", "one_line", "srt_text", "vtt_text"]

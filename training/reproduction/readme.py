# SPDX-License-Identifier: Apache-2.0
"""Results block of the README, and the tables of our scores and the published ones in docs/reproduction.md."""

import re
from pathlib import Path

from emoclip.files import written
from training.reproduction.claims import Claims
from training.reproduction.numbers import FAILS, HOLDS, Results
from training.reproduction.tables import markdown, row_score, score_text, title_of

BEGIN, END = "<!-- results: written by make reproduce -->", "<!-- /results -->"
BLOCK = re.compile(f"{re.escape(BEGIN)}\n(.*?)\n?{re.escape(END)}", re.DOTALL)
NOT_COMPARABLE = (
    "**Published, on real faces**, UAR / WAR in percent. With other data and OpenAI's CLIP, so only directions can be "
    "compared with the above."
)


def readme_block(results: Results) -> str:
    """Returns the text to insert between the markers: how many claims of each part hold."""
    rows = []
    for part, judged in results.judge_all().items():
        counts = [sum(verdict == wanted for _, verdict, _ in judged) for wanted in (HOLDS, FAILS)]
        rows.append([part, *map(str, (*counts, len(judged) - sum(counts)))])
    return markdown(["claims", "hold", "do not hold", "undecided"], rows)


def read_block(readme: Path) -> str:
    """Reads the current block.

    Raises:
        ValueError: the README does not have exactly one pair of markers.
    """
    found = BLOCK.findall(readme.read_text(encoding="utf-8"))
    if len(found) != 1:
        raise ValueError(f"{readme} must have one pair of lines {BEGIN} and {END}, but has {len(found)}")
    return found[0]


def write_block(readme: Path, block: str) -> None:
    """Replaces the block in the README.

    Raises:
        ValueError: as `read_block`.
    """
    read_block(readme)
    text = BLOCK.sub(lambda _: f"{BEGIN}\n{block}\n{END}", readme.read_text(encoding="utf-8"))
    with written(readme) as path:
        path.write_text(text, encoding="utf-8")


def summary(results: Results) -> str:
    """Returns the table of our scores, for the rows that claims.yaml selects."""
    claims = results.claims
    sets = claims.summary["sets"]
    head = [f"UAR, mean of {len(claims.seeds)} seeds [95 % interval]"]
    head += [title_of(claims.summary["rows"][0], clips, claims) for clips in sets]
    rows = [
        [claims.rows[row].title, *(score_text(row_score(results, row, clips)) for clips in sets)]
        for row in claims.summary["rows"]
    ]
    return markdown(head, rows)


def published(claims: Claims) -> str:
    """Returns the table of the published scores."""
    sets = list(dict.fromkeys(name for one in claims.published for name in one["scores"]))
    rows = [[one["title"], *(one["scores"].get(name, "") for name in sets), one["source"]] for one in claims.published]
    return markdown(["", *sets, "source"], rows)

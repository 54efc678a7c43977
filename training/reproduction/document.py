# SPDX-License-Identifier: Apache-2.0
"""Generates docs/reproduction.md from the stored records and claims.yaml alone."""

from pathlib import Path

import numpy as np

from emoclip.files import written
from training.data import face_vocabulary
from training.data.synthetic_faces import SyntheticFacesConfig
from training.metrics.over_seeds import over_seeds
from training.reproduction.claims import FOLDER
from training.reproduction.numbers import NOT_RUN, Results
from training.reproduction.pictures import draw_contact_sheet, draw_curves, draw_gains
from training.reproduction.readme import NOT_COMPARABLE, published, summary
from training.reproduction.tables import (
    comparison_text,
    finding_table,
    markdown,
    number,
    row_score,
    score_text,
    title_of,
    verdict_table,
)

CEILING = 0.95


def write_document(results: Results, document: Path) -> None:
    """Writes the document, and its pictures to the folder of the same name beside it."""
    claims, pictures = results.claims, document.with_suffix("")
    judged = results.judge_all()
    pictures.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet(pictures / "contact_sheet.jpg")
    draw_gains(pictures / "gains.png", judged, lambda one: "; ".join(comparison_text(one, claims)), claims.margin)
    draw_curves(pictures / "curves.png", results)
    with written(document) as path:
        path.write_text(document_text(results, judged, pictures.name), encoding="utf-8")


def document_text(results: Results, judged: dict, pictures: str) -> str:
    """Returns the text of the document.

    Args:
        judged: result of `results.judge_all()`.
        pictures: name of the folder with the pictures, beside the document.
    """
    sections = [
        (FOLDER / "head.md").read_text(encoding="utf-8").strip(),
        missing(results),
        f"## Verdicts\n\n{verdict_table(judged)}",
        f"## Scores\n\n{summary(results)}\n\n{NOT_COMPARABLE}\n\n{published(results.claims)}",
        f"![Gains of all comparisons with their 95 % intervals, coloured by verdict]({pictures}/gains.png)",
        consequences(results),
        *(part_section(part, some, results) for part, some in judged.items()),
        curves(results, pictures),
        tuning(results),
        rendered_set(results, pictures),
        all_rows(results),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def missing(results: Results) -> str:
    """Lists incomplete rows, for example after an interruption."""
    rows = [f"`{name}`" for name in results.claims.rows if not results.is_complete(name)]
    return f"**Not run with all seeds yet:** {', '.join(rows)}; `make reproduce` goes on with them." if rows else ""


def consequences(results: Results) -> str:
    """Returns the section on changes made because of the results."""
    text = results.claims.consequences.strip()
    return f"## What follows from it\n\n{text}" if text else ""


def part_section(part: str, judged: list, results: Results) -> str:
    """Returns a section with the claims of a part and their comparisons."""
    texts = [f"## {part}"]
    for claim, verdict, findings in judged:
        texts.append(f"### {claim.claim}")
        texts.append(f"**{verdict.capitalize()}**. Claimed by: {claim.source}. {claim.note}".rstrip())
        texts.append(finding_table(findings, results.claims))
    return "\n\n".join(texts)


def curves(results: Results, folder: str) -> str:
    """Returns the section with the scores at increasing shares of the training clips."""
    claims = results.claims
    rows = []
    for curve in claims.curves:
        for clips in curve.clips:
            scores = [score_text(results.score(row, clips)) for row in curve.rows]
            rows.append([curve.title, title_of(curve.rows[0], clips, claims), *scores])
    table = markdown(["method", "UAR on", *claims.shares], rows)
    picture = f"![UAR by share of the training clips]({folder}/curves.png)"
    return f"### The curves\n\nWith the same number of steps at every share of the clips.\n\n{picture}\n\n{table}"


def tuning(results: Results) -> str:
    """Returns the section on tuning, with validation scores of the first seed, the one that all settings have."""
    rows = []
    for one in results.claims.tuning:
        for name in (one.used, *one.tried):
            score = results.score(name, one.clips, one.metric)
            value = NOT_RUN if score is None else number(one.metric, score.by_seed[score.seeds[0]])
            rows.append([results.claims.rows[name].title, value, "used" if name == one.used else ""])
    table = markdown(["", f"UAR on validation clips, seed {results.claims.seeds[0]}", ""], rows)
    return f"## What was tuned\n\n{results.claims.tried.strip()}\n\n{table}"


def rendered_set(results: Results, folder: str) -> str:
    """Returns the section on the rendered clips: parameters taken from the rendering code, and sample pictures."""
    config, sizes, emotions = SyntheticFacesConfig(), results.claims.sizes, face_vocabulary.EMOTIONS
    text = (FOLDER / "rendered_set.md").read_text(encoding="utf-8").strip()
    text = text.format(
        **vars(config) | sizes,
        num_emotions=len(emotions),
        num_movements=len(face_vocabulary.COMPONENTS),
        num_pairs=len(face_vocabulary.FORBIDDEN_PAIRS),
        num_dynamics=len(face_vocabulary.HELD_OUT_DYNAMICS),
    )
    kind = {name: "held out" if name in face_vocabulary.HELD_OUT_EMOTIONS else "seen" for name in emotions}
    movements = {name: ", ".join(f"{one} {p:g}" for one, p in parts) or "nothing" for name, parts in emotions.items()}
    rows = [[name, kind[name], movements[name]] for name in emotions]
    table = markdown(["emotion", "in training", "its movements, with their probabilities"], rows)
    picture = f"![The first test clips of each emotion, and two clips of the order task]({folder}/contact_sheet.jpg)"
    return "\n\n".join([text, ceiling(results), picture, table])


def ceiling(results: Results) -> str:
    """Reports the highest of all scores and whether it is near the ceiling."""
    scores = [
        (score.value, name, clips)
        for name in results.claims.rows
        for clips in ("test", "held_out")
        if (score := row_score(results, name, clips)) is not None
    ]
    if not scores:
        return ""
    value, name, clips = max(scores)
    says = "so no method is at the ceiling" if value < CEILING else "which is too near the ceiling"
    where = title_of(name, clips, results.claims)
    return f"The highest of all scores is {number('uar', value)} ({results.claims.rows[name].title}; {where}), {says}."


def all_rows(results: Results) -> str:
    """Returns the section with all rows: recipe, score, and origin of the runs."""
    found = {name: records for name, records in results.records.items() if records}
    rows = []
    for name, records in found.items():
        row, metric = results.claims.rows[name], "pcc" if "pcc" in records[0]["sets"]["test"] else "uar"
        score = results.score(name, "test", metric)
        std = over_seeds(score.by_seed)["std"] if score else None
        differences = " ".join(f"`{one}`" for one in results.claims.differences(name))
        origins = sorted({f"{one['commit']}, {one['date'][:10]}" for one in records})
        rows.append(
            [
                f"`{name}`: {row.title}",
                f"[{row.recipe}](../training/reproduction/{row.recipe}.yaml) {differences}",
                score_text(score),
                "" if std is None else number(metric, std),
                f"{len(records)} x {np.mean([one['seconds'] for one in records]):.0f} s",
                "; ".join(origins),
            ]
        )
    every = [one for records in found.values() for one in records]
    hours, where = sum(one["seconds"] for one in every) / 3600, sorted({one["hardware"] for one in every})
    text = f"Test UAR (severities: PCC). {len(every)} runs took {hours:.1f} hours in all, on {'; '.join(where)}."
    head = ["row", "recipe, and what is different", "test", "std over seeds", "runs, mean time", "commit, date"]
    return f"## All rows\n\n{text}\n\n{markdown(head, rows)}"

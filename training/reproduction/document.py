# SPDX-License-Identifier: Apache-2.0
"""docs/reproduction.md and the README's block of results, from the kept records and claims.yaml alone."""

import re
from pathlib import Path

import numpy as np

from training.data import face_vocabulary
from training.data.synthetic_faces import SyntheticFacesConfig
from training.metrics.over_seeds import over_seeds
from training.predictions import whole_file
from training.reproduction.claims import Claims
from training.reproduction.numbers import HOLDS, LOWER_IS_BETTER, NOT_RUN, Finding, Results, Score
from training.reproduction.pictures import draw_contact_sheet, draw_curves, draw_gains

BEGIN, END = "<!-- results -->", "<!-- /results -->"
CORRELATIONS = ("pcc", "ccc")
CEILING = 0.95
METRIC_NAMES = {"ece": "ECE", "ece_calibrated": "ECE with temperature", "changes": "clips that change"}
HEAD = """# The papers in miniature

Written by `make reproduce` from [reproduction/results.json](reproduction/results.json), where every run says its recipe,
seed, commit, date and what came out for each clip; [claims.yaml](../training/reproduction/claims.yaml) says which runs
there are and what is compared. Nothing here is about people: the clips are drawn (below), the CLIP is
[a tiny one](../examples/tiny_clip) that knows them. It shows whether this implementation behaves as the papers say, and
whether what it does differently is better.

**How a verdict is reached**, by rule. A gain is the mean over seeds of the score of one method minus that of another
on the same clips; for errors (ECE, clips that change) minus is turned round. Its 95 % interval in brackets is over
seeds and clips: both are drawn anew 1,000 times, the same ones for both methods. *Better* **holds** if the interval is
above 0, and **does not hold** if it lies below {margin}, so that whatever gain there may be is none to speak of; else it
is **undecided** at this size. *No better* is the same the other way round. A claim holds if all its comparisons do, and
does not hold if one does not. UAR is the mean recall of the classes, in percent; PCC and CCC are correlations.
"""


def write(claims: Claims, records: list[dict], document: Path) -> None:
    """The document, and its pictures in the folder beside it."""
    results = Results(claims, records)
    judged = {part: [(claim, *results.judge(claim)) for claim in some] for part, some in claims.parts.items()}
    pictures = document.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet(pictures / "contact_sheet.png")
    draw_gains(pictures / "gains.png", judged, lambda one: "; ".join(comparison_text(one, claims)), claims.margin)
    draw_curves(pictures / "curves.png", results)
    sections = [
        HEAD.format(margin=points(claims.margin)).strip(),
        missing(results),
        verdicts(judged),
        f"![Gains of all comparisons with their 95 % intervals, coloured by verdict]({pictures.name}/gains.png)",
        *(section(part, some, claims) for part, some in judged.items()),
        curves(results, pictures.name),
        tuning(results),
        rendered_set(results, pictures.name),
        consequences(claims),
        all_rows(results),
    ]
    with whole_file(document) as path:
        path.write_text("\n\n".join(filter(None, sections)) + "\n", encoding="utf-8")


def write_block(readme: Path, block: str) -> None:
    """Puts the block between the markers of the README.

    Raises:
        ValueError: it has no markers.
    """
    text = readme.read_text(encoding="utf-8")
    changed, number = re.subn(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{block}\n{END}", text, flags=re.DOTALL)
    if number != 1:
        raise ValueError(f"{readme} must have one {BEGIN} ... {END}, but has {number}")
    with whole_file(readme) as path:
        path.write_text(changed, encoding="utf-8")


def readme_block(claims: Claims, records: list[dict]) -> str:
    """Verdicts, our numbers, and those of the papers apart from them."""
    results = Results(claims, records)
    judged = {part: [(claim, *results.judge(claim)) for claim in some] for part, some in claims.parts.items()}
    return "\n\n".join([verdicts(judged, heading=False), summary(results), published(claims)])


def verdicts(judged: dict, heading: bool = True) -> str:
    """A line for each claim."""
    rows = [
        [part, claim.claim, f"**{verdict}**", f"{sum(f.verdict == HOLDS for f in findings)} of {len(findings)}"]
        for part, some in judged.items()
        for claim, verdict, findings in some
    ]
    table = markdown(["", "claim", "verdict", "comparisons that hold"], rows)
    return f"## Verdicts\n\n{table}" if heading else table


def missing(results: Results) -> str:
    """Rows that are not there, as after an interrupted run."""
    rows = [name for name in results.claims.rows if not results.is_complete(name)]
    return f"**Not run, or not with all seeds yet:** {', '.join(f'`{name}`' for name in rows)}." if rows else ""


def section(part: str, judged: list, claims: Claims) -> str:
    """Each claim of a part with its comparisons."""
    texts = [f"## {part}"]
    for claim, verdict, findings in judged:
        table = markdown(
            ["comparison", "on", "first", "second", "gain", "verdict"], [line(one, claims) for one in findings]
        )
        texts += [f"### {claim.claim}\n\n**{verdict}** (claimed by: {claim.source}). {claim.note}".rstrip(), table]
    return "\n\n".join(texts)


def line(finding: Finding, claims: Claims) -> list[str]:
    """A comparison's line of a table."""
    comparison = finding.comparison
    names, clips = comparison_text(comparison, claims)
    names += f" ({comparison.note})" if comparison.note else ""
    if finding.first is None:
        return [names, clips, "", "", "", NOT_RUN]
    gain = gain_text(finding)
    return [names, clips, score_text(finding.first), score_text(finding.second), gain, finding.verdict]


def comparison_text(comparison, claims: Claims) -> tuple[str, str]:
    """What is better than what, and on which clips by which score, where they differ for each."""
    (first, clips, metric), (second, other_clips, other_metric) = comparison.operands
    sign = ">" if comparison.better else "not >"
    names = (
        f"{claims.rows[first].title} {sign} {claims.rows[second].title}"
        if first != second
        else claims.rows[first].title
    )
    if comparison.more_than is not None:
        names += f", by more than {comparison_text(comparison.more_than, claims)[0]}"
    where = " > ".join(dict.fromkeys([title_of(first, clips, claims), title_of(second, other_clips, claims)]))
    by = " < ".join(dict.fromkeys(METRIC_NAMES.get(one, one.upper()) for one in (metric, other_metric)))
    return names, where if by == "UAR" else f"{where}, {by}"


def title_of(row: str, clips: str, claims: Claims) -> str:
    """Of an evaluation set of a row."""
    return claims.sets.get(f"{claims.rows[row].recipe}/{clips}") or claims.sets.get(clips, clips)


def curves(results: Results, folder: str) -> str:
    """The scores at growing shares of the clips."""
    rows = []
    for curve in results.claims.curves:
        for clips in curve.clips:
            scores = [score_text(results.score(row, clips)) for row in curve.rows]
            rows.append([curve.title, title_of(curve.rows[0], clips, results.claims), *scores])
    table = markdown(["method", "UAR on", *results.claims.shares], rows)
    picture = f"![UAR by share of the training clips]({folder}/curves.png)"
    return f"### Scores by share of the training clips\n\nThe same number of steps at every share.\n\n{table}\n\n{picture}"


def tuning(results: Results) -> str:
    """What was tried, and how it scored on validation clips."""
    rows = []
    for one in results.claims.tuning:
        for name in (one.used, *one.tried):
            score = results.score(name, one.clips, one.metric)
            first = over_seeds({} if score is None else {score.seeds[0]: score.by_seed[score.seeds[0]]})["mean"]
            used = "used" if name == one.used else ""
            rows.append([results.claims.rows[name].title, NOT_RUN if first is None else f"{100 * first:.1f}", used])
    table = markdown(["tried", "UAR on validation clips, seed 0", ""], rows)
    return f"## What was tuned\n\n{results.claims.tried.strip()}\n\n{table}"


def rendered_set(results: Results, folder: str) -> str:
    """The parameters of the clips, from the code that draws them, and what they look like."""
    config, claims = SyntheticFacesConfig(), results.claims
    words = {
        name: ", ".join(f"{c} {p:g}" for c, p in parts) or "nothing"
        for name, parts in face_vocabulary.EMOTIONS.items()
    }
    kinds = {name: "held out" if name in face_vocabulary.HELD_OUT_EMOTIONS else "seen" for name in words}
    table = markdown(
        ["emotion", "", "movements and their probabilities"], [[n, kinds[n], w] for n, w in words.items()]
    )
    text = f"""## The rendered set

{config.num_frames} frames of {config.frame_size} pixels at {config.fps} a second; {claims.sizes["all"]:,} clips to train
on, {config.num_validation} to choose on, {claims.sizes["per_class"]} to test for each of {len(words)} emotions. Every
clip shows a person of its own, so no identity is on two sides. A face does some of
{len(face_vocabulary.COMPONENTS)} movements, each held, appearing, fading or brief;
{len(face_vocabulary.FORBIDDEN_PAIRS)} pairs of them, of which the held-out emotions are made, and
{len(face_vocabulary.HELD_OUT_DYNAMICS)} ways of moving occur in tests alone. What else varies: face, hair, glasses, light,
pose, blinks, a movement that does not belong, noise. In `order`, clips and the same clips backwards are the two classes;
in `compounds` a face shows two seen emotions at once."""
    picture = f"![Six people for each emotion, the middle frame; below, two clips of the order task]({folder}/contact_sheet.png)"
    return "\n\n".join([text, ceiling(results), table, picture])


def ceiling(results: Results) -> str:
    """The best score of any method on any test set, which must leave room to be better."""
    scores = [
        (score.value, name, clips)
        for name in results.claims.rows
        for clips in ("test", "held_out")
        if (score := _score_or_none(results, name, clips)) is not None
    ]
    if not scores:
        return ""
    value, name, clips = max(scores)
    text = "so there is no ceiling" if value < CEILING else "which is too near the ceiling to tell methods apart"
    title = title_of(name, clips, results.claims)
    return f"The best of all scores is {100 * value:.1f} ({results.claims.rows[name].title}, {title}), {text}."


def _score_or_none(results: Results, name: str, clips: str) -> Score | None:
    records = results.records[name]
    return results.score(name, clips) if records and clips in records[0]["sets"] else None


def consequences(claims: Claims) -> str:
    """What was changed because of the results."""
    return f"## What follows\n\n{claims.consequences.strip()}" if claims.consequences else ""


def all_rows(results: Results) -> str:
    """Every row: what it is, its score, and where the runs come from."""
    rows = []
    for name, row in results.claims.rows.items():
        records = results.records[name]
        if records:
            metric = "pcc" if "pcc" in records[0]["sets"]["test"] else "uar"
            score = results.score(name, "test", metric)
            seeds = over_seeds(score.by_seed if score else {})
            rows.append(
                [
                    f"`{name}`: {row.title}",
                    f"[{row.recipe}](../training/reproduction/{row.recipe}.yaml) {' '.join(f'`{one}`' for one in results.claims.differences(name))}",
                    score_text(score),
                    "" if seeds["std"] is None else number(metric, seeds["std"]),
                    f"{len(records)}",
                    f"{np.mean([one['seconds'] for one in records]):.0f}",
                    ", ".join(sorted({f"{one['commit']} {one['date'][:10]}" for one in records})),
                ]
            )
    head = ["row", "recipe, and what is different", "test", "std over seeds", "runs", "seconds of one", "commit, date"]
    hours = sum(one["seconds"] for some in results.records.values() for one in some) / 3600
    where = sorted({one["hardware"] for some in results.records.values() for one in some})
    text = f"UAR on the test clips of the recipe (severities: PCC). {hours:.1f} hours of one core each, on {'; '.join(where)}."
    return f"## All rows\n\n{text}\n\n{markdown(head, rows)}"


def summary(results: Results) -> str:
    """The README's table of our numbers."""
    rows = []
    for one in results.claims.summary:
        scores = [score_text(_score_or_none(results, one["row"], clips)) for clips in ("test", "held_out")]
        rows.append([results.claims.rows[one["row"]].title, *scores])
    head = [
        f"rendered faces, UAR, {len(results.claims.seeds)} seeds",
        *(results.claims.sets[c] for c in ("test", "held_out")),
    ]
    return markdown(head, rows)


def published(claims: Claims) -> str:
    """The papers' numbers, which are of other data."""
    sets = list(claims.published[0]["scores"])
    head = ["**published, on real faces** (UAR / WAR)", *sets, "source"]
    rows = [[one["title"], *(one["scores"].get(name, "") for name in sets), one["source"]] for one in claims.published]
    return markdown(head, rows)


def score_text(score: Score | None) -> str:
    """With its interval."""
    if score is None:
        return ""
    bounds = score.interval
    text = number(score.metric, score.value)
    return text if bounds is None else f"{text} [{', '.join(number(score.metric, bound) for bound in bounds)}]"


def gain_text(finding: Finding) -> str:
    """With its interval and sign."""
    metric = finding.first.metric
    bounds = [number(metric, bound, sign="+") for bound in finding.bounds or ()]
    return f"{number(metric, finding.gain, sign='+')} [{', '.join(bounds)}]"


def number(metric: str, value: float, sign: str = "") -> str:
    """Percent, but for correlations; never a zero with a minus."""
    text = f"{value:{sign}.3f}" if metric in CORRELATIONS else f"{100 * value:{sign}.1f}"
    return re.sub(r"^-(0\.0+)$", r"\1", text)


def points(margin: float) -> str:
    """As the verdict's rule says it."""
    return f"{100 * margin:g} points (correlations: {margin:g})"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines)

# SPDX-License-Identifier: Apache-2.0
"""Formats scores, gains and comparisons as text and Markdown tables."""

import re

from training.reproduction.claims import Claims, Comparison
from training.reproduction.numbers import HOLDS, NOT_RUN, Finding, Results, Score

CORRELATIONS = ("pcc", "ccc")
METRIC_NAMES = {"ece": "ECE", "ece_calibrated": "ECE with temperature", "changes": "clips that change"}


def verdict_table(judged: dict) -> str:
    """Formats the verdicts as a table, one line per claim.

    Args:
        judged: result of `Results.judge_all`.
    """
    rows = []
    for part, some in judged.items():
        for number, (claim, verdict, findings) in enumerate(some):
            holding = sum(finding.verdict == HOLDS for finding in findings)
            rows.append(
                ["" if number else f"**{part}**", claim.claim, f"**{verdict}**", f"{holding} of {len(findings)}"]
            )
    return markdown(["", "claim", "verdict", "comparisons that hold"], rows)


def finding_table(findings: list[Finding], claims: Claims) -> str:
    """Formats the comparisons of a claim as a table, one line each."""
    rows = []
    for finding in findings:
        comparison = finding.comparison
        names, clips = comparison_text(comparison, claims)
        names += f" ({comparison.note})" if comparison.note else ""
        scores = [score_text(finding.first), score_text(finding.second), gain_text(finding)]
        rows.append([names, clips, *scores, finding.verdict])
    return markdown(["comparison", "on", "first", "second", "gain", "verdict"], rows)


def comparison_text(comparison: Comparison, claims: Claims) -> tuple[str, str]:
    """Returns the names of the compared rows, and the evaluation sets with the metrics, unless these are UAR."""
    (first, clips, metric), (second, other_clips, other_metric) = comparison.operands
    sign = ">" if comparison.better else "not >"
    names = " ".join(dict.fromkeys([claims.rows[first].title, sign, claims.rows[second].title]))
    if first == second:
        names = claims.rows[first].title
    if comparison.more_than is not None:
        where = title_of(comparison.more_than.operands[0][0], comparison.more_than.clips, claims)
        names += f", by more than on {where}"
    where = " > ".join(dict.fromkeys([title_of(first, clips, claims), title_of(second, other_clips, claims)]))
    by = " < ".join(dict.fromkeys(METRIC_NAMES.get(one, one.upper()) for one in (metric, other_metric)))
    return names, where if by == "UAR" else f"{where}: {by}"


def title_of(row: str, clips: str, claims: Claims) -> str:
    """Returns the title of an evaluation set of a row."""
    return claims.sets.get(f"{claims.rows[row].recipe}/{clips}") or claims.sets.get(clips, clips)


def row_score(results: Results, row: str, clips: str, metric: str = "uar") -> Score | None:
    """Returns the row's score; `None` if there is none, or the recipe has no such evaluation set."""
    records = results.records[row]
    return results.score(row, clips, metric) if records and clips in records[0]["sets"] else None


def score_text(score: Score | None) -> str:
    """Formats a score with its interval."""
    if score is None:
        return ""
    bounds = score.interval
    text = number(score.metric, score.value)
    return text if bounds is None else f"{text} [{', '.join(number(score.metric, bound) for bound in bounds)}]"


def gain_text(finding: Finding) -> str:
    """Formats a gain with its interval and signs."""
    if finding.first is None:
        return NOT_RUN
    metric = finding.first.metric
    bounds = [number(metric, bound, sign="+") for bound in finding.bounds or ()]
    return f"{number(metric, finding.gain, sign='+')} [{', '.join(bounds)}]"


def number(metric: str, value: float, sign: str = "") -> str:
    """Formats a value in percent, except for correlations; zero has no sign."""
    text = f"{value:{sign}.3f}" if metric in CORRELATIONS else f"{100 * value:{sign}.1f}"
    return re.sub(r"^[+-](0\.0+)$", r"\1", text)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Formats a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines)

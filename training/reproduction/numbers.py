# SPDX-License-Identifier: Apache-2.0
"""Computes scores with 95 % intervals over seeds and clips, gains, and verdicts from the records of runs.

A score is a function of sums over the clips, so resampling clips means resampling sums (metrics/bootstrap.py).
S seeds, N clips, K sums, R resamples.
"""

from dataclasses import dataclass

import numpy as np

from training.compare.calibration import NUM_BINS, bins_of
from training.metrics.bootstrap import interval, resampled_sums
from training.metrics.scores import powers, scores_of_powers
from training.reproduction.claims import Claim, Claims, Comparison

LOWER_IS_BETTER = ("ece", "ece_calibrated", "changes")
HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided", "not run"
PER_CLIP = ("clips", "groups", "labels", "truth", "predicted", "confidence", "calibrated_confidence")


@dataclass
class Score:
    """Score of one row on one evaluation set by one metric."""

    metric: str
    seeds: list[int]
    clips: list[str]
    groups: list[str]
    sums: np.ndarray
    """`(S, N, K)`: contribution of each clip to the sums that determine the metric."""

    @property
    def by_seed(self) -> dict[int, float]:
        values = SCORES[self.metric](self.sums.sum(axis=1))  # (S,)
        return dict(zip(self.seeds, values.tolist(), strict=True))

    @property
    def value(self) -> float:
        return float(np.mean(list(self.by_seed.values())))

    @property
    def interval(self) -> list[float] | None:
        return interval(over_drawn_seeds(resampled([self])[0]))


@dataclass
class Finding:
    """Result of a comparison; without scores if one of its rows has not been run."""

    comparison: Comparison
    verdict: str
    first: Score | None = None
    second: Score | None = None
    gain: float | None = None
    """Gain of the first over the second; for errors, the reduction."""
    bounds: list[float] | None = None
    """95 % interval of the gain."""


class Results:
    """Scores and verdicts of all finished runs.

    Args:
        records: result of `runs.collect` or `records.load_kept`.
    """

    def __init__(self, claims: Claims, records: list[dict]):
        self.claims = claims
        self.records = {row: [one for one in records if one["row"] == row] for row in claims.rows}

    def is_complete(self, row: str) -> bool:
        """Returns whether all runs of a row are finished."""
        return len(self.records[row]) == sum(run.row == row for run in self.claims.runs())

    def score(self, row: str, clips: str, metric: str = "uar") -> Score | None:
        """Computes a score; `None` if the row is incomplete or has no such score, as without a fitted temperature."""
        if not self.is_complete(row):
            return None
        seeds = sorted({one["seed"] for one in self.records[row]})
        outcomes = [self._outcome(row, seed, clips) for seed in seeds]
        if not all(NEEDED.get(metric, "hits") in outcome for outcome in outcomes):
            return None
        if metric == "changes":  # one value over all seeds, instead of one per seed
            hits = np.stack([outcome["hits"] for outcome in outcomes])  # (S, N)
            seeds, sums = seeds[:1], _changes(hits)[None]
        else:
            sums = np.stack([SUMS[metric](outcome) for outcome in outcomes])
        return Score(metric, seeds, outcomes[0]["clips"].tolist(), outcomes[0]["groups"].tolist(), sums)

    def _outcome(self, row: str, seed: int, clips: str) -> dict[str, np.ndarray]:
        """Collects the per-clip outcomes `(N, ...)` of one seed from all parts, ordered by clip name."""
        parts = [one["sets"][clips] for one in self.records[row] if one["seed"] == seed]
        parts = [{"groups": part["clips"]} | part for part in parts]
        found = {name: np.concatenate([part[name] for part in parts]) for name in PER_CLIP if name in parts[0]}
        if "hits" in parts[0]:
            found["hits"] = np.array([hit == "1" for part in parts for hit in part["hits"]])
        order = np.argsort(found["clips"])
        return {name: values[order] for name, values in found.items()}

    def compare(self, comparison: Comparison, seed: int = 0) -> Finding:
        """Computes the gain of a comparison, its interval and the verdict."""
        first, second = (self.score(*operand) for operand in comparison.operands)
        if first is None or second is None:
            return Finding(comparison, NOT_RUN)
        gain, gains = _gain(first, second, seed)
        if comparison.more_than is not None:
            other = self.compare(comparison.more_than, seed=1)
            if other.first is None:
                return Finding(comparison, NOT_RUN)
            other_gain, other_gains = _gain(other.first, other.second, seed=1)
            gain, gains = gain - other_gain, gains - other_gains
        bounds = interval(gains)
        return Finding(comparison, self.verdict(comparison, bounds), first, second, gain, bounds)

    def verdict(self, comparison: Comparison, bounds: list[float] | None) -> str:
        """Judges the interval of a gain: above 0 is a gain, below `margin` is no gain, anything else is undecided."""
        if bounds is None:
            return UNDECIDED
        is_gain = bounds[0] > 0
        if not is_gain and bounds[1] >= self.claims.margin:
            return UNDECIDED
        return HOLDS if is_gain == (comparison.better is not None) else FAILS

    def judge(self, claim: Claim) -> tuple[str, list[Finding]]:
        """Judges a claim: it holds if all its comparisons hold, and fails if one fails."""
        findings = [self.compare(comparison) for comparison in claim.comparisons]
        verdicts = {finding.verdict for finding in findings}
        return next(v for v in (FAILS, NOT_RUN, UNDECIDED, HOLDS) if v in verdicts), findings

    def judge_all(self) -> dict[str, list[tuple[Claim, str, list[Finding]]]]:
        """Judges all claims: part -> (claim, verdict, findings) of each claim."""
        return {part: [(one, *self.judge(one)) for one in claims] for part, claims in self.claims.parts.items()}


def resampled(scores: list[Score], seed: int = 0) -> list[np.ndarray]:
    """Resamples each score to `(R, S)`, with the same clips for all scores and seeds."""
    shapes = [score.sums.shape for score in scores]
    columns = [
        np.moveaxis(score.sums, 0, 1).reshape(shape[1], -1) for score, shape in zip(scores, shapes, strict=True)
    ]
    sums = resampled_sums(np.concatenate(columns, axis=1), scores[0].groups, seed)  # (R, all S x K)
    ends = np.cumsum([part.shape[1] for part in columns])[:-1]
    parts = [
        part.reshape(len(part), shape[0], shape[2])
        for part, shape in zip(np.split(sums, ends, axis=1), shapes, strict=True)
    ]
    return [SCORES[score.metric](part) for score, part in zip(scores, parts, strict=True)]


def over_drawn_seeds(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Averages `(R, S)` to `(R,)` over S seeds drawn with replacement, and corrects the variance of the mean, which is
    otherwise too small by the factor (S - 1) / S."""
    num_seeds = values.shape[1]
    if num_seeds == 1:
        return values[:, 0]
    drawn = np.random.default_rng(seed).integers(num_seeds, size=values.shape)
    center = values.mean(axis=1)
    means = np.take_along_axis(values, drawn, axis=1).mean(axis=1)
    return center + (means - center) * np.sqrt(num_seeds / (num_seeds - 1))


def _gain(first: Score, second: Score, seed: int) -> tuple[float, np.ndarray]:
    """Computes the gain of the first over the second and its resamples `(R,)`, paired by clip and seed."""
    if first.clips != second.clips:
        raise ValueError(f"{first.metric} and {second.metric} are not of the same clips, {first.clips[:1]}...")
    if first.seeds != second.seeds and min(len(first.seeds), len(second.seeds)) > 1:
        raise ValueError(f"seeds {first.seeds} cannot be compared with seeds {second.seeds}")
    sign = -1 if first.metric in LOWER_IS_BETTER else 1
    values, other_values = resampled(
        [first, second], seed
    )  # a row with a single seed is paired with each seed of the other
    return sign * (first.value - second.value), sign * over_drawn_seeds(values - other_values, seed)


# The functions below compute outcome -> (N, K) and sums (..., K) -> scores (...).


def _recall_sums(outcome: dict) -> np.ndarray:
    is_class = outcome["labels"][:, None] == np.unique(outcome["labels"])  # (N, C)
    return np.concatenate([is_class, is_class & outcome["hits"][:, None]], axis=1).astype(float)


def _uar(sums: np.ndarray) -> np.ndarray:
    present, found = np.split(sums, 2, axis=-1)
    return np.nanmean(np.divide(found, present, out=np.full(found.shape, np.nan), where=present > 0), axis=-1)


def _war(sums: np.ndarray) -> np.ndarray:
    present, found = np.split(sums, 2, axis=-1)
    return found.sum(axis=-1) / present.sum(axis=-1)


def _changes(hits: np.ndarray) -> np.ndarray:
    """Computes the sums `(N, 2)` of the share of clips that are right for some seeds only, from hits `(S, N)`."""
    return np.stack([np.ones(hits.shape[1]), hits.any(axis=0) & ~hits.all(axis=0)], axis=1)


def _bin_sums(outcome: dict, name: str) -> np.ndarray:
    confidence = outcome[name].astype(float)
    in_bin = np.eye(NUM_BINS)[bins_of(confidence)]  # (N, bins)
    return np.concatenate([np.ones((len(confidence), 1)), in_bin * (confidence - outcome["hits"])[:, None]], axis=1)


def _correlation_sums(outcome: dict) -> np.ndarray:
    pairs = zip(outcome["truth"].T, outcome["predicted"].T, strict=True)
    return np.concatenate([powers(truth, predicted) for truth, predicted in pairs], axis=1)


def _correlation(name: str, sums: np.ndarray) -> np.ndarray:
    """Computes a correlation, averaged over the targets."""
    of_targets = sums.reshape(-1, 9)  # see `powers`
    return scores_of_powers(of_targets)[name].reshape(*sums.shape[:-1], -1).mean(axis=-1)


SUMS = {
    "uar": _recall_sums,
    "war": _recall_sums,
    "ece": lambda outcome: _bin_sums(outcome, "confidence"),
    "ece_calibrated": lambda outcome: _bin_sums(outcome, "calibrated_confidence"),
    "pcc": _correlation_sums,
    "ccc": _correlation_sums,
}
NEEDED = {"ece": "confidence", "ece_calibrated": "calibrated_confidence", "pcc": "truth", "ccc": "truth"}


def _ece(sums: np.ndarray) -> np.ndarray:
    return np.abs(sums[..., 1:]).sum(axis=-1) / sums[..., 0]


SCORES = {
    "uar": _uar,
    "war": _war,
    "ece": _ece,
    "ece_calibrated": _ece,
    "changes": lambda sums: sums[..., 1] / sums[..., 0],
    "pcc": lambda sums: _correlation("pcc", sums),
    "ccc": lambda sums: _correlation("ccc", sums),
}

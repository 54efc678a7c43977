# SPDX-License-Identifier: Apache-2.0
"""How far a score would move with other clips of the same kind: 95 % intervals by the bootstrap.

Every score here is a function of sums over the clips, so that a resample is one row of a matrix product. N clips, S
sums, U units that are drawn: clips, or groups of clips; R resamples.
"""

from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 1000
SHARE = 0.95


def resampled_sums(clip_sums: np.ndarray, groups: Sequence[str] | None = None, seed: int = 0) -> np.ndarray:
    """`(N, S)` -> `(R, S)`: sums over as many units as there are, drawn with replacement.

    Args:
        groups: `(N,)`; clips of the same group are drawn together.
    """
    units = clip_sums
    if groups is not None:
        _, numbers = np.unique(groups, return_inverse=True)
        units = np.zeros((numbers.max() + 1, clip_sums.shape[1]))
        np.add.at(units, numbers, clip_sums)
    # Units with the same sums are all one: of 2,000 clips in 11 classes, found or not found, 22 are left.
    kinds, counts = np.unique(units, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(units), counts / len(units), NUM_RESAMPLES)  # (R, kinds)
    return draws @ kinds


def interval(values: np.ndarray) -> list[float] | None:
    """`[low, high]` that hold the middle 95 % of R values; `None` if the score is undefined in more than 5 % of the
    resamples, as of a class with a handful of clips."""
    defined = values[np.isfinite(values)]
    if len(defined) < SHARE * len(values):
        return None
    return [float(value) for value in np.quantile(defined, [(1 - SHARE) / 2, (1 + SHARE) / 2])]

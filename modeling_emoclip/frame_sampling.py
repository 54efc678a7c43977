# SPDX-License-Identifier: Apache-2.0
"""Frame sampling: pure functions from the number of frames of a clip to indices of frames.

Each returns `(num_frames,)` indices, int64, sorted, in `[0, total_num_frames)`, and raises a ValueError for a number
below 1. Where a clip has fewer frames than wanted, they are repeated evenly, so that none weighs more than the others.
"""

import numpy as np


def segment_middle(total_num_frames: int, num_frames: int) -> np.ndarray:
    """Returns the middle frame of each of `num_frames` equal segments (DFER-CLIP at test time, arXiv 2308.13382)."""
    check_counts(total_num_frames=total_num_frames, num_frames=num_frames)
    return (2 * np.arange(num_frames, dtype=np.int64) + 1) * total_num_frames // (2 * num_frames)


def segment_random(total_num_frames: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a random frame of each of `num_frames` equal segments (DFER-CLIP in training)."""
    check_counts(total_num_frames=total_num_frames, num_frames=num_frames)
    bounds = np.arange(num_frames + 1, dtype=np.int64) * total_num_frames // num_frames
    return rng.integers(bounds[:-1], np.maximum(bounds[1:], bounds[:-1] + 1))


def strided_window(
    total_num_frames: int,
    num_frames: int,
    stride: int,
    start: int | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Returns frames that are `stride` apart, from `start`, drawn by `rng`, or centred (EmoCLIP, arXiv 2310.16640).

    A clip that is too short for the window gives the middles of `num_frames` segments, which is a smaller stride.
    EmoCLIP's released code runs backwards from the end there; here time always runs forwards.
    """
    check_counts(total_num_frames=total_num_frames, num_frames=num_frames, stride=stride)
    if start is not None and not 0 <= start < total_num_frames:
        raise ValueError(f"start is {start}, but must be in [0, total_num_frames={total_num_frames})")
    span = (num_frames - 1) * stride + 1
    room = total_num_frames - (start or 0) - span
    if room < 0:
        return (start or 0) + segment_middle(total_num_frames - (start or 0), num_frames)
    if start is None:
        start = room // 2 if rng is None else int(rng.integers(room + 1))
    return start + stride * np.arange(num_frames, dtype=np.int64)


# The random strategies have names of their own: an rng that happens to be given must not make evaluation random.
RANDOM_STRATEGIES = ("segment_random", "strided_window_random")
STRATEGIES = ("segment_middle", "segment_random", "strided_window", "strided_window_random")


def check_strategy(strategy: str) -> None:
    """Raises a ValueError that lists the strategies unless `strategy` is one of them."""
    if strategy not in STRATEGIES:
        raise ValueError(f"frame_sampling is {strategy!r}, but must be one of {', '.join(STRATEGIES)}")


def sample_frames(
    strategy: str,
    total_num_frames: int,
    num_frames: int,
    stride: int = 1,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Returns the frames that one of `STRATEGIES` chooses; random ones require `rng`, the others ignore it."""
    check_strategy(strategy)
    if strategy in RANDOM_STRATEGIES and rng is None:
        raise ValueError(f"frame_sampling {strategy!r} is random: it needs a seed or an rng (numpy.random.Generator)")
    if strategy == "segment_middle":
        return segment_middle(total_num_frames, num_frames)
    if strategy == "segment_random":
        return segment_random(total_num_frames, num_frames, rng)
    window_rng = rng if strategy == "strided_window_random" else None
    return strided_window(total_num_frames, num_frames, stride, rng=window_rng)


def check_counts(**numbers: int) -> None:
    """Raises a ValueError that names the first number which is not an integer of at least 1."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
            raise ValueError(f"{name} is {number!r}, but must be a whole number from 1 ({numbers})")

# SPDX-License-Identifier: Apache-2.0
"""Which frames of a clip: pure functions from a number of frames to indices.

Every function returns `num_frames` indices, int64, sorted, each in `[0, total_num_frames)`. A clip with fewer frames
than asked for repeats its frames evenly, so that no frame, as the last, weighs more than the others.
"""

import numpy as np


def segment_middle(total_num_frames: int, num_frames: int) -> np.ndarray:
    """The middle frame of each of `num_frames` equal segments (DFER-CLIP at test time, arXiv 2308.13382).

    Args:
        total_num_frames: frames of the clip, at least 1.
        num_frames: frames wanted, at least 1.

    Returns:
        `(num_frames,)`.

    Raises:
        ValueError: a number below 1.
    """
    check_counts(total_num_frames=total_num_frames, num_frames=num_frames)
    return (2 * np.arange(num_frames, dtype=np.int64) + 1) * total_num_frames // (2 * num_frames)


def segment_random(total_num_frames: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """One random frame of each of `num_frames` equal segments (DFER-CLIP in training).

    Args:
        total_num_frames, num_frames: as in `segment_middle`.
        rng: draws one number for each segment.

    Returns:
        `(num_frames,)`.

    Raises:
        ValueError: a number below 1.
    """
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
    """`num_frames` frames, `stride` apart (EmoCLIP, arXiv 2310.16640).

    A clip too short for the window gives the middles of `num_frames` segments: a smaller stride. EmoCLIP's released
    code runs backwards from the end there; here time always runs forwards.

    Args:
        total_num_frames, num_frames: as in `segment_middle`.
        stride: distance of neighbours, at least 1.
        start: first frame of the window. Without it the window is centred.
        rng: draws the start, if `start` is not given.

    Returns:
        `(num_frames,)`.

    Raises:
        ValueError: a number below 1, or a `start` outside the clip.
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


# The random ones have names of their own: a generator that happens to be at hand must not make an evaluation random.
RANDOM_STRATEGIES = ("segment_random", "strided_window_random")
STRATEGIES = ("segment_middle", "segment_random", "strided_window", "strided_window_random")


def check_strategy(strategy: str) -> None:
    """Raises a ValueError that lists the strategies, if `strategy` is none of them."""
    if strategy not in STRATEGIES:
        raise ValueError(f"frame_sampling is {strategy!r}, but must be one of {', '.join(STRATEGIES)}")


def sample_frames(
    strategy: str,
    total_num_frames: int,
    num_frames: int,
    stride: int = 1,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """The frames that a strategy chooses.

    Args:
        strategy: one of `STRATEGIES`.
        total_num_frames, num_frames: as in `segment_middle`.
        stride: of the strided windows.
        rng: needed by `RANDOM_STRATEGIES`, not used by the others.

    Returns:
        `(num_frames,)`.

    Raises:
        ValueError: an unknown strategy, a random one without `rng`, or a number below 1.
    """
    check_strategy(strategy)
    if strategy in RANDOM_STRATEGIES and rng is None:
        raise ValueError(f"frame_sampling {strategy!r} is random: it needs a seed or an rng (numpy.random.Generator)")
    if strategy == "segment_middle":
        return segment_middle(total_num_frames, num_frames)
    if strategy == "segment_random":
        return segment_random(total_num_frames, num_frames, rng)
    return strided_window(
        total_num_frames, num_frames, stride, rng=rng if strategy == "strided_window_random" else None
    )


def check_counts(**numbers: int) -> None:
    """Raises a ValueError that names the first number which is no whole number of at least 1."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
            raise ValueError(f"{name} is {number!r}, but must be a whole number from 1 ({numbers})")


__all__ = [
    "RANDOM_STRATEGIES",
    "STRATEGIES",
    "check_counts",
    "check_strategy",
    "sample_frames",
    "segment_middle",
    "segment_random",
    "strided_window",
]

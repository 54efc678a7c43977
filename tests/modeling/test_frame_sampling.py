# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from modeling_emoclip.frame_sampling import (
    RANDOM_STRATEGIES,
    STRATEGIES,
    sample_frames,
    segment_middle,
    segment_random,
    strided_window,
)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("total_num_frames", [1, 2, 7, 8, 9, 31, 500])
@pytest.mark.parametrize("num_frames", [1, 8, 16])
def test_indices_are_sorted_and_in_the_clip(strategy, total_num_frames, num_frames):
    indices = sample_frames(strategy, total_num_frames, num_frames, stride=4, rng=np.random.default_rng(0))
    assert indices.shape == (num_frames,) and indices.dtype == np.int64
    assert (np.diff(indices) >= 0).all() and indices[0] >= 0 and indices[-1] < total_num_frames


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_short_clips_repeat_frames_evenly(strategy):
    indices = sample_frames(strategy, 5, 16, stride=4, rng=np.random.default_rng(0))
    counts = np.bincount(indices, minlength=5)
    assert counts.min() >= 3 and counts.max() <= 4


def test_segment_middle_is_the_middle_of_each_segment():
    assert segment_middle(40, 4).tolist() == [5, 15, 25, 35]
    assert segment_middle(4, 4).tolist() == [0, 1, 2, 3]
    assert segment_middle(2, 4).tolist() == [0, 0, 1, 1]


def test_segment_random_stays_in_its_segment_and_reaches_all_of_it():
    rng = np.random.default_rng(0)
    drawn = np.array([segment_random(12, 3, rng) for _ in range(200)])
    assert [sorted(set(column.tolist())) for column in drawn.T] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_strided_window_is_centred_without_a_generator_and_anywhere_with_one():
    assert strided_window(21, 4, 4).tolist() == [4, 8, 12, 16]
    assert strided_window(21, 4, 4, start=1).tolist() == [1, 5, 9, 13]
    assert strided_window(13, 4, 4).tolist() == [0, 4, 8, 12]
    rng = np.random.default_rng(0)
    windows = [strided_window(21, 4, 4, rng=rng) for _ in range(200)]
    assert {int(window[0]) for window in windows} == set(range(9))
    assert all((np.diff(window) == 4).all() for window in windows)


def test_strided_window_shrinks_its_stride_to_fit():
    assert strided_window(8, 4, 4).tolist() == segment_middle(8, 4).tolist()
    assert strided_window(12, 4, 4, start=4).tolist() == [5, 7, 9, 11]


def test_random_strategies_repeat_with_the_seed_and_need_a_generator():
    for strategy in RANDOM_STRATEGIES:
        first, second = (sample_frames(strategy, 99, 8, 4, np.random.default_rng(3)) for _ in range(2))
        assert first.tolist() == second.tolist()
        with pytest.raises(ValueError, match="needs a seed or an rng"):
            sample_frames(strategy, 99, 8, 4)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in RANDOM_STRATEGIES])
def test_a_generator_does_not_make_evaluation_random(strategy):
    with_rng = sample_frames(strategy, 99, 8, 4, np.random.default_rng(3))
    assert with_rng.tolist() == sample_frames(strategy, 99, 8, 4).tolist()


def test_bad_numbers_and_names_are_named():
    with pytest.raises(ValueError, match="total_num_frames is 0"):
        segment_middle(0, 8)
    with pytest.raises(ValueError, match="num_frames is 0"):
        segment_random(9, 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="stride is 0"):
        strided_window(9, 2, 0)
    with pytest.raises(ValueError, match="start is 9"):
        strided_window(9, 2, 1, start=9)
    with pytest.raises(ValueError, match="'middle', but must be one of segment_middle"):
        sample_frames("middle", 9, 2)

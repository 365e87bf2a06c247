"""The rule of ties: its two thresholds, and where they can be relied on."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from saturation.limit.ties import judged, tie_thresholds, ties_reliable


@pytest.mark.parametrize(("dtype", "eps"), [(np.float64, 2**-52), (np.float32, 2**-23)])
def test_the_thresholds_are_64_and_65536_roundings_of_a_sum(dtype, eps: float) -> None:
    assert tie_thresholds(10, dtype) == (640 * eps, 655360 * eps)


def test_differences_are_zero_undecided_or_apart() -> None:
    bound, unit = 5.0, 7 * 2.0**-52
    steps = np.array([0.0, 1, -64, 65, -65535, 65536, -1e9])
    zero, undecided = judged(steps * unit * bound, bound, 7)
    np.testing.assert_array_equal(zero, [1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(undecided, [0, 0, 0, 1, 1, 0, 0])


def test_ties_are_reliable_in_float64_alone() -> None:
    reliable = [ties_reliable(d) for d in (np.float64, np.float32, ml_dtypes.bfloat16)]
    assert reliable == [True, False, False]

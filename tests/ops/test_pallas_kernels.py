"""The kernels of `benchmarks.pallas_kernels` compute what XLA's operations do."""

import pytest

from benchmarks import pallas_kernels

# Relative to the largest value; a rounding in bfloat16 is 4e-3.
BOUND = 4e-3


@pytest.mark.parametrize("size", [(8, 64, 128), (4, 128, 256), (8, 256, 128)])
def test_a_kernel_computes_what_xla_does(size: tuple[int, int, int]) -> None:
    differences = pallas_kernels.differences(8, size)
    assert len(differences) == 3
    assert max(differences.values()) < BOUND, differences

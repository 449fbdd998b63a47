"""Native convolutions in bfloat16, where the processor multiplies it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxres.ops import native
from flaxres.ops.convolution import convolution, direct
from tests.ops.native_cases import CASES, arrays, calls, needs_compiler

pytestmark = needs_compiler


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (i % 3 > 0))
        for i, case in enumerate([*CASES, ((7, 7, 7, 33, 48), 3, 1), ((1, 6, 5, 9, 24), 1, 1)])
    ],
)
def test_bfloat16_is_rounded_once(shape: tuple[int, ...], size: int, stride: int) -> None:
    """Products are exact and sums float32, so results are those of float32, rounded."""
    native.use_native_convolutions()
    if not native.computes("bfloat16"):
        pytest.skip("this processor doesn't multiply bfloat16")
    narrow = [array.astype(jnp.bfloat16) for array in arrays(shape, size)]
    wide = [array.astype(jnp.float32) for array in narrow]
    ours, usual = (functools.partial(function, stride=stride) for function in (convolution, direct))
    assert calls(ours, *narrow) == 1
    y, back = jax.vjp(ours, *narrow)
    wide_y, wide_back = jax.vjp(usual, *wide)
    change = wide_y.astype(jnp.bfloat16)
    expected = (wide_y, *wide_back(change.astype(jnp.float32)))
    for mine, theirs in zip((y, *back(change)), expected, strict=True):
        assert mine.dtype == jnp.bfloat16
        rounded = theirs.astype(jnp.bfloat16)
        assert float((mine == rounded).mean()) > 0.999
        largest = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(mine, rounded, rtol=2**-7, atol=1e-6 * largest)

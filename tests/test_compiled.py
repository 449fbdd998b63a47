"""Counts in a compiled program."""

import jax
import jax.numpy as jnp
import pytest

from flaxres.diagnostics.compiled import traffic

# An array of 4 KiB, a fusion that takes 1 KiB of it, another that takes all, a convolution inside a
# fusion, and an asynchronous copy.
PROGRAM = """HloModule step

%fused_slice (param_0.1: f32[1024]) -> f32[256] {
  %param_0.1 = f32[1024]{0} parameter(0)
  ROOT %slice.1 = f32[256]{0} slice(%param_0.1), slice={[0:256]}
}

%fused_both (param_0.2: f32[1024], param_1.2: f32[256]) -> f32[256] {
  %param_0.2 = f32[1024]{0} parameter(0)
  %param_1.2 = f32[256]{0} parameter(1)
  %slice.2 = f32[256]{0} slice(%param_0.2), slice={[256:512]}
  %sum.2 = f32[] reduce(%param_0.2), dimensions={0}, to_apply=%add
  %broadcast.2 = f32[256]{0} broadcast(%sum.2), dimensions={}
  ROOT %add.2 = f32[256]{0} add(%slice.2, %param_1.2)
}

%fused_convolution (param_0.3: bf16[1,4,4,8], param_1.3: bf16[1,1,8,8]) -> bf16[1,4,4,8] {
  %param_0.3 = bf16[1,4,4,8]{3,2,1,0} parameter(0)
  %param_1.3 = bf16[1,1,8,8]{3,2,1,0} parameter(1)
  ROOT %convolution.3 = bf16[1,4,4,8]{3,2,1,0} convolution(%param_0.3, %param_1.3), \
window={size=1x1}, dim_labels=b01f_01io->b01f
}

%fused_overlap (param_0.4: f32[1024]) -> f32[1023] {
  %param_0.4 = f32[1024]{0} parameter(0)
  %slice.4 = f32[1023]{0} slice(%param_0.4), slice={[0:1023]}
  %slice.5 = f32[1023]{0} slice(%param_0.4), slice={[1:1024]}
  ROOT %maximum.4 = f32[1023]{0} maximum(%slice.4, %slice.5)
}

ENTRY %main (a: f32[1024], x: bf16[1,4,4,8], k: bf16[1,1,8,8]) -> f32[256] {
  %a = f32[1024]{0} parameter(0)
  %x = bf16[1,4,4,8]{3,2,1,0} parameter(1)
  %k = bf16[1,1,8,8]{3,2,1,0} parameter(2)
  %wrapped_slice = f32[256]{0} fusion(%a), kind=kLoop, calls=%fused_slice
  %convert_fusion = bf16[1,4,4,8]{3,2,1,0} fusion(%x, %k), kind=kOutput, calls=%fused_convolution
  %maximum_fusion = f32[1023]{0} fusion(%a), kind=kLoop, calls=%fused_overlap
  %copy-start = (f32[256]{0:S(1)}, f32[256]{0}, u32[]) copy-start(%wrapped_slice)
  %copy-done = f32[256]{0:S(1)} copy-done(%copy-start)
  %all-reduce = f32[256]{0} all-reduce(%wrapped_slice), replica_groups={}, to_apply=%add
  ROOT %fusion.2 = f32[256]{0} fusion(%a, %all-reduce), kind=kLoop, calls=%fused_both
}
"""


def test_traffic_counts_what_a_kernel_reads_of_its_operands() -> None:
    moved, count = traffic(PROGRAM)
    slice_ = 1024 + 1024  # what it gives, not the array that it is taken from
    overlapping = 4096 + 4 * 1023  # all of the array once, whatever the slices are together
    assert moved == {
        "fusion: elementwise": slice_ + overlapping,
        "fusion: convolution": 256 + 128 + 256,
        "copy": 1024,  # its length once
        "all-reduce": 1024 + 1024,
        "fusion: reduction": 4096 + 1024 + 1024,  # all of the array, since it is summed as well
    }
    assert count == {
        "fusion: elementwise": 2,
        "fusion: convolution": 1,
        "copy": 1,
        "all-reduce": 1,
        "fusion: reduction": 1,
    }


@pytest.mark.parametrize("rows", [256, 1024])
def test_traffic_of_a_program_of_this_machine(rows: int) -> None:
    program = (
        jax.jit(lambda a, b: a[:256] @ b)
        .lower(jnp.ones((rows, 64)), jnp.ones((64, 32)))
        .compile()
        .as_text()
    )
    a, b, result = 4 * 256 * 64, 4 * 64 * 32, 4 * 256 * 32
    assert sum(traffic(program)[0].values()) == a + b + result + (
        2 * a if rows > 256 else 0
    )  # the slice is a kernel of its own

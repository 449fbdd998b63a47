"""Operations whose implementation depends on the platform.

The networks in `flaxres.models` read like their papers. This package holds everything that a paper
does not mention: custom derivatives, forms of one operation for CPU, GPU and TPU, and hints to
XLA's compilers. Each form computes the same function. Only speed and memory traffic differ, but for
`grouped`, which also avoids a wrong gradient of XLA's. Nothing here imports `flaxres.models`.
`docs/ops.md` gives the reason for each form and its gain.

Modules:
  kept: ReLU, and an identity that stops XLA's CPU compiler from fusing.
  convolution: 1x1, 3x3 and larger convolutions, and products in their place on CPUs.
  grouped: convolutions of groups of channels, on several devices.
  product: a product over channels, and the gradient of its kernel.
  bilinear: the rules of a primitive that is linear in each of two operands.
  batch_norm: a batch norm in training as one operation, for native code on CPUs.
  lowering: primitives that native code computes where it can be called.
  native: C++ for CPUs, compiled on the user's machine from the files `*.cc`.
  devices: native calls in programs for several CPU devices.
  fused: a convolution with all that follows it, for inference on CPUs.
  norm: normalisation with and without a ReLU, and batch statistics.
  pool: max pooling.
"""

"""Residual networks in plain Flax (`nn.Conv`, `nn.BatchNorm`, `nn.max_pool`) and a plain step.

They are what a Flax user writes first, and what benchmarks compare with.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.typing import Dtype


class Block(nn.Module):
    """A basic block, or with `bottleneck` a block of three convolutions, four times as wide."""

    width: int
    stride: int
    bottleneck: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        sizes = (1, 3, 1) if self.bottleneck else (3, 3)
        out, y, strided = self.width * (4 if self.bottleneck else 1), x, 1 if self.bottleneck else 0
        for i, size in enumerate(sizes):
            stride = self.stride if i == strided else 1
            features = out if i == len(sizes) - 1 else self.width
            y = norm()(conv(features, (size, size), stride, padding=size // 2)(y))
            if i < len(sizes) - 1:
                y = nn.relu(y)
        if x.shape != y.shape:
            x = norm()(conv(out, (1, 1), self.stride)(x))
        return nn.relu(x + y)


class TextbookResNet(nn.Module):
    """A residual network, ResNet-50 by default; `small` gives the stem of the CIFAR networks.

    Call: images (N, H, W, 3) -> logits (N, num_classes).
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    bottleneck: bool = True
    small: bool = False
    num_classes: int = 1000
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        size, stride = (3, 1) if self.small else (7, 2)
        x = nn.Conv(
            self.width, (size, size), stride, padding=size // 2, use_bias=False, dtype=self.dtype
        )(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x))
        if not self.small:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.depths):
            for block in range(blocks):
                width, stride = self.width * 2**stage, 2 if stage and not block else 1
                x = Block(width, stride, self.bottleneck, self.dtype)(x, train)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))


TEXTBOOK: dict[str, functools.partial[TextbookResNet]] = {
    "resnet18": functools.partial(TextbookResNet, (2, 2, 2, 2), bottleneck=False),
    "resnet50": functools.partial(TextbookResNet),
    "resnet152": functools.partial(TextbookResNet, (3, 8, 36, 3)),
    "resnet20": functools.partial(
        TextbookResNet, (3, 3, 3), 16, bottleneck=False, small=True, num_classes=10
    ),
}


def plain_step(model: Any, tx: optax.GradientTransformation) -> Any:
    """Returns a training step as a user would write it.

    The step is `(variables, opt_state, images, labels) -> (variables, opt_state, loss)`.
    """

    def step(variables: Any, opt_state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            logits, new = model.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
            return optax.softmax_cross_entropy_with_integer_labels(wide, labels).mean(), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(gradients, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **new}, opt_state, value

    return step

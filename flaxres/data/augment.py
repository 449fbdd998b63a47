"""The device half of the input: uint8 batches -> augmented, normalised floats, inside the jitted step, keyed by the sample's position."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax

from flaxres.data import autoaugment
from flaxres.data.autoaugment import uniforms
from flaxres.data.choices import Fill

# Of the channels in [0, 1], over ImageNet's training images.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What a sample's key is folded with, so that no two augmentations draw the same numbers.
FLIP, SHIFT, JITTER, AUTO, ERASE, CUTOUT, MIX = range(7)
ERASE_TRIES = 10


def sample_keys(key: jax.Array, positions: jax.Array) -> jax.Array:
    """One key for each sample: `fold_in(key, position)`, whatever the batch or the device it falls on."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, positions)


def purpose(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def random_flip(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each (H, W, C) image left to right with probability 1/2."""
    return flip_those(jax.vmap(jax.random.bernoulli)(purpose(keys, FLIP)), images)


def flip_those(which: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors the (H, W, C) images left to right of which (N,) `which` holds."""
    return jnp.where(which[:, None, None, None], images[:, :, ::-1], images)


def random_shift(keys: jax.Array, images: jax.Array, pad: int) -> jax.Array:
    """Pads each image with zeros by `pad` pixels a side and takes a random window of the old size (He et al. 2016, section 4.2)."""
    if not pad:
        return images
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    offsets = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * pad + 1, jnp.int32))(
        purpose(keys, SHIFT)
    )
    return jax.vmap(
        lambda image, at: lax.dynamic_slice(image, (at[0], at[1], jnp.int32(0)), images.shape[1:])
    )(padded, offsets)


def color_jitter(keys: jax.Array, images: jax.Array, strength: Sequence[float]) -> jax.Array:
    """torchvision's ColorJitter: brightness, contrast, saturation and hue in a random order, uint8 -> uint8.

    The first three factors are uniform in `1 +- strength`, hue turns by up to `strength` of a full turn (at most 0.5).
    """
    if not any(strength):
        return images
    apart = jax.vmap(lambda key: jax.random.split(key, 3))(purpose(keys, JITTER))
    drawn = jnp.asarray(strength, jnp.float32) * (2 * uniforms(apart[:, 0], 4) - 1)
    factors = jnp.maximum(1 + drawn[:, :3], 0)
    order = jax.vmap(lambda key: jax.random.permutation(key, 3))(apart[:, 1])

    def blended(images: jax.Array, applied: jax.Array) -> jax.Array:
        """The first three in their order, those of the turns that are `applied`, (N, 3)."""
        for turn in range(3):
            chosen = order[:, turn]
            factor = jnp.where(
                applied[:, turn], jnp.take_along_axis(factors, chosen[:, None], 1)[:, 0], 1.0
            )
            which = chosen[:, None, None, None]
            mean = autoaugment.contrast_mean(images)[:, None, None, None].astype(jnp.uint8)
            others = jnp.where(
                which == 0, jnp.uint8(0), jnp.where(which == 1, mean, autoaugment.gray(images))
            )
            images = autoaugment.blend(images, jnp.broadcast_to(others, images.shape), factor)
        return images

    if not strength[3]:
        return blended(images, jnp.ones_like(order, bool))
    # Hue, the dearest of the four, is turned once, between those that come before it and those that come after.
    before = jnp.arange(3) < jax.vmap(lambda key: jax.random.randint(key, (1,), 0, 4))(apart[:, 2])
    return blended(turn_hue(blended(images, before), drawn[:, 3]), ~before)


def turn_hue(images: jax.Array, share: jax.Array) -> jax.Array:
    """Turns the hue of (N, H, W, 3) uint8 pictures by (N,) shares of a full turn, through Pillow's 8-bit HSV."""
    wide = images.astype(jnp.float32)
    top, bottom = wide.max(-1), wide.min(-1)
    span = jnp.maximum(top - bottom, 1)
    red, green, blue = (top - wide[..., c] for c in range(3))
    red, green, blue = red / span, green / span, blue / span
    sector = jnp.where(
        wide[..., 0] == top,
        blue - green,
        jnp.where(wide[..., 1] == top, 2 + red - blue, 4 + green - red),
    )
    level = jnp.floor((sector / 6 + 1) % 1 * 255)
    grays = top == bottom
    level = (jnp.where(grays, 0, level) + jnp.trunc(255 * share)[:, None, None]) % 256
    saturation = jnp.where(grays, 0, jnp.floor(span / jnp.maximum(top, 1) * 255)) / 255
    sixths = level * (6 / 255)
    whole = jnp.floor(sixths)
    part = sixths - whole
    low, falling, rising = (
        jnp.round(top * (1 - saturation * x)) for x in (jnp.ones_like(part), part, 1 - part)
    )
    tops = (
        (top, falling, low, low, rising, top),
        (rising, top, top, falling, low, low),
        (low, low, rising, top, top, falling),
    )
    at = (whole % 6).astype(jnp.int32)
    turned = [jnp.select([at == i for i in range(6)], list(channel)) for channel in tops]
    return autoaugment.truncated(jnp.stack(turned, -1))


def auto_augment(
    keys: jax.Array, images: jax.Array, policy: autoaugment.Policy, fill: tuple[int, int, int]
) -> jax.Array:
    """RandAugment or TrivialAugmentWide on uint8 pictures; `fill` is seen where a warp reaches outside."""
    for operation, level in policy.draw(purpose(keys, AUTO), (images.shape[1], images.shape[2])):
        images = autoaugment.apply(images, operation, level, fill)
    return images


def rectangles(
    shape: tuple[int, int], top: jax.Array, left: jax.Array, height: jax.Array, width: jax.Array
) -> jax.Array:
    """(N, H, W, 1) bool: which pixels of each picture lie in its rectangle."""
    y, x = jnp.arange(shape[0], dtype=jnp.int32)[:, None], jnp.arange(shape[1], dtype=jnp.int32)
    top, left, height, width = (v[:, None, None] for v in (top, left, height, width))
    return ((y >= top) & (y < top + height) & (x >= left) & (x < left + width))[..., None]


def random_erasing(
    keys: jax.Array,
    images: jax.Array,
    probability: float,
    area: tuple[float, float],
    ratio: tuple[float, float],
    fill: Fill,
) -> jax.Array:
    """Erases a random rectangle of normalised pictures, with zeros (the mean) or normal noise (Zhong et al. 2020, algorithm 1).

    `area`: share of the picture's; `ratio`: height to width. The first of ten tries that fits is taken; where none does, nothing is erased.
    """
    if not probability:
        return images
    height, width = images.shape[1:3]
    apart = jax.vmap(lambda key: jax.random.split(key, 3))(purpose(keys, ERASE))
    sizes, aspects, tops, lefts = jnp.moveaxis(uniforms(apart[:, 0], 4, ERASE_TRIES), 1, 0)
    target = height * width * (area[0] + (area[1] - area[0]) * sizes)
    aspect = jnp.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * aspects)
    h, w = (
        jnp.round(jnp.sqrt(target * aspect)).astype(jnp.int32),
        jnp.round(jnp.sqrt(target / aspect)).astype(jnp.int32),
    )
    fits = (h < height) & (w < width)
    top, left = (
        (tops * (height - h + 1)).astype(jnp.int32),
        (lefts * (width - w + 1)).astype(jnp.int32),
    )
    first = jnp.argmax(fits, 1)[:, None]
    box = [jnp.take_along_axis(value, first, 1)[:, 0] for value in (top, left, h, w)]
    erased = (
        rectangles((height, width), *box)
        & (fits.any(1) & (uniforms(apart[:, 1]) < probability))[:, None, None, None]
    )
    filling = jnp.zeros((), images.dtype)
    if fill == "noise":
        filling = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(
            apart[:, 2]
        )
    return jnp.where(erased, filling, images)


def cutout(keys: jax.Array, images: jax.Array, side: int) -> jax.Array:
    """Zeros (the mean) in a square of normalised pictures, whose centre is any pixel (DeVries & Taylor 2017, section 3)."""
    if not side:
        return images
    height, width = images.shape[1:3]
    centre = jax.vmap(
        lambda key: jax.random.randint(key, (2,), 0, jnp.asarray([height, width]), jnp.int32)
    )(purpose(keys, CUTOUT))
    sides = jnp.full(len(images), side, jnp.int32)
    hole = rectangles(
        (height, width), centre[:, 0] - side // 2, centre[:, 1] - side // 2, sides, sides
    )
    return jnp.where(hole, jnp.zeros((), images.dtype), images)


def mix(
    keys: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    mixup: float,
    cutmix: float,
    probability: float = 1.0,
    switch: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
    """mixup (Zhang et al. 2018, section 2) or cutmix (Yun et al. 2019, section 3.2) of each picture with its neighbour, and of their targets.

    Neighbours are rows 2i and 2i + 1 of the batch, whose order is random already: they lie on one device, so nothing travels.

    Args:
      keys: one for the whole batch, shape (), or one for each of the N pictures.
      images: (N, H, W, C) float, N even. targets: (N, K) float.
      mixup, cutmix: parameter of the symmetric beta distribution; 0 leaves it out. With both, `switch` is the probability of cutmix.
      probability: that a batch, or a picture, is mixed at all.
    """
    if not (mixup or cutmix):
        return images, targets
    height, width = images.shape[1:3]
    draws = jnp.reshape(keys, (-1,))
    apart = jax.vmap(lambda key: jax.random.split(key, 5))(purpose(draws, MIX))

    def beta(column: int, alpha: float) -> jax.Array:
        if not alpha:
            return jnp.ones(len(draws), jnp.float32)
        return jax.vmap(lambda key: jax.random.beta(key, alpha, alpha, (), jnp.float32))(
            apart[:, column]
        )

    applied = uniforms(apart[:, 0]) < probability
    cuts = applied & (uniforms(apart[:, 1]) < (switch if mixup and cutmix else float(cutmix > 0)))
    own = jnp.where(applied & ~cuts, beta(2, mixup), 1.0)
    side = jnp.sqrt(1 - beta(3, cutmix))
    h, w = (height * side).astype(jnp.int32), (width * side).astype(jnp.int32)
    centre = uniforms(apart[:, 4], 2)
    y, x = (centre[:, 0] * height).astype(jnp.int32), (centre[:, 1] * width).astype(jnp.int32)
    pasted = rectangles((height, width), y - h // 2, x - w // 2, h, w) & cuts[:, None, None, None]
    own = jnp.where(cuts, 1 - pasted.mean((1, 2, 3), dtype=jnp.float32), own)

    others = neighbours(images)
    mixed = jnp.where(
        cuts[:, None, None, None],
        jnp.where(pasted, others, images),
        images + (1 - own)[:, None, None, None] * (others - images),
    )
    return mixed.astype(images.dtype), own[:, None] * targets + (1 - own)[:, None] * neighbours(
        targets
    )


def neighbours(rows: jax.Array) -> jax.Array:
    """Rows 1, 0, 3, 2, ... of an even number of rows."""
    return rows.reshape(len(rows) // 2, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)


def normalise(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Dtype
) -> jax.Array:
    """uint8 or float (N, H, W, 3) in 0 to 255 -> `(image / 255 - mean) / std` in `dtype`."""
    wide = jnp.promote_types(jnp.float32, dtype)
    scale = 1 / (255 * jnp.asarray(std, wide))
    return (images.astype(wide) * scale - jnp.asarray(mean, wide) / jnp.asarray(std, wide)).astype(
        dtype
    )

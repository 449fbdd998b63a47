"""RandAugment and TrivialAugmentWide on the device: batches of uint8 pictures, each with an operation and a level of its own.

No branch per picture is compiled: every operation is one of four passes (a table of 256 values a channel, a blend with gray, a blend
with a smoothed picture, an affine warp) whose parameters say "nothing" for the pictures that drew another. Rounding is Pillow's.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flaxres.errors import InputError

OPERATIONS = (
    *(
        "identity",
        "auto_contrast",
        "equalize",
        "invert",
        "rotate",
        "posterize",
        "solarize",
        "solarize_add",
    ),
    *(
        "color",
        "contrast",
        "brightness",
        "sharpness",
        "shear_x",
        "shear_y",
        "translate_x",
        "translate_y",
    ),
)
NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
RAND_OPERATIONS = OPERATIONS[1:]
TRIVIAL_OPERATIONS = tuple(name for name in OPERATIONS if name not in ("invert", "solarize_add"))
TRIVIAL_BINS = 31
TOP = 10.0  # of RandAugment's magnitudes


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Some of 15 operations, each with a probability, all at about one magnitude (Cubuk et al. 2020, section 3), in timm's form.

    Attributes:
      magnitude: 0 to 10.
      layers: operations a picture.
      deviation: of the normal noise on the magnitude; infinity draws it uniformly from 0 to `magnitude`.
      probability: of each layer.
      increasing: whether posterize, solarize and the colour operations grow stronger with the magnitude, as the others do.
    """

    magnitude: float = 10.0
    layers: int = 2
    deviation: float = 0.0
    probability: float = 0.5
    increasing: bool = False

    def levels(self, magnitude: jax.Array, sign: jax.Array, size: tuple[int, int]) -> jax.Array:
        """(N,) magnitudes and signs -> (N, 15) levels, in the units of each of `RAND_OPERATIONS`."""
        share, height, width = magnitude / TOP, *size
        signed, none = sign * share, jnp.zeros_like(share)
        bits, threshold = jnp.floor(4 * share), jnp.floor(256 * share)
        factor = 1.8 * share + 0.1
        if self.increasing:
            bits, threshold, factor = 4 - bits, 256 - threshold, jnp.maximum(1 + 0.9 * signed, 0.1)
        by_name = {
            "rotate": 30 * signed,
            "posterize": bits,
            "solarize": threshold,
            "solarize_add": jnp.floor(110 * share),
            **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), factor),
            **dict.fromkeys(("shear_x", "shear_y"), 0.3 * signed),
            "translate_x": 0.45 * width * signed,
            "translate_y": 0.45 * height * signed,
        }
        return jnp.stack([by_name.get(name, none) for name in RAND_OPERATIONS], -1)

    def draw(self, keys: jax.Array, size: tuple[int, int]) -> list[tuple[jax.Array, jax.Array]]:
        """Operation and level, (N,) each, of every layer."""
        drawn = []
        for layer in range(self.layers):
            apart = jax.vmap(
                lambda key, layer=layer: jax.random.split(jax.random.fold_in(key, layer), 4)
            )(keys)
            choice = jax.vmap(
                lambda key: jax.random.randint(key, (), 0, len(RAND_OPERATIONS), jnp.int32)
            )(apart[:, 0])
            applied, sign = (
                uniforms(apart[:, 1]) < self.probability,
                jnp.where(uniforms(apart[:, 2]) < 0.5, -1.0, 1.0),
            )
            if math.isinf(self.deviation):
                magnitude = self.magnitude * uniforms(apart[:, 3])
            else:
                magnitude = self.magnitude + self.deviation * jax.vmap(
                    lambda key: jax.random.normal(key, (), jnp.float32)
                )(apart[:, 3])
            levels = self.levels(jnp.clip(magnitude, 0, TOP), sign, size)
            level = jnp.take_along_axis(levels, choice[:, None], 1)[:, 0]
            drawn.append((jnp.where(applied, numbered(RAND_OPERATIONS)[choice], 0), level))
        return drawn


@dataclasses.dataclass(frozen=True)
class TrivialAugmentWide:
    """One of 14 operations at one of 31 strengths, all equally likely (Müller & Hutter 2021, section 3), in torchvision's form."""

    def draw(self, keys: jax.Array, size: tuple[int, int]) -> list[tuple[jax.Array, jax.Array]]:
        """Operation and level, (N,) each, of the one layer."""
        del size
        apart = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        choice = jax.vmap(
            lambda key: jax.random.randint(key, (), 0, len(TRIVIAL_OPERATIONS), jnp.int32)
        )(apart[:, 0])
        share = jax.vmap(lambda key: jax.random.randint(key, (), 0, TRIVIAL_BINS, jnp.int32))(
            apart[:, 1]
        ) / jnp.float32(TRIVIAL_BINS - 1)
        signed, none = jnp.where(uniforms(apart[:, 2]) < 0.5, -share, share), jnp.zeros_like(share)
        by_name = {
            "rotate": 135 * signed,
            "posterize": 8 - jnp.round(6 * share),
            "solarize": 255 * (1 - share),
            **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), 1 + 0.99 * signed),
            **dict.fromkeys(("shear_x", "shear_y"), 0.99 * signed),
            **dict.fromkeys(("translate_x", "translate_y"), jnp.trunc(32 * signed)),
        }
        levels = jnp.stack([by_name.get(name, none) for name in TRIVIAL_OPERATIONS], -1)
        return [
            (
                numbered(TRIVIAL_OPERATIONS)[choice],
                jnp.take_along_axis(levels, choice[:, None], 1)[:, 0],
            )
        ]


Policy = RandAugment | TrivialAugmentWide
FORM = "'ta_wide', or timm's 'rand-m7-mstd0.5-inc1' (m: magnitude 0 to 10, n: layers, mstd: noise, p: probability, inc: 0 or 1)"


def policy(text: str) -> Policy:
    """The policy that `text` names, 'ta_wide' or timm's form 'rand-m7-n2-mstd0.5-p0.5-inc1'; raises InputError for any other."""
    first, *parts = text.split("-")
    if text == "ta_wide":
        return TrivialAugmentWide()
    if first != "rand":
        raise InputError(f"augment.auto={text!r}: the rule is {FORM}")
    names = {
        "m": "magnitude",
        "n": "layers",
        "mstd": "deviation",
        "p": "probability",
        "inc": "increasing",
    }
    values: dict[str, float] = {}
    for part in parts:
        found = re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?|inf)", part)
        if found is None or names[found[1]] in values:
            raise InputError(
                f"augment.auto={text!r}: {part!r} is not understood; the rule is {FORM}"
            )
        values[names[found[1]]] = float(found[2])
    given: dict[str, Any] = {**values}
    given["layers"] = int(values.get("layers", 2))
    given["increasing"] = bool(values.get("increasing", 0))
    built = RandAugment(**given)
    built = dataclasses.replace(
        built, deviation=math.inf if built.deviation > 100 else built.deviation
    )
    whole = values.get("layers", 2) == built.layers and values.get("increasing", 0) in (0, 1)
    if not (
        0 <= built.magnitude <= TOP
        and 0 < built.layers <= 15
        and 0 <= built.probability <= 1
        and whole
    ):
        raise InputError(f"augment.auto={text!r} is out of range; the rule is {FORM}")
    return built


def uniforms(keys: jax.Array, *shape: int) -> jax.Array:
    """(N, *shape) float32 in [0, 1)."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(keys)


def numbered(names: Sequence[str]) -> jax.Array:
    return jnp.asarray([NUMBER[name] for name in names], jnp.int32)


def apply(
    images: jax.Array,
    operation: jax.Array,
    level: jax.Array,
    fill: tuple[int, int, int] = (0, 0, 0),
) -> jax.Array:
    """(N, H, W, 3) uint8 pictures, each changed by its operation, (N,) int32 into `OPERATIONS`, at its level, (N,) float32.

    Levels: rotate degrees counterclockwise; posterize bits kept; solarize threshold; solarize_add addend (below 128); color, contrast, brightness,
    sharpness Pillow's factor; shear_x, shear_y shift a row or column; translate_x, translate_y pixels. `fill` is seen where a warp reaches outside.
    """
    images = look_up(images, tables(images, operation, level))
    images = blend(
        images, jnp.broadcast_to(gray(images), images.shape), where(operation, "color", level, 1.0)
    )
    images = blend(images, smooth(images), where(operation, "sharpness", level, 1.0))
    return warp(images, matrices(operation, level, *images.shape[1:3]), fill)


def where(operation: jax.Array, name: str, level: jax.Array, otherwise: float) -> jax.Array:
    return jnp.where(operation == NUMBER[name], level, otherwise)


def gray(images: jax.Array) -> jax.Array:
    """ITU-R 601 luma of (..., 3) uint8, as (..., 1) uint8, in Pillow's integers."""
    wide = images.astype(jnp.int32)
    return (
        (wide[..., 0:1] * 19595 + wide[..., 1:2] * 38470 + wide[..., 2:3] * 7471 + 0x8000) >> 16
    ).astype(jnp.uint8)


def truncated(values: jax.Array) -> jax.Array:
    return jnp.clip(values, 0, 255).astype(jnp.uint8)


def blend(images: jax.Array, others: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's enhancement: `others + factor * (images - others)`, cut off to uint8; factor 1 changes nothing. `factor`: (N,)."""
    factor = factor.reshape(-1, *[1] * (images.ndim - 1))
    return truncated(
        others.astype(jnp.float32)
        + factor * (images.astype(jnp.float32) - others.astype(jnp.float32))
    )


def contrast_mean(images: jax.Array) -> jax.Array:
    """(N,) mean gray of each picture, rounded."""
    luma = gray(images).astype(jnp.int32)
    return jnp.floor(luma.sum((1, 2, 3)) / jnp.float32(luma[0].size) + 0.5)


def smooth(images: jax.Array) -> jax.Array:
    """Pillow's SMOOTH: the mean of 3x3 pixels, the middle counted five times; the border is left as it is."""
    wide = images.astype(jnp.int32)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    return images.at[:, 1:-1, 1:-1].set(((2 * sums + 13) // 26).astype(jnp.uint8))


def tables(images: jax.Array, operation: jax.Array, level: jax.Array) -> jax.Array:
    """(N, 256, 3) uint8: what becomes of each value of each channel, for the operations that look at nothing else."""
    value, level = jnp.arange(256, dtype=jnp.float32)[None, :, None], level[:, None, None]
    low, high = (
        reduce(images, (1, 2)).astype(jnp.float32)[:, None] for reduce in (jnp.min, jnp.max)
    )
    # The small addends, here and in `warp`, keep what is a whole number in Pillow's doubles from being cut off to the one below in our floats.
    stretched = jnp.where(
        high > low, (value - low) * (255 / jnp.maximum(high - low, 1)) + 1e-4, value
    )
    mean = contrast_mean(images)[:, None, None]
    step = 2.0 ** (8 - jnp.clip(level, 0, 8))
    by_name = {
        "auto_contrast": stretched,
        "equalize": equalising(images),
        "invert": 255 - value,
        "posterize": jnp.floor(value / step) * step,
        "solarize": jnp.where(value < level, value, 255 - value),
        "solarize_add": jnp.where(value < 128, jnp.minimum(value + level, 255), value),
        "contrast": mean + level * (value - mean),
        "brightness": level * value,
    }
    chosen = operation[:, None, None]
    result = jnp.broadcast_to(value, (len(images), 256, 3))
    for name, table in by_name.items():
        result = jnp.where(chosen == NUMBER[name], table, result)
    return truncated(result)


def equalising(images: jax.Array) -> jax.Array:
    """(N, 256, 3): the tables that make each channel's histogram flat, by Pillow's integers."""

    def counted(image: jax.Array) -> jax.Array:
        return jnp.zeros(768, jnp.int32).at[places(image).reshape(-1)].add(1).reshape(256, 3)

    count = jax.vmap(counted)(images)
    last = jnp.take_along_axis(count, images.max((1, 2)).astype(jnp.int32)[:, None], 1)
    step = (count.sum(1, keepdims=True) - last) // 255
    below = jnp.cumsum(count, 1) - count
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, jnp.arange(256, dtype=jnp.int32)[None, :, None]).astype(
        jnp.float32
    )


def places(images: jax.Array) -> jax.Array:
    """Where the value of each pixel and channel, (..., 3), lies in a (256, 3) table that is laid out flat."""
    return images.astype(jnp.int32) * 3 + jnp.arange(3, dtype=jnp.int32)


def look_up(images: jax.Array, tables: jax.Array) -> jax.Array:
    return jax.vmap(lambda table, at: table.reshape(-1)[at])(tables, places(images))


def matrices(operation: jax.Array, level: jax.Array, height: int, width: int) -> jax.Array:
    """(N, 6): where the pixel (x, y) of the result comes from, (a x + b y + c, d x + e y + f), pixel centres at halves."""
    angle = jnp.deg2rad(where(operation, "rotate", level, 0.0))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    # Pillow turns counterclockwise on a screen whose y points down.
    rows = [
        cos,
        where(operation, "shear_x", level, 0.0) - sin,
        x - cos * x + sin * y + where(operation, "translate_x", level, 0.0),
        where(operation, "shear_y", level, 0.0) + sin,
        cos,
        y - sin * x - cos * y + where(operation, "translate_y", level, 0.0),
    ]
    return jnp.stack(rows, -1)


def warp(images: jax.Array, matrices: jax.Array, fill: tuple[int, int, int]) -> jax.Array:
    """Affine warps with bilinear interpolation, by Pillow's rules at the borders; `matrices` as above."""
    height, width = images.shape[1:3]
    x, y = (
        jnp.arange(width, dtype=jnp.float32) + 0.5,
        jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5,
    )

    def one(image: jax.Array, matrix: jax.Array) -> jax.Array:
        a, b, c, d, e, f = matrix
        from_x, from_y = a * x + b * y + c, d * x + e * y + f
        inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
        left, above = jnp.floor(from_x - 0.5), jnp.floor(from_y - 0.5)
        across, down = (from_x - 0.5 - left)[..., None], (from_y - 0.5 - above)[..., None]
        pixels = image.reshape(-1, 3)

        def at(row: jax.Array, column: jax.Array) -> jax.Array:
            place = jnp.clip(row, 0, height - 1).astype(jnp.int32) * width + jnp.clip(
                column, 0, width - 1
            ).astype(jnp.int32)
            return pixels[place].astype(jnp.float32)

        upper = at(above, left) * (1 - across) + at(above, left + 1) * across
        lower = at(above + 1, left) * (1 - across) + at(above + 1, left + 1) * across
        found = truncated(upper * (1 - down) + lower * down + 1e-3)
        return jnp.where(inside[..., None], found, jnp.asarray(fill, jnp.uint8))

    return jax.vmap(one)(images, matrices)

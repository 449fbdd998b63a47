"""The operations of RandAugment and TrivialAugmentWide on batches of uint8 images, on the device.

Each image has its operation and level. No branch per image is compiled. Every operation is one of
four passes: a table of 256 values a channel, a blend with grey, a blend with a smoothed image, or
an affine warp. The parameters of a pass leave images unchanged that drew another operation.
Rounding is Pillow's, but for a few entries of `auto_contrast`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, UInt8

OPERATIONS = (
    *("identity", "auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize"),
    *("solarize_add", "color", "contrast", "brightness", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y"),
)
NUMBER = {name: number for number, name in enumerate(OPERATIONS)}

LIMIT = 1e30

Images = UInt8[Array, "n h w 3"]
Operations = Int[Array, " n"]
Levels = Float[Array, " n"]
Colour = tuple[int, int, int]


def uniforms(keys: Array, *shape: int) -> Float[Array, "n ..."]:
    """Draws float32 numbers in [0, 1) of a shape for each of (n,) keys."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(keys)


def rounded(product: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns a product or quotient that is rounded before anything is added to it.

    A compiler may round a product and a sum once, as one instruction (FMA). XLA does so where it
    fuses the two, which depends on the rest of the program. After truncation to 8 bits, another
    rounding may be another pixel: color jitter and `ta_wide` gave 9% of images of 8x8 pixels
    another one inside `jit` than outside. On CPUs neither `lax.reduce_precision` nor
    `lax.optimization_barrier` keeps the two operations apart. Limits do, although no value
    reaches them.

    Examples:
      >>> rounded(jnp.float32(0.1) * 3)
      Array(0.3, dtype=float32)
    """
    return jnp.clip(product, -LIMIT, LIMIT)


def numbered(names: Sequence[str]) -> Int[Array, " names"]:
    """Returns the numbers of operations in `OPERATIONS`."""
    return jnp.asarray([NUMBER[name] for name in names], jnp.int32)


def apply(images: Images, operation: Operations, level: Levels, fill: Colour = (0, 0, 0)) -> Images:
    """Applies an operation to each image.

    Args:
      images: a batch of images.
      operation: number of each image's operation in `OPERATIONS`.
      level: strength of each image's operation. Its unit is degrees counterclockwise for rotate;
        bits to keep for posterize; a threshold for solarize; an addend below 128 for solarize_add;
        Pillow's factor for color, contrast, brightness and sharpness; the shift of a row or column
        for shear_x and shear_y; and pixels for translate_x and translate_y.
      fill: colour of pixels that a warp takes from outside the image.

    Returns:
      The changed images.

    Examples:
      >>> images = jnp.full((1, 2, 2, 3), 200, jnp.uint8)
      >>> apply(images, numbered(["invert"]), jnp.zeros(1))[0, 0, 0].tolist()
      [55, 55, 55]
    """
    images = _look_up(images, _tables(images, operation, level))
    greys = jnp.broadcast_to(grey(images), images.shape)
    images = blend(images, greys, _level_of(operation, "color", level, 1.0))
    images = blend(images, _smooth(images), _level_of(operation, "sharpness", level, 1.0))
    return _warp(images, _matrices(operation, level, *images.shape[1:3]), fill)


def _level_of(operation: Operations, name: str, level: Levels, otherwise: float) -> Levels:
    """Returns the levels of the images with the operation `name`, and `otherwise` for the rest."""
    return jnp.where(operation == NUMBER[name], level, otherwise)


def grey(images: UInt8[Array, "... 3"]) -> UInt8[Array, "... 1"]:
    """Returns the ITU-R 601 luma of images in Pillow's integers."""
    wide = images.astype(jnp.int32)
    luma = wide[..., 0:1] * 19595 + wide[..., 1:2] * 38470 + wide[..., 2:3] * 7471 + 0x8000
    return (luma >> 16).astype(jnp.uint8)


def truncated(values: Num[Array, "..."]) -> UInt8[Array, "..."]:
    """Limits values to [0, 255] and rounds them towards 0."""
    return jnp.clip(values, 0, 255).astype(jnp.uint8)


def blend(images: Images, others: Images, factor: Float[Array, " n"]) -> Images:
    """Computes Pillow's enhancement, `others + factor * (images - others)`.

    Args:
      images, others: two batches of images.
      factor: factor of each image; 1 returns it unchanged.
    """
    factor = factor.reshape(-1, *[1] * (images.ndim - 1))
    first, second = images.astype(jnp.float32), others.astype(jnp.float32)
    return truncated(second + rounded(factor * (first - second)))


def contrast_mean(images: Images) -> Float[Array, " n"]:
    """Returns the mean grey level of each image, rounded."""
    luma = grey(images).astype(jnp.int32)
    return jnp.floor(luma.sum((1, 2, 3)) / jnp.float32(luma[0].size) + 0.5)


def _smooth(images: Images) -> Images:
    """Applies Pillow's SMOOTH: the mean of 3x3 pixels, with the central one counted five times.

    The border is unchanged.
    """
    wide = images.astype(jnp.int32)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    return images.at[:, 1:-1, 1:-1].set(((2 * sums + 13) // 26).astype(jnp.uint8))


def _tables(images: Images, operation: Operations, level: Levels) -> UInt8[Array, "n 256 3"]:
    """Returns the new value of each value of each channel, for operations on single values."""
    value, level = jnp.arange(256, dtype=jnp.float32)[None, :, None], level[:, None, None]
    low, high = (
        reduce(images, (1, 2)).astype(jnp.float32)[:, None] for reduce in (jnp.min, jnp.max)
    )
    # The small addends, here and in `_warp`: a whole number in Pillow's doubles may be slightly
    # less in our floats and would be truncated to the number below. In one entry of 200,
    # `auto_contrast` is thereby one more than Pillow's, whose doubles are less there.
    stretched = rounded((value - low) * (255 / jnp.maximum(high - low, 1))) + 1e-4
    mean = contrast_mean(images)[:, None, None]
    step = 2.0 ** (8 - jnp.clip(level, 0, 8))
    by_name = {
        "auto_contrast": jnp.where(high > low, stretched, value),
        "equalize": _equalising(images),
        "invert": 255 - value,
        "posterize": jnp.floor(value / step) * step,
        "solarize": jnp.where(value < level, value, 255 - value),
        "solarize_add": jnp.where(value < 128, jnp.minimum(value + level, 255), value),
        "contrast": mean + rounded(level * (value - mean)),
        "brightness": level * value,
    }
    chosen = operation[:, None, None]
    result = jnp.broadcast_to(value, (len(images), 256, 3))
    for name, table in by_name.items():
        result = jnp.where(chosen == NUMBER[name], table, result)
    return truncated(result)


def _equalising(images: Images) -> Float[Array, "n 256 3"]:
    """Returns the tables that flatten the histogram of each channel, in Pillow's integers."""

    def counted(image: Array) -> Array:
        return jnp.zeros(768, jnp.int32).at[_places(image).reshape(-1)].add(1).reshape(256, 3)

    count = jax.vmap(counted)(images)
    last = jnp.take_along_axis(count, images.max((1, 2)).astype(jnp.int32)[:, None], 1)
    step = (count.sum(1, keepdims=True) - last) // 255
    below = jnp.cumsum(count, 1) - count
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    unchanged = jnp.arange(256, dtype=jnp.int32)[None, :, None]
    return jnp.where(step > 0, table, unchanged).astype(jnp.float32)


def _places(images: UInt8[Array, "... 3"]) -> Int[Array, "... 3"]:
    """Returns the place of each pixel's value in a flat table of (256, 3) values."""
    return images.astype(jnp.int32) * 3 + jnp.arange(3, dtype=jnp.int32)


def _look_up(images: Images, tables: UInt8[Array, "n 256 3"]) -> Images:
    """Replaces the values of each image by those in its table."""
    changed: Array = jax.vmap(lambda table, at: table.reshape(-1)[at])(tables, _places(images))
    return changed


def _matrices(operation: Operations, level: Levels, height: int, width: int) -> Float[Array, "n 6"]:
    """Returns the affine map from each pixel of a result to its place in the image.

    The pixel (x, y) comes from (a x + b y + c, d x + e y + f); centres of pixels are at halves.
    """
    angle = jnp.deg2rad(_level_of(operation, "rotate", level, 0.0))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    cos_x, sin_x, cos_y, sin_y = (rounded(a * b) for b in (x, y) for a in (cos, sin))
    # Pillow rotates counterclockwise on a screen whose y points down.
    rows = [
        cos,
        _level_of(operation, "shear_x", level, 0.0) - sin,
        x - cos_x + sin_y + _level_of(operation, "translate_x", level, 0.0),
        _level_of(operation, "shear_y", level, 0.0) + sin,
        cos,
        y - sin_x - cos_y + _level_of(operation, "translate_y", level, 0.0),
    ]
    return jnp.stack(rows, -1)


def _warp(images: Images, matrices: Float[Array, "n 6"], fill: Colour) -> Images:
    """Applies affine warps with bilinear interpolation and Pillow's rules at the borders."""
    height, width = images.shape[1:3]
    x = jnp.arange(width, dtype=jnp.float32) + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5

    def one(image: Array, matrix: Array) -> Array:
        a, b, c, d, e, f = matrix
        from_x = rounded(a * x) + rounded(b * y) + c
        from_y = rounded(d * x) + rounded(e * y) + f
        inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
        left, above = jnp.floor(from_x - 0.5), jnp.floor(from_y - 0.5)
        across, down = (from_x - 0.5 - left)[..., None], (from_y - 0.5 - above)[..., None]
        pixels = image.reshape(-1, 3)

        def at(row: Array, column: Array) -> Array:
            row = jnp.clip(row, 0, height - 1).astype(jnp.int32)
            column = jnp.clip(column, 0, width - 1).astype(jnp.int32)
            return pixels[row * width + column].astype(jnp.float32)

        def between(first: Array, second: Array, share: Array) -> Array:
            return rounded(first * (1 - share)) + rounded(second * share)

        upper = between(at(above, left), at(above, left + 1), across)
        lower = between(at(above + 1, left), at(above + 1, left + 1), across)
        value = truncated(between(upper, lower, down) + 1e-3)
        return jnp.where(inside[..., None], value, jnp.asarray(fill, jnp.uint8))

    return jax.vmap(one)(images, matrices)

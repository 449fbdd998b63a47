"""The part of the input that runs on the device, inside the jitted step.

Batches of uint8 images are augmented and normalised. Random numbers are derived from the position
of each sample, so an image is augmented alike in any batch and on any device.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num, UInt8, UInt32

from flaxres.data import autoaugment, operations, quantiles
from flaxres.data.choices import Fill
from flaxres.data.operations import rounded, uniforms

# Mean and standard deviation of the channels in [0, 1], over ImageNet's training images.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Each augmentation folds its number into a sample's key, so no two draw the same numbers.
FLIP, SHIFT, JITTER, AUTO, ERASE, CUTOUT, MIX = range(7)
ERASE_TRIES = 10

Images = Num[Array, "n h w c"]


def sample_keys(key: Array, positions: UInt32[Array, " n"]) -> Array:
    """Returns a key for each sample, `fold_in(key, position)`.

    Args:
      key: key of the run.
      positions: positions of the samples.

    Examples:
      >>> sample_keys(jax.random.key(0), jnp.arange(3, dtype=jnp.uint32)).shape
      (3,)
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, positions)


def keys_for(keys: Array, number: int) -> Array:
    """Returns the keys of one augmentation."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def random_flip(keys: Array, images: Images) -> Images:
    """Flips each image horizontally with probability 1/2.

    Args:
      keys: a key for each image.
      images: a batch of images.

    Examples:
      >>> images = jnp.arange(2).reshape(1, 1, 2, 1)
      >>> keys = sample_keys(jax.random.key(0), jnp.arange(1, dtype=jnp.uint32))
      >>> sorted(random_flip(keys, images).ravel().tolist())
      [0, 1]
    """
    # The default probability has the default float type, and so other bits with jax_enable_x64.
    half = jnp.asarray(0.5, jnp.float32)
    flips = jax.vmap(lambda key: jax.random.bernoulli(key, half))(keys_for(keys, FLIP))
    return flip_where(flips, images)


def flip_where(mask: Bool[Array, " n"], images: Images) -> Images:
    """Flips the images horizontally for which `mask` is true.

    Args:
      mask: a decision for each image.
      images: a batch of images.

    Examples:
      >>> images = jnp.arange(2).reshape(1, 1, 2, 1)
      >>> flip_where(jnp.array([True]), images).ravel().tolist()
      [1, 0]
    """
    return jnp.where(mask[:, None, None, None], images[:, :, ::-1], images)


def random_shift(keys: Array, images: Images, pad: int) -> Images:
    """Pads each image with zeros and crops a random window (He et al. 2016, section 4.2).

    Args:
      keys: a key for each image.
      images: a batch of images.
      pad: pixels added on every side; 0 returns the images.

    Returns:
      Images of the same size.
    """
    if not pad:
        return images
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def offset(key: Array) -> Array:
        return jax.random.randint(key, (2,), 0, 2 * pad + 1, jnp.int32)

    def window(image: Array, at: Array) -> Array:
        return lax.dynamic_slice(image, (at[0], at[1], jnp.int32(0)), images.shape[1:])

    return jax.vmap(window)(padded, jax.vmap(offset)(keys_for(keys, SHIFT)))


def color_jitter(
    keys: Array, images: UInt8[Array, "n h w 3"], strength: Sequence[float]
) -> UInt8[Array, "n h w 3"]:
    """Changes brightness, contrast, saturation and hue in a random order, as torchvision.

    Args:
      keys: a key for each image.
      images: a batch of images.
      strength: four numbers. The factors of the first three changes are uniform in `1 +- strength`;
        hue is rotated by up to `strength` of a full turn, at most 0.5. Zeros return the images.

    Returns:
      The changed images.
    """
    if not any(strength):
        return images
    apart = jax.vmap(lambda key: jax.random.split(key, 3))(keys_for(keys, JITTER))
    drawn = rounded(jnp.asarray(strength, jnp.float32) * (2 * uniforms(apart[:, 0], 4) - 1))
    factors = jnp.maximum(1 + drawn[:, :3], 0)
    order = jax.vmap(lambda key: jax.random.permutation(key, 3))(apart[:, 1])

    def blended(images: Array, applied: Array) -> Array:
        """Applies the first three changes in their order, in those turns that are `applied`."""
        for turn in range(3):
            chosen = order[:, turn]
            factor = jnp.take_along_axis(factors, chosen[:, None], 1)[:, 0]
            factor = jnp.where(applied[:, turn], factor, 1.0)
            which = chosen[:, None, None, None]
            mean = operations.contrast_mean(images)[:, None, None, None].astype(jnp.uint8)
            flat = jnp.where(which == 1, mean, operations.grey(images))
            others = jnp.where(which == 0, jnp.uint8(0), flat)
            images = operations.blend(images, jnp.broadcast_to(others, images.shape), factor)
        return images

    if not strength[3]:
        return blended(images, jnp.ones_like(order, bool))
    # Hue, the most expensive of the four, is rotated once, between the changes before and after it.
    before = jnp.arange(3) < jax.vmap(lambda key: jax.random.randint(key, (1,), 0, 4, jnp.int32))(
        apart[:, 2]
    )
    return blended(turn_hue(blended(images, before), drawn[:, 3]), ~before)


def turn_hue(images: UInt8[Array, "n h w 3"], share: Float[Array, " n"]) -> UInt8[Array, "n h w 3"]:
    """Rotates the hue of images through Pillow's 8-bit HSV.

    Args:
      images: a batch of images.
      share: rotation of each image in full turns.
    """
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
    level = jnp.floor((rounded(sector / 6) + 1) % 1 * 255)
    greys = top == bottom
    level = (jnp.where(greys, 0, level) + jnp.trunc(255 * share)[:, None, None]) % 256
    saturation = jnp.where(greys, 0, jnp.floor(span / jnp.maximum(top, 1) * 255)) / 255
    sixths = rounded(level * (6 / 255))
    whole = jnp.floor(sixths)
    part = sixths - whole
    low, falling, rising = (
        jnp.round(top * (1 - rounded(saturation * x)))
        for x in (jnp.ones_like(part), part, 1 - part)
    )
    tops = (
        (top, falling, low, low, rising, top),
        (rising, top, top, falling, low, low),
        (low, low, rising, top, top, falling),
    )
    at = (whole % 6).astype(jnp.int32)
    turned = [jnp.select([at == i for i in range(6)], list(channel)) for channel in tops]
    return operations.truncated(jnp.stack(turned, -1))


def auto_augment(
    keys: Array,
    images: UInt8[Array, "n h w 3"],
    policy: autoaugment.Policy,
    fill: tuple[int, int, int],
) -> UInt8[Array, "n h w 3"]:
    """Applies RandAugment or TrivialAugmentWide.

    Args:
      keys: a key for each image.
      images: a batch of images.
      policy: see `flaxres.data.autoaugment.policy`.
      fill: colour of pixels that a warp takes from outside the image.
    """
    for operation, level in policy.draw(keys_for(keys, AUTO), (images.shape[1], images.shape[2])):
        images = operations.apply(images, operation, level, fill)
    return images


def rectangles(
    shape: tuple[int, int],
    top: Int[Array, " n"],
    left: Int[Array, " n"],
    height: Int[Array, " n"],
    width: Int[Array, " n"],
) -> Bool[Array, "n h w 1"]:
    """Returns the masks of one rectangle in each image of a shape."""
    y, x = jnp.arange(shape[0], dtype=jnp.int32)[:, None], jnp.arange(shape[1], dtype=jnp.int32)
    top, left, height, width = (v[:, None, None] for v in (top, left, height, width))
    return ((y >= top) & (y < top + height) & (x >= left) & (x < left + width))[..., None]


def random_erasing(
    keys: Array,
    images: Float[Array, "n h w c"],
    probability: float,
    area: tuple[float, float],
    ratio: tuple[float, float],
    fill: Fill,
) -> Float[Array, "n h w c"]:
    """Erases a random rectangle of normalised images (Zhong et al. 2020, algorithm 1).

    The first of ten attempts that fits is taken. If none fits, nothing is erased.

    Args:
      keys: a key for each image.
      images: a batch of normalised images.
      probability: probability that an image is changed; 0 returns the images.
      area: smallest and largest share of the image's area.
      ratio: smallest and largest ratio of height to width.
      fill: `zero`, which is the mean, or `noise` for normal noise.
    """
    if not probability:
        return images
    height, width = images.shape[1:3]
    apart = jax.vmap(lambda key: jax.random.split(key, 4))(keys_for(keys, ERASE))
    sizes, tops, lefts = jnp.moveaxis(uniforms(apart[:, 0], 3, ERASE_TRIES), 1, 0)
    target = height * width * (area[0] + rounded((area[1] - area[0]) * sizes))
    aspect = quantiles.draw(apart[:, 3], quantiles.log_uniform(*ratio), ERASE_TRIES)
    h = jnp.round(jnp.sqrt(target * aspect)).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(target / aspect)).astype(jnp.int32)
    fits = (h < height) & (w < width)
    top = (tops * (height - h + 1)).astype(jnp.int32)
    left = (lefts * (width - w + 1)).astype(jnp.int32)
    first = jnp.argmax(fits, 1)[:, None]
    box = [jnp.take_along_axis(value, first, 1)[:, 0] for value in (top, left, h, w)]
    chosen = fits.any(1) & (uniforms(apart[:, 1]) < probability)
    erased = rectangles((height, width), *box) & chosen[:, None, None, None]
    filling = jnp.zeros((), images.dtype)
    if fill == "noise":
        shape, dtype = images.shape[1:], images.dtype
        filling = jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(apart[:, 2])
    return jnp.where(erased, filling, images)


def cutout(keys: Array, images: Float[Array, "n h w c"], side: int) -> Float[Array, "n h w c"]:
    """Sets a square of normalised images to 0, the mean (DeVries & Taylor 2017, section 3).

    The centre of the square is any pixel, so the square may reach over the border.

    Args:
      keys: a key for each image.
      images: a batch of normalised images.
      side: side of the square in pixels; 0 returns the images.
    """
    if not side:
        return images
    height, width = images.shape[1:3]

    def pixel(key: Array) -> Array:
        return jax.random.randint(key, (2,), 0, jnp.asarray([height, width]), jnp.int32)

    centre = jax.vmap(pixel)(keys_for(keys, CUTOUT))
    top, left = centre[:, 0] - side // 2, centre[:, 1] - side // 2
    sides = jnp.full(len(images), side, jnp.int32)
    hole = rectangles((height, width), top, left, sides, sides)
    return jnp.where(hole, jnp.zeros((), images.dtype), images)


def normalise(
    images: Num[Array, "n h w 3"], mean: tuple[float, ...], std: tuple[float, ...], dtype: Dtype
) -> Float[Array, "n h w 3"]:
    """Computes `(image / 255 - mean) / std`.

    Args:
      images: uint8 or float images with values from 0 to 255.
      mean, std: mean and standard deviation of the channels of images in [0, 1].
      dtype: dtype of the result.

    Examples:
      >>> images = jnp.full((1, 1, 1, 3), 255, jnp.uint8)
      >>> normalise(images, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), jnp.float32).ravel().tolist()
      [1.0, 1.0, 1.0]
    """
    wide = jnp.promote_types(jnp.float32, dtype)
    scale = 1 / (255 * jnp.asarray(std, wide))
    offset = jnp.asarray(mean, wide) / jnp.asarray(std, wide)
    return (images.astype(wide) * scale - offset).astype(dtype)

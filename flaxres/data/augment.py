"""The device half of the input: uint8 batches -> augmented, normalised floats, inside the jitted step, keyed by the sample's position."""

import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax

# Of the channels in [0, 1], over ImageNet's training images.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def sample_keys(key: jax.Array, positions: jax.Array) -> jax.Array:
    """One key for each sample: `fold_in(key, position)`, whatever the batch or the device it falls on."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, positions)


def random_flip(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each (H, W, C) image left to right with probability 1/2."""
    flip = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 0)))(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def random_shift(keys: jax.Array, images: jax.Array, pad: int) -> jax.Array:
    """Pads each image with zeros by `pad` pixels a side and takes a random window of the old size (He et al. 2016, section 4.2)."""
    if not pad:
        return images
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    offsets = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 1), (2,), 0, 2 * pad + 1, jnp.int32))(keys)
    return jax.vmap(lambda image, at: lax.dynamic_slice(image, (at[0], at[1], jnp.int32(0)), images.shape[1:]))(padded, offsets)


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Dtype) -> jax.Array:
    """uint8 or float (N, H, W, 3) in 0 to 255 -> `(image / 255 - mean) / std` in `dtype`."""
    wide = jnp.promote_types(jnp.float32, dtype)
    scale = 1 / (255 * jnp.asarray(std, wide))
    return (images.astype(wide) * scale - jnp.asarray(mean, wide) / jnp.asarray(std, wide)).astype(dtype)

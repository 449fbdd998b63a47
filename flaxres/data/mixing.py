"""Mixup and cutmix, on the device, inside the jitted step."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from flaxres.data import quantiles
from flaxres.data.augment import MIX, keys_for, rectangles
from flaxres.data.operations import rounded, uniforms


def mix(
    keys: Array,
    images: Float[Array, "n h w c"],
    targets: Float[Array, "n k"],
    mixup: float,
    cutmix: float,
    probability: float = 1.0,
    switch: float = 0.5,
) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
    """Mixes each image and its target with those of its neighbour.

    Applies mixup (Zhang et al. 2018, section 2) or cutmix (Yun et al. 2019, section 3.2).
    Neighbours are rows 2i and 2i + 1 of the batch. The order of the batch is random already, and
    neighbours are on one device, so nothing is transferred.

    Args:
      keys: one key for the whole batch, of shape (), or a key for each image.
      images: a batch of an even number of images.
      targets: probabilities of the classes.
      mixup, cutmix: parameter of the symmetric beta distribution; 0 turns the method off.
      probability: probability that a batch, or an image, is mixed at all.
      switch: probability of cutmix if both methods are on.

    Returns:
      The mixed images and targets.

    Examples:
      >>> images = jnp.stack([jnp.zeros((4, 4, 3)), jnp.ones((4, 4, 3))])
      >>> mixed, targets = mix(jax.random.key(0), images, jnp.eye(2), mixup=0.2, cutmix=0.0)
      >>> mixed.shape, targets.sum(1).tolist()
      ((2, 4, 4, 3), [1.0, 1.0])
    """
    if not (mixup or cutmix):
        return images, targets
    height, width = images.shape[1:3]
    draws = jnp.reshape(keys, (-1,))
    apart = jax.vmap(lambda key: jax.random.split(key, 5))(keys_for(draws, MIX))
    applied = uniforms(apart[:, 0]) < probability
    cuts = applied & (uniforms(apart[:, 1]) < (switch if mixup and cutmix else float(cutmix > 0)))
    wide = jnp.promote_types(jnp.float32, images.dtype)
    shares = quantiles.beta(mixup) if mixup else np.ones(1)
    sides = np.sqrt(1 - quantiles.beta(cutmix)) if cutmix else np.zeros(1)
    share = jnp.where(applied & ~cuts, quantiles.draw(apart[:, 2], shares, dtype=wide), 1.0)
    side = quantiles.draw(apart[:, 3], sides)
    h, w = (height * side).astype(jnp.int32), (width * side).astype(jnp.int32)
    centre = uniforms(apart[:, 4], 2)
    y, x = (centre[:, 0] * height).astype(jnp.int32), (centre[:, 1] * width).astype(jnp.int32)
    box = rectangles((height, width), y - h // 2, x - w // 2, h, w)
    pasted = box & cuts[:, None, None, None]
    share = jnp.where(cuts, rounded((~pasted).mean((1, 2, 3), dtype=wide)), share)

    others = _neighbours(images)
    mixed = jnp.where(
        cuts[:, None, None, None],
        jnp.where(pasted, others, images),
        images + rounded((1 - share)[:, None, None, None] * (others - images)),
    )
    share = share[:, None]
    blended = rounded(share * targets) + rounded((1 - share) * _neighbours(targets))
    return mixed.astype(images.dtype), blended


def _neighbours(rows: Num[Array, "n ..."]) -> Num[Array, "n ..."]:
    """Returns rows 1, 0, 3, 2, ... of an even number of rows."""
    return rows.reshape(len(rows) // 2, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)

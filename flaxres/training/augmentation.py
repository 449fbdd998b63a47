"""The part of the training step that turns a uint8 batch into the network's input and targets."""

import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from flaxres.config.schema import AugmentConfig, Config, DataConfig
from flaxres.data import augment, autoaugment, mixing
from flaxres.data.order import Seed, mirrored
from flaxres.training.losses import smooth_targets
from flaxres.training.state import AUGMENT, MIX, purpose

Batch = dict[str, jax.Array]
"""`image` (N, S, S, 3) uint8, `label` (N,) int32, `position` (N,) uint32; the loader's also have
`weight` (N,) float32. With `data.multi_label`, `label` is (N, K) uint8, ones and zeros."""


def augmented(
    batch: Batch, data: DataConfig, settings: AugmentConfig, seed: Seed, size: int, dtype: Dtype
) -> Float[Array, "n h w 3"]:
    """Augments each image of a batch by itself, and normalises it.

    The random numbers of an image depend only on the seed and on its position.

    Args:
      batch: see `Batch`.
      data: gives the mean and the standard deviation.
      settings: the augmentation.
      seed: of the run.
      size: number of records of an epoch.
      dtype: of the result; float32 or wider.
    """
    images = batch["image"]
    keys = augment.sample_keys(purpose(seed, AUGMENT), batch["position"])
    images = augment.random_shift(keys, images, settings.shift)
    if settings.flip_alternates:
        images = augment.flip_where(mirrored(batch["position"], size, seed), images)
    elif settings.flip:
        images = augment.random_flip(keys, images)
    images = augment.color_jitter(keys, images, settings.color_jitter)
    if settings.auto is not None:
        policy = autoaugment.policy(settings.auto)
        # timm pads with the mean colour, torchvision with black.
        mean = round(255 * data.mean[0]), round(255 * data.mean[1]), round(255 * data.mean[2])
        fill = mean if isinstance(policy, autoaugment.RandAugment) else (0, 0, 0)
        images = augment.auto_augment(keys, images, policy, fill)
    normalised = augment.normalise(images, data.mean, data.std, dtype)
    normalised = augment.random_erasing(
        keys,
        normalised,
        settings.erase,
        settings.erase_area,
        settings.erase_ratio,
        settings.erase_fill,
    )
    return augment.cutout(keys, normalised, settings.cutout)


def inputs(
    config: Config, batch: Batch, seed: Seed, size: int, step: jax.Array, classes: int
) -> tuple[Float[Array, "n h w 3"], Float[Array, "n classes"]]:
    """Returns the network's input and the targets of a training batch.

    Args:
      config: the settings of the run.
      batch: see `Batch`.
      seed: of the run.
      size: number of records of an epoch.
      step: () int32, which seeds what is drawn once a batch.
      classes: number of classes.

    Returns:
      Images in the dtype of the computation, after mixup and cutmix, and their targets.
    """
    dtype = jnp.promote_types(jnp.float32, config.model.compute_dtype)
    settings = config.augment
    images = augmented(batch, config.data, settings, seed, size, dtype)
    if config.data.multi_label:
        targets = batch["label"].astype(images.dtype)
    else:
        smoothing = config.optim.label_smoothing
        targets = smooth_targets(batch["label"], classes, smoothing, images.dtype)
    key = purpose(seed, MIX)
    if settings.mix_per == "batch":
        keys = jax.random.fold_in(key, step)
    else:
        keys = augment.sample_keys(key, batch["position"])
    images, targets = mixing.mix(
        keys,
        images,
        targets,
        settings.mixup,
        settings.cutmix,
        settings.mix_probability,
        settings.mix_switch,
    )
    return images.astype(config.model.compute_dtype), targets

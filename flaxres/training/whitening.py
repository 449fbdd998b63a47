"""Whitening initialisation of the first convolution.

Its channels then start uncorrelated and with about equal variances, whatever the images are like.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flaxres.config.schema import DataConfig
from flaxres.data.augment import normalise
from flaxres.data.decode import CentreCrop
from flaxres.data.jobs import Job, fill
from flaxres.data.source import Source
from flaxres.errors import InputError

IMAGES, PATCHES = 2048, 64
EPSILON = 1e-2


def whitened(variables: Any, source: Source, data: DataConfig, side: int) -> Any:
    """Returns the variables with a whitening kernel of `conv1`.

    The filters are the principal directions of the patches of training images, the strongest first,
    each divided by its standard deviation, and then their negatives, because a ReLU drops one half
    of each. Channels that are left keep their values (Coates & Ng 2012, section 2.2; Jordan 2024,
    section 3.2).

    Args:
      variables: host arrays.
      source: the training split.
      data: gives the normalisation.
      side: of the images, pixels.

    Raises:
      InputError: see `require_stem`; or an image can't be decoded.
    """
    require_stem(variables, side)
    params = variables["params"]
    kernel = params["conv1"]["kernel"]
    size, _, channels, width = kernel.shape
    directions = principal_directions(patches(source, data, side, size)).astype(kernel.dtype)
    directions = directions[: max(width // 2, 1)]
    rows = np.concatenate([directions, -directions])[:width]
    filters = rows.T.reshape(size, size, channels, -1)
    whitening = np.concatenate([filters, np.asarray(kernel)[..., len(rows) :]], -1)
    conv1 = {**params["conv1"], "kernel": whitening}
    return {**variables, "params": {**params, "conv1": conv1}}


def require_stem(variables: Any, side: int) -> None:
    """Refuses a network whose first convolution can't be whitened.

    Args:
      variables: of the network, arrays or shapes.
      side: of the images, pixels.

    Raises:
      InputError: the stem is not one convolution, or the images are smaller than its kernel.
    """
    kernel = variables["params"].get("conv1", {}).get("kernel")
    if kernel is None:
        raise InputError(
            "model.stem_init='whitening': the stem is not one convolution; set model.stem='small' "
            "or 'standard', or leave it out"
        )
    if side < (size := kernel.shape[0]):
        raise InputError(
            f"model.stem_init='whitening' with images of {side} pixels: the first convolution's "
            f"kernel has {size}; take larger images"
        )


def patches(
    source: Source, data: DataConfig, side: int, size: int
) -> Float[np.ndarray, "count pixels"]:
    """Returns normalised patches of `size` x `size` x 3 pixels of some training images, float64.

    Args:
      source: the training split.
      data: gives the normalisation.
      side: of the images, pixels.
      size: of the patches, pixels.

    Raises:
      InputError: an image can't be decoded.
    """
    transform = CentreCrop(side, side, data.interpolation, data.uses_exif)
    rng = np.random.default_rng(0)
    image, chosen = np.empty((1, side, side, 3), np.uint8), []
    for record in np.linspace(0, len(source) - 1, min(len(source), IMAGES), dtype=int)[:, None]:
        job = Job(transform, record, transform.numbers(record), data.bad_images, True)
        fill(source, job, image)
        # (rows, columns, channels, size, size)
        windows = np.lib.stride_tricks.sliding_window_view(image[0], (size, size), (0, 1))
        at = rng.integers(0, windows.shape[:2], (PATCHES, 2))
        chosen.append(windows[at[:, 0], at[:, 1]].transpose(0, 2, 3, 1))
    stacked = jnp.asarray(np.concatenate(chosen))
    pixels = jax.device_get(normalise(stacked, data.mean, data.std, jnp.float32))
    return np.asarray(pixels, np.float64).reshape(len(pixels), -1)


def principal_directions(rows: Float[np.ndarray, "count n"]) -> Float[np.ndarray, "n n"]:
    """Returns the principal directions, the strongest first, divided by their deviations.

    The largest weight of each one is positive.
    """
    centred = rows - rows.mean(0)
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    directions = (vectors / np.sqrt(np.maximum(variances, 0) + EPSILON))[:, ::-1].T
    largest = directions[np.arange(len(directions)), abs(directions).argmax(1)]
    return np.asarray(directions * np.sign(largest)[:, None])

"""The first convolution as the whitening of what it reads: its channels start uncorrelated and of one size, whatever the pictures are like."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxres.config.schema import DataConfig
from flaxres.data.augment import normalise
from flaxres.data.decode import CentreCrop
from flaxres.data.jobs import Job, fill
from flaxres.data.source import Source
from flaxres.errors import InputError

PICTURES, PATCHES = 2048, 64
REGULARISED = 1e-2


def whitened(variables: Any, source: Source, data: DataConfig, side: int) -> Any:
    """The variables with the kernel of `conv1` born anew from training pictures of `side` pixels; raises InputError for a network that has none.

    The principal directions of the pictures' patches, the strongest first, each over the root of its variance, and then their negatives, of which a
    ReLU keeps the other half; channels that are left keep what they have (Coates & Ng 2012, section 2.2; Jordan 2024, section 3.2).
    """
    params = variables["params"]
    kernel = params.get("conv1", {}).get("kernel")
    if kernel is None:
        raise InputError(
            "model.stem_init='whitening': the stem is not one convolution; set model.stem='small' or 'standard', or leave it out"
        )
    size, _, channels, width = kernel.shape
    directions = principal(patches(source, data, side, size)).astype(kernel.dtype)[
        : max(width // 2, 1)
    ]
    rows = np.concatenate([directions, -directions])[:width]
    found = np.concatenate(
        [rows.T.reshape(size, size, channels, -1), np.asarray(kernel)[..., len(rows) :]], -1
    )
    return {**variables, "params": {**params, "conv1": {**params["conv1"], "kernel": found}}}


def patches(source: Source, data: DataConfig, side: int, size: int) -> np.ndarray:
    """`(count, size * size * 3)`: some patches of some training pictures of `side` pixels, normalised. Raises InputError, as the loader does."""
    if side < size:
        raise InputError(
            f"model.stem_init='whitening' with pictures of {side} pixels: the first convolution's kernel has {size}; take larger ones"
        )
    transform, rng = CentreCrop(side, side, data.interpolation), np.random.default_rng(0)
    picture, found = np.empty((1, side, side, 3), np.uint8), []
    for record in np.linspace(0, len(source) - 1, min(len(source), PICTURES), dtype=int)[:, None]:
        fill(
            source,
            Job(transform, record, transform.numbers(record), data.bad_images, True),
            picture,
        )
        every = np.lib.stride_tricks.sliding_window_view(
            picture[0], (size, size), (0, 1)
        )  # (rows, columns, channels, size, size)
        at = rng.integers(0, every.shape[:2], (PATCHES, 2))
        found.append(every[at[:, 0], at[:, 1]].transpose(0, 2, 3, 1))
    pixels = jax.device_get(
        normalise(jnp.asarray(np.concatenate(found)), data.mean, data.std, jnp.float32)
    )
    return np.asarray(pixels, np.float64).reshape(len(pixels), -1)


def principal(rows: np.ndarray) -> np.ndarray:
    """`(count, n)` -> `(n, n)`: directions, the strongest first, over the roots of their variances; each one's largest weight is positive."""
    centred = rows - rows.mean(0)
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    directions = (vectors / np.sqrt(np.maximum(variances, 0) + REGULARISED))[:, ::-1].T
    largest = directions[np.arange(len(directions)), abs(directions).argmax(1)]
    return np.asarray(directions * np.sign(largest)[:, None])

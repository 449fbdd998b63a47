"""RandAugment and TrivialAugmentWide, which draw an operation and a level for each image."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxres.data import quantiles
from flaxres.data.operations import OPERATIONS, Levels, Operations, numbered, rounded, uniforms
from flaxres.errors import InputError

RAND_OPERATIONS = OPERATIONS[1:]
TRIVIAL_OPERATIONS = tuple(name for name in OPERATIONS if name not in ("invert", "solarize_add"))
TRIVIAL_BINS = 31
# The largest magnitude of RandAugment.
TOP = 10.0

Drawn = tuple[Operations, Levels]
"""Number of each image's operation in `OPERATIONS`, and its level."""


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Some of 15 operations, all at about one magnitude (Cubuk et al. 2020, section 3).

    The form is timm's.

    Attributes:
      magnitude: 0 to 10.
      layers: number of operations of an image.
      deviation: standard deviation of the normal noise on the magnitude; infinity draws the
        magnitude uniformly from 0 to `magnitude`.
      probability: probability of each layer.
      increasing: posterize, solarize and the colour operations become stronger with the magnitude,
        as the others do.
    """

    magnitude: float = 10.0
    layers: int = 2
    deviation: float = 0.0
    probability: float = 0.5
    increasing: bool = False

    def levels(
        self, magnitude: Float[Array, " n"], sign: Float[Array, " n"], size: tuple[int, int]
    ) -> Float[Array, "n 15"]:
        """Returns the level of each of `RAND_OPERATIONS` in the unit of the operation.

        Args:
          magnitude: magnitude for each image, 0 to 10.
          sign: 1 or -1 for each image.
          size: height and width of the images in pixels.
        """
        share, height, width = magnitude / TOP, *size
        signed, none = sign * share, jnp.zeros_like(share)
        bits, threshold = jnp.floor(4 * share), jnp.floor(256 * share)
        factor = rounded(1.8 * share) + 0.1
        if self.increasing:
            bits, threshold = 4 - bits, 256 - threshold
            factor = jnp.maximum(1 + rounded(0.9 * signed), 0.1)
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

    def draw(self, keys: Array, size: tuple[int, int]) -> list[Drawn]:
        """Draws the operations of images.

        Args:
          keys: a key for each image.
          size: height and width of the images in pixels.

        Returns:
          Operations and levels of each layer.
        """
        return [self._layer(keys, size, layer) for layer in range(self.layers)]

    def _layer(self, keys: Array, size: tuple[int, int], layer: int) -> Drawn:
        """Draws the operations of one layer."""
        apart = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, layer), 4))(keys)
        choice = _integers(apart[:, 0], len(RAND_OPERATIONS))
        applied = uniforms(apart[:, 1]) < self.probability
        sign = jnp.where(uniforms(apart[:, 2]) < 0.5, -1.0, 1.0)
        if math.isinf(self.deviation):
            magnitude = self.magnitude * uniforms(apart[:, 3])
        else:
            noise = quantiles.draw(apart[:, 3], quantiles.normal())
            magnitude = self.magnitude + rounded(self.deviation * noise)
        levels = self.levels(jnp.clip(magnitude, 0, TOP), sign, size)
        level = jnp.take_along_axis(levels, choice[:, None], 1)[:, 0]
        return jnp.where(applied, numbered(RAND_OPERATIONS)[choice], 0), level


@dataclasses.dataclass(frozen=True)
class TrivialAugmentWide:
    """One of 14 operations at one of 31 strengths (Müller & Hutter 2021, section 3).

    All are equally likely. The form is torchvision's.
    """

    def draw(self, keys: Array, size: tuple[int, int]) -> list[Drawn]:
        """Draws the operations of images.

        Args:
          keys: a key for each image.
          size: ignored.

        Returns:
          Operations and levels of the only layer.
        """
        del size
        apart = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        choice = _integers(apart[:, 0], len(TRIVIAL_OPERATIONS))
        share = rounded(_integers(apart[:, 1], TRIVIAL_BINS) / jnp.float32(TRIVIAL_BINS - 1))
        signed, none = jnp.where(uniforms(apart[:, 2]) < 0.5, -share, share), jnp.zeros_like(share)
        factor = 1 + rounded(0.99 * signed)
        by_name = {
            "rotate": 135 * signed,
            "posterize": 8 - jnp.round(6 * share),
            "solarize": 255 * (1 - share),
            **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), factor),
            **dict.fromkeys(("shear_x", "shear_y"), 0.99 * signed),
            **dict.fromkeys(("translate_x", "translate_y"), jnp.trunc(32 * signed)),
        }
        levels = jnp.stack([by_name.get(name, none) for name in TRIVIAL_OPERATIONS], -1)
        level = jnp.take_along_axis(levels, choice[:, None], 1)[:, 0]
        return [(numbered(TRIVIAL_OPERATIONS)[choice], level)]


def _integers(keys: Array, end: int) -> Operations:
    """Draws an integer in [0, end) for each key."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, end, jnp.int32))(keys)


Policy = RandAugment | TrivialAugmentWide
FORM = (
    "'ta_wide', or timm's 'rand-m7-mstd0.5-inc1' (m: magnitude 0 to 10, n: layers, mstd: noise, "
    "p: probability, inc: 0 or 1)"
)


def policy(text: str) -> Policy:
    """Parses a policy.

    Args:
      text: `ta_wide`, or timm's form `rand-m7-n2-mstd0.5-p0.5-inc1`.

    Returns:
      The policy.

    Raises:
      InputError: `text` has another form, or a number is out of range.

    Examples:
      >>> policy("rand-m7-mstd0.5-inc1").magnitude
      7.0
      >>> policy("ta_wide")
      TrivialAugmentWide()
    """
    first, *parts = text.split("-")
    if text == "ta_wide":
        return TrivialAugmentWide()
    if first != "rand":
        raise InputError(f"augment.auto={text!r}: the rule is {FORM}")
    values = _parse(text, parts)
    given: dict[str, Any] = {**values}
    given["layers"] = int(values.get("layers", 2))
    given["increasing"] = bool(values.get("increasing", 0))
    built = RandAugment(**given)
    if built.deviation > 100:
        built = dataclasses.replace(built, deviation=math.inf)
    whole = values.get("layers", 2) == built.layers and values.get("increasing", 0) in (0, 1)
    within = 0 <= built.magnitude <= TOP and 0 < built.layers <= 15 and 0 <= built.probability <= 1
    if not (whole and within):
        raise InputError(f"augment.auto={text!r} is out of range; the rule is {FORM}")
    return built


def _parse(text: str, parts: list[str]) -> dict[str, float]:
    """Returns attributes of `RandAugment` from parts like `m7`; `text` is for messages."""
    names = {
        "m": "magnitude",
        "n": "layers",
        "mstd": "deviation",
        "p": "probability",
        "inc": "increasing",
    }
    values: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?|inf)", part)
        if match is None or names[match[1]] in values:
            raise InputError(
                f"augment.auto={text!r}: {part!r} is not understood; the rule is {FORM}"
            )
        values[names[match[1]]] = float(match[2])
    return values
